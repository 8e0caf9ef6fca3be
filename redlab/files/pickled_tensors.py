"""The tensors of a file of ``torch.save``, listed without reading them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from redlab.files.entries import BESIDE, NESTED, OPTIMIZERS, WEIGHT, Entry, Listing, span_of
from redlab.files.file_kinds import damaged
from redlab.files.outlines import Outline
from redlab.files.pickled import Pickled, read_pickled, wants_to_run
from redlab.files.sections import Item, network_of, walk

_PREFIX = "module."
_EXPANDED = "expanded:"
_LONGEST = 2**63  # bytes: no offset in a file is larger


def list_pickled(path: Path, kind: str) -> Listing:
    """The tensors of a file that ``torch.save`` wrote, in its order, whatever dicts and lists they are nested in.

    If a ``"state_dict"``, ``"model"`` or the like holds the network, its tensors come first, by their own names. All
    others (an optimizer's, for example) follow as skipped ones. The prefix ``module.`` of DataParallel is removed if
    every name of the network has it.

    Raises:
        ValueError: the file is truncated or no checkpoint; it wants to run code, which is named and not run; none of
            its tensors can be read.
        OSError: it cannot be read.
    """
    file = read_pickled(path, kind)
    try:
        found = _listing(path, file)
    except (ValueError, OverflowError, RecursionError) as error:  # a key of 10^5 digits, an offset beyond any file
        raise ValueError(f"{path} {damaged(error)}") from error
    if why := _why_useless(file, found):
        raise ValueError(f"{path} {why}")
    return found


def _why_useless(file: Pickled, found: Listing) -> str:
    own = [entry for entry in found.entries if entry.role != BESIDE]
    expanded = [entry for entry in own if entry.skipped.startswith(_EXPANDED)]
    if expanded and all(entry.skipped for entry in own):
        return f"holds no tensor that can be read: {expanded[0].name!r} is {expanded[0].skipped}"
    if own:
        return ""
    if file.names and found.left_out:
        return wants_to_run(sorted(file.names))
    kind = "dict" if isinstance(file.content, dict) else type(file.content).__name__
    held = "tensors of an optimizer alone" if found.entries else f"no tensors but a {kind}"
    return f"holds {held}: save a state_dict() in it"


def _listing(path: Path, file: Pickled) -> Listing:
    network, around = network_of(file.content)
    own, odd = _apart(walk(network))
    others, also_odd = _apart(walk(file.content, besides=network) if around else ())
    prefix = _PREFIX if all(item.name.startswith(_PREFIX) for item in own) else ""
    entries = [_entry(path, file, item, item.name.removeprefix(prefix)) for item in own]
    entries = _sharing(entries, [item.value for item in own])
    why = f"outside of the file's {around!r}"
    entries += [replace(_entry(path, file, item, item.name), role=BESIDE, skipped=why) for item in others]
    left = {item.name or "all": item.value.name for item in [*odd, *also_odd]}
    return Listing(entries, _plain(network) | left, _versions(network, prefix if own else ""))


def _apart(items: Iterable[Item]) -> tuple[list[Item], list[Item]]:
    """The tensors, and the odd objects."""
    every = list(items)
    tensors = [item for item in every if isinstance(item.value, Outline)]
    return tensors, [item for item in every if not isinstance(item.value, Outline)]


def _plain(network: Any) -> dict[str, str]:
    """Numbers and text among the tensors of a state dict, by their types."""
    if not isinstance(network, dict) or not any(isinstance(value, Outline) for value in network.values()):
        return {}
    plain = (str, int, float, bool, bytes, type(None))
    return {str(name): type(value).__name__ for name, value in network.items() if isinstance(value, plain)}


def _versions(network: Any, prefix: str) -> dict[str, Any] | None:
    """A state dict lists its modules without the last dot: "module.conv1", and "module" for the network itself."""
    versions = getattr(network, "versions", None)
    if not prefix or versions is None:
        return versions
    return OrderedDict((f"{name}.".removeprefix(prefix)[:-1], about) for name, about in versions.items() if name)


def _entry(path: Path, file: Pickled, item: Item, name: str) -> Entry:
    tensor, shown = item.value, item.name or "tensor"
    role = BESIDE if item.training else WEIGHT if item.direct else NESTED
    why = _why_unread(tensor, shown) or (OPTIMIZERS if item.training else "")
    entry = Entry(name or shown, tensor.shape, tensor.dtype, path, skipped=why, role=role, swapped=file.swapped)
    if tensor.storage is None:
        return entry
    begin = file.places[tensor.storage.key] + tensor.offset * tensor.dtype.itemsize
    return replace(entry, offset=begin, stride=tensor.stride)


def _why_unread(tensor: Outline, name: str) -> str:
    """Why a tensor cannot be read; a ValueError where it reaches beyond its storage, as in damaged files alone."""
    if tensor.why or tensor.storage is None:
        return tensor.why
    each, storage = tensor.dtype.itemsize, tensor.storage
    stored = storage.size * storage.dtype.itemsize
    begin = (tensor.offset - storage.shift) * each
    end = begin + span_of(tensor.shape, tensor.stride) * each
    if end > stored or begin < 0 or end >= _LONGEST:
        raise ValueError(f"{name!r} ends {end:,} bytes into a storage of {stored:,}: download or save it again")
    # A few bytes can declare a tensor of 10^9 elements by a stride of 0.
    if (claimed := each * math.prod(tensor.shape)) > stored:
        shown = " x ".join(map(str, tensor.shape))[:60]
        held = f"its storage holds {stored:,}"
        return f"{_EXPANDED} {shown} elements claim {claimed:,} bytes, {held}; save a clone() of it"
    return ""


def _sharing(entries: list[Entry], tensors: list[Outline]) -> list[Entry]:
    """The entries of ``tensors``, each with the first one before it whose bytes it shares."""
    found = []
    seen: dict[str, list[tuple[int, int, str]]] = {}  # by the key of a storage: begin, end, name
    for entry, tensor in zip(entries, tensors, strict=True):
        owner = ""
        if tensor.storage is not None and entry.size and not entry.skipped:
            others = seen.setdefault(tensor.storage.key, [])
            begin = tensor.offset * tensor.dtype.itemsize
            end = begin + span_of(tensor.shape, tensor.stride) * tensor.dtype.itemsize
            owner = next((name for first, last, name in others if begin < last and first < end), "")
            others.append((begin, end, entry.name))
        found.append(replace(entry, shares=owner))
    return found
