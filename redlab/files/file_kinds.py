"""What kind of file this is, by its first bytes: names can be wrong, and servers send web pages for checkpoints."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import NoReturn

READS = "safetensors, or a file of torch.save"
INDEX = "model.safetensors.index.json"
SAFETENSORS, ZIPPED, PICKLED, SHARDED = "safetensors", "zip of torch.save", "pickle", "index of shards"
_HEAD = 4096
_LARGEST_INDEX = 1 << 28

_SAVE = "save its tensors by name with torch.save or safetensors"
_AGAIN = "download or save it again"
_CONVERT = "convert it to safetensors first"

# What a file begins with (a regular expression), what it is, and what to do.
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull, or download the file"),
    (b"GGUF", "GGUF, the format of llama.cpp", _CONVERT),
    (rb"\x93NUMPY", "a numpy array (.npy)", _SAVE),
    (rb"\x89HDF\r\n\x1a\n", "HDF5 (.h5, as Keras writes it)", _CONVERT),
    (b"%PDF", "a PDF document", "name the checkpoint"),
    (rb"\x89PNG", "a PNG image", "name the checkpoint"),
    (rb"\xff\xd8\xff", "a JPEG image", "name the checkpoint"),
    (rb"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (rb"\xfd7zXZ", "compressed with xz", "unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstandard", "unpack it first"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a rar archive", "unpack it first"),
    (b"PAR1", "a Parquet table", "name the checkpoint"),
)
_PAGE = rb"(?i)[\xef\xbb\xbf \t\r\n]*<(!doctype html|html|head|\?xml|!--|svg)"
_ONNX = rb"\x08[\x01-\x1f](\x12.[\x20-\x7e]|\x3a|\x42)"
# The same, of what is looked for only if a file is no checkpoint by its first bytes.
_OTHERS = (
    (_PAGE, "a web page or XML, perhaps the answer to a failed download", _AGAIN),
    (rb".{257}ustar", "a tar archive", "unpack it, or save it again if PyTorch before 0.1.10 wrote it"),
    (rb".{4}TFL3", "a TensorFlow Lite model", _CONVERT),
    (_ONNX, "an ONNX model", "save the network's state_dict() instead"),
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
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        refuse(path, f"is empty, truncated or no checkpoint: {_AGAIN}")
    _refuse_by(_FOREIGN, path, head)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return SAFETENSORS
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and len(head) > 1:
        return PICKLED
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _json(path)
    _refuse_by(_OTHERS, path, head)
    return _by_name(path, head)


def foreign_kind(path: Path) -> str:
    """What a file is instead of a checkpoint ("is a web page ..."), and what to do; "" if it may be a checkpoint."""
    try:
        kind_of(path)
    except ValueError as error:
        return str(error).removeprefix(f"{path} ")
    except OSError:
        pass
    return ""


def refuse(path: Path, why: str) -> NoReturn:
    """Raises ValueError: what is wrong with the file, and what to do."""
    raise ValueError(f"{path} {why}")


def damaged(error: Exception) -> str:
    """What to say of a checkpoint that raises ``error`` when it is opened."""
    reason = str(error).strip().partition("\n")[0]
    return f"cannot be read, it is truncated or no checkpoint ({type(error).__name__} {reason}): {_AGAIN}"


def _refuse_by(table: tuple, path: Path, head: bytes) -> None:
    for start, what, cure in table:
        if re.match(start, head, re.DOTALL):
            _refuse_as(path, what, cure)


def _refuse_as(path: Path, what: str, cure: str) -> NoReturn:
    refuse(path, f"is {what}, no checkpoint that redlab reads ({READS}): {cure}")


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged archives raise nearly anything; opening it as a checkpoint reports the damage
        return ZIPPED
    held = {name.lower().rpartition("/")[2] for name in names}
    if "constants.pkl" in held:
        refuse(path, "is TorchScript, which is code: redlab never runs code from a checkpoint; save its state_dict()")
    if "data.pkl" in held:
        return ZIPPED
    if names and all(name.endswith(".npy") for name in names):
        _refuse_as(path, "a zip of numpy arrays (.npz)", _SAVE)
    if "model.weights.h5" in names:
        _refuse_as(path, "a Keras model (.keras)", _SAVE)
    shown = ", ".join(map(repr, names[:3])) or "nothing"
    _refuse_as(path, f"a zip archive that torch.save did not write, with {shown} in it", f"unpack it, or {_SAVE}")


def _json(path: Path) -> str:
    if path.stat().st_size > _LARGEST_INDEX:
        _refuse_as(path, f"JSON of more than {_LARGEST_INDEX:,} bytes", "name the checkpoint")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if path.name.lower().endswith(".index.json") or (isinstance(content, dict) and "weight_map" in content):
        return SHARDED
    _refuse_as(path, f"JSON (a configuration?) and no index of shards ({INDEX})", "name the checkpoint")


def _by_name(path: Path, head: bytes) -> str:
    name = path.name.lower()
    if name.endswith(".index.json"):
        return SHARDED
    # A pickle of protocol 0 or 1, which have no mark: containers, or a global by name.
    if re.match(rb"[(\]}][lpdtq]|[\]}]q|\(?[ci][\w.]+\n[\w.]+\n|[(\]}].{0,3}[lpdtq]", head, re.DOTALL):
        return PICKLED
    if re.fullmatch(rb"[\t\r\n\x20-\x7e]+", head):
        _refuse_as(path, f"text, which begins {head[:40].decode('ascii')!r}", _AGAIN)
    if name.endswith(".safetensors"):
        return SAFETENSORS
    refuse(path, f"is truncated or no checkpoint, its first bytes are {head[:8].hex(' ')}: {_AGAIN}")
