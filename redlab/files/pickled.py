"""Files of ``torch.save``: what they hold as outlines, and where their storages lie; none of those is read yet.

PyTorch's format since 1.6 is a zip archive with a record for each storage. The format before that is five pickles in a
row, then the storages one after the other.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from redlab.files.file_kinds import PICKLED, damaged
from redlab.files.outlines import Storage
from redlab.files.unpickler import Unpickler

_MAGIC = 0x1950A86A20F9469CFC6C
_ALONE = "save the tensors of its state_dict() alone"
# No honest checkpoint names one of these.
_HARM = {"os", "posix", "nt", "sys", "subprocess", "pty", "shutil", "socket", "importlib", "runpy", "ctypes"}
_HARM |= {f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__", "breakpoint")}
_HARM |= {"io.open", "_io.open"}


@dataclass(frozen=True, eq=False)
class Pickled:
    """What a file of ``torch.save`` holds.

    Attributes:
        content: dicts, lists, numbers, and ``Outline`` for a tensor, ``StandIn`` for another object.
        places: where the storages begin, in bytes, by their keys.
        swapped: whether the file has the other byte order than this machine.
        names: the functions and classes that it names, beyond those of plain tensors; none was imported.
    """

    content: Any
    places: dict[str, int]
    swapped: bool = False
    names: set[str] = field(default_factory=set)


def read_pickled(path: Path, kind: str) -> Pickled:
    """What a file of ``torch.save`` holds; ``kind`` is the answer of ``kind_of``.

    Raises:
        ValueError: the file is truncated, damaged or another pickle, or it names a function that could only do harm
            (which is never run). The message says what to do.
        OSError: it cannot be read.
    """
    names: set[str] = set()
    found, why = None, f"is a pickle that torch.save did not write: {_ALONE}, with torch.save or safetensors"
    try:
        found = _legacy(path, names) if kind == PICKLED else _zipped(path, names)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file raises nearly anything: KeyError, EOFError, OSError, MemoryError
        why = damaged(error)
    if harm := sorted(name for name in names if name in _HARM or name.partition(".")[0] in _HARM):
        why = wants_to_run(harm)
    if found is None or harm:
        raise ValueError(f"{path} {why}")
    return found


def wants_to_run(names: list[str]) -> str:
    """What to say of a file that is of no use without the functions and classes that it names."""
    named = ", ".join(names[:5]) + (f" and {len(names) - 5} others" if len(names) > 5 else "")
    return f"wants to run {named}: redlab never runs code from a checkpoint, nothing was executed; {_ALONE}"


def _zipped(path: Path, names: set[str]) -> Pickled:
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
    return Pickled(content, places, order != sys.byteorder.encode(), names)


def _check_size(storage: Storage, held: int | None) -> None:
    if (claimed := storage.size * storage.dtype.itemsize) != held:
        found = "there is none" if held is None else f"its record holds {held:,}"
        raise ValueError(f"the storage {storage.key!r} has a size of {claimed:,} bytes, {found}")


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


def _legacy(path: Path, names: set[str]) -> Pickled | None:
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
            if file.seek(count * storage.dtype.itemsize, 1) > size:
                raise EOFError(f"the storage {key!r} should end at byte {file.tell():,}, the file does at {size:,}")
    if lost := reader.storages.keys() - places:
        raise EOFError(f"there is no storage {min(lost)!r}")
    return Pickled(content, places, False, names)
