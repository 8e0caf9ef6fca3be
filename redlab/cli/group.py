"""What all commands have in common: how Ctrl-C ends them, and how their help calls arguments."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from redlab.cli.terminal import stop

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


class Commands(TyperGroup):
    """The group of all commands."""

    def invoke(self, ctx: Any) -> Any:
        """Whatever command is interrupted by Ctrl-C says so in a word, when it has cleared up behind it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:  # what we say goes to a file on a full disk, say
            stop(error, 1)


class PlainCommand(TyperCommand):
    """A command whose arguments are called by their names in its help: typer adds types, such as ``<list[str]>``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for param in self.params:
            if param.param_type_name == "argument":
                vars(param)["display_type_rich"] = lambda ctx: ""
        super().format_options(ctx, formatter)
