"""What kind of file this is, by its first bytes: names can be wrong, and servers send web pages for checkpoints."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

READS = "safetensors, or a file of torch.save"
INDEX = "model.safetensors.index.json"
SAFETENSORS, ZIPPED, PICKLED, SHARDED = "safetensors", "zip of torch.save", "pickle", "index of shards"
_HEAD = 4096
_LARGEST_INDEX = 1 << 28

_SAVE = "save its tensors by name with torch.save or safetensors"
_AGAIN = "download or save it again"
_CONVERT = "convert it to safetensors first"

# The first bytes of a file, what it is, and what to do.
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull, or download the file"),
    (b"GGUF", "GGUF, the format of llama.cpp", _CONVERT),
    (b"\x93NUMPY", "a numpy array (.npy)", _SAVE),
    (b"\x89HDF\r\n\x1a\n", "HDF5 (.h5, as Keras writes it)", _CONVERT),
    (b"%PDF", "a PDF document", "name the checkpoint"),
    (b"\x89PNG", "a PNG image", "name the checkpoint"),
    (b"\xff\xd8\xff", "a JPEG image", "name the checkpoint"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstandard", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a rar archive", "unpack it first"),
    (b"PAR1", "a Parquet table", "name the checkpoint"),
)


def kind_of(path: Path) -> str:
    """``SAFETENSORS``, ``ZIPPED``, ``PICKLED`` or ``SHARDED``: what kind of checkpoint a file is, whatever its name.

    A damaged file that begins as none of them counts as what its name says; opening it reports the damage.

    Raises:
        ValueError: it is something else; the message says what, and what would be right.
        OSError: it cannot be read.

    Example:
        >>> from redlab.paths import shipped
        >>> kind_of(shipped("digits/mlp.safetensors"))
        'safetensors'
    """
    kind, foreign = _judge(path)
    if foreign:
        raise ValueError(f"{path} {foreign}")
    return kind


def foreign_kind(path: Path) -> str:
    """What a file is instead of a checkpoint ("is a web page ..."), and what to do; "" if it may be a checkpoint."""
    try:
        return _judge(path)[1]
    except OSError:
        return ""


def damaged(error: Exception) -> str:
    """What to say of a checkpoint that raises ``error`` when it is opened."""
    reason = str(error).strip().partition("\n")[0]
    return f"cannot be read, it is truncated or no checkpoint ({type(error).__name__} {reason}): {_AGAIN}"


def _judge(path: Path) -> tuple[str, str]:
    """The kind of checkpoint, or what it is instead."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "", f"is empty, truncated or no checkpoint: {_AGAIN}"
    if found := next((about for start, *about in _FOREIGN if head.startswith(start)), None):
        return "", _no("is " + found[0], found[1])
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return SAFETENSORS, ""
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and len(head) > 1:
        return PICKLED, ""
    return _other(path, head)


def _no(what: str, cure: str) -> str:
    return f"{what}, no checkpoint that redlab reads ({READS}): {cure}"


def _zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged archives raise nearly anything; opening it as a checkpoint reports the damage
        return ZIPPED, ""
    if _has(names, "constants.pkl"):
        why = "is TorchScript, which is code: redlab never runs code from a checkpoint; save its state_dict()"
        return "", why
    if _has(names, "data.pkl"):
        return ZIPPED, ""
    if names and all(name.endswith(".npy") for name in names):
        return "", _no("is a zip of numpy arrays (.npz)", _SAVE)
    if "model.weights.h5" in names:
        return "", _no("is a Keras model (.keras)", _SAVE)
    held = ", ".join(map(repr, names[:3])) or "nothing"
    return "", _no(f"is a zip archive that torch.save did not write, with {held} in it", f"unpack it, or {_SAVE}")


def _has(names: list[str], name: str) -> bool:
    return any(member.lower() == name or member.lower().endswith("/" + name) for member in names)


def _other(path: Path, head: bytes) -> tuple[str, str]:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"(?i)<!doctype html|<html|<head|<\?xml|<!--|<svg", text):
        return "", _no("is a web page or XML, perhaps the answer to a failed download", _AGAIN)
    if text[:1] in (b"{", b"["):
        return _json(path)
    if head[257:262] == b"ustar":
        return "", _no("is a tar archive", "unpack it, or save it again if PyTorch before 0.1.10 wrote it")
    if head[4:8] == b"TFL3":
        return "", _no("is a TensorFlow Lite model", _CONVERT)
    if re.match(rb"\x08[\x01-\x1f](\x12.[\x20-\x7e]|\x3a|\x42)", head, re.DOTALL):
        return "", _no("is an ONNX model", "save the network's state_dict() instead")
    return _by_name(path, head)


def _json(path: Path) -> tuple[str, str]:
    if path.stat().st_size > _LARGEST_INDEX:
        return "", _no(f"is JSON of more than {_LARGEST_INDEX:,} bytes", "name the checkpoint")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if path.name.lower().endswith(".index.json") or (isinstance(content, dict) and "weight_map" in content):
        return SHARDED, ""
    return "", _no(f"is JSON (a configuration?) and no index of shards ({INDEX})", "name the checkpoint")


def _by_name(path: Path, head: bytes) -> tuple[str, str]:
    name = path.name.lower()
    if name.endswith(".index.json"):
        return SHARDED, ""
    if _looks_pickled(head):
        return PICKLED, ""
    if re.fullmatch(rb"[\t\r\n\x20-\x7e]+", head):
        return "", _no(f"is text, which begins {head[:40].decode('ascii')!r}", _AGAIN)
    if name.endswith(".safetensors"):
        return SAFETENSORS, ""
    return "", f"is truncated or no checkpoint, its first bytes are {head[:8].hex(' ')}: {_AGAIN}"


def _looks_pickled(head: bytes) -> bool:
    """Whether it may be a pickle of protocol 0 or 1, which have no mark: containers, or a global by name."""
    return bool(re.match(rb"[(\]}][lpdtq]|[\]}]q|\(?[ci][\w.]+\n[\w.]+\n|[(\]}].{0,3}[lpdtq]", head, re.DOTALL))
