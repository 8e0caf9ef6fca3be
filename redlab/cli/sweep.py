"""``redlab sweep``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redlab.cli.group import argument, option
from redlab.cli.terminal import exits, shown, stop

if TYPE_CHECKING:
    from redlab.lab.sweeps import Swept


def sweep(
    spec: Annotated[Path, argument("SPEC.yml", "A file with the keys notebook, grid, points, seeds.")],
    jobs: Annotated[int, option("N", "Notebooks to run in parallel. They share the cores.")] = 1,
    dask: Annotated[str | None, option("ADDRESS", "Run on this Dask scheduler, such as tcp://host:8786.")] = None,
    out: Annotated[Path | None, option("FOLDER", "Where to keep run folders. Default: runs/")] = None,
    timeout: Annotated[float | None, option("SECONDS", "Time limit of each cell. Default: none.")] = None,
    plot: Annotated[tuple[str, str, str] | None, option("X Y BY", "Plot column Y over X, a line for each BY.")] = None,
    where: Annotated[list[str], option("NAME=VALUE", "Plot only the rows with this value. Repeatable.")] = [],  # noqa: B006
) -> None:
    """Run a notebook at every point of a sweep.

    Points that are done are not run again; points that failed are.

    Exit codes: 0 success. 1 a point failed, the disk is full, or the plot cannot be drawn; finished points are kept.
    2 wrong usage; nothing ran.
    """
    from redlab.lab.spec import read_spec

    with exits(1, OSError), exits(2, ValueError, TypeError, FileNotFoundError, ModuleNotFoundError):
        found = read_spec(spec)  # before pandas is imported: an error appears at once
        from redlab.lab.sweeps import run_sweep

        swept = run_sweep(found, out, jobs, dask, timeout, watched=lambda done, total: _told(done, total, found.points))
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
        with exits(1, ValueError):  # a file was damaged meanwhile
            frame = swept.frame()
        folder = swept.runs[0].folder.parent
        points = "1 point" if len(swept.runs) == 1 else f"{len(swept.runs)} points"
        typer.echo(f"{points}, {len(frame):,} rows, in {shown(folder)}; load_runs reads them")
        if plot:
            typer.echo(f"plot in {shown(_draw(frame, plot, where, folder))}")
    if swept.failures:
        stop(f"{len(swept.failures)} of {len(swept.outcomes)} points failed; the next call tries them again", 1)


def _draw(frame: Any, plot: tuple[str, str, str], where: list[str], folder: Path) -> Path:
    from redlab.studies.plots.sweeps import draw_sweep, rows_where

    with exits(1, ValueError, OSError):  # the points are done, and are kept
        return draw_sweep(rows_where(frame, where), *plot, folder)
