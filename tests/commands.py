"""The command line as tests call it."""

from __future__ import annotations

from typer.testing import CliRunner

from redlab.cli.main import app


def redlab_says(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command."""
    result = CliRunner().invoke(app, list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
