"""Files and folders written beside their place and moved there last: a killed process leaves the old one whole."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A free path beside ``path`` to write to; it replaces ``path`` at the end of the block.

    If the block raises, ``path`` stays as it was and the part is removed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replaced_file(Path(folder) / "a.txt") as part:
        ...         count = part.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    part = part_of(path)
    try:
        yield part
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, as ``replaced_file`` does."""
    with replaced_file(path) as part:
        part.write_bytes(content)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A new, empty folder beside ``path`` to fill; it replaces ``path`` at the end of the block.

    If the block raises, ``path`` stays as it was and the part is removed.

    Raises:
        OSError: it could not be written (a full disk, say); the message names ``path`` and the reason.
    """
    part = part_of(path)
    try:
        part.mkdir(parents=True)
        yield part
        move_folder(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"could not write {path}, what was there is unchanged: {reason}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def move_folder(part: Path, path: Path) -> None:
    """Move the folder ``part`` to ``path``; a folder that is there waits at ``set_aside(path)`` until it is done."""
    old = set_aside(path)
    if path.exists() and any(path.iterdir()):
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    try:
        os.replace(part, path)
    except BaseException:  # Ctrl-C, say: the old folder returns to its place
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def part_of(path: Path) -> Path:
    """A free hidden name beside ``path``, another one each time."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def set_aside(path: Path) -> Path:
    """Where ``move_folder`` keeps the old folder until the new one is in its place."""
    return path.with_name(f".{path.name}.old")


def open_to_others(path: Path) -> None:
    """Give ``path`` the permissions of a new file in its folder: libraries that write by a temporary one keep 0600."""
    fresh = part_of(path)  # the umask cannot be read without changing it
    try:
        fresh.touch()
        path.chmod(fresh.stat().st_mode & 0o777)
    finally:
        fresh.unlink(missing_ok=True)
