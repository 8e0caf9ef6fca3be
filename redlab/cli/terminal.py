"""What the commands say on a terminal, and how they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import typer


def say(text: str = "", end: str = "\n") -> None:
    """Print. After a reader such as ``| head`` has closed the pipe, the work continues in silence."""
    try:
        typer.echo(f"{text}{end}", nl=False)
    except BrokenPipeError:
        drop_output()


def drop_output() -> None:
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


def shown(path: Path) -> str:
    """``path`` from here where it lies below, absolute otherwise."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def check_writable(folder: Path) -> None:
    """Refuse a folder that could not be made, or not be written to, before work begins.

    Raises:
        OSError: with the reason.
    """
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{folder} can't be made: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} can't be written: {above} may not be changed by you")
