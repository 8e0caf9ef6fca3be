"""How commands execute notebooks one after the other, and say how it went."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from redlab.terminal import shown

if TYPE_CHECKING:
    from redlab.runs import Run, RunFailed


def run_each(
    jobs: Sequence[tuple[Path, dict[str, Any]]], run_one: Callable[[Path, dict, bool], Run]
) -> list[Run | RunFailed]:
    """Run each job, a notebook with its parameters, and go on where one fails; a line for each.

    Raises:
        OSError: what a job wrote could not be written; those before it are whole.
    """
    from redlab.runs import RunFailed

    outcomes: list[Run | RunFailed] = []
    for number, (path, params) in enumerate(jobs, 1):
        title = f"[{number}/{len(jobs)}] {path.stem}"
        live = sys.stderr.isatty()  # a live bar takes the line until the result does
        typer.echo("" if live else f"{title}: ", nl=False)
        try:
            outcomes.append(run_one(path, params, live))
        except RunFailed as failed:
            outcomes.append(failed)
        except OSError:  # a full disk, say: the next one would fare no better
            typer.echo((f"{title}: " if live else "") + "stopped")
            raise
        typer.echo((f"{title}: " if live else "") + _outcome(outcomes[-1]))
    return outcomes


def _outcome(run: Run | RunFailed) -> str:
    from redlab.runs import RunFailed

    if isinstance(run, RunFailed):
        return f"FAILED, {run.error}"
    how = "was done before" if run.cached else f"done in {run.seconds:.1f} s"
    count = len(run.figures)
    where = shown(run.published or run.folder / "figures")
    figures = f"{count} figure{'s' if count != 1 else ''} in {where}" if count else "no figures"
    results = run.folder / "results.parquet"
    return f"{how}; {figures}; " + (f"results in {shown(results)}" if results.is_file() else "no results")


def told(failures: Sequence[RunFailed], total: int) -> str:
    """Which of ``total`` notebooks failed, why, and where to look."""
    lines = [f"{len(failures)} of {total} notebooks failed; the next call tries them again"]
    for failed in failures:
        message = failed.message.strip().splitlines() or [""]
        lines.append(f"  {failed.name}: {failed.error}: {message[0]}")
        lines.append(f"    {shown(failed.notebook)}")
    return "\n".join(lines)
