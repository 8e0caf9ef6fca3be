"""Which operations keep a channel of zeros a channel of zeros. A rule must prove it.

A channel that a ReLU makes zero may be removed if it is still zero where a layer reads it. An operation that is not
listed here, or whose arguments are not known to map 0 to 0, counts as one that moves zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from redlab.channels.labels import Flow, compact
from redlab.network.operations import named
from redlab.network.trace import argument, operation

# f(0) = 0, whatever the other arguments; or elements are moved, picked, averaged or compared with one another.
# The norms are of one channel each: what they add is a producer of the channel like its filter and is judged with it.
ALWAYS = named(
    *("rectifier zero", "activation zero", "function zero", "dropout", "copy", "cast", "product zero", "view"),
    *("transpose", "expand", "cut", "split", "join", "repeat", "shuffle", "pool", "upsample", "reduction zero", "scan"),
    "channel norm",
) | {"prelu", "zeros_like", "chunk", "stack", "repeat_interleave", "glu", "grid_sampler"}


def keeps_zero(flow: Flow, node: Node) -> bool:
    """Whether a channel that is 0 in all that reaches ``node`` is proved to be 0 in what it computes.

    Ask after the labels of its output are known: two tensors that were added are one channel by then.
    """
    name = operation(node)
    return name in ALWAYS or (name in PROOFS and PROOFS[name](flow, node))


def _is_bounded(_: Flow, node: Node) -> bool:
    """0 lies between the bounds, which are numbers or absent."""
    low = argument(node, "min", argument(node, "min_val"))
    high = argument(node, "max", argument(node, "max_val"))
    return (low is None or (_is_number(low) and low <= 0)) and (high is None or (_is_number(high) and high >= 0))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _divides(flow: Flow, node: Node) -> bool:
    """0 / y is 0, except for a y of the same channel: 0 / 0."""
    above, below = node.args[:2]
    if not isinstance(above, Node) or not isinstance(below, Node):
        return isinstance(above, Node) and bool(below != 0)
    one, other = _channels(flow, above, below)
    return not bool(((one == other) & (one >= 0)).any())


def _agree(flow: Flow, *values: Any) -> bool:
    """Whether all values are one and the same channel, element by element, or the number 0."""
    nodes = [value for value in values if isinstance(value, Node)]
    if any(not isinstance(value, Node) and not (_is_number(value) and value == 0) for value in values):
        return False
    first, *others = _channels(flow, *nodes)
    return all(bool(((first == other) | ((first < 0) & (other < 0))).all()) for other in others)


def _channels(flow: Flow, *nodes: Node) -> tuple[torch.Tensor, ...]:
    return torch.broadcast_tensors(*(flow.labels.same(compact(flow.at(node))) for node in nodes))


# By the name of the operation, whether this call of it keeps zero.
PROOFS: dict[str, Callable[[Flow, Node], bool]] = {
    **dict.fromkeys((*named("clamp"), "hardtanh"), _is_bounded),
    # In training it replaces zeros by another number, and a network's code may train in eval mode.
    **dict.fromkeys(named("alpha dropout"), lambda _, node: not argument(node, "train")),
    **dict.fromkeys(named("quotient"), _divides),
    **dict.fromkeys((*named("sum", "extremum"), "hypot", "lerp", "addcmul"), lambda f, node: _agree(f, *node.args[:2])),
    # Of two tensors, or over axes.
    **dict.fromkeys(
        named("largest"), lambda f, node: not isinstance(argument(node, "other"), Node) or _agree(f, *node.args[:2])
    ),
    **dict.fromkeys(
        named("pad"), lambda _, node: argument(node, "mode", "constant") != "constant" or not argument(node, "value")
    ),
    # x where x is above the threshold, else a value.
    "threshold": lambda _, node: argument(node, "threshold") < 0 or argument(node, "value") == 0,
    "linalg_vector_norm": lambda _, node: _is_number(order := argument(node, "ord")) and order >= 0,
    # 0 to a power above 0.
    "pow": lambda _, node: isinstance(node.args[0], Node) and _is_number(node.args[1]) and node.args[1] > 0,
    "where": lambda flow, node: len(node.args) == 3 and _agree(flow, *node.args[1:]),
    "masked_fill": lambda _, node: _is_number(value := argument(node, "value")) and value == 0,
}
