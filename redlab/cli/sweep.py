"""``redlab sweep``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redlab.cli.terminal import shown, stop

if TYPE_CHECKING:
    from redlab.lab.sweeps import Swept


def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yml", help="Keys: notebook, grid, points, seeds.")],
    jobs: Annotated[
        int, typer.Option(metavar="N", help="Notebooks side by side; the cores are divided among them.")
    ] = 1,
    dask: Annotated[str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, tcp://host:8786.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where run folders are kept; default: runs/")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Seconds that a cell may take; default: any time.")
    ] = None,
    plot: Annotated[
        tuple[str, str, str] | None, typer.Option(metavar="X Y BY", help="Draw column Y over X, a line for each BY.")
    ] = None,
    where: Annotated[
        list[str], typer.Option(metavar="NAME=VALUE", help="Draw only rows that have it; repeatable.")
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Execute a notebook at every point of a sweep.

    What was done before is not done again; points that failed are tried again. Exit codes: 0 done, 1 some point failed,
    the disk is full or the plot can't be drawn (what is done stays done), 2 wrong usage, and nothing was executed.
    """
    from redlab.lab.spec import read_spec

    try:
        found = read_spec(spec)  # before pandas is imported: what is wrong is said at once
        from redlab.lab.sweeps import run_sweep

        swept = run_sweep(found, out, jobs, dask, timeout, watched=lambda done, total: _told(done, total, found.points))
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError) as error:
        stop(error, 2)
    except OSError as error:
        stop(error, 1)
    _finish(swept, plot, where)


def _told(done: Iterable, total: int, points: tuple[dict[str, Any], ...]) -> Iterator:
    """The outcomes as they come, behind a bar on a terminal, with a line for each elsewhere."""
    from redlab.lab.runs import Run
    from redlab.lab.spec import describe
    from redlab.progress import progress

    live = sys.stderr.isatty()
    for count, (number, outcome) in enumerate(progress(done, "points", total), 1):
        how = f"FAILED, {outcome.error}" if not isinstance(outcome, Run) else f"done in {outcome.seconds:.1f} s"
        how = "was done before" if getattr(outcome, "cached", False) else how
        if not live:
            typer.echo(f"[{count}/{total}] {describe(points[number])}: {how}")
        yield number, outcome


def _finish(swept: Swept, plot: tuple[str, str, str] | None, where: list[str]) -> None:
    from redlab.lab.runs import RunFailed
    from redlab.lab.spec import describe

    for point, failed in zip(swept.spec.points, swept.outcomes, strict=True):
        if isinstance(failed, RunFailed):
            message = (failed.message.strip().splitlines() or [""])[0]
            typer.echo(f"  {failed.name}: {failed.error}: {message} ({describe(point)})", err=True)
            typer.echo(f"    {shown(failed.notebook)}", err=True)
    if swept.runs:
        frame = _frame(swept)
        folder = swept.runs[0].folder.parent
        points = "1 point" if len(swept.runs) == 1 else f"{len(swept.runs)} points"
        typer.echo(f"{points}, {len(frame):,} rows, in {shown(folder)}; load_runs reads them")
        if plot:
            typer.echo(f"plot in {shown(_draw(frame, plot, where, folder))}")
    if swept.failures:
        stop(f"{len(swept.failures)} of {len(swept.outcomes)} points failed; the next call tries them again", 1)


def _frame(swept: Swept) -> Any:
    try:
        return swept.frame()
    except ValueError as error:  # a file was damaged since
        stop(error, 1)


def _draw(frame: Any, plot: tuple[str, str, str], where: list[str], folder: Path) -> Path:
    from redlab.studies.plots.sweeps import draw_sweep, rows_where

    try:
        return draw_sweep(rows_where(frame, where), *plot, folder)
    except (ValueError, OSError) as error:
        stop(error, 1)  # the points ran, and stay
