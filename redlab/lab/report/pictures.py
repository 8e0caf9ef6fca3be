"""The figures of a run in its notebook: sharper than the pictures that the kernel drew, and said in words."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlab.studies.plots.save import read_captions

if TYPE_CHECKING:
    from nbformat import NotebookNode

_PNG = "image/png"
# Twice the 96 pixels to the inch of a page, for the screens that have them, and colours from a palette: a tenth of the
# bytes of the file at 300 dpi, which lies beside its PDF for those who print.
_DPI, _PAGE_DPI, _SAVED_DPI, _COLOURS = 192, 96, 300, 256


def embed_figures(notebook: NotebookNode, run: Path) -> int:
    """Put the figures that a run saved in place of the notebook's pictures of them, each with its words; returns how
    many pictures the notebook shows.

    Pictures and figures are matched by their order. Where that does not come out even the kernel's pictures stay.
    """
    pictures = list(_pictures(notebook))
    captions = read_captions(run)
    saved = [output for cell, output in pictures if "save_figure(" in cell.source]
    if len(saved) == len(captions):
        for output, (name, words) in zip(saved, captions.items(), strict=True):
            _embed(output, run / "figures" / f"{name}.png", words)
    return len(pictures)


def _pictures(notebook: NotebookNode) -> Iterator[tuple[NotebookNode, NotebookNode]]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if _PNG in output.get("data", {}):
                yield cell, output


def _embed(output: NotebookNode, figure: Path, words: str) -> None:
    about: dict[str, Any] = {"alt": words, "caption": f"figures/{figure.name}"}
    if figure.is_file():
        output.data[_PNG], size = _shrunk(figure)
        about |= size
    output.metadata[_PNG] = {**output.metadata.get(_PNG, {}), **about}


def _shrunk(figure: Path) -> tuple[str, dict[str, int]]:
    """A figure in base64, small enough to be mailed, and the size that the page shows it in."""
    from PIL import Image

    with Image.open(figure) as picture:
        dpi = float(picture.info.get("dpi", (_SAVED_DPI,))[0])
        inches = [side / dpi for side in picture.size]
        small = picture.convert("RGB").resize([max(1, round(side * _DPI)) for side in inches], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.quantize(_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "PNG")
    size = dict(zip(("width", "height"), (round(side * _PAGE_DPI) for side in inches), strict=True))
    return base64.b64encode(buffer.getvalue()).decode(), size
