"""What a ``.safetensors`` file says of itself: eight bytes of length, JSON, then the tensors end to end.

Format: https://github.com/huggingface/safetensors. It is checked here, so that what is wrong can be said; the library
has the last word.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open

from redlab.files.entries import Entry

_MOST = 100_000_000  # bytes of a header: the library's own limit
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_PACKED = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # bits of an element of what torch has no element for


def list_safetensors(path: Path) -> list[Entry]:
    """The tensors of a ``.safetensors`` file, by name, numbers in it in their order: its own order means nothing.

    Raises:
        ValueError: the file is no such file, is truncated, or its header contradicts it; the message says where.
        OSError: it cannot be read.
    """
    start, header = _read_header(path)
    held = path.stat().st_size - start
    found = [_entry(path, name, about, start, held) for name, about in header.items() if name != "__metadata__"]
    if not found:
        _refuse(path, "holds no tensors: save a state_dict() in it")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        _refuse(path, f"is damaged: {error}; download or save it again")
    return sorted(found, key=lambda entry: _natural(entry.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """layers.2 before layers.10."""
    return [(int(word), "") if word.isdecimal() else (0, word) for word in re.split(r"([0-9]+)", name)]


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and the header."""
    size = path.stat().st_size
    if size < 8:
        _refuse(path, f"holds {size} bytes, which is no checkpoint: download or save it again")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MOST):
            _refuse(path, f"is truncated or no safetensors: a header of {length:,} bytes in a file of {size:,}")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"is no safetensors: its header is no JSON ({str(error).partition(': ')[0]})")
    if not isinstance(header, dict):
        _refuse(path, f"is no safetensors: its header is a {type(header).__name__}, not names with their places")
    return 8 + length, header


def _entry(path: Path, name: str, about: Any, start: int, held: int) -> Entry:
    about = about if isinstance(about, dict) else {}
    dtype, shape, places = (about.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _whole(shape) or not _whole(places) or len(places) != 2:
        _refuse(path, f"lacks the dtype, shape or data_offsets of {name!r}, or they are no whole numbers")
    begin, end = places
    if end > held:
        _refuse(
            path,
            f"is truncated: {name!r} should end {end:,} bytes after the header, the file does after {held:,}; "
            "download or save it again",
        )
    bits = _DTYPES[dtype].itemsize * 8 if dtype in _DTYPES else _PACKED.get(dtype)
    claimed = math.prod(shape) * (bits or 0)
    if begin > end or (bits is not None and claimed != 8 * (end - begin)):
        many = f"{claimed // 8:,} bytes" if claimed < 1 << 99 else "more bytes than there are"
        has = f"it has those from {begin:,} to {end:,}"
        _refuse(path, f"lies about {name!r}: {_by(shape)} of {dtype} are {many}, and {has}; save it again")
    reason = "" if dtype in _DTYPES else f"{dtype}: torch has no such elements"
    return Entry(name, tuple(shape), _DTYPES.get(dtype, dtype), path, start + begin, skipped=reason)


def _by(shape: list[int]) -> str:
    return " x ".join(map(str, shape))[:60] or "one element"


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def _refuse(path: Path, why: str) -> NoReturn:
    raise ValueError(f"{path} {why}")
