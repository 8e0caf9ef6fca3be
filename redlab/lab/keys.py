"""The key of a run: it stands for everything that the run depends on, also the files that its parameters name."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib import invalidate_caches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from redlab.lab.kinds import path_exists, path_in
from redlab.lab.notebooks import read_cells
from redlab.lab.parameters import default_parameters
from redlab.lab.signatures import benchmarks_read, names_written
from redlab.paths import PACKAGE, data_root, shipped
from redlab.zoo.code import code_of

LARGE = 64 * 2**20  # bytes; a larger file counts by its path, size and time of change
_LIBRARIES = ("torch", "torchvision", "timm", "transformers")  # where networks come from
_OWN = re.compile(r"__pycache__|.*\.py[co]|\..*\.(part|lock|old)")  # left by a run; does not change what is run
_IMAGES = re.compile(r"imagenet_folder(?::(?P<folder>.+))?")
# Of what is installed a package imports only itself: its own files are the key, not those of all that it uses.
_INSTALLED = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def run_key(notebook: Path, changed: dict[str, Any]) -> str:
    """16 hex digits that stand for everything that a run of a notebook with these parameters depends on.

    These are its cells, ``changed``, the package with all its files and the networks in it, the files in
    ``benchmarks/`` that the notebook reads, the content of every file and folder that a parameter names
    (``named_files``; files over 64 MB by path, size and time of change), and the versions of torch, torchvision, timm
    and transformers. Outputs do not count, nor does a file that the notebook itself writes. A parameter that is set to
    its default counts as not set.
    """
    cells = [(cell["cell_type"], cell["source"]) for cell in read_cells(notebook)]
    stated = [cells, changed, {name: version_of(name) or "absent" for name in _LIBRARIES}]
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True, allow_nan=False).encode())
    for root, files in _read_by(notebook, tuple(text for kind, text in cells if kind == "code"), changed):
        for part in _content_of(files, root):
            digest.update(part)
    return digest.hexdigest()[:16]


def version_of(package: str) -> str | None:
    """The installed version; None where the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read_by(notebook: Path, code: tuple[str, ...], changed: dict[str, Any]) -> Iterator[tuple[Path, Iterable[Path]]]:
    """The files that a run reads, and the folder that their names are relative to."""
    yield PACKAGE, files_in(PACKAGE)
    yield shipped("digits"), sorted(shipped("digits").glob("*.safetensors"))
    benchmarks = notebook.parent.parent / "benchmarks"
    yield benchmarks, (path for name in benchmarks_read(code) if (path := benchmarks / name).is_file())
    named = {**default_parameters(notebook), **changed}
    for name in sorted(named.keys() - names_written(code)):
        yield notebook.parent, named_files(named[name], notebook.parent)


def named_files(value: Any, folder: Path) -> Iterator[Path]:
    """The files that a parameter names, at any depth of lists and dicts, sorted within each folder.

    Those are: a file; the files of a folder; for ``FILE.py:NAME`` the file and the modules that it imports from its
    own folder, and so on; for ``package.module:NAME`` the same of the module's file, found where Python would look for
    it, without importing it; for ``folder:PATH`` and ``imagenet_folder:NAME`` the images.

    Arguments:
        folder: that relative paths start from.
    """
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from named_files(item, folder)
    if isinstance(value, str) and (path := _path_of(value, folder)):
        yield from with_imports(path, path.parent) if path.suffix == ".py" and path.is_file() else files_in(path)
    elif isinstance(value, str) and (code := code_of(value)):
        yield from () if code.is_file else _module_files(code.place)


def _path_of(text: str, folder: Path) -> Path | None:
    if images := _IMAGES.fullmatch(text):
        return data_root() / "imagenet" / (images["folder"] or "val250")
    path = os.path.expanduser(path_in(text)[1])
    return folder / path if path_exists(path, folder) else None


def files_in(path: Path) -> Iterator[Path]:
    """The regular files at or below ``path``, sorted, also behind links, without what Python and runs leave there."""
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


def _module_files(dotted: str) -> Iterator[Path]:
    """The file of a module, those of the packages that it is in, and what they import: nothing is executed.

    The version of torch and the like is in the key already: of these only the module's own file counts.
    """
    if (found := found_module(dotted)) is None:
        return
    root, file = found
    top = dotted.partition(".")[0]
    if top in _LIBRARIES:
        yield file
    else:
        installed = os.path.realpath(root) in _INSTALLED
        yield from with_imports(file, root, [dotted], package=top if installed else None)


def found_module(dotted: str) -> tuple[Path, Path] | None:
    """The folder that importing ``a.b.c`` would start from, and the file of that module; None: there is none.

    Python itself would import ``a`` and ``a.b`` to find ``a.b.c``; here only ``a`` is looked up, and not imported.
    """
    top, *inner = dotted.split(".")
    invalidate_caches()  # the file may have been written a moment ago
    # Not importlib.util.find_spec, which answers with what this process has loaded under that name.
    found = (finder.find_spec(top, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    if (spec := next(filter(None, found), None)) is None:
        return None
    if not inner and spec.has_location:
        file = Path(spec.origin or "")
        return (file.parents[1] if spec.submodule_search_locations else file.parent), file
    for place in spec.submodule_search_locations or ():
        path = Path(place, *inner)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return Path(place).parent, file
    return None


def with_imports(source: Path, root: Path, names: Iterable[str] = (), package: str | None = None) -> Iterator[Path]:
    """A Python file and everything that it imports from ``root``, found in the text: nothing is executed.

    Arguments:
        names: modules that are imported before it.
        package: count the modules of this one only.
    """
    seen = {source, *(path for name in names for path in _modules(root, name))}
    left = sorted(seen, key=lambda path: (path == source, path))
    while left:
        file = left.pop()
        yield file
        imported = (name for name in _imports(file, root) if package in (None, name.partition(".")[0]))
        found = {path for name in imported for path in _modules(root, name)} - seen
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
    """The files that importing ``a.b.c`` reads below ``root``, also those of the packages above it."""
    place = root
    for part in dotted.split("."):
        place = place / part
        yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())


def _content_of(files: Iterable[Path], root: Path) -> Iterator[bytes]:
    """What a key holds of each file: its name, relative to ``root`` where it lies there, and its bytes.

    Of a file over ``LARGE`` bytes path, size and time of change replace the bytes; of one that can't be read, the
    reason does.
    """
    for file in files:
        name = file.relative_to(root) if file.is_relative_to(root) else file
        yield f"\0{name.as_posix()}\0".encode(errors="surrogateescape")
        try:
            facts = file.stat()
            large = f"{file}\0{facts.st_size}\0{facts.st_mtime_ns}".encode(errors="surrogateescape")
            yield large if facts.st_size > LARGE else file.read_bytes()
        except OSError as error:
            yield str(error.strerror).encode()
