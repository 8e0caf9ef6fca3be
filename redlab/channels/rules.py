"""Channel labels through the operations of a network, one rule a kind of operation.

Operations that only move data are executed on the labels. An operation without a rule freezes the labels that reach it,
with its name as the reason, so that no result is silently wrong.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from redlab.channels import embeddings, rules_cuts, rules_moves
from redlab.channels.labels import Flow, compact
from redlab.channels.rules_layers import channel_norm, embedding, layer
from redlab.channels.rules_zeros import keeps_zero
from redlab.network.operations import named
from redlab.network.trace import Graph, argument, is_layer, operation

_ELEMENTWISE = named(
    *("rectifier zero", "activation zero", "activation", "function zero", "function", "clamp", "copy", "dropout"),
    *("alpha dropout", "like", "product zero", "sum", "extremum", "quotient", "comparison", "logic", "of two"),
) | {"zeros_like"}
_WITH_PARAMETERS = named("channel norm", "layer norm") | {"group_norm", "prelu"}


def follow(graph: Graph, tried: Mapping[Node, int] | None = None) -> Flow:
    """The labels of every activation of ``graph``; ``tried``: see ``Flow``."""
    flow = Flow(graph, tried)
    inputs = [node for node in graph.fx.nodes if node.op == "placeholder" and not flow.name(node)]
    for node in inputs:
        flow.put(node, flow.of_fixed_width(node, "network input"))
    for node in graph.fx.nodes:
        if node.op == "call_function" and not embeddings.waits(flow, node):
            embeddings.settle(flow, node, _step)
            flow.put(node, _step(flow, node))
        elif node.op == "output":
            embeddings.settle(flow, node, _step)
            flow.freeze(node, "network output")
    return flow


def _step(flow: Flow, node: Node) -> Any:
    if node.target is operator.getitem:
        return flow.at(node.args[0])[node.args[1]]
    if is_layer(node):
        return layer(flow, node)
    name = operation(node)
    # A norm's own parameters are entries, not data that it meets.
    labels = [flow.at(node.args[0])] if name in _WITH_PARAMETERS else flow.inputs(node)
    if name != "embedding" and not any(bool((compact(reached) >= 0).any()) for reached in labels):
        return flow.of_fixed_width(node, _why_constant(flow, labels))
    outputs = RULES[name](flow, node) if name in RULES else flow.freeze(node, f"no rule for {name}")
    if not keeps_zero(flow, node):
        flow.moved += labels
    return outputs


def _why_constant(flow: Flow, labels: Iterable[Tensor]) -> str:
    """Why what comes of these labels, all of fixed width, is of fixed width too: what the first of them met, if any."""
    constants = ("network input", "it meets a constant, of fixed width")
    reasons = [why for reached in labels if (why := flow.labels.why_fixed(reached)) not in constants]
    return next(iter(reasons), "it meets a constant of fixed width")


def _elementwise(flow: Flow, node: Node) -> Tensor:
    """Where tensors meet element by element, channel j of each becomes one channel.

    Examples, with 8 channels in each tensor that has any:
        h (n, 8, 5, 5) * gate (n, 8, 1, 1): channel j of h and channel j of gate become one.
        h (n, 8, 5, 5) * mask (n, 1, 5, 5): h keeps its channels. Mask serves all of them, so it is frozen.
        row (8, 1) + column (1, 8): each is spread over the channels of the other, so both are frozen.
    """
    shape = node.meta["val"].shape
    operands = [operand for operand in node.all_input_nodes if isinstance(flow.at(operand), Tensor)]
    if len(operands) == 1:
        return flow.at(operands[0]).expand(shape)
    sides = [compact(flow.at(operand)) for operand in operands]
    sides = [side.view([1] * (len(shape) - side.ndim) + [*side.shape]) for side in sides]  # as broadcasting does
    axes = {axis for side in sides for axis in flow.labels.axes(side)}
    wide = [side for side, operand in zip(sides, operands, strict=True) if _is_wide(operand, axes, len(shape))]
    for side in sides:
        if not any(side is other for other in wide):
            _spread(flow, node, side, sides)
    result = reduce(partial(_met, flow), wide) if wide else sides[0]
    return rules_moves.rectangular(flow, result.expand(shape))


def _is_wide(operand: Node, axes: Iterable[int], ndim: int) -> bool:
    """Whether a tensor has a length of its own along all ``axes`` of the output, which has ``ndim``."""
    own = operand.meta["val"].shape
    return all(axis >= ndim - len(own) and own[axis - ndim] > 1 for axis in axes)


def _met(flow: Flow, one: Tensor, other: Tensor) -> Tensor:
    """The labels where two tensors meet; an element of fixed width takes the label of the other."""
    flow.labels.unite(one, other, same=True)
    one, other = torch.broadcast_tensors(one, other)
    return compact(torch.where(one < 0, other, one))


def _spread(flow: Flow, node: Node, side: Tensor, sides: list[Tensor]) -> None:
    """``side`` is of size 1 along the channels of another tensor: it serves all of them."""
    flow.labels.freeze(side, f"{operation(node)} spreads it over the channels of another tensor")
    if flow.labels.axes(side):
        for other in sides:
            flow.labels.freeze(other, f"{operation(node)} with a tensor whose channels lie along another axis")


def _pool(flow: Flow, node: Node) -> Any:
    """Works on the last axes, those after the batch and the channels."""
    ranks = next(int(digit) for digit in operation(node) if digit.isdigit())
    return _over_space(flow, node, ranks)


def _sample(flow: Flow, node: Node) -> Any:
    """Reads at places that another tensor holds."""
    flow.labels.freeze(flow.at(node.args[1]), f"{operation(node)} reads places from it")
    return _over_space(flow, node, node.meta["val"].ndim - 2)


def _over_space(flow: Flow, node: Node, ranks: int) -> Any:
    labels, value = flow.at(node.args[0]), node.meta["val"]
    spatial = range(labels.ndim - ranks, labels.ndim)
    if any(flow.labels.vary(labels, axis) for axis in spatial):
        return flow.freeze(node, f"{operation(node)} reduces over it")
    for axis in spatial:
        labels = labels.narrow(axis, 0, 1)
    return (
        [labels.expand(one.shape) for one in value] if isinstance(value, list | tuple) else labels.expand(value.shape)
    )


def _largest(flow: Flow, node: Node) -> Any:
    """``max`` and ``min``: of two tensors, or over axes."""
    return _elementwise(flow, node) if len(node.args) > 1 and isinstance(node.args[1], Node) else _reduce(flow, node)


def _reduce(flow: Flow, node: Node) -> Any:
    labels, axes, value = flow.at(node.args[0]), argument(node, "dim"), node.meta["val"]
    axes = [axes] if isinstance(axes, int) else axes or range(labels.ndim)
    axes = {axis % labels.ndim for axis in axes}
    if any(flow.labels.vary(labels, axis) for axis in axes):
        return flow.freeze(node, f"{operation(node)} reduces over it")
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    left = labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in axes])
    return [left.reshape(one.shape) for one in value] if isinstance(value, list | tuple) else left.reshape(value.shape)


def _within(flow: Flow, node: Node) -> Tensor:
    """Softmax, cumulative sums and layer norm mix values along some axes and keep the shape."""
    labels, shape = flow.at(node.args[0]), argument(node, "normalized_shape")
    axes = [argument(node, "dim")] if shape is None else range(-len(shape), 0)
    if any(flow.labels.vary(labels, axis) for axis in axes):
        flow.freeze(node, f"{operation(node)} reduces over it", [labels])
    return labels


_Rule = Callable[[Flow, Node], Any]
RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(named("cast"), lambda flow, node: flow.at(node.args[0])),  # a second tensor only gives the dtype
    **dict.fromkeys(named("pool", "upsample"), _pool),
    **dict.fromkeys(named("view", "transpose", "expand"), rules_moves.move),
    **dict.fromkeys(named("pad"), rules_moves.pad),
    **dict.fromkeys(
        named("new"), lambda f, node: f.of_fixed_width(node, f"it meets {operation(node)}, of fixed width")
    ),
    **dict.fromkeys(named("matrix product"), lambda flow, node: flow.freeze(node, f"{operation(node)} mixes it")),
    **dict.fromkeys(named("reduction zero", "reduction"), _reduce),
    **dict.fromkeys(named("largest"), _largest),
    **dict.fromkeys(named("cut"), rules_cuts.cut),
    **dict.fromkeys(named("split"), rules_cuts.split),
    **dict.fromkeys(named("softmax", "layer norm", "scan"), _within),
    **dict.fromkeys((*named("channel norm"), "prelu"), channel_norm),
    **dict.fromkeys(named("join"), rules_moves.cat),
    **dict.fromkeys(named("repeat"), rules_moves.repeat),
    "repeat_interleave": rules_moves.repeat_interleave,
    "stack": rules_moves.stack,
    "chunk": rules_cuts.chunk,
    "glu": rules_moves.glu,
    "roll": rules_moves.roll,
    "flip": rules_moves.flip,
    "pixel_shuffle": rules_moves.pixel_shuffle,
    "pixel_unshuffle": rules_moves.pixel_unshuffle,
    "channel_shuffle": rules_moves.channel_shuffle,
    "group_norm": rules_cuts.group_norm,
    "grid_sampler": _sample,
    "embedding": embedding,
}
