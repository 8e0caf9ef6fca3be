"""Files of code that were run in this process: each under its stem, and again when its content changed."""

from __future__ import annotations

import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def digest(content: bytes) -> str:
    """The SHA-256 in hex digits."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class _Run:
    """A file that was run.

    Attributes:
        module: what came of it.
        files: the SHA-256 of the file, and of those beside it that it or a call of its code imported.
        beside: the modules of the latter, by name.
    """

    module: ModuleType
    files: dict[Path, str]
    beside: dict[str, ModuleType]

    def is_current(self) -> bool:
        """Whether running it again would give the same."""
        return all(file.is_file() and digest(file.read_bytes()) == seen for file, seen in self.files.items()) and all(
            sys.modules.get(name) is module for name, module in self.beside.items()
        )


_RUNS: dict[Path, _Run] = {}
_RUNNING: dict[Path, ModuleType] = {}
# The names of all modules that files, or calls of their code, imported from beside themselves, and their own; each with
# the SHA-256 of its file at that time.
_OURS: dict[str, str] = {}


def run_file(path: Path) -> ModuleType:
    """The module of a file, imported under its stem; it runs only if it, or what it imports from beside it, changed.

    Raises:
        ImportError: its stem is the name of another module.
        Exception: whatever the file raises.
    """
    path = path.resolve()
    if path in _RUNNING:  # the file asks for its own code
        return _RUNNING[path]
    run = _RUNS.get(path)
    if run is None or not run.is_current():
        _make_room(path.parent)
        _forget_old(path.parent, run)
        run = _RUNS[path] = _run(path)
    sys.modules[path.stem] = run.module
    return run.module


@contextmanager
def calling(path: Path) -> Iterator[None]:
    """Inside, code of a file is called: it may import what lies beside the file, which then counts as what it needs."""
    path = path.resolve()
    _make_room(path.parent)
    if path in _RUNS:
        sys.modules[path.stem] = _RUNS[path].module
    try:
        with _recorded(path.parent):
            yield
    finally:
        if (run := _RUNS.get(path)) is not None:
            files, beside = _beside(path, run.files[path])
            _RUNS[path] = _Run(run.module, files, beside)


def _make_room(folder: Path) -> None:
    """Forget the modules that ``folder`` holds in another file, where they came from a file run before."""
    for name in [name for name in _OURS if name in sys.modules]:
        top = name.partition(".")[0]
        shadowed = (folder / top).is_dir() or (folder / f"{top}.py").is_file()
        if shadowed and _file_beside(name, folder) is None:
            del sys.modules[name]


def _forget_old(folder: Path, old: _Run | None) -> None:
    """Forget the modules of a run that is no longer current; all of ``folder`` if one of their files changed.

    Files that were run themselves and are current stay, so that what they made can still be pickled.
    """
    found = {name: file for name in _OURS if (file := _file_beside(name, folder)) and file not in _RUNNING}
    changed = any(not file.is_file() or digest(file.read_bytes()) != _OURS[name] for name, file in found.items())
    current = [path for path, run in _RUNS.items() if path in found.values() and run.is_current()]
    for name, file in found.items():
        if file not in current and (changed or (old and name in old.beside)):
            del sys.modules[name]


def _run(path: Path) -> _Run:
    _check_stem(path)
    spec = spec_from_file_location(path.stem, path)
    if spec is None:
        raise ImportError(f"{path} cannot be imported")
    content, module = path.read_bytes(), module_from_spec(spec)
    old = sys.modules.get(path.stem)
    sys.modules[path.stem] = _RUNNING[path] = module
    try:
        with _recorded(path.parent):
            exec(compile(content, str(path), "exec"), vars(module))  # a cached compilation may be a second too old
    except BaseException:
        _put_back(path.stem, old)
        raise
    finally:
        del _RUNNING[path]
    _OURS[path.stem] = digest(content)
    return _Run(module, *_beside(path, _OURS[path.stem]))


@contextmanager
def _recorded(folder: Path) -> Iterator[None]:
    """Inside, modules of ``folder`` can be imported; those that are become ours."""
    before = dict(sys.modules)
    try:
        with importable(folder):
            yield
    finally:
        new = [name for name, module in list(sys.modules.items()) if module is not before.get(name)]
        found = {name: file for name in new if (file := _file_beside(name, folder)) and file not in _RUNNING}
        _OURS.update({name: digest(file.read_bytes()) for name, file in found.items() if file.is_file()})


def _put_back(name: str, module: ModuleType | None) -> None:
    del sys.modules[name]
    if module is not None:
        sys.modules[name] = module


def _beside(path: Path, content: str) -> tuple[dict[Path, str], dict[str, ModuleType]]:
    """The files and modules of a ``_Run``; those that another file beside this one imported count too.

    Arguments:
        content: the SHA-256 of what was run.
    """
    found = {name: file for name in _OURS if name != path.stem and (file := _file_beside(name, path.parent))}
    files = {file: _OURS[name] for name, file in found.items()}
    return files | {path: content}, {name: sys.modules[name] for name in found}


def _file_beside(name: str, folder: Path) -> Path | None:
    """The file of an imported module, if it lies in ``folder`` and is no installed package."""
    file = getattr(sys.modules.get(name), "__file__", None)
    path = Path(file).resolve() if file else None
    return path if path and path.is_relative_to(folder) and not _is_installed(path) else None


def _is_installed(path: Path) -> bool:
    places = sysconfig.get_paths()
    return any(path.is_relative_to(Path(places[key]).resolve()) for key in ("purelib", "platlib", "stdlib"))


def _check_stem(path: Path) -> None:
    """Refuse a file that would take the place of another module: its classes would unpickle as that one's."""
    stem, other = path.stem, None
    if stem in sys.stdlib_module_names:
        other = "Python's own"
    elif stem in sys.modules and stem not in _OURS:
        file = getattr(sys.modules[stem], "__file__", None)
        other = None if file and Path(file).resolve() == path else file or "built in"
    elif stem not in _OURS and (spec := find_spec(stem)) and spec.origin and _is_installed(Path(spec.origin).resolve()):
        other = spec.origin
    if other:
        raise ImportError(f"{stem!r} is the name of another module ({other}): rename {path.name}")


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Inside, modules of ``folder`` can be imported."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the code may have changed the path
            sys.path.remove(str(folder))
