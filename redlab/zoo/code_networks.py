"""Networks that the user's code makes: a class, a function, or a network itself."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import nn

from redlab.network.example import Example, Inputs
from redlab.zoo.code import call_code, load_code


def build(text: str) -> tuple[nn.Module, Example | None]:
    """The network that ``FILE.py:NAME`` or ``package.module:NAME`` stands for, and the example that it gives, if any.

    Raises:
        ValueError: as ``load_code``; or it is no network, and makes none without arguments.
    """
    return made_of(load_code(text), text)


def made_of(given: Any, text: str) -> tuple[nn.Module, Example | None]:
    """The network that a class, a function or an object gives. An object is copied, so that no tensor is shared.

    Arguments:
        text: its name, for the errors.
    """
    if callable(given) and not isinstance(given, nn.Module):
        _check_arguments(given, text)
        return _parted(call_code(text, given), text, "returned")
    network, example = _parted(given, text, "is")
    return copy.deepcopy(network), example


def _check_arguments(given: Any, text: str) -> None:
    try:
        asked = inspect.signature(given).parameters.values()
    except (TypeError, ValueError):  # of a C function
        return
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if needed := [one.name for one in asked if one.default is one.empty and one.kind not in optional]:
        raise ValueError(
            f"{text} is called without arguments, and it needs {', '.join(needed)}: write a function of none"
        )


def _parted(given: Any, text: str, verb: str) -> tuple[nn.Module, Example | None]:
    network, example = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise ValueError(f"{text} {verb} a {kind}: it must be a network (nn.Module), or the pair (network, example)")
    if example is not None:
        _check_example(example, text)
    return network, example


def _check_example(example: Any, text: str) -> None:
    try:
        Inputs.of(example)
    except ValueError as error:
        raise ValueError(f"{text} gives an example that is none: {error}") from error
