"""``redlab report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from redlab.cli.terminal import exits, jobs_of, option, run_each, shown, stop, stop_if_failed

if TYPE_CHECKING:
    from redlab.lab.runs import Run


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
    from redlab.lab.parameters import default_parameters
    from redlab.lab.runs import run_notebook
    from redlab.lab.workers import check_engine, threads_each
    from redlab.paths import checkout

    with exits(2, FileNotFoundError, ValueError):
        check_engine(jobs, None)
        page = out or checkout() / "runs" / "report.html"
    if page.is_dir():
        stop(f"{page} is a folder: name a file in it", 2)

    def execute(path: Path, _: dict, bar: bool) -> Run:
        return run_notebook(path, progress=bar, threads=threads_each(jobs))

    outcomes = run_each(jobs_of([], default_parameters), execute, jobs)
    with exits(1, ValueError):  # a file of a run was damaged
        from redlab.lab.report.page import write_report

        try:
            write_report(outcomes, page)
        except OSError as error:
            stop(f"{shown(page)} could not be written, an older page stays as it was: {error}", 1)
    typer.echo(f"report in {shown(page.resolve())}, {page.stat().st_size / 1e6:.1f} MB: open it in a browser")
    stop_if_failed(outcomes)
