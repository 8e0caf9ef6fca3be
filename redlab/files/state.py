"""States: the progress of a long computation in one file. After a kill, the same call continues from it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redlab.files.atomic import replace_file


def write_state(path: str | Path, call: Mapping[str, Any], state: dict) -> None:
    """Write ``state`` and the ``call`` that it belongs to. A process that is killed here leaves the old file whole.

    Arguments:
        path: made with its parents, replaced where it exists.
        call: the arguments that the result depends on, by name.
        state: tensors, numbers and text in dicts and lists; opening it executes nothing.

    Raises:
        OSError: it could not be written (a full disk, say); what was there is unchanged.
    """
    buffer = BytesIO()  # torch.save says RuntimeError of a full disk
    torch.save({"call": _plain(call), "state": state}, buffer)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())


def read_state(path: str | Path, call: Mapping[str, Any]) -> dict | None:
    """What ``write_state`` wrote for the same ``call``, its tensors on the CPU; None where there is no such file.

    Raises:
        ValueError: it belongs to another call (the message says what differs), is damaged, or is another file.
        OSError: it cannot be read.
    """
    if not Path(path).exists():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd protocols, TorchScript, tensors for dicts: our own error follows
            content = torch.load(path, map_location="cpu", weights_only=True)
            found, state = _plain(content["call"]), dict(content["state"])
    except OSError:
        raise
    except Exception as error:  # whatever unpickling makes of a file that is truncated or not ours
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged or no state of ours ({what}): delete it, or name another file") from error
    here = _plain(call)
    different = [key for key in {**found, **here} if found.get(key) != here.get(key)]
    if different:
        pairs = ", ".join(f"{key} is {found.get(key)!r} there and {here.get(key)!r} here" for key in different)
        raise ValueError(
            f"{path} is the state of another call: {pairs}. Ask for the same, name another file, or delete it"
        )
    return state


def _plain(call: Mapping[str, Any]) -> dict:
    """As JSON returns it: numpy's numbers become Python's, tuples become lists, anything else becomes its text."""
    return json.loads(json.dumps(dict(call), default=repr))


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by its name, shared ones once; detached, in the network's own memory."""
    return {name: tensor.detach() for name, tensor in [*network.named_parameters(), *network.named_buffers()]}


@torch.no_grad()
def assign(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the parameters and buffers of ``network``, in place, the values of ``tensors``, those of ``tensors_of``."""
    for name, tensor in tensors_of(network).items():
        tensor.copy_(tensors[name])
