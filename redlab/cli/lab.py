"""The command ``redlab lab``: JupyterLab on the notebooks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from redlab.cli.terminal import exits
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
    with exits(2, FileNotFoundError):
        folder = checkout() / "notebooks"
    needs("lab", "jupyterlab")
    given = {word.split("=")[0] for word in context.args}  # JupyterLab refuses what is set twice
    options = [option for option in _options(folder) if option.split("=")[0] not in given]
    configured = [os.environ.get("JUPYTER_CONFIG_PATH"), str(_CONFIG)]
    environment = {
        **os.environ,
        "REDLAB_DATA": str(data_root()),  # a relative one would be resolved in notebooks/
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel is to be this Python, not the user's "python3"
        "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, configured)),
    }
    os.execve(sys.executable, [sys.executable, "-m", "jupyterlab", *options, *context.args], environment)


def _options(folder: Path) -> list[str]:
    """The options of JupyterLab: where and what to open."""
    # The address that it prints holds the page too, for those who have no browser where it runs.
    page = f"/lab/tree/{_FIRST}" if (folder / _FIRST).is_file() else "/lab"
    options = [f"--ServerApp.root_dir={folder}", f"--LabApp.default_url={page}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # root, as in a container
        options.append("--allow-root")
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        options.append("--no-browser")  # without a display, one for the terminal might take it over
    return options
