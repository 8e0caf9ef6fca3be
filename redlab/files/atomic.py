"""Files written as a whole, with the permissions of any other file."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write ``path`` as a whole: a run that is killed here leaves the old file whole, or none."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def open_to_others(path: Path) -> None:
    """Give ``path`` the permissions of a new file in its folder: libraries that write by a temporary one keep 0600."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.mode")  # the umask cannot be asked without changing it
    try:
        fresh.touch()
        path.chmod(fresh.stat().st_mode & 0o777)
    finally:
        fresh.unlink(missing_ok=True)
