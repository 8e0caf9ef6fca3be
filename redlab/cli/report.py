"""``redlab report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from redlab.cli.terminal import exits, shown, stop

if TYPE_CHECKING:
    from redlab.lab.runs import Run, RunFailed


def report(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page to write; default: runs/report.html")
    ] = None,
    jobs: Annotated[
        int, typer.Option(metavar="N", help="Notebooks side by side; the cores are divided among them.")
    ] = 1,
) -> None:
    """Write all notebooks, their figures and tables into one HTML page.

    Notebooks that were not executed yet are executed first, with default parameters; their figures land in figures/.
    The page needs no network. Exit codes: 0 done, 1 some notebook failed (the page says so, the others are in it) or
    the page could not be written (an older one is left whole), 2 wrong usage, and nothing was executed.
    """
    from redlab.cli.runs import run_each, told
    from redlab.lab.runs import RunFailed, run_notebook
    from redlab.lab.workers import threads_each

    folder, page = _checked(out, jobs)
    paths = _notebooks(folder)

    def execute(path: Path, _: dict, bar: bool) -> Run:
        return run_notebook(path, progress=bar, threads=threads_each(jobs))

    with exits(1, OSError, ValueError):
        outcomes = run_each([(path, {}) for path in paths], execute, jobs)
    _write(outcomes, page)
    if failures := [outcome for outcome in outcomes if isinstance(outcome, RunFailed)]:
        stop(told(failures, len(outcomes)), 1)


def _checked(out: Path | None, jobs: int) -> tuple[Path, Path]:
    """The folder of the notebooks, and the file to write; wrong usage ends here."""
    from redlab.lab.workers import check_engine
    from redlab.paths import checkout

    with exits(2, FileNotFoundError, ValueError):
        check_engine(jobs, None)
        folder = checkout() / "notebooks"
    if out is not None and out.is_dir():
        stop(f"{out} is a folder: name a file in it", 2)
    return folder, out or folder.parent / "runs" / "report.html"


def _notebooks(folder: Path) -> list[Path]:
    from redlab.lab.notebooks import list_notebooks
    from redlab.lab.parameters import default_parameters

    paths = [folder / f"{name}.ipynb" for name in list_notebooks(folder)]
    if not paths:
        stop("there are no notebooks here", 2)
    with exits(2, ValueError):
        for path in paths:
            default_parameters(path)
    return paths


def _write(outcomes: list[Run | RunFailed], page: Path) -> None:
    from redlab.lab.report.page import write_report

    with exits(1, ValueError):  # a file of a run was damaged
        try:
            write_report(outcomes, page)
        except OSError as error:
            stop(f"{shown(page)} could not be written, an older page stays as it was: {error}", 1)
    typer.echo(f"report in {shown(page.resolve())}, {page.stat().st_size / 1e6:.1f} MB: open it in a browser")
