"""A figure written to files: PNG, PDF, and in words for those who cannot see it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_pdf import PdfFile, PdfPages, Verbatim, pdfRepr
from matplotlib.figure import Figure

from redlab.paths import checkout
from redlab.studies.plots.style import style

_FILE = "captions.json"
_MOST = 8  # panels, or lines of a legend, that are named


# Matplotlib writes ten decimals. Sums in another order differ in the thirteenth digit, and among 60,000 coordinates a
# few then round the other way. Five digits are 0.01 of a point, finer than any printer, and 1e5 times further from it.
_DIGITS = 5
_NUMBER = re.compile(rb"-?\d+\.\d+")


def save_figure(figure: Figure, name: str, folder: Path | None = None) -> None:
    """Write ``figure`` as NAME.png (300 dpi) and NAME.pdf: to the run's folder under a runner, else to ``figures/``.

    The same figure gives the same bytes again, on any processor: no dates are stored, and a PDF's coordinates have five
    digits. A runner's folder also gets what it shows in words.

    Arguments:
        folder: where to, instead.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import matplotlib.pyplot as plt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(plt.figure(), "empty", Path(folder))
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['empty.pdf', 'empty.png']
    """
    out = os.environ.get("REDLAB_OUT") if folder is None else None
    folder = folder or (Path(out) / "figures" if out else checkout() / "figures")
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(folder / f"{name}.png", dpi=300, metadata={"Software": None})
        write_pdf(figure, folder / f"{name}.pdf", dpi=100)
    if out:
        keep_caption(Path(out), name, figure)


def describe(figure: Figure) -> str:
    """A figure's titles, what its axes show, and what its legend names, in a sentence each."""
    axes = [ax for ax in figure.axes if ax.get_visible()]
    legends = [*figure.legends, *filter(None, (ax.get_legend() for ax in axes))]
    said = [
        _joined([figure.get_suptitle()]),
        _joined(ax.get_title() for ax in axes),
        _joined((ax.get_xlabel() for ax in axes), "Across: "),
        _joined((ax.get_ylabel() for ax in axes), "Up: "),
        _joined((text.get_text() for legend in legends for text in legend.get_texts()), "Legend: "),
    ]
    return " ".join(sentence for sentence in said if sentence)


def _joined(texts: Iterable[str], what: str = "") -> str:
    named = list(dict.fromkeys(_plain(text) for text in texts if _plain(text)))
    more = f" and {len(named) - _MOST} more" if len(named) > _MOST else ""
    return f"{what}{'; '.join(named[:_MOST])}{more}." if named else ""


def _plain(text: str) -> str:
    """Without line breaks, and formulas without their marks."""
    return " ".join(re.sub(r"[$\\{}]", "", text).split()).rstrip(".")


def keep_caption(run: Path, name: str, figure: Figure) -> None:
    """Note in the run's folder what ``figure``, saved as ``name``, shows; in the order in which figures are saved."""
    captions = {**read_captions(run), name: describe(figure)}
    (run / _FILE).write_text(
        json.dumps(captions, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def read_captions(run: Path) -> dict[str, str]:
    """The captions of a run's figures by name, in the order in which they were saved; {} where it saved none."""
    path = run / _FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_pdf(figure: Figure, path: Path, dpi: float) -> None:
    """Write ``figure`` to ``path``, no date in it, coordinates of five significant digits.

    Arguments:
        dpi: of what is drawn as pixels.
    """
    without: dict[str, Any] = dict.fromkeys(("CreationDate", "Creator", "Producer"))
    with PdfPages(path) as pages:
        pages._file = _RoundedPdf(path, metadata=without)  # what it would make itself at the first page
        figure.savefig(pages, format="pdf", dpi=dpi)


class _RoundedPdf(PdfFile):
    """Of all that is written, coordinates and paths are rounded; texts are not."""

    def output(self, *data: Any) -> None:
        super().output(*(_rounded(item) for item in data))


def _rounded(item: Any) -> Any:
    if isinstance(item, Verbatim):  # the text of a path
        return Verbatim(_NUMBER.sub(lambda match: pdfRepr(_round(float(match[0]))), pdfRepr(item)))
    return _round(float(item)) if isinstance(item, float | np.floating) else item


def _round(number: float) -> float:
    """To five digits, at most eight of them decimals: what is 0 but for its last digits is 0, and never -0."""
    return round(float(f"{number:.{_DIGITS}g}"), 8) + 0.0
