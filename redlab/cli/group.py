"""What all commands have in common: how they end early, and how their help names arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from redlab.cli.terminal import drop_output, stop

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
            drop_output()
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
