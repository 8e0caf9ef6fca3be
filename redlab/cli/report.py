"""``redlab report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from redlab.cli.group import option
from redlab.cli.terminal import exits, shown, stop

if TYPE_CHECKING:
    from redlab.lab.runs import Run, RunFailed


def report(
    out: Annotated[Path | None, option("FILE", "The page to write. Default: runs/report.html")] = None,
    jobs: Annotated[int, option("N", "Notebooks to run in parallel. They share the cores.")] = 1,
) -> None:
    """Write all notebooks, figures and tables into one HTML page.

    Notebooks that were not run yet run first, with default parameters; their figures go to figures/. The page opens
    without a network.

    Exit codes: 0 success. 1 a notebook failed (the page says which, and shows the others), or the page could not be
    written (an older page stays). 2 wrong usage; nothing ran.
    """
    from redlab.cli.runs import listed, run_each
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
        stop(listed(failures, len(outcomes)), 1)


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
