"""How far activations go, without data: an interval for every value of a network, from what batch norm knows.

A layer's output lies within 8 standard deviations of its mean (Nagel et al., ICCV 2019, arXiv 1906.04721, take 6 of
the normalised values; 8 is ours, see docs/deploy.md). Everything else is interval arithmetic, cut to
mean +- 8 deviations where terms are added or multiplied: the sum of two intervals grows from block to block, the
spread of a sum of independent terms by its root only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from redlab.compression.moments import BATCH_NORMS, FUNCTIONS, MOVEMENTS, MeanInputs, Moments, runs_layer
from redlab.network.trace import operation

DEVIATIONS = 8.0
_ELEMENTWISE = FUNCTIONS | {"add", "sub", "mul", "div"}
_POINTS = 65  # at which a function is looked at between the ends of an interval


@dataclass(frozen=True)
class Interval:
    """The smallest and largest value of every element of an activation, in its shape with a batch of one."""

    low: Tensor
    high: Tensor

    def within(self, other: Interval) -> Interval:
        """Both at once; this one's ends where they don't meet."""
        low, high = torch.maximum(self.low, other.low), torch.minimum(self.high, other.high)
        meet = low <= high
        return Interval(torch.where(meet, low, self.low), torch.where(meet, high, self.high))

    @property
    def ends(self) -> tuple[float, float]:
        """Of the whole tensor; zero lies inside, so that it is a value of the quantized one."""
        return min(0.0, float(self.low.min())), max(0.0, float(self.high.max()))


Ranges = dict[str, tuple[float, float]]  # the ends by the name of a value


@torch.no_grad()
def expected_ranges(inputs: MeanInputs, input_range: Interval | None = None) -> tuple[Ranges, dict[str, str]]:
    """The range of every value whose moments are known.

    Arguments:
        input_range: of the network's first input; by default as of any other value.

    Returns:
        The smallest and largest value by the name of a node; and why the others have none.
    """
    known: dict[Node, Any] = {}
    ranges: Ranges = {}
    unknown: dict[str, str] = {}
    for node in inputs.graph.fx.nodes:
        moments = inputs.values.get(node)
        known[node] = _interval(node, moments, known)
        if node in inputs.graph.inputs and input_range is not None and isinstance(known[node], Interval):
            known[node], input_range = input_range, None
        if isinstance(known[node], Interval) and isinstance(moments, Moments):
            ranges[node.name] = known[node].ends
        elif reason := getattr(moments, "reason", ""):
            unknown[node.name] = reason
    return ranges, unknown


def of_images(mean: Sequence[float], std: Sequence[float], like: Tensor) -> Interval:
    """What images with values in [0, 1] become when they are normalised: (1, channels, 1, 1), broadcast to ``like``."""
    shape = [1, -1, *[1] * (like.ndim - 2)]
    middle, scale = (torch.tensor(list(values), dtype=torch.float32).view(shape) for values in (mean, std))
    return Interval((-middle / scale).expand(like.shape), ((1 - middle) / scale).expand(like.shape))


def _interval(node: Node, moments: Any, known: dict[Node, Any]) -> Any:
    """The interval of a node's output, a list of them, a constant; None where nothing is known."""
    if not isinstance(moments, Moments | list):
        return moments if isinstance(moments, Tensor | int | float) else None
    spread = tree_map(_spread, moments)
    if node.op != "call_function" or runs_layer(node):
        return spread
    args, kwargs = map_arg((node.args, node.kwargs), known.get)
    if node.target is operator.getitem:
        return args[0][args[1]]
    name = operation(node)
    if name in BATCH_NORMS or None in tree_leaves(args[:1]):
        return spread
    if name in FUNCTIONS and isinstance(args[0], Interval):
        return _through_function(node, args, kwargs)
    if name in MOVEMENTS and isinstance(args[0], Interval):
        return _moved(node, args, kwargs)
    if name not in _RULES:
        return spread
    own = _RULES[name](*args, **kwargs)
    return own.within(spread) if _is_of_independent(node, args) else own


def _is_of_independent(node: Node, args: tuple) -> bool:
    """Whether two values are combined, other than as x * sigmoid(x) or by a gate."""
    if operation(node) not in ("add", "sub", "mul") or not all(isinstance(arg, Interval) for arg in args[:2]):
        return False
    factors = [_source(arg) for arg in node.args[:2] if isinstance(arg, Node)]
    gated = any(max(map(abs, arg.ends)) <= 1 for arg in args[:2])
    return operation(node) != "mul" or not (gated or factors[0] is factors[1])


def _source(node: Node) -> Node:
    """The value that elementwise operations made this one of."""
    while operation(node) in _ELEMENTWISE and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _spread(moments: Any) -> Any:
    """Mean +- 8 deviations."""
    if not isinstance(moments, Moments):
        return None
    reach = DEVIATIONS * moments.variance.clamp_min(0).sqrt()
    return Interval(moments.mean - reach, moments.mean + reach)


def _through_function(node: Node, args: tuple, kwargs: dict) -> Interval:
    """The smallest and largest value between the ends: exact for functions that only rise or only fall."""
    at = (torch.lerp(args[0].low, args[0].high, share) for share in torch.linspace(0, 1, _POINTS).tolist())
    low = high = node.target(next(at), *args[1:], **kwargs)
    for point in at:
        value = node.target(point, *args[1:], **kwargs)
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    return Interval(low, high)


def _moved(node: Node, args: tuple, kwargs: dict) -> Any:
    """One interval, or a list of them where the operation divides its input."""
    low, high = (node.target(end, *args[1:], **kwargs) for end in (args[0].low, args[0].high))
    if isinstance(low, Tensor):
        return Interval(low, high)
    return [Interval(*ends) for ends in zip(low, high, strict=True)]


def _sum(a: Any, b: Any, *, alpha: float = 1) -> Interval:
    return _of_ends(_ends(a), [alpha * end for end in _ends(b)], torch.add)


def _product(a: Any, b: Any) -> Interval:
    return _of_ends(_ends(a), _ends(b), torch.mul)


def _of_ends(a: Sequence, b: Sequence, combine: Callable) -> Interval:
    """An operation that has its extremes at the ends of its arguments."""
    corners = [combine(torch.as_tensor(x), torch.as_tensor(y)) for x in a for y in b]
    return Interval(*(f(torch.stack(torch.broadcast_tensors(*corners)), 0) for f in (torch.amin, torch.amax)))


def _gated(given: Interval, dim: int = -1) -> Interval:
    """Half of the channels times a sigmoid of the others."""
    lows, highs = given.low.chunk(2, dim), given.high.chunk(2, dim)
    return _product(Interval(lows[0], highs[0]), Interval(lows[1].sigmoid(), highs[1].sigmoid()))


def _joined(parts: list, dim: int = 0) -> Interval:
    ends = [_ends(part) for part in parts]
    return Interval(torch.cat([low for low, _ in ends], dim), torch.cat([high for _, high in ends], dim))


def _ends(value: Any) -> tuple:
    return (value.low, value.high) if isinstance(value, Interval) else (value, value)


_RULES: dict[str, Callable[..., Interval]] = {
    "add": _sum,
    "sub": lambda a, b, *, alpha=1: _sum(a, b, alpha=-alpha),
    "mul": _product,
    "div": lambda a, b, **_: _product(a, 1 / b),
    "cat": _joined,
    "concat": _joined,
    "glu": _gated,
    "as_strided": lambda given, *_: given,
}
