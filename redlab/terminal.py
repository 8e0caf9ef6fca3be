"""What the commands say on a terminal, and how they end."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import typer


def stop(message: object, code: int) -> NoReturn:
    """End the command: a message on stderr, and this exit code (1: something failed, 2: wrong usage)."""
    typer.echo(f"redlab: {message}", err=True)
    raise typer.Exit(code)


def shown(path: Path) -> str:
    """``path`` from here where it lies below, absolute otherwise."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
