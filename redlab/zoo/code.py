"""Code that the user names: ``FILE.py:NAME`` and ``package.module:NAME``, for networks and datasets alike.

Only ``load_code`` runs a file. What a saved folder names is never passed to it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from redlab.zoo.code_runs import calling, digest, run_file

_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_NEARLY = re.compile(rf"\s*(.+\.py)\s*::?\s*({_NAME})\s*(?:\(.*\))?\s*")  # as a call, or as pytest names it
_FILE, _MODULE = re.compile(rf"(.+\.py):({_NAME})"), re.compile(rf"({_NAME}):({_NAME})")


@dataclass(frozen=True)
class Code:
    """Where code is, and the name in it.

    Attributes:
        place: the path of a file that ends in .py, or a dotted module.
        name: of a class, function or object; dots lead into classes.
    """

    place: str
    name: str

    def __str__(self) -> str:
        return f"{self.place}:{self.name}"

    @property
    def is_file(self) -> bool:
        """Whether the place is a file, not a module."""
        return self.place.endswith(".py")

    @property
    def path(self) -> Path:
        """The absolute path of the file."""
        return Path(self.place).expanduser().absolute()

    def absolute(self) -> Code:
        """The same code by a place that holds in any folder."""
        return Code(str(self.path), self.name) if self.is_file else self

    @property
    def source(self) -> Path | None:
        """The file of the code; of a module it is known after its import. None where it has none."""
        if self.is_file:
            return self.path
        file = getattr(sys.modules.get(self.place), "__file__", None)
        return Path(file) if file else None


def code_of(text: str) -> Code | None:
    """The code that ``text`` names by its form; None for another form. Nothing is looked up, nothing is run.

    Example:
        >>> from redlab.zoo.code import code_of
        >>> code_of("nets/mine.py:Net"), code_of("torchvision.models:resnet18").is_file, code_of("digits/mlp")
        (Code(place='nets/mine.py', name='Net'), False, None)
    """
    found = _FILE.fullmatch(text) or _MODULE.fullmatch(text)
    return Code(*found.groups()) if found else None


def nearly_code(text: str) -> str:
    """How to write what was perhaps meant as ``FILE.py:NAME``; "" where nothing hints at it.

    Example:
        >>> from redlab.zoo.code import nearly_code
        >>> nearly_code("nets.py:make()"), nearly_code("nets.py::make"), nearly_code("digits/mlp")
        ('write FILE.py:NAME, as nets.py:make', 'write FILE.py:NAME, as nets.py:make', '')
    """
    found = _NEARLY.fullmatch(text)
    return f"write FILE.py:NAME, as {found[1].rstrip(' :')}:{found[2]}" if found and code_of(text) is None else ""


def check_code(code: Code) -> None:
    """Refuse code that is not there, without running any.

    Raises:
        ValueError: there is no such file, or no such package.
    """
    if code.is_file:
        if not code.path.is_file():
            raise ValueError(f"{code}: there is no file {code.path}")
        if "." in code.path.stem:
            raise ValueError(f"{code}: a file whose name holds a dot cannot be imported: rename {code.path.name}")
        return
    package = code.place.partition(".")[0]
    if package not in sys.modules and find_spec(package) is None:
        raise ValueError(f"{code}: no module {package!r} is installed; the code of a file is FILE.py:NAME")


def load_code(text: str) -> Any:
    """The object that ``text``, a ``FILE.py:NAME`` or ``package.module:NAME``, stands for; it runs the file.

    A file is imported under its stem, as Python does beside it, so that its classes unpickle elsewhere. A file is run
    again if it changed, or a module beside it that it imports did, even inside a function that was called.

    Raises:
        ValueError: another form; no such file, module or name (the message lists those that are there); whatever the
            code raises, with the file in front.
    """
    if (code := code_of(text)) is None:
        raise ValueError(f"{text!r} names no code: {nearly_code(text) or 'write FILE.py:NAME or package.module:NAME'}")
    check_code(code)
    run = (lambda: run_file(code.path)) if code.is_file else (lambda: importlib.import_module(code.place))
    module = _named(str(code), run)
    return _attribute(module, code)


def call_code(text: str, made: Callable, **arguments: Any) -> Any:
    """What ``made``, a class or function that ``load_code(text)`` gave, returns; its file's folder is importable.

    What the call imports from beside the file counts as what the file imports.

    Raises:
        ValueError: whatever it raises, with the file in front.
    """
    code = code_of(text)
    if code is None or not code.is_file:
        return _named(text, lambda: made(**arguments))
    with calling(code.path):
        return _named(text, lambda: made(**arguments))


def sha256_of_code(code: Code) -> dict[str, str] | None:
    """The name and SHA-256 of the code's file, without its folder; None where there is none."""
    if (file := code.source) is None or not file.is_file():
        return None
    return {"file": file.name, "sha256": digest(file.read_bytes())}


def _named(text: str, run: Callable[[], Any]) -> Any:
    """What ``run`` returns; an error of the user's code keeps its message, with ``text`` in front."""
    try:
        return run()
    except SystemExit as error:  # as of a script that reads its arguments; it would end the caller, without a word
        why = f"it ends the process (SystemExit: {error}): put that under if __name__ == '__main__'"
        raise ValueError(f"{text}: {why}") from error
    except Exception as error:
        raise ValueError(f"{text}: {type(error).__name__}: {error}") from error


def _attribute(module: ModuleType, code: Code) -> Any:
    found: Any = module
    for part in code.name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{code.place} has no {code.name!r}{_those_in(module, code.name)}")
        found = getattr(found, part)
    return found


def _those_in(module: ModuleType, name: str) -> str:
    """The name that was perhaps meant, and the names that a module defines itself."""
    public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    own = [key for key, value in public.items() if _is_own(value, module)]
    close = difflib.get_close_matches(name, public, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    return f"{guess}; it holds {', '.join(own[:20]) or 'no names'}{', ...' if len(own) > 20 else ''}"


def _is_own(value: Any, module: ModuleType) -> bool:
    """A class or function that is defined there, or any other object."""
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__module__ == module.__name__
    return not isinstance(value, ModuleType)
