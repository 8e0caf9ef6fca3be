"""The tensors of a ``.pt`` file, listed without reading them: ``torch.load(weights_only=True)``, never otherwise.

PyTorch's format since 1.6 is a zip archive with a record for each storage, which can be read alone. The format before
that, archives that something else than ``torch.save`` wrote, and sparse tensors make PyTorch load the whole file.
"""

from __future__ import annotations

import struct
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import get_unsafe_globals_in_checkpoint

from redlab.checkpoints import collect_globals, wanted_code
from redlab.entries import Entry, span_of

# Where trainers put the network among other things: the optimizer, the epoch.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_ZIP, _ORDER = b"PK\x03\x04", sys.byteorder.encode()
_PLACE = "_checkpoint_offset"
_ORDINARY = [f"torch._utils _rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")]


def list_pickled(path: Path) -> list[Entry]:
    """The tensors of a file that ``torch.save`` wrote, in its order, whatever dicts and lists they are nested in.

    Where a ``"state_dict"``, ``"model"`` or ``"model_state_dict"`` holds the network, its tensors come first, by their
    own names; all others (an optimizer's, say) follow as skipped ones. The prefix ``module.`` that DataParallel leaves
    is taken off where every name of the network has it.

    Raises:
        ValueError: the file is truncated or no checkpoint; it wants to run code, which is named and not run; a tensor
            claims more than is stored; it holds no tensors.
        OSError: it cannot be read.
    """
    content, held = _load(path)
    network, around = _unwrap(content)
    own = list(_walk(network))
    names = _without_prefix([name for name, _ in own], "module.")
    entries = [_entry(path, name, tensor, held) for name, (_, tensor) in zip(names, own, strict=True)]
    for name, tensor in _walk(content, besides=network) if around else ():
        entries.append(_entry(path, name, tensor, held, f"outside of the file's {around!r}"))
    if not entries:
        _refuse(path, f"holds no tensors but a {type(content).__name__}: save a state_dict() in it")
    return _sharing(entries, [tensor for _, tensor in own])


def _load(path: Path) -> tuple[Any, bool]:
    """What the file holds, and whether its tensors are in memory: else they are outlines that know their places."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        _refuse(path, "is empty: download or save it again")
    if start == _ZIP and (records := _records(path)) and (outline := _outline(path, records)) is not None:
        return outline, False
    try:
        return _torch_load(path, "cpu"), True
    except PermissionError:
        raise
    except Exception as error:  # a damaged file raises nearly anything: KeyError, EOFError, OSError, UnpicklingError
        raise ValueError(_why_unreadable(path, start == _ZIP, error)) from error


def _torch_load(path: Path, place: str | None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd pickle protocols and TorchScript: both end in our own error
        return torch.load(path, map_location=place, weights_only=True)


def _records(path: Path) -> dict[int, int]:
    """Where the records of an archive begin, with the bytes that each holds.

    {} where an outline would not do: PyTorch crashes where it swaps the bytes of one, and remembers sparse tensors of a
    load that failed, so that the next one fails as well.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            members = archive.infolist()
            if not (refused := _why_refused(members)):
                plain = all(order == _ORDER for order in _named(archive, "byteorder")) and _plain(archive)
                records = {_begin(file, member): member.file_size for member in members}
    except PermissionError:
        raise
    except Exception as error:  # a damaged archive raises as much as a damaged pickle
        _refuse(path, f"is truncated or damaged ({_first_line(error)}): download or save it again")
    if refused:
        _refuse(path, refused)
    return records if plain else {}


def _named(archive: zipfile.ZipFile, name: str) -> list[bytes]:
    """The records of a name, in whatever folder; PyTorch finds them in capitals, too."""
    return [archive.read(path) for path in archive.namelist() if path.lower().rpartition("/")[2] == name]


def _plain(archive: zipfile.ZipFile) -> bool:
    """Whether its tensors are ordinary ones, none sparse or quantized."""
    names: set[str] = set()
    for content in _named(archive, "data.pkl"):
        collect_globals(BytesIO(content), names)
    return all(name in _ORDINARY or "_rebuild" not in name for name in names)


def _why_refused(members: list[zipfile.ZipInfo]) -> str:
    if any(member.filename.endswith("/constants.pkl") for member in members):
        return "is TorchScript, which is code: redlab never runs code from a checkpoint; save its state_dict()"
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return "is compressed, which torch.save never does: load it elsewhere and save it again"
    return ""


