"""Options made plain and checked where they come in: what a recipe or a plan records is plain data (JSON).

The annotation of an argument says which kinds of values it takes: ``float``, ``int``, ``bool``, ``str``,
``dict[str, float]``, ``dict[str, int]``, ``dict[str, str]``, ``Sequence[float]``, ``tuple[float, float]``,
``torch.Tensor``, ``ndarray``, ``None``, or several. Arguments of other kinds, a network or a dataset say, are left as
they are. Ranges and names are checked by the functions themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from numpy import ndarray

P = ParamSpec("P")
R = TypeVar("R")


def plain_options(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate ``function``: its options come in as plain Python values, and what none can be made of is refused.

    Raises:
        TypeError: a value of another kind; the message names the option, the value and what would be right. True and
            False are no numbers, a string is none either.
        ValueError: a number that should be whole and is not.

    Example:
        >>> from redlab.options import plain_options
        >>> @plain_options
        ... def half(ratio: float = 0.5) -> float:
        ...     return ratio
        >>> half(np.float32(0.25)), half(torch.tensor(0.75))
        (0.25, 0.75)
        >>> half("0.25")
        Traceback (most recent call last):
        TypeError: ratio must be a number (0.5, say), not '0.25'
    """
    names = list(signature(function).parameters)

    @wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        placed = fitted(function, dict(zip(names, args, strict=False))).values()
        return function(*placed, *args[len(names) :], **fitted(function, options))  # type: ignore[arg-type]

    return checked


def fitted(function: Callable, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` as ``function`` takes them by name, made plain; those that it does not name are left as they are.

    Raises: as ``plain_options``.
    """
    known = signature(function).parameters
    return {
        name: _fit(name, value, known[name].annotation, known[name].default) if name in known else value
        for name, value in options.items()
    }


def settle(options: Any) -> None:
    """Make the fields of a frozen dataclass plain, in its ``__post_init__``.

    Raises: as ``plain_options``.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        object.__setattr__(options, field.name, _fit(field.name, value, field.type, field.default))


def check_one_of(name: str, value: Any, known: Iterable[Any]) -> None:
    """Raises ValueError if ``value`` is none of those ``known``, which the message lists."""
    if value not in (known := list(known)):
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, not {value!r}")


def check_whole(name: str, value: float, least: int = 1) -> None:
    """Raises ValueError if ``value`` is no whole number of at least ``least``."""
    if not value >= least or value != int(value):  # NaN too
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_number(name: str, value: float, least: float = 0, below: float = math.inf) -> None:
    """Raises ValueError if ``value`` is no number of at least ``least`` and below ``below``."""
    if not least <= value < below:  # NaN too
        limits = f"be a number of at least {least}" if below == math.inf else f"lie in [{least}, {below})"
        raise ValueError(f"{name} must {limits}, not {'' if below == math.inf else 'be '}{value!r}")


def count_of(share: float, n: int) -> int:
    """``share`` of n, rounded down."""
    return int(share * n * (1 + 1e-12))  # 0.29 * 100 is a little less than 29 in binary


def _fit(name: str, value: Any, annotation: Any, default: Any) -> Any:
    kinds = str(annotation).split(" | ")
    if not set(kinds) <= _KINDS.keys():
        return value
    own = value if "ndarray" in kinds else _scalar(value)
    for kind in kinds:
        if _KINDS[kind].holds(own):
            return _KINDS[kind].plain(own)
    if set(kinds) <= {"str", "None"} and isinstance(own, Hashable):
        return own  # the function knows the names, and lists them
    right = " or ".join(dict.fromkeys(_KINDS[kind].words for kind in kinds))
    known = isinstance(default, str | int | float) and not isinstance(default, bool)
    example = f" ({default!r}, say)" if known else ""
    whole = isinstance(own, float) and "int" in kinds
    raise (ValueError if whole else TypeError)(f"{name} must be {right}{example}, not {value!r}")


def _scalar(value: Any) -> Any:
    """A tensor or array of no axes as the Python number in it."""
    if isinstance(value, np.generic | ndarray | torch.Tensor) and not getattr(value, "ndim", 1):
        return value.item()
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are_numbers(values: Any) -> bool:
    listed = isinstance(values, Sequence | ndarray | torch.Tensor) and not isinstance(values, str)
    return listed and all(_is_number(_scalar(value)) for value in values)


def _are_named(values: Any) -> bool:
    named = isinstance(values, Mapping) and all(isinstance(name, str) for name in values)
    return named and _are_numbers([*values.values()])


def _number(value: Any) -> int | float:
    own = _scalar(value)
    return int(own) if isinstance(own, Integral) else float(own)


class _Kind(NamedTuple):
    """What an option of a kind is called, which values it may have, and how they are made plain."""

    words: str
    holds: Callable[[Any], bool]
    plain: Callable[[Any], Any] = lambda value: value


_KINDS: dict[str, _Kind] = {
    "float": _Kind("a number", _is_number, _number),
    "int": _Kind("a whole number", lambda v: _is_number(v) and math.isfinite(v) and v == int(v), int),
    "bool": _Kind("True or False", lambda v: isinstance(v, bool)),
    "str": _Kind("a string", lambda v: isinstance(v, str), str.__str__),
    "dict[str, float]": _Kind(
        "a dict of numbers by name", _are_named, lambda v: {str.__str__(key): _number(own) for key, own in v.items()}
    ),
    "dict[str, int]": _Kind(
        "a dict of whole numbers by name",
        lambda v: _are_named(v) and all(_KINDS["int"].holds(_scalar(own)) for own in v.values()),
        lambda v: {str.__str__(key): int(own) for key, own in v.items()},
    ),
    "dict[str, str]": _Kind(
        "a dict of strings by name",
        lambda v: isinstance(v, Mapping) and all(isinstance(own, str) for pair in v.items() for own in pair),
        lambda v: {str.__str__(key): str.__str__(own) for key, own in v.items()},
    ),
    "Sequence[float]": _Kind("a list of numbers", _are_numbers, lambda v: list(map(_number, v))),
    "tuple[float, float]": _Kind(
        "two numbers", lambda v: _are_numbers(v) and len(v) == 2, lambda v: tuple(map(_number, v))
    ),
    "torch.Tensor": _Kind("a torch tensor", lambda v: isinstance(v, torch.Tensor)),
    "ndarray": _Kind("a numpy array", lambda v: isinstance(v, ndarray)),
    "None": _Kind("None", lambda v: v is None),
}
