"""The command line. Whatever takes long to import is imported by the command that needs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redlab.cli.completion import complete_commands, complete_notebooks
from redlab.cli.compress import compress
from redlab.cli.group import Commands, PlainCommand
from redlab.cli.inspect import inspect
from redlab.cli.lab import lab
from redlab.cli.report import report
from redlab.cli.sweep import sweep
from redlab.cli.terminal import stop

if TYPE_CHECKING:
    from redlab.lab.runs import Run

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich alone would take half of the time that --help has
)
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="NOTEBOOK", help="Number, name or part of it; default: all.", autocompletion=complete_notebooks
    ),
]


class _PairsCommand(PlainCommand):
    """A command whose option -p takes two words, NAME VALUE, any number of times: typer itself knows no such option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _join_pairs(args))


def _join_pairs(args: list[str]) -> list[str]:
    """``-p NAME VALUE`` as ``-p NAME=VALUE``; what has the equals sign already stays."""
    joined, rest = [], list(args)
    while rest:
        word = rest.pop(0)
        joined.append(word)
        if word == "--":
            return joined + rest
        if word in ("-p", "--parameter") and rest:
            name = rest.pop(0)
            joined.append(f"{name}={rest.pop(0)}" if rest and "=" not in name else name)
    return joined


def _version(asked: bool) -> None:
    if asked:
        from redlab import __version__

        typer.echo(f"redlab {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """See, measure and use the redundancy inside trained networks."""


@app.command(cls=_PairsCommand)
def run(
    notebooks: Names = [],  # noqa: B006  typer copies it
    parameter: Annotated[
        list[str], typer.Option("-p", "--parameter", metavar="NAME VALUE", help="Set a parameter; repeatable.")
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where run folders are kept; default: runs/")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes: -p quick true.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Execute also what was done before.")] = False,
) -> None:
    """Execute notebooks, unless done before.

    With default parameters their figures land in figures/, otherwise in the run's own folder. A notebook that fails
    does not stop the others. Exit codes: 0 done, 1 some notebook failed or the disk is full (what is done stays done),
    2 wrong usage, and nothing was executed.
    """
    from redlab.lab.parameters import typed_parameters
    from redlab.lab.runs import run_notebook

    given = [*parameter, "quick=true"] if quick else parameter
    jobs = [(path, _checked(typed_parameters, path, given)) for path in _found(notebooks)]
    _run_all(jobs, lambda path, params, bar: run_notebook(path, params, out, again=again, progress=bar))


@app.command(cls=PlainCommand)
def refresh(
    notebooks: Names = [],  # noqa: B006
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 where outputs differ.")] = False,
) -> None:
    """Execute notebooks and write them back with outputs.

    Default parameters; times, widget state and paths of this machine are left out, so that a diff is a new result.
    With --check, cells that train in front of the reader (tagged unstable) are compared by the shape of their outputs.
    """
    from redlab.lab.parameters import default_parameters
    from redlab.lab.refresh import check_outputs, refresh

    jobs = [(path, _checked(default_parameters, path)) for path in _found(notebooks)]
    if not check:
        return _run_all(jobs, lambda path, params, bar: refresh(path, progress=bar))
    changed: dict[str, list[str]] = {}

    def compare(path: Path, params: dict, bar: bool) -> Run:
        run, changed[path.stem] = check_outputs(path, progress=bar)
        return run

    _run_all(jobs, compare)
    lines = [f"  {name}, {line}" for name, own in changed.items() for line in own]
    if lines:
        stop("\n".join(["outputs differ from the committed ones", *lines]), code=1)


for command in (sweep, report, compress, inspect):
    app.command(cls=PlainCommand)(command)
app.command(cls=PlainCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(lab)


@app.command("help", cls=PlainCommand)
def show_help(
    context: typer.Context,
    command: Annotated[
        str | None,
        typer.Argument(metavar="COMMAND", help="Its name; default: what there is.", autocompletion=complete_commands),
    ] = None,
) -> None:
    """Say how a command is used: the same as --help."""
    above: Any = context.parent
    if command is None:
        return typer.echo(above.get_help())
    if (found := above.command.get_command(above, command)) is None:
        from redlab.names import unknown

        stop(unknown("command", command, above.command.list_commands(above)), code=2)
    typer.echo(found.get_help(type(above)(found, info_name=command, parent=above)))


def _checked(function: Callable, *args: Any) -> Any:
    """Call ``function``; what it refuses is a wrong use of the command line: its message, and exit code 2."""
    try:
        return function(*args)
    except (ValueError, TypeError, FileNotFoundError) as error:
        stop(error, code=2)


def _found(names: list[str]) -> list[Path]:
    from redlab.lab.notebooks import find_notebook, list_notebooks

    wanted = names or _checked(list_notebooks)
    if not wanted:
        stop("there are no notebooks here", code=2)
    # dict: a notebook named twice is run once
    return list(dict.fromkeys(_checked(find_notebook, name) for name in wanted))


def _run_all(jobs: list[tuple[Path, dict]], run_one: Callable[[Path, dict, bool], Run]) -> None:
    """Run each job, and end with the list of failures and exit code 1 if there are any."""
    from redlab.cli.runs import run_each, told
    from redlab.lab.runs import RunFailed

    try:
        outcomes = run_each(jobs, run_one)
    except OSError as error:
        stop(error, code=1)
    if failures := [outcome for outcome in outcomes if isinstance(outcome, RunFailed)]:
        stop(told(failures, len(jobs)), code=1)
