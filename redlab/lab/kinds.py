"""Kinds: what a parameter takes, out of what JSON can hold.

A kind is a tuple of types, any of which will do; ``Items`` is a list, and ``object`` any plain data.
"""

from __future__ import annotations

import ast
import math
import os
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
    if isinstance(value, bool):  # an int to Python, to nobody else
        return own is bool
    if own is float and isinstance(value, int):  # which may be too large for one
        return abs(value) <= sys.float_info.max
    return isinstance(value, own)


def plain(value: Any, kind: Kind) -> Any:
    """``value`` as JSON knows it: numpy's numbers and paths are what they stand for, tuples are lists.

    Where a float is taken, and no int, an int becomes one; and text that is a finite number is that number, since YAML
    takes 1e-3 for a word.
    """
    if isinstance(value, list | tuple):
        inner = join(own.kind for own in kind if isinstance(own, Items))
        return [plain(item, inner) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == ():  # a number of numpy's or torch's
        value = value.item()
    number = isinstance(value, int) and not isinstance(value, bool) and int not in kind
    if float in kind and (isinstance(value, str) or number) and _is_finite(value):
        return float(value)
    return value


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def from_text(text: str, kind: Kind) -> Any:
    """A value as it is typed in a shell: YAML; text stays text where text is taken (YAML takes ``off`` for False)."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that there is not
        value = text
    if str in kind and not (text and fits(value, tuple(own for own in kind if own is not str))):
        value = text
    if object in kind and isinstance(value, str) and text[-1:].isdigit() and _is_finite(value):
        return float(value)  # 1e-3
    return plain(value, kind)


def in_words(kind: Kind) -> str:
    """``str or float``, ``list of int``."""
    return " or ".join(_word(own) for own in kind if own is not NoneType) or "None"


def _word(own: Any) -> str:
    if isinstance(own, Items):
        return f"list of {in_words(own.kind)}"
    return "anything" if own is object else own.__name__
