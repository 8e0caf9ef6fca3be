"""What a network computes: its operations in their order, and the numbers that its code hands to them.

Code may compute with its own width: ``x * x.shape[1] ** -0.5``, ``if x.shape[1] > 12``. The graph shows such a number
as a constant. A network with fewer channels computes with another one, and is then no smaller version of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from redlab.network.operations import named

# What only moves or makes data: its numbers are sizes and places.
_MOVES = named("view", "transpose", "expand", "copy", "cast", "cut", "split", "join", "repeat", "pad", "like", "new")
_MOVES |= {
    *("getitem", "setitem", "chunk", "stack", "unfold", "fold", "repeat_interleave", "broadcast_to", "as_strided"),
    *("zeros", "ones", "full", "empty", "arange", "zeros_like", "copy", "fill", "zero", "get", "float", "half", "type"),
}
_OF_WIDTHS = ("group_norm", "layer_norm", "rms_norm", "instance_norm")  # their numbers are widths
_GROUPS = 6  # the place of ``groups`` among the arguments of every convolution


class Call(NamedTuple):
    """An operation and the numbers that it is given, widths left out."""

    name: str
    numbers: tuple[float, ...]


class Arithmetic(TorchFunctionMode):
    """Inside it, the operations that code calls are noted in ``calls``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func)).strip("_")
        if name not in _MOVES and any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)):
            self.calls.append(Call(name, tuple(_numbers(name, args, kwargs or {}))))
        return made


def _numbers(name: str, args: tuple, kwargs: Mapping[str, Any]) -> Iterator[float]:
    if name in _OF_WIDTHS:
        return
    convolves = name.startswith("conv")
    given = [value for place, value in enumerate(args) if not (convolves and place == _GROUPS)]
    given += [value for key, value in kwargs.items() if key != "groups"]
    yield from (float(leaf) for leaf in tree_leaves(given) if isinstance(leaf, bool | int | float))


def why_other(before: list[Call], after: list[Call]) -> str:
    """Why a smaller network computes something else than the whole one, or "".

    Example:
        >>> from redlab.channels.arithmetic import Call, why_other
        >>> why_other([Call("mul", (16.0,))], [Call("mul", (8.0,))])
        "the network's code computes with its width: mul by 16 becomes mul by 8"
    """
    for one, other in zip_longest(before, after):
        if one is None or other is None or one.name != other.name:
            return "the network's code takes another way where there are fewer channels"
        if one.numbers != other.numbers:
            pairs = zip_longest(one.numbers, other.numbers, fillvalue=float("nan"))
            was, now = next(pair for pair in pairs if pair[0] != pair[1])
            return f"the network's code computes with its width: {one.name} by {was:g} becomes {one.name} by {now:g}"
    return ""
