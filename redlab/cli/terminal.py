"""What all commands have in common: how they say what they take, run notebooks, report, and end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from redlab.lab.runs import Run, RunFailed

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


def option(metavar: str | None, text: str, *names: str, complete: Callable | None = None) -> Any:
    """An option with the word for its value, its help, and what the Tab key offers; named after its argument."""
    return typer.Option(*names, metavar=metavar, help=text, autocompletion=complete)


def argument(metavar: str, text: str, complete: Callable | None = None) -> Any:
    """An argument, as ``option``."""
    return typer.Argument(metavar=metavar, help=text, autocompletion=complete)


class Commands(TyperGroup):
    """The group of all commands."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; a message that could not be written (a full disk, say) ends it with exit code 1."""
        try:
            return super().main(*args, **options)
        except OSError as error:
            _drop_output()
            typer.echo(f"redlab: {error}", err=True)
            sys.exit(1)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C ends it with one word, after it has cleaned up."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except ModuleNotFoundError as error:  # an extra that is not installed
            stop(error, 2)


class PlainCommand(TyperCommand):
    """A command whose help shows the names of its arguments; typer adds types, such as ``<list[str]>``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for param in self.params:
            if param.param_type_name == "argument":
                vars(param)["display_type_rich"] = lambda ctx: ""
        super().format_options(ctx, formatter)


def say(text: str = "", end: str = "\n") -> None:
    """Print. After a reader such as ``| head`` has closed the pipe, the work continues in silence."""
    try:
        typer.echo(f"{text}{end}", nl=False)
    except BrokenPipeError:
        _drop_output()


def _drop_output() -> None:
    """Send what is still to be printed to nowhere: Python would try again at its end, and fail with a traceback."""
    with suppress(OSError, ValueError):  # a stand-in for stdout has no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stop(message: object, code: int) -> NoReturn:
    """End the command: a message on stderr, and this exit code (1: something failed, 2: wrong usage)."""
    if isinstance(message, BrokenPipeError):  # the reader has closed the pipe: no message
        raise message
    typer.echo(f"redlab: {message}", err=True)
    raise typer.Exit(code)


@contextmanager
def exits(code: int, *errors: type[Exception]) -> Iterator[None]:
    """What is raised inside becomes its message and this exit code."""
    try:
        yield
    except typer.Exit:  # a RuntimeError, too
        raise
    except errors as error:
        stop(error, code)


@contextmanager
def timed(title: str) -> Iterator[None]:
    """A line with the title of what happens inside, and at its end how long that took."""
    live, start = sys.stderr.isatty(), time.perf_counter()
    say("" if live else f"{title}: ", end="")  # a live bar takes the line until the step is done
    yield
    say((f"{title}: " if live else "") + f"done in {time.perf_counter() - start:.1f} s")


def shown(path: Path) -> str:
    """``path`` from here where it lies below, absolute otherwise."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def jobs_of(names: Sequence[str], params_of: Callable[[Path], dict]) -> list[tuple[Path, dict[str, Any]]]:
    """The notebooks of these names, or all, each once, with their parameters; wrong usage ends the command."""
    from redlab.lab.notebooks import find_notebook, list_notebooks

    with exits(2, ValueError, TypeError, FileNotFoundError):
        paths = dict.fromkeys(find_notebook(name) for name in names or list_notebooks())
        jobs = [(path, params_of(path)) for path in paths]
    return jobs or stop("there are no notebooks here", 2)


def run_each(
    jobs: Sequence[tuple[Path, dict[str, Any]]], run_one: Callable[[Path, dict, bool], Run], at_once: int = 1
) -> list[Run | RunFailed]:
    """Run each job, a notebook with its parameters, and print a line for each. A failure does not stop the others.

    What a job could not write, to a full disk say, ends the command with exit code 1; the jobs before it are whole.

    Arguments:
        run_one: of a notebook, its parameters, and whether a bar over its cells may be shown.
        at_once: jobs side by side.
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
        typer.echo(("" if first else title) + how(outcome) + ("" if isinstance(outcome, RunFailed) else _left(outcome)))
        return number, outcome

    calls = [(number, *job) for number, job in enumerate(jobs)]
    with exits(1, OSError, ValueError), closing(map_unordered(attempt, calls, at_once, None)) as done:
        return [outcome for _, outcome in sorted(done, key=lambda each: each[0])]


def how(outcome: Run | RunFailed) -> str:
    """Whether a notebook ran to its end, in words."""
    from redlab.lab.runs import RunFailed

    if isinstance(outcome, RunFailed):
        return f"FAILED, {outcome.error}"
    return "was done before" if outcome.cached else f"done in {outcome.seconds:.1f} s"


def _left(run: Run) -> str:
    """What a finished run has left, and where."""
    count, results = len(run.figures), run.folder / "results.parquet"
    where = f"{count} figure{'s' if count != 1 else ''} in {shown(run.published or run.folder / 'figures')}"
    where = where if count else "no figures"
    return f"; {where}; " + (f"results in {shown(results)}" if results.is_file() else "no results")


def stop_if_failed(outcomes: Sequence[Run | RunFailed], what: str = "notebooks", notes: Sequence[str] = ()) -> None:
    """If any failed, list them with the reasons and where to look, and end with exit code 1.

    Arguments:
        what: they are.
        notes: of each of them what to say beside the reason.
    """
    from redlab.lab.runs import RunFailed

    lines = []
    for failed, note in zip_longest(outcomes, notes, fillvalue=""):
        if isinstance(failed, RunFailed):
            message = (failed.message.strip().splitlines() or [""])[0]
            lines.append(f"  {failed.name}: {failed.error}: {message}{note}\n    {shown(failed.notebook)}")
    if lines:
        head = f"{len(lines)} of {len(outcomes)} {what} failed; the next call tries them again"
        stop("\n".join([head, *lines]), 1)
