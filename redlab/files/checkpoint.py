"""Checkpoints, opened without ever running code from them: one file, or several that an index names."""

from __future__ import annotations

import json
import re
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from redlab.files.entries import BESIDE, NESTED, OPTIMIZERS, WEIGHT, Entry, Listing
from redlab.files.file_kinds import INDEX, READS, SAFETENSORS, SHARDED, damaged, foreign_kind, kind_of, refuse
from redlab.files.pickled import list_pickled
from redlab.files.sections import is_training

# torch's types by the names that safetensors gives them: F32 is float32.
_DTYPES = {
    f"{letter}{bits}": getattr(torch, f"{kind}{bits}")
    for letter, kind in (("F", "float"), ("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
    if hasattr(torch, f"{kind}{bits}")
}
_DTYPES |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu}
_DTYPES |= {"BF16": torch.bfloat16, "C64": torch.complex64, "BOOL": torch.bool}


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
    """Copy ``weights`` into ``network``, strictly: every name and shape must agree. Tied tensors may be there once.

    Raises:
        ValueError: names or shapes disagree; the message names ``source``, and the tensors that are missing, unexpected
            or of another shape.
    """
    state: Any = OrderedDict(weights)
    held = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items() if name in weights}
    state |= {
        name: weights[held[id(tensor)]]
        for name, tensor in network.state_dict(keep_vars=True).items()
        if name not in weights and id(tensor) in held
    }
    # Some architectures (MNASNet) refuse weights without a version. A file without one counts as current.
    version = getattr(network, "_version", None)
    state._metadata = getattr(weights, "_metadata", {"": {"version": version}})
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        why = _misfits(network, state) or error
        raise ValueError(f"the tensors of {source} do not fit {type(network).__name__}: {why}") from error


def _misfits(network: nn.Module, weights: dict[str, Tensor]) -> str:
    """What of ``weights`` does not fit, the first of each kind by name; "" if names and shapes agree."""
    own = {name: tensor for name, tensor in network.state_dict().items() if isinstance(tensor, Tensor)}
    shapes = [
        f"{name} {tuple(weights[name].shape)} in place of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    kinds = {"missing": [*(own.keys() - weights)], "unexpected": [*(weights.keys() - own)], "of another shape": shapes}
    return "; ".join(f"{len(names)} {kind}: {_some(sorted(names))}" for kind, names in kinds.items() if names)


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def list_checkpoint(path: str | Path) -> Listing:
    """The tensors of a checkpoint, none of them read yet, and what else is in it.

    Arguments:
        path: a file of safetensors or of ``torch.save``, whatever its name; the index of a sharded one
            (``model.safetensors.index.json``), or the folder that holds it.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: the file is of another kind, damaged or wants to run code; a folder has no index; a shard is missing
            or lacks a tensor of the index. The message says where, and what to do.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    if path.is_dir():
        path = _index_in(path)
    if not path.is_file():
        refuse(path, f"is no file: name a checkpoint ({READS})")
    return _sharded(path) if kind_of(path) == SHARDED else _list_file(path)


def warn_left_out(path: str | Path, left_out: dict[str, str]) -> None:
    """Say in one warning what was left out of a checkpoint, the first three by name."""
    if not left_out:
        return
    named = ", ".join(f"{name} ({what})" for name, what in list(left_out.items())[:3])
    more = f" and {len(left_out) - 3} others" if len(left_out) > 3 else ""
    warnings.warn(f"{path}: left out {named}{more}; nothing in it was executed", stacklevel=3)


def groups_beside(entries: list[Entry]) -> dict[str, str]:
    """How many tensors do not belong to the network, and their bytes, by the first of the keys that lead to them."""
    groups: dict[str, list[int]] = {}
    for entry in entries:
        if entry.role == BESIDE:
            groups.setdefault(entry.name.partition(".")[0], []).append(entry.nbytes)
    return {name: f"{len(held):,} tensors of {sum(held):,} bytes, no weights" for name, held in groups.items()}


def _list_file(path: Path) -> Listing:
    kind = kind_of(path)
    if kind == SHARDED:
        refuse(path, "is an index, which no other index may name")
    return Listing(_list_safetensors(path)) if kind == SAFETENSORS else list_pickled(path, kind)


def _list_safetensors(path: Path) -> list[Entry]:
    """The library checks the file; its header (8 bytes of length, then JSON) says where each tensor begins."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        refuse(path, damaged(error))
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    found = [_safetensor(path, name, about, 8 + length) for name, about in header.items() if name != "__metadata__"]
    if not found:
        refuse(path, "holds no tensors: save a state_dict() in it")
    return sorted(found, key=lambda entry: _natural(entry.name))


def _safetensor(path: Path, name: str, about: dict, start: int) -> Entry:
    kind, shape, begin = about["dtype"], tuple(about["shape"]), about["data_offsets"][0]
    if kind not in _DTYPES:
        return Entry(name, shape, kind, path, skipped=f"{kind}: torch has no such elements")
    entry = Entry(name, shape, _DTYPES[kind], path, start + begin)
    # Its name is all that such a file says of a tensor's purpose.
    return replace(entry, role=BESIDE, skipped=OPTIMIZERS) if is_training(name) else entry


def _natural(name: str) -> list[tuple[int, str]]:
    """layers.2 before layers.10."""
    return [(int(word), "") if word.isdecimal() else (0, word) for word in re.split(r"([0-9]+)", name)]


def _index_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.index.json"))
    if folder / INDEX in found:
        return folder / INDEX
    if len(found) == 1:
        return found[0]
    files = found or sorted(path for path in folder.iterdir() if path.is_file() and not foreign_kind(path))
    named = f"one of its files ({', '.join(path.name for path in files[:4])})" if files else "a file"
    refuse(folder, f"is a folder {'of several indices' if found else f'without {INDEX}'}: name {named} instead")


def _sharded(index: Path) -> Listing:
    """The tensors of all files that an index names; what a file holds beyond the index is listed as well."""
    places = _read_index(index)
    shards = [_list_file(index.parent / name) for name in dict.fromkeys(places.values())]
    entries = [entry for shard in shards for entry in shard.entries]
    held = {(entry.name, entry.file.name) for entry in entries}
    if lost := [place for place in places.items() if place not in held]:
        (name, file), many = lost[0], f"({len(lost)} in all)"
        refuse(index, f"promises {name!r} in {file}, which has no such tensor {many}: download both again")
    return Listing(entries, {name: what for shard in shards for name, what in shard.left_out.items()})


def _read_index(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        refuse(index, f"is truncated or no JSON ({error}): download it again")
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        refuse(index, 'is no index: it has no "weight_map" of tensors and the files that hold them')
    for file in dict.fromkeys(places.values()):
        if Path(file).name != file:
            refuse(index, f"names {file!r}: shards lie beside their index")
        if not (index.parent / file).is_file():
            refuse(index, f"names {file}, which is not beside it: download that file as well")
    return places
