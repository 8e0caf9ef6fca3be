"""Files of ``torch.save``: their tensors, listed without reading one.

PyTorch's format since 1.6 is a zip archive with a record for each storage. The format before that is five pickles in a
row, then the storages one after the other.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from redlab.files.entries import BESIDE, OPTIMIZERS, Entry, Listing, Storage
from redlab.files.file_kinds import PICKLED, damaged, refuse
from redlab.files.sections import Item, network_of, walk
from redlab.files.unpickler import PLAIN, Unpickler

_PREFIX = "module."
_EXPANDED = "expanded:"
_LONGEST = 2**63  # bytes: no offset in a file is larger
_MAGIC = 0x1950A86A20F9469CFC6C
_ALONE = "save the tensors of its state_dict() alone"
# No honest checkpoint names one of these.
_HARM = {"os", "posix", "nt", "sys", "subprocess", "pty", "shutil", "socket", "importlib", "runpy", "ctypes"}
_HARM |= {f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__", "breakpoint")}
_HARM |= {"io.open", "_io.open"}


class _Pickled(NamedTuple):
    """What a file holds: dicts, lists, numbers, an ``Entry`` for a tensor, a ``StandIn`` for another object."""

    content: Any
    places: dict[str, int]  # where the storages begin, in bytes, by their keys
    swapped: bool = False  # whether the file has the other byte order than this machine


def list_pickled(path: Path, kind: str) -> Listing:
    """The tensors of a file that ``torch.save`` wrote, in its order, whatever dicts and lists they are nested in.

    If a ``"state_dict"``, ``"model"`` or the like holds the network, its tensors come first, by their own names. All
    others (an optimizer's, for example) follow as skipped ones. The prefix ``module.`` of DataParallel is removed if
    every name of the network has it.

    Arguments:
        kind: the answer of ``kind_of``.

    Raises:
        ValueError: the file is truncated, damaged or another pickle; it names a function that could only do harm, or
            is of no use without code of others (neither is ever run); none of its tensors can be read. The message
            says what to do.
        OSError: it cannot be read.
    """
    names: set[str] = set()  # the functions and classes that it names, beyond those of plain tensors
    found, why = None, f"is a pickle that torch.save did not write: {_ALONE}, with torch.save or safetensors"
    try:
        if file := _legacy(path, names) if kind == PICKLED else _zipped(path, names):
            found = _listing(path, file)
            why = _why_useless(file.content, names, found)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file raises nearly anything: KeyError, EOFError, OSError, MemoryError
        why = damaged(error)
    if harm := sorted(name for name in names if name in _HARM or name.partition(".")[0] in _HARM):
        why = _wants_to_run(harm)
    if found is None or why:
        refuse(path, why)
    return found


def _why_useless(content: Any, names: set[str], found: Listing) -> str:
    own = [entry for entry in found.entries if entry.role != BESIDE]
    expanded = [entry for entry in own if entry.skipped.startswith(_EXPANDED)]
    if expanded and all(entry.skipped for entry in own):
        return f"holds no tensor that can be read: {expanded[0].name!r} is {expanded[0].skipped}"
    if own:
        return ""
    if names and found.left_out:
        return _wants_to_run(sorted(names))
    kind = "dict" if isinstance(content, dict) else type(content).__name__
    held = "tensors of an optimizer alone" if found.entries else f"no tensors but a {kind}"
    return f"holds {held}: save a state_dict() in it"


def _listing(path: Path, file: _Pickled) -> Listing:
    network, around = network_of(file.content)
    inside = list(walk(network))
    outside = list(walk(file.content, besides=network)) if around else []
    own, others = ([item for item in items if isinstance(item.value, Entry)] for items in (inside, outside))
    prefix = _PREFIX if all(item.name.startswith(_PREFIX) for item in own) else ""
    entries = _sharing([_entry(path, file, item, item.name.removeprefix(prefix)) for item in own])
    why = f"outside of the file's {around!r}"
    entries += [replace(_entry(path, file, item, item.name), role=BESIDE, skipped=why) for item in others]
    left = {item.name or "all": item.value.name for item in inside + outside if not isinstance(item.value, Entry)}
    return Listing(entries, _plain(network) | left, _versions(network, prefix if own else ""))


def _plain(network: Any) -> dict[str, str]:
    """Numbers and text among the tensors of a state dict, by their types."""
    if not isinstance(network, dict) or not any(isinstance(value, Entry) for value in network.values()):
        return {}
    return {str(name): type(value).__name__ for name, value in network.items() if isinstance(value, PLAIN)}


def _versions(network: Any, prefix: str) -> dict[str, Any] | None:
    """A state dict lists its modules without the last dot: "module.conv1", and "module" for the network itself."""
    versions = getattr(network, "versions", None)
    if not prefix or versions is None:
        return versions
    return OrderedDict((f"{name}.".removeprefix(prefix)[:-1], about) for name, about in versions.items() if name)


def _entry(path: Path, file: _Pickled, item: Item, name: str) -> Entry:
    """The tensor of ``item`` by its name and by its place in the file."""
    tensor, shown = item.value, item.name or "tensor"
    why = _why_unread(tensor, shown) or (OPTIMIZERS if item.role == BESIDE else "")
    entry = replace(tensor, name=name or shown, file=path, skipped=why, role=item.role, swapped=file.swapped)
    if (storage := tensor.storage) is None:
        return entry
    begin = file.places[storage.key] + storage.shift * storage.dtype.itemsize
    return replace(entry, offset=begin + tensor.offset)


def _why_unread(tensor: Entry, name: str) -> str:
    """Why a tensor cannot be read; a ValueError where it reaches beyond its storage, as in damaged files alone."""
    if tensor.skipped or tensor.storage is None:
        return tensor.skipped
    stored = tensor.storage.nbytes
    if tensor.end > stored or tensor.end >= _LONGEST:
        raise ValueError(f"{name!r} ends {tensor.end:,} bytes into a storage of {stored:,}: download or save it again")
    # A few bytes can declare a tensor of 10^9 elements by a stride of 0.
    if tensor.nbytes > stored:
        shown = " x ".join(map(str, tensor.shape))[:60]
        held = f"its storage holds {stored:,}"
        return f"{_EXPANDED} {shown} elements claim {tensor.nbytes:,} bytes, {held}; save a clone() of it"
    return ""


def _sharing(entries: list[Entry]) -> list[Entry]:
    """The same, each with the first one before it whose bytes it shares."""
    found = []
    seen: dict[str, list[Entry]] = {}  # by the key of a storage
    for entry in entries:
        owner = ""
        if entry.storage is not None and entry.size and not entry.skipped:
            others = seen.setdefault(entry.storage.key, [])
            owner = next((own.name for own in others if entry.offset < own.end and own.offset < entry.end), "")
            others.append(entry)
        found.append(replace(entry, shares=owner))
    return found


def _wants_to_run(names: list[str]) -> str:
    """What to say of a file that is of no use without the functions and classes that it names."""
    named = ", ".join(names[:5]) + (f" and {len(names) - 5} others" if len(names) > 5 else "")
    return f"wants to run {named}: redlab never runs code from a checkpoint, nothing was executed; {_ALONE}"


def _zipped(path: Path, names: set[str]) -> _Pickled:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise ValueError("it is compressed, which torch.save never does: load it elsewhere")
        name = next(name for name in members if name.rpartition("/")[2] == "data.pkl")
        home = name.removesuffix("data.pkl")
        reader = Unpickler(BytesIO(archive.read(name)), names)
        content = reader.load()
        order = archive.read(f"{home}byteorder") if f"{home}byteorder" in members else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"its order of bytes is {order[:20]!r}")
        records = {key: members.get(f"{home}data/{key}") for key in reader.storages}
        for key, storage in reader.storages.items():
            _check_size(storage, getattr(records[key], "file_size", None))
        places = {key: _begin(file, record) for key, record in records.items() if record}
    return _Pickled(content, places, order != sys.byteorder.encode())


def _check_size(storage: Storage, held: int | None) -> None:
    if storage.nbytes != held:
        found = "there is none" if held is None else f"its record holds {held:,}"
        raise ValueError(f"the storage {storage.key!r} has a size of {storage.nbytes:,} bytes, {found}")


def _begin(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin: behind its own header, whose name and padding may differ in length."""
    file.seek(member.header_offset + 26)
    return member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


class _Bounded:
    """A file that never makes room for more bytes than it has left, whatever a pickle asks for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.readline = file, size, file.readline

    def read(self, count: int) -> bytes:
        return self.file.read(max(0, min(count, self.size - self.file.tell())))

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(buffer)  # type: ignore[attr-defined]


def _legacy(path: Path, names: set[str]) -> _Pickled | None:
    """None for the pickle of something else."""
    size, places = path.stat().st_size, {}
    with path.open("rb") as file:
        bounded: Any = _Bounded(file, size)
        if Unpickler(bounded, names).load() != _MAGIC:
            return None
        for _ in ("version", "about the machine"):
            Unpickler(bounded, names).load()
        reader = Unpickler(bounded, names)
        content = reader.load()
        for key in map(str, Unpickler(bounded, names).load()):
            storage, (count,) = reader.storages[key], struct.unpack("<q", file.read(8))
            places[key] = file.tell()
            _check_size(storage, count * storage.dtype.itemsize)
            if file.seek(storage.nbytes, 1) > size:
                raise EOFError(f"the storage {key!r} should end at byte {file.tell():,}, the file does at {size:,}")
    if lost := reader.storages.keys() - places:
        raise EOFError(f"there is no storage {min(lost)!r}")
    return _Pickled(content, places)
