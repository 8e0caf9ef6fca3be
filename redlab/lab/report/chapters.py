"""The chapters of the report: one for each notebook, with its figures as they were saved, and the benchmarks."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from redlab.lab.notebooks import scrub, without_paths
from redlab.lab.parameters import command_of
from redlab.lab.refresh import private_paths
from redlab.lab.report.html import Chapter, markdown_chapter, notebook_chapter, say_left_out
from redlab.lab.report.sources import Source
from redlab.lab.report.tables import whole_frame
from redlab.lab.runs import Run, RunFailed
from redlab.studies.plots.save import read_captions

_PNG = "image/png"
# Twice the 96 pixels to the inch of a page, for the screens that have them, and colours from a palette: a tenth of the
# bytes of the file at 300 dpi, which lies beside its PDF for those who print.
_DPI, _PAGE_DPI, _SAVED_DPI, _COLOURS = 192, 96, 300, 256


def chapter_of(
    outcome: Run | RunFailed, notebooks: Path, sources: Sequence[Source], known: Collection[str] = ()
) -> Chapter:
    """A notebook as it was executed, with the command and the whole frames of its runs.

    Arguments:
        sources: its finished runs, also those with other parameters.
        known: the notebooks that have a chapter of their own.

    Raises:
        ValueError: the executed notebook of a finished run is missing or damaged.
    """
    path = notebooks / f"{outcome.name}.ipynb"
    private = private_paths(outcome.folder, notebooks.parent)
    failed = isinstance(outcome, RunFailed)
    book = _partly_executed(outcome, path) if failed else _executed(outcome)
    day = str(book.metadata.get("papermill", {}).get("end_time") or "")[:10]
    say_left_out(book)  # first, for widgets are scrubbed
    book = scrub(book, private)
    _embed_figures(book, outcome.folder)
    return replace(
        notebook_chapter(book, outcome.name, known),
        failure=_failure(outcome, path, private) if isinstance(outcome, RunFailed) else None,
        made=None if failed else {"command": sources[0].command, "day": day, "seconds": sources[0].run.seconds},
        frames=[whole_frame(frame, source) for source in sources if (frame := source.frame()) is not None],
    )


def benchmark_chapters(folder: Path) -> list[Chapter]:
    """The tables that the benchmarks left as markdown; each names its command."""
    found = sorted(folder.glob("*.md"))
    chapters = [markdown_chapter(path.read_text(encoding="utf-8"), f"benchmark.{path.stem}") for path in found]
    return [replace(chapter, title=f"Benchmark · {chapter.title}") for chapter in chapters]


def _failure(failed: RunFailed, notebook: Path, private: dict[str, str]) -> dict[str, str]:
    return {
        "message": without_paths(f"{failed.error}: {failed.message}", private).strip(),
        "cell": without_paths(failed.cell, private),
        "command": command_of(notebook, {}),
    }


def _executed(run: Run | RunFailed) -> NotebookNode:
    try:
        return nbformat.read(run.folder / "executed.ipynb", as_version=4)
    except (OSError, ValueError) as error:
        raise ValueError(f"{run.folder} is damaged ({error}): delete it, and run it again") from None


def _partly_executed(failed: Run | RunFailed, notebook: Path) -> NotebookNode:
    """The cells that were started, without what papermill adds; the first cell, where none was."""
    try:
        book = nbformat.read(failed.folder / "executed.ipynb", as_version=4)
    except (OSError, ValueError):  # no kernel started, or it was cut off while it was written
        book = nbformat.read(notebook, as_version=4)
    started = [k for k, cell in enumerate(book.cells) if cell.metadata.get("papermill", {}).get("start_time")]
    cells = book.cells[: max(started, default=0) + 1]
    book.cells = [cell for cell in cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    return book


def _embed_figures(notebook: NotebookNode, run: Path) -> None:
    """Replace the notebook's images by the figures that the run saved, each with its caption.

    Images and figures are matched by their order. Where their numbers differ, the notebook's images stay.
    """
    captions = read_captions(run)
    saving = [cell for cell in notebook.cells if "save_figure(" in cell.source]
    saved = [out for cell in saving for out in cell.get("outputs", []) if _PNG in out.get("data", {})]
    if len(saved) != len(captions):
        return
    for output, (name, words) in zip(saved, captions.items(), strict=True):
        figure = run / "figures" / f"{name}.png"
        about: dict[str, Any] = {"alt": words, "caption": f"figures/{figure.name}"}
        if figure.is_file():
            output.data[_PNG], size = _shrunk(figure)
            about |= size
        output.metadata[_PNG] = {**output.metadata.get(_PNG, {}), **about}


def _shrunk(figure: Path) -> tuple[str, dict[str, int]]:
    """A figure in base64, small enough to be mailed, and the size that the page shows it in."""
    from PIL import Image

    with Image.open(figure) as image:
        dpi = float(image.info.get("dpi", (_SAVED_DPI,))[0])
        inches = [side / dpi for side in image.size]
        small = image.convert("RGB").resize([max(1, round(side * _DPI)) for side in inches], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.quantize(_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "PNG")
    size = dict(zip(("width", "height"), (round(side * _PAGE_DPI) for side in inches), strict=True))
    return base64.b64encode(buffer.getvalue()).decode(), size
