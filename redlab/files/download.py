"""Files downloaded once, with a checksum."""

from __future__ import annotations

import hashlib
import http.client
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from redlab.files.file_kinds import foreign_kind


@contextmanager
def network_timeout(seconds: float = 30.0) -> Iterator[None]:
    """Connections opened inside give up after ``seconds`` of silence instead of waiting forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch(url: str | None, path: str | Path, sha256: str, about: str = "the file") -> Path:
    """The file at ``path``, checked; it is downloaded from ``url`` first if it does not exist.

    Arguments:
        url: its public address, or None.
        path: where it is or will be; missing parents are made.
        sha256: its SHA-256 in hex, or the first digits of it (torchvision's file names hold eight).
        about: what the file is, for the error that asks to place it by hand.

    Raises:
        ValueError: the file at ``path``, or the downloaded one, has another hash. The file at ``path`` is left alone.
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


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _by_hand(path: Path, sha256: str, about: str) -> str:
    return f"place the file by hand at {path} ({about}; SHA-256 {sha256}{'...' if len(sha256) < 64 else ''})"


def _check_hash(path: Path, expected: str, url: str | None) -> None:
    if not (found := sha256_of(path)).startswith(expected.lower()):
        what = f" ({foreign})" if (foreign := foreign_kind(path)) else ""
        again = f"delete it to download it again, or put the right file from {url} there"
        cure = again if url else "replace it by the right file"
        raise ValueError(f"{path} has SHA-256 {found}{what}, expected {expected}: {cure}")


def _download(url: str, path: Path, sha256: str, about: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    live = "ipykernel" in sys.modules or sys.stderr.isatty()
    try:
        # torch writes beside `path`, checks the hash, then moves: a broken download leaves nothing.
        with network_timeout():
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256.lower(), progress=live)
    except RuntimeError as error:
        raise ValueError(f"what {url} sent is not the right file: {error}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
        raise ConnectionError(f"download of {url} failed ({error}): {_by_hand(path, sha256, about)}") from error
