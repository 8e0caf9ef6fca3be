"""Files of weights: fetched once with a checksum, opened without ever running code from them."""

from __future__ import annotations

import hashlib
import http.client
import pickletools
import re
import socket
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PICKLED = (".pt", ".pth", ".th")
# What a checkpoint that holds tensors only asks for: everything else that a pickle names would be code to run.
_HARMLESS = re.compile(
    r"collections OrderedDict|torch(\.storage)? \w+Storage|torch (Size|device|bool|b?float\w+|u?int\d+|complex\d+)"
    r"|torch\._utils _rebuild_\w+"
)
_STRING_OPCODES = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")


@contextmanager
def network_timeout(seconds: float = 30.0) -> Iterator[None]:
    """Let connections opened inside give up after ``seconds`` of silence, where they would wait forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch(url: str | None, path: str | Path, sha256: str, about: str = "the file") -> Path:
    """The file at ``path``: checked where it exists, downloaded from ``url`` and checked where it does not.

    Arguments:
        url: its public address, or None where it has none.
        path: where it lies or will lie; missing parents are made.
        sha256: its SHA-256 in hex, or the first digits of it (torchvision's file names hold eight).
        about: what the file is, for the error that asks to place it by hand.

    Raises:
        ValueError: the file there, or the one downloaded, has another hash; the first is left alone.
        ConnectionError: the download failed; the message says what to put where.
        FileNotFoundError: it is missing and has no public address.
    """
    path = Path(path)
    if path.exists():
        _check_hash(path, sha256, url)
    elif url is None:
        raise FileNotFoundError(f"{path.name} has no public address known to us: {_by_hand(path, sha256, about)}")
    else:
        _download(url, path, sha256, about)
    return path


def _by_hand(path: Path, sha256: str, about: str) -> str:
    return f"place the file by hand at {path} ({about}; SHA-256 {sha256}{'...' if len(sha256) < 64 else ''})"


def _check_hash(path: Path, expected: str, url: str | None) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected.lower()):
        where = f"delete it to download it again, or put the right file from {url} there"
        raise ValueError(
            f"{path} has SHA-256 {found}, expected {expected}: {where if url else 'replace it by the right file'}"
        )


def _download(url: str, path: Path, sha256: str, about: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    live = "ipykernel" in sys.modules or sys.stderr.isatty()
    try:
        # It writes to a temporary name beside `path`, checks the hash, then moves: a broken download leaves nothing.
        with network_timeout():
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256.lower(), progress=live)
    except RuntimeError as error:
        raise ValueError(f"what {url} sent is not the right file: {error}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
        raise ConnectionError(f"download of {url} failed ({error}): {_by_hand(path, sha256, about)}") from error


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pt``, ``.pth`` or ``.th`` file, by name, on the CPU.

    A pickle is opened with ``torch.load(weights_only=True)`` only. A ``"state_dict"`` inside is unwrapped, and the
    prefix ``module.`` that DataParallel leaves is taken off where every name has it. PyTorch's version metadata stays
    on the dict, as ``load_state_dict`` wants it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the suffix is unknown; the file is truncated or no checkpoint; it holds code, which is named and
            not run; it holds something else than strided tensors by name; a tensor claims more than the file stores.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    content = _open(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    _check_tensors(content, path)
    return _without_prefix(content, "module.")


def load_weights(network: nn.Module, weights: dict[str, Tensor], source: str = "the checkpoint") -> None:
    """Copy ``weights`` into ``network``, strictly: every name and shape must agree.

    Raises:
        ValueError: names or shapes disagree; the message names ``source`` and the tensors.
    """
    state: Any = OrderedDict(weights)
    # Some architectures (MNASNet) refuse weights without their version; a file without metadata is taken as current.
    version = getattr(network, "_version", None)
    state._metadata = getattr(weights, "_metadata", {"": {"version": version}})
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the tensors of {source} do not fit {type(network).__name__}: {error}") from error


def _open(path: Path) -> Any:
    if path.suffix not in (".safetensors", *PICKLED):
        raise ValueError(f"{path} is no kind of checkpoint that redlab reads: .safetensors, {', '.join(PICKLED)}")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _load_pickled(path)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged file raises nearly anything: KeyError, EOFError, OSError, UnpicklingError
        raise ValueError(_why_unreadable(path, error)) from error


def _load_pickled(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd pickle protocols and TorchScript: both end in our own error
        return torch.load(path, map_location="cpu", weights_only=True)


def _why_unreadable(path: Path, error: Exception) -> str:
    if path.suffix != ".safetensors" and (wanted := wanted_code(path)):
        return (
            f"{path} wants to run {', '.join(wanted)}: redlab never runs code from a checkpoint, nothing was executed"
        )
    # Only the first sentence: torch goes on with advice to load the file unsafely.
    reason = str(error).partition("\n")[0].partition(". ")[0]
    return f"{path} cannot be read, it is truncated or no checkpoint ({type(error).__name__} {reason})"


def wanted_code(path: Path) -> list[str]:
    """The functions and classes that a pickle names beyond those of plain tensors, found without unpickling it.

    Of a damaged file: those that can be found.
    """
    names: set[str] = set()
    with suppress(Exception):  # a damaged archive raises as much as a damaged pickle
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if member.endswith("data.pkl"):
                        with archive.open(member) as file:
                            collect_globals(file, names)
        else:
            with path.open("rb") as file:
                collect_globals(file, names)
    return sorted(name.replace(" ", ".") for name in names if not _HARMLESS.fullmatch(name))


def collect_globals(file: IO[bytes], names: set[str]) -> None:
    """Add "module name" of every global in the pickles of ``file``; it ends where the bytes stop being pickles."""
    strings: list[str] = []
    try:
        while True:  # torch's old format is several pickles in a row
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    names.add(str(argument))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(" ".join(strings[-2:]))
                elif opcode.name in _STRING_OPCODES:
                    strings.append(str(argument))
    except Exception:  # damaged files and raw tensor bytes; what was found so far is what there is to say
        return


def _check_tensors(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no tensors by name but {_describe(content)}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} holds more than tensors by name: {name!r} is {_describe(value)}")
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{path}: tensor {name!r} is sparse or quantized; only dense ones are read")
        # A few bytes can declare a tensor of 10^9 elements by a stride of 0: refused before anything copies it.
        claimed, stored = value.numel() * value.element_size(), value.untyped_storage().nbytes()
        if claimed > stored:
            raise ValueError(f"{path}: tensor {name!r} claims {claimed:,} bytes, its storage holds {stored:,}")


def _describe(value: Any) -> str:
    return f"an empty {type(value).__name__}" if value == {} else f"a {type(value).__name__}"


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if not all(name.startswith(prefix) for name in tensors):
        return tensors
    bare: Any = OrderedDict((name.removeprefix(prefix), tensor) for name, tensor in tensors.items())
    if metadata := getattr(tensors, "_metadata", None):
        # modules are listed without the last dot: "module.conv1", and "module" for the network itself
        bare._metadata = OrderedDict((f"{name}.".removeprefix(prefix)[:-1], v) for name, v in metadata.items() if name)
    return bare
