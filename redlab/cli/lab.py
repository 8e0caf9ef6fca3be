"""The command ``redlab lab``: JupyterLab on the notebooks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from redlab.cli.terminal import stop
from redlab.names import needs
from redlab.paths import PACKAGE, checkout, data_root

_FIRST = "00_start_here.ipynb"
# Turns off what would ask whether to fetch news, and look for a newer JupyterLab, from outside.
_CONFIG = PACKAGE / "lab" / "jupyter"


def lab(context: typer.Context) -> None:
    """Open JupyterLab on notebooks/00_start_here.ipynb.

    Without a display no browser opens: use the printed address, which only this machine can reach. Further options are
    passed to JupyterLab: redlab lab --port 9999. On a server: redlab lab --ip 0.0.0.0 (others need the printed token).
    """
    try:
        folder = checkout() / "notebooks"
    except FileNotFoundError as error:
        stop(error, code=2)
    needs("lab", "jupyterlab")
    options = [option for option in _options(folder) if not _given(option, context.args)]
    os.execve(sys.executable, [sys.executable, "-m", "jupyterlab", *options, *context.args], _surroundings())


def _options(folder: Path) -> list[str]:
    """The options of JupyterLab: where and what to open."""
    # The address that it prints holds the page too, for those who have no browser where it runs.
    page = f"/lab/tree/{_FIRST}" if (folder / _FIRST).is_file() else "/lab"
    return [
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.default_url={page}",
        *(["--allow-root"] if _is_root() else []),
        *([] if _has_display() else ["--no-browser"]),
    ]


def _surroundings() -> dict[str, str]:
    configured = [os.environ.get("JUPYTER_CONFIG_PATH"), str(_CONFIG)]
    return {
        **os.environ,
        "REDLAB_DATA": str(data_root()),  # a relative one would be resolved in notebooks/
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel is to be this Python, not the user's "python3"
        "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, configured)),
    }


def _given(option: str, words: list[str]) -> bool:
    """Whether ``words`` set it: JupyterLab refuses what is set twice."""
    name = option.split("=")[0]
    return any(word.split("=")[0] == name for word in words)


def _is_root() -> bool:
    """Whether this is root, as in a container: JupyterLab then needs --allow-root."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _has_display() -> bool:
    """Whether a browser can open a window: without one, a terminal browser might take over this terminal."""
    return not sys.platform.startswith("linux") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
