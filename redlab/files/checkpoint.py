"""Files of weights, opened without ever running code from them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from redlab.files.entries import NESTED, WEIGHT, Entry
from redlab.files.tensors import groups_beside, list_checkpoint, warn_left_out


class Weights(OrderedDict):
    """Tensors by name, as ``load_state_dict`` takes them.

    Attributes:
        left_out: the other items of the checkpoint, by name: what each is, or why it was not read.
    """

    left_out: dict[str, str]


def read_checkpoint(path: str | Path) -> Weights:
    """The network's tensors in a checkpoint, by name, on the CPU; nothing in it is ever executed.

    The first bytes of a file decide its kind, not its name. From a file of ``torch.save`` the network's part is taken:
    what is under ``"state_dict"``, ``"model"`` or the like, else under the only key with tensors that are not an
    optimizer's. The prefix ``module.`` of DataParallel is removed if every name has it. PyTorch's version metadata
    stays on the dict, as ``load_state_dict`` expects. Items that are no tensors or cannot be read (an
    argparse.Namespace, numpy's numbers, a sparse or expanded tensor) are left out with a warning.

    Arguments:
        path: a file of safetensors or of ``torch.save``; the index of a sharded one, or the folder that holds it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, truncated or damaged; it holds only code, which is named and not run;
            it holds no tensors by name, or those of several networks.

    Example:
        >>> from redlab.paths import shipped
        >>> weights = read_checkpoint(shipped("digits/mlp.safetensors"))
        >>> weights["classifier.weight"].shape, weights.left_out
        (torch.Size([10, 128]), {})
    """
    listing = list_checkpoint(path)
    found = Weights(
        (entry.name, entry.read()) for entry in listing.entries if entry.role == WEIGHT and not entry.skipped
    )
    unread = {entry.name: entry.skipped for entry in listing.entries if entry.role == WEIGHT and entry.skipped}
    nested = [entry for entry in listing.entries if entry.role == NESTED]
    if not found:
        raise ValueError(f"{path} {_why_nothing(unread, nested)}")
    left_out = listing.left_out | unread | {entry.name: "a tensor deeper in dicts and lists" for entry in nested}
    warn_left_out(path, left_out)
    found.left_out = left_out | groups_beside(listing.entries)
    if listing.versions is not None:
        found._metadata = listing.versions  # type: ignore[attr-defined]
    return found


def _why_nothing(unread: dict[str, str], nested: list[Entry]) -> str:
    if unread:
        name, why = next(iter(unread.items()))
        return f"holds no tensors by name that can be read: {name!r} is {why}"
    groups = list(dict.fromkeys(entry.name.partition(".")[0] for entry in nested))
    named = ", ".join(map(repr, groups[:4]))
    return f"holds no tensors by name, but deeper, in {named}: save one state_dict() alone"


def load_weights(network: nn.Module, weights: dict[str, Tensor], source: str = "the checkpoint") -> None:
    """Copy ``weights`` into ``network``, strictly: every name and shape must agree.

    Raises:
        ValueError: names or shapes disagree; the message names ``source`` and the tensors.
    """
    state: Any = OrderedDict(weights)
    # Some architectures (MNASNet) refuse weights without a version. A file without one counts as current.
    version = getattr(network, "_version", None)
    state._metadata = getattr(weights, "_metadata", {"": {"version": version}})
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the tensors of {source} do not fit {type(network).__name__}: {error}") from error
