"""A figure as a PDF whose bytes do not depend on the processor that computed what it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_pdf import PdfFile, PdfPages, Verbatim, pdfRepr
from matplotlib.figure import Figure

# Matplotlib writes ten decimals. Sums in another order differ in the thirteenth digit, and among 60,000 coordinates a
# few then round the other way. Five digits are 0.01 of a point, finer than any printer, and 1e5 times further from it.
_DIGITS = 5
_NUMBER = re.compile(rb"-?\d+\.\d+")


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
