"""``redlab sweep``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from redlab.cli.terminal import argument, exits, how, option, shown, stop_if_failed

if TYPE_CHECKING:
    from redlab.lab.runs import Run


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
    from redlab.lab.runs import Run
    from redlab.lab.sweeps import describe, read_spec, run_sweep

    with exits(1, OSError), exits(2, ValueError, TypeError, FileNotFoundError, ModuleNotFoundError):
        found = read_spec(spec)
        points = [describe(point) for point in found.points]
        outcomes = run_sweep(found, lambda done: _told(done, points), out, jobs, dask, timeout)
    if runs := [own for own in outcomes if isinstance(own, Run)]:
        _finish(runs, plot, where)
    stop_if_failed(outcomes, "points", [f" ({point})" for point in points])


def _told(done: Iterable, points: list[str]) -> Iterator:
    """The outcomes as they come, behind a bar on a terminal, with a line for each elsewhere."""
    from redlab.progress import progress

    live = sys.stderr.isatty()
    for count, (number, outcome) in enumerate(progress(done, "points", len(points)), 1):
        if not live:
            typer.echo(f"[{count}/{len(points)}] {points[number]}: {how(outcome)}")
        yield number, outcome


def _finish(runs: list[Run], plot: tuple[str, str, str] | None, where: list[str]) -> None:
    """Say where the results are, and plot them; if a file was damaged meanwhile, the points are done, and are kept."""
    from redlab.lab.results import join_runs

    with exits(1, ValueError, OSError):
        frame, folder = join_runs(runs), runs[0].folder.parent
        points = "1 point" if len(runs) == 1 else f"{len(runs)} points"
        typer.echo(f"{points}, {len(frame):,} rows, in {shown(folder)}; load_runs reads them")
        if plot:
            from redlab.studies.plots.sweeps import draw_sweep, rows_where

            typer.echo(f"plot in {shown(draw_sweep(rows_where(frame, where), *plot, folder))}")
