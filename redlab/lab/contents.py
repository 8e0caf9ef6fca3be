"""What a run reads besides its notebook: the files that parameters name, as part of the run's key."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from redlab.paths import data_root

LARGE = 64 * 2**20  # bytes; a larger file counts by its path, size and time of change
_LIBRARIES = ("torch", "torchvision", "timm", "transformers")
_OWN = re.compile(r"__pycache__|.*\.py[co]|\..*\.(part|lock|old)")  # made by running, and no part of what is run
# folder:PATH, hf/FOLDER, FILE.py:NAME
_FORM = re.compile(r"(?P<before>folder:|hf/)?(?P<path>.*?)(?P<after>(?<=\.py):[A-Za-z_]\w*)?", re.DOTALL)
_IMAGES = re.compile(r"imagenet_folder(?::(?P<folder>.+))?")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that networks come from; "absent" where one isn't installed."""
    return {name: _version(name) for name in _LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def absolute(text: str, bare: bool = False) -> str:
    """``text`` with the path in it made absolute against the current folder; as it is where it names nothing there.

    Arguments:
        bare: whether a single word may be a path, too.
    """
    before, path, after = _parts(text)
    if not (bare or before or after or "/" in path or os.sep in path) or not _exists(path):
        return text
    return f"{before}{Path(path).expanduser().resolve()}{after}"


def named_files(value: Any, folder: Path) -> Iterator[Path]:
    """The files that a parameter names, at any depth of lists and dicts, sorted within each folder.

    Those are: a file; the files of a folder; for ``FILE.py:NAME`` the file and the modules that it imports from its
    own folder, and so on; for ``folder:PATH`` and ``imagenet_folder:NAME`` the images.

    Arguments:
        folder: that relative paths start from.
    """
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from named_files(item, folder)
    if isinstance(value, str) and (path := _path_of(value, folder)):
        yield from with_imports(path) if path.suffix == ".py" and path.is_file() else files_in(path)


def _path_of(text: str, folder: Path) -> Path | None:
    if images := _IMAGES.fullmatch(text):
        return data_root() / "imagenet" / (images["folder"] or "val250")
    path = os.path.expanduser(_parts(text)[1])
    return folder / path if _exists(path, folder) else None


def _parts(text: str) -> tuple[str, str, str]:
    """What stands before a path, the path, and what stands after it."""
    before, path, after = _FORM.fullmatch(text).groups("")  # type: ignore[union-attr]  # which any text matches
    return before, path, after


def _exists(path: str, folder: Path | None = None) -> bool:
    # "/" and "." are no names; os.path.exists takes any text, one too long for a path, say.
    return any(map(str.isalnum, path)) and os.path.exists(os.path.join(folder or "", os.path.expanduser(path)))


def files_in(path: Path) -> Iterator[Path]:
    """The regular files at or below ``path``, sorted, also behind links; what Python and runs leave is left out."""
    if path.is_file():
        yield path
    seen: set[str] = set()
    for place, folders, files in os.walk(path, followlinks=True):
        again = (real := os.path.realpath(place)) in seen  # a link that leads back
        seen.add(real)
        folders[:] = [] if again else sorted(name for name in folders if not _OWN.fullmatch(name))
        for name in [] if again else sorted(files):
            if not _OWN.fullmatch(name) and (file := Path(place, name)).is_file():
                yield file


def with_imports(source: Path) -> Iterator[Path]:
    """A Python file and all that it imports from its own folder, found in the text: nothing is executed."""
    left, seen = [source], {source}
    while left:
        file = left.pop()
        yield file
        found = {path for name in _imports(file, source.parent) for path in _modules(source.parent, name)} - seen
        left += sorted(found)
        seen |= found


def _imports(file: Path, root: Path) -> Iterator[str]:
    """The dotted names that a file imports, as seen from ``root``."""
    try:
        nodes = ast.walk(ast.parse(file.read_bytes()))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return
    own = file.relative_to(root).parts[:-1]  # the package that it is in
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = [*own[: len(own) - node.level + 1]] if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _modules(root: Path, dotted: str) -> Iterator[Path]:
    """The files that importing ``a.b.c`` reads below ``root``: those of the packages on the way, too."""
    place = root
    for part in dotted.split("."):
        place = place / part
        yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())


def content_of(files: Iterable[Path], root: Path | None = None) -> Iterator[bytes]:
    """What a key holds of each file: its name, relative to ``root`` where it lies there, and its bytes.

    Of one over ``LARGE`` bytes path, size and time of change stand for them, of one that can't be read the reason.
    """
    for file in files:
        name = file.relative_to(root) if root and file.is_relative_to(root) else file
        yield f"\0{name.as_posix()}\0".encode(errors="surrogateescape")
        try:
            facts = file.stat()
            large = f"{file}\0{facts.st_size}\0{facts.st_mtime_ns}".encode(errors="surrogateescape")
            yield large if facts.st_size > LARGE else file.read_bytes()
        except OSError as error:
            yield str(error.strerror).encode()
