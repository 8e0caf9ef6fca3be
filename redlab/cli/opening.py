"""Networks as the commands take them: what to call and how to open them, checked before torch is loaded."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from redlab.zoo.names import FACTS, folder_of, kind_of_name

if TYPE_CHECKING:
    from torch import nn

    from redlab.zoo.datasets import ImageArray
    from redlab.zoo.image_folder import ImageFolder


def called(network: str) -> str:
    """What to call the folder after: the last part of the name; net-Net for net.py:Net."""
    return Path(network).resolve().name.replace(".py:", "-").replace(":", "-")


def check_network(network: str, build: str | None, weights: Path | None, command: str) -> None:
    """Refuse a network that can't be opened, before torch is loaded."""
    if weights is not None and not weights.expanduser().is_file():
        raise FileNotFoundError(f"--weights: there is no file {weights}")
    folder = folder_of(network)
    if build is not None:
        folder_of(build)
    elif folder is not None and (code := code_of_folder(folder)):
        call = shlex.join(["redlab", command, network, "--build", code])
        raise ValueError(f"{network} was built by code, which runs only if you name it: {call}")


def code_of_folder(folder: Path) -> str:
    """What --build has to name to open a saved network; "" where it opens by itself, or is damaged, as loading says."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        named = json.loads((folder / FACTS).read_text(encoding="utf-8"))["recipe"]["architecture"]
        if named is None:
            return "FILE.py:NAME"
        if isinstance(named, str) and kind_of_name(named) in ("file", "module", "hf"):
            return named
    return ""


def note_example(network: nn.Module, images: ImageArray | ImageFolder | None) -> None:
    """Let the first image say what the network takes, where nothing else does; ValueError where that is not known."""
    from redlab.network.example import fit_example, remember_example
    from redlab.network.samples import example_of

    remember_example(network, example_of(network, None, images))
    fit_example(network, None)
