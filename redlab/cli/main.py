"""The command line. Whatever takes long to import is imported by the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redlab.cli.completion import complete_commands, complete_notebooks
from redlab.cli.compress import compress
from redlab.cli.export import export
from redlab.cli.inspect import inspect
from redlab.cli.lab import lab
from redlab.cli.report import report
from redlab.cli.sweep import sweep
from redlab.cli.terminal import Commands, PlainCommand, argument, jobs_of, option, run_each, stop, stop_if_failed

if TYPE_CHECKING:
    from redlab.lab.runs import Run

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich alone would take half of the time that --help has
)
Names = Annotated[list[str], argument("NOTEBOOK", "Number, name or part of a name. Default: all.", complete_notebooks)]


class _PairsCommand(PlainCommand):
    """A command whose option -p takes two words, NAME VALUE, any number of times; typer has no such option."""

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
    parameter: Annotated[list[str], option("NAME VALUE", "Set a parameter. Repeatable.", "-p", "--parameter")] = [],  # noqa: B006
    out: Annotated[Path | None, option("FOLDER", "Where to keep run folders. Default: runs/")] = None,
    quick: Annotated[bool, option(None, "Take seconds instead of minutes (-p quick true).", "--quick")] = False,
    again: Annotated[bool, option(None, "Run even what was run before.", "--again")] = False,
) -> None:
    """Run notebooks, except those that were run before.

    With default parameters the figures go to figures/, otherwise to the run's folder. If a notebook fails, the others
    still run.

    Exit codes: 0 success. 1 a notebook failed, or the disk is full; finished runs are kept. 2 wrong usage; nothing ran.
    """
    from redlab.lab.parameters import typed_parameters
    from redlab.lab.runs import run_notebook

    given = [*parameter, "quick=true"] if quick else parameter
    jobs = jobs_of(notebooks, lambda path: typed_parameters(path, given))
    stop_if_failed(run_each(jobs, lambda path, params, bar: run_notebook(path, params, out, again=again, progress=bar)))


@app.command(cls=PlainCommand)
def refresh(
    notebooks: Names = [],  # noqa: B006
    check: Annotated[bool, option(None, "Write nothing. Exit code 1 if outputs differ.", "--check")] = False,
) -> None:
    """Run notebooks and save them with their outputs.

    Parameters have their defaults. Times, widget state and local paths are removed, so that a diff shows new results
    only. With --check, cells tagged unstable (live training) are compared by the shape of their outputs.
    """
    from redlab.lab.parameters import default_parameters
    from redlab.lab.refresh import check_outputs, refresh

    lines: list[str] = []

    def run_one(path: Path, params: dict, bar: bool) -> Run:
        if not check:
            return refresh(path, progress=bar)
        run, changed = check_outputs(path, progress=bar)
        lines.extend(f"  {path.stem}, {line}" for line in changed)
        return run

    stop_if_failed(run_each(jobs_of(notebooks, default_parameters), run_one))
    if lines:
        stop("\n".join(["outputs differ from the committed notebooks", *lines]), code=1)


for command in (sweep, report, compress, export, inspect):
    app.command(cls=PlainCommand)(command)
app.command(cls=PlainCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(lab)


@app.command("help", cls=PlainCommand)
def show_help(
    context: typer.Context,
    command: Annotated[str | None, argument("COMMAND", "Default: the list of commands.", complete_commands)] = None,
) -> None:
    """Show the help of a command, as --help does."""
    above: Any = context.parent
    if command is None:
        return typer.echo(above.get_help())
    if (found := above.command.get_command(above, command)) is None:
        from redlab.names import unknown

        stop(unknown("command", command, above.command.list_commands(above)), code=2)
    typer.echo(found.get_help(type(above)(found, info_name=command, parent=above)))
