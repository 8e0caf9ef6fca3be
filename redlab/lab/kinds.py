"""Kinds: what a parameter takes, out of what JSON can hold, and how its values are read from text and written as text.

A kind is a tuple of types, any of which will do; ``Items`` is a list, and ``object`` any plain data.
"""

from __future__ import annotations

import ast
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeAlias

Kind: TypeAlias = tuple[Any, ...]
ANY: Kind = (object,)
_NAMED: dict[str, Kind] = {t.__name__: (t,) for t in (bool, int, float, str, dict, object)}
_NAMED |= {"Any": ANY, "Mapping": (dict,), "Path": (str, Path)}  # a path is text, too
_LISTS = ("list", "tuple", "Sequence", "Iterable", "Collection")
# folder:PATH, hf/FOLDER, FILE.py:NAME
_PATH = re.compile(r"(?P<before>folder:|hf/)?(?P<path>.*?)(?P<after>(?<=\.py):[A-Za-z_][\w.]*)?", re.DOTALL)


@dataclass(frozen=True)
class Items:
    """A list, every item of which fits ``kind``."""

    kind: Kind


def kind_of(default: Any, none: bool = True) -> Kind:
    """What stands beside a default when nothing else is known: its type, and None unless ``none`` is False."""
    if default is None:
        return ANY if none else (NoneType,)
    own: Any = type(default)
    if isinstance(default, list):
        own = Items(join(kind_of(item, none) for item in default) or ANY)
    return (own, NoneType) if none else (own,)


def kind_named(annotation: ast.expr | None, alias: Callable[[str], Kind] = lambda _: ()) -> Kind:
    """The kind that an annotation says, ``str | float`` or ``Sequence[int]``; () where it says more than kinds can.

    Arguments:
        alias: what other names stand for.
    """
    match annotation:
        case ast.Constant(value=None):
            return (NoneType,)
        case ast.Name(id=name):
            return _NAMED.get(name) or alias(name)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            parts = kind_named(left, alias), kind_named(right, alias)
            return join(parts) if all(parts) else ()
        case ast.Subscript(value=ast.Name(id=name), slice=item) if name in _LISTS:
            return (Items(inner),) if (inner := kind_named(item, alias)) else ()
        case ast.Subscript(value=ast.Name(id="dict" | "Mapping")):
            return (dict,)
    return ()


def join(kinds: Iterable[Kind]) -> Kind:
    """What fits any of them."""
    return tuple(dict.fromkeys(own for kind in kinds for own in kind))


def meet(one: Kind, other: Kind) -> Kind:
    """What fits both."""
    return join([tuple(k for k in one if _covers(other, k)), tuple(k for k in other if _covers(one, k))])


def _covers(kind: Kind, own: Any) -> bool:
    return own in kind or object in kind or (own is int and float in kind)


def fits(value: Any, kind: Kind) -> bool:
    """Whether a value is of one of these types. An int does for a float; a bool does for nothing else."""
    return any(_is(value, own) for own in kind)


def _is(value: Any, own: Any) -> bool:
    if isinstance(own, Items):
        return isinstance(value, list | tuple) and all(fits(item, own.kind) for item in value)
    if own is object:
        return True
    if isinstance(value, bool):  # an int to Python, but no number here
        return own is bool
    if own is float and isinstance(value, int):  # which may be too large for one
        return abs(value) <= sys.float_info.max
    return isinstance(value, own)


def plain(value: Any, kind: Kind) -> Any:
    """``value`` as JSON knows it: numbers of numpy and paths become plain values, tuples become lists.

    Where a float is taken, and no int, an int becomes one. Text that is a finite number becomes that number too, since
    YAML takes 1e-3 for a word.
    """
    if isinstance(value, list | tuple):
        inner = join(own.kind for own in kind if isinstance(own, Items))
        return [plain(item, inner) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == ():  # a number of numpy's or torch's
        value = value.item()
    number = isinstance(value, int) and not isinstance(value, bool) and int not in kind
    if float in kind and (isinstance(value, str) or number) and _is_number(value):
        return float(value)
    return value


def _is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number, or text that is one."""
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def from_text(text: str, kind: Kind) -> Any:
    """A value as it is typed in a shell: YAML; text stays text where text is taken (YAML takes ``off`` for False)."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
        value = text
    if str in kind and not (text and fits(value, tuple(own for own in kind if own is not str))):
        value = text
    if object in kind and isinstance(value, str) and text[-1:].isdigit() and _is_number(value):
        return float(value)  # 1e-3
    return plain(value, kind)


def to_text(value: Any, kind: Kind) -> str:
    """The text that ``from_text`` reads as ``value``: text as it is where text is taken, otherwise YAML."""
    import yaml

    if isinstance(value, str) and str in kind:
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    # 1e-3 is a word to YAML and a number to from_text, unless it is quoted.
    return f"'{text}'" if isinstance(value, str) and _is_number(text) else text


def absolute(value: Any, kind: Kind) -> Any:
    """``value`` with the paths in it made absolute, at any depth: a kernel works in another folder.

    Text that names nothing here stays as it is. A single word is taken for a path only where ``kind`` is one.
    """
    if isinstance(value, list):
        return [absolute(item, kind) for item in value]
    if isinstance(value, dict):
        return {key: absolute(item, kind) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    before, path, after = path_in(value)
    if not (Path in kind or before or after or "/" in path or os.sep in path) or not path_exists(path):
        return value
    return f"{before}{Path(path).expanduser().resolve()}{after}"


def path_in(text: str) -> tuple[str, str, str]:
    """The part of ``text`` before a path, the path, and the part after it: ("", "net.py", ":make")."""
    before, path, after = _PATH.fullmatch(text).groups("")  # type: ignore[union-attr]  # which any text matches
    return before, path, after


def path_exists(path: str, folder: Path | None = None) -> bool:
    """Whether ``path`` is there, relative to ``folder`` or the current one; "/" and "." are no names."""
    # os.path.exists takes any text, also one that is too long for a path.
    return any(map(str.isalnum, path)) and os.path.exists(os.path.join(folder or "", os.path.expanduser(path)))


def in_words(kind: Kind) -> str:
    """``str or float``, ``list of int``."""
    return " or ".join(_word(own) for own in kind if own is not NoneType) or "None"


def _word(own: Any) -> str:
    if isinstance(own, Items):
        return f"list of {in_words(own.kind)}"
    return "anything" if own is object else own.__name__
