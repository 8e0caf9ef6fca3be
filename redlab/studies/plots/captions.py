"""What pictures show, in words: kept beside the figures of a run, for those who cannot see them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FILE = "captions.json"
_MOST = 8  # panels, or lines of a legend, that are named


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
