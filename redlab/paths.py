"""Where things lie: the checkout, the data root, and the networks that ship."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path:
    """The folder that holds ``notebooks/``, ``figures/`` and ``data/``: this package's checkout.

    Installed as a wheel there is none, and the current folder or the nearest parent that holds ``notebooks/`` is taken.

    Raises:
        FileNotFoundError: where neither exists.
    """
    here = Path.cwd()
    for folder in (PACKAGE.parent, here, *here.parents):
        if (folder / "notebooks").is_dir():
            return folder
    raise FileNotFoundError("no folder `notebooks` here or above: run this inside a checkout of redlab")


def data_root() -> Path:
    """Where downloaded networks and data lie: ``$REDLAB_DATA``, by default ``data/cache`` of the checkout."""
    if root := os.environ.get("REDLAB_DATA"):
        return Path(root).expanduser().resolve()
    return PACKAGE.parent / "data" / "cache" if (PACKAGE.parent / "data").is_dir() else Path.cwd() / "data" / "cache"


def shipped(name: str) -> Path:
    """The path of a shipped file such as ``digits/resnet.safetensors``, in the checkout or in the installed package."""
    in_checkout = PACKAGE.parent / "data" / name
    return in_checkout if in_checkout.exists() else PACKAGE / "data" / name