def _begin(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin: behind its own header, whose name and padding may differ in length."""
    file.seek(member.header_offset + 26)
    return member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


def _outline(path: Path, records: dict[int, int]) -> Any:
    """The file's content with tensors that know their place and hold nothing; None where PyTorch must load it whole.

    It notes the place in ``_checkpoint_offset``, before 2.11 under ``FakeTensorMode`` alone. What it says is believed
    where a record of the archive begins and is as long as the storage claims to be.
    """
    for mode in (nullcontext, FakeTensorMode):
        try:
            with mode():
                content = _torch_load(path, "meta" if mode is nullcontext else None)
            storages = [tensor.untyped_storage() for _, tensor in _walk(content)]
        except Exception:  # loading it whole will fail as well, and say why
            return None
        if all(records.get(getattr(storage, _PLACE, -1)) == storage.nbytes() for storage in storages):
            return content
    return None


def _unwrap(content: Any) -> tuple[Any, str]:
    """The network's part of the content, and the names that lead to it."""
    path = []
    while isinstance(content, dict):
        inside = [key for key in _WRAPPERS if isinstance(content.get(key), dict) and any(_walk(content[key]))]
        if not inside:
            break
        content = content[inside[0]]
        path.append(inside[0])
    return content, ".".join(path)


def _walk(content: Any, besides: Any = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts and lists, with the keys that lead to them; nothing in ``besides``."""
    # A pickle of a few bytes can hold a list in itself, or ten times a list of ten times a list: each is opened once.
    seen, left = {id(besides)}, [("", content)]
    while left:
        name, value = left.pop()
        if isinstance(value, Tensor):
            yield name or "tensor", value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            left += [(f"{name}.{key}" if name else str(key), inner) for key, inner in pairs][::-1]


def _without_prefix(names: list[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in names] if all(n.startswith(prefix) for n in names) else names


def _entry(path: Path, name: str, tensor: Tensor, held: bool, skipped: str = "") -> Entry:
    shape, dtype = tuple(tensor.shape), tensor.dtype
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else "sparse"
        return Entry(name, shape, dtype, path, skipped=skipped or f"{kind}: only dense tensors are read")
    if held and tensor.is_meta:  # saved without its numbers: memory for them is what it does not have
        return Entry(name, shape, dtype, path, skipped=skipped or "on torch's meta device: no numbers were saved")
    storage, bytes_each = tensor.untyped_storage(), tensor.element_size()
    # A few bytes can declare a tensor of 10^9 elements by a stride of 0.
    if (claimed := tensor.numel() * bytes_each) > (stored := storage.nbytes()):
        shown = " x ".join(map(str, shape))
        _refuse(
            path,
            f"lies about {name!r}: {shown} elements are {claimed:,} bytes, its storage holds {stored:,}; "
            "save a clone() of the tensor",
        )
    offset = (getattr(storage, _PLACE, None) or 0) + int(tensor.storage_offset()) * bytes_each
    stride = None if tensor.is_contiguous() else tensor.stride()
    return Entry(name, shape, dtype, path, offset, stride, "", skipped, tensor if held and not skipped else None)


def _sharing(entries: list[Entry], tensors: list[Tensor]) -> list[Entry]:
    """The entries, of which the first ones are those of ``tensors``, told whose bytes they share."""
    found = list(entries)
    seen: dict[int, list[tuple[int, int, str]]] = {}
    for k, tensor in enumerate(tensors):
        if entries[k].skipped or not entries[k].size:
            continue
        storage = tensor.untyped_storage()
        others = seen.setdefault(getattr(storage, _PLACE, None) or storage.data_ptr(), [])
        begin = int(tensor.storage_offset()) * tensor.element_size()
        end = begin + span_of(tuple(tensor.shape), tensor.stride()) * tensor.element_size()
        owner = next((name for first, last, name in others if begin < last and first < end), "")
        others.append((begin, end, entries[k].name))
        found[k] = replace(entries[k], shares=owner)
    return found


def _why_unreadable(path: Path, zipped: bool, error: Exception) -> str:
    if wanted := _wanted(path, zipped):
        named = ", ".join(wanted[:5]) + (f" and {len(wanted) - 5} others" if len(wanted) > 5 else "")
        return (
            f"{path} wants to run {named}: redlab never runs code from a checkpoint, nothing was executed; save the "
            "tensors of its state_dict() alone"
        )
    # Only the first sentence: torch goes on with advice to load the file unsafely.
    reason = f"{type(error).__name__} {_first_line(error).partition('. ')[0]}"
    return f"{path} cannot be read, it is damaged or no checkpoint ({reason}): download or save it again"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _wanted(path: Path, zipped: bool) -> list[str]:
    """The functions and classes that a pickle asks for and that may be code, found without unpickling it."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path)) if zipped else wanted_code(path)
    except Exception:  # too damaged to tell
        return []


def _refuse(path: Path, why: str) -> NoReturn:
    raise ValueError(f"{path} {why}")
