"""How commands run notebooks and report the outcome."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from redlab.cli.terminal import shown

if TYPE_CHECKING:
    from redlab.lab.runs import Run, RunFailed


def run_each(
    jobs: Sequence[tuple[Path, dict[str, Any]]], run_one: Callable[[Path, dict, bool], Run], at_once: int = 1
) -> list[Run | RunFailed]:
    """Run each job, a notebook with its parameters, and print a line for each. A failure does not stop the others.

    Arguments:
        run_one: of a notebook, its parameters, and whether a bar over its cells may be shown.
        at_once: jobs side by side.

    Raises:
        OSError: what a job wrote could not be written; those before it are whole.
    """
    from redlab.lab.runs import RunFailed
    from redlab.lab.workers import map_unordered

    live = sys.stderr.isatty() and at_once == 1  # a live bar takes the line until the result does
    first = at_once == 1 and not live  # whether the title stands there before the result does

    def attempt(number: int, path: Path, params: dict[str, Any]) -> tuple[int, Run | RunFailed]:
        title = f"[{number + 1}/{len(jobs)}] {path.stem}: "
        typer.echo(title if first else "", nl=False)
        try:
            outcome: Run | RunFailed = run_one(path, params, live)
        except RunFailed as failed:
            outcome = failed
        except OSError:  # a full disk, say: the next one would fail too
            typer.echo(("" if first else title) + "stopped")
            raise
        typer.echo(("" if first else title) + _outcome(outcome))
        return number, outcome

    calls = [(number, *job) for number, job in enumerate(jobs)]
    with closing(map_unordered(attempt, calls, at_once, None)) as done:
        outcomes = dict(done)
    return [outcomes[number] for number in range(len(jobs))]


def _outcome(run: Run | RunFailed) -> str:
    from redlab.lab.runs import RunFailed

    if isinstance(run, RunFailed):
        return f"FAILED, {run.error}"
    how = "was done before" if run.cached else f"done in {run.seconds:.1f} s"
    count = len(run.figures)
    where = shown(run.published or run.folder / "figures")
    figures = f"{count} figure{'s' if count != 1 else ''} in {where}" if count else "no figures"
    results = run.folder / "results.parquet"
    return f"{how}; {figures}; " + (f"results in {shown(results)}" if results.is_file() else "no results")


def listed(failures: Sequence[RunFailed], total: int) -> str:
    """Which of ``total`` notebooks failed, why, and where to look."""
    lines = [f"{len(failures)} of {total} notebooks failed; the next call tries them again"]
    for failed in failures:
        message = failed.message.strip().splitlines() or [""]
        lines.append(f"  {failed.name}: {failed.error}: {message[0]}")
        lines.append(f"    {shown(failed.notebook)}")
    return "\n".join(lines)
