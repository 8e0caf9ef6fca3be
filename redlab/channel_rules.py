"""Channel labels through the operations of a network, one rule a kind of operation.

Operations that only move data are executed on the labels. What has no rule freezes the labels that reach it, with its
name as the reason: never silently wrong.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from redlab import move_rules
from redlab.flow import Flow
from redlab.graph import Graph, is_layer, operation
from redlab.labels import compact
from redlab.layer_rules import channel_norm, layer

# Elementwise and 0 at 0: a channel of zeros stays one.
_KEEP_ZERO = (
    *("relu", "relu6", "hardtanh", "silu", "gelu", "tanh", "hardswish", "leaky_relu", "elu", "celu", "selu", "mish"),
    *("softsign", "tanhshrink", "hardshrink", "softshrink", "rrelu", "abs", "neg", "square", "sqrt", "sin", "round"),
    *("dropout", "feature_dropout", "alpha_dropout", "alias", "clone", "contiguous", "detach", "lift_fresh_copy"),
    *("to", "_to_copy", "type_as", "zeros_like", "erf", "floor", "ceil", "sign"),
)
_MOVE_ZERO = (
    *("sigmoid", "hardsigmoid", "softplus", "logsigmoid", "log_sigmoid", "exp", "log", "log1p", "rsqrt", "reciprocal"),
    *("clamp", "clamp_min", "clamp_max", "cos", "pow", "rsub", "threshold", "ones_like", "full_like"),
)
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
_POOLS = (
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d"),
    *("adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "upsample_linear1d", "upsample_nearest1d", "lp_pool2d"),
)
_MOVES = (
    *("permute", "transpose", "t", "numpy_T", "movedim", "swapaxes", "unsqueeze", "squeeze", "flatten", "unflatten"),
    *("expand", "view", "reshape", "expand_as", "view_as"),
)
_NEW = ("new_zeros", "new_ones", "new_full", "new_empty")
_MIX = ("matmul", "bmm", "mm", "baddbmm", "addmm", "einsum", "scaled_dot_product_attention")
_WITH_PARAMETERS = ("batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm", "prelu")


def follow(graph: Graph) -> Flow:
    """The labels of every activation of ``graph``."""
    flow = Flow(graph)
    inputs = [node for node in graph.fx.nodes if node.op == "placeholder" and not flow.name(node)]
    for node in inputs:
        flow.put(node, flow.of_fixed_width(node, "network input"))
    for node in graph.fx.nodes:
        if node.op == "call_function":
            flow.put(node, _step(flow, node))
        elif node.op == "output":
            flow.freeze(node, "network output")
    return flow


def _step(flow: Flow, node: Node) -> Any:
    if node.target is operator.getitem:
        return flow.at(node.args[0])[node.args[1]]
    if is_layer(node):
        return layer(flow, node)
    name = operation(node)
    # A norm's own parameters are its entries, not data that it meets.
    labels = [flow.at(node.args[0])] if name in _WITH_PARAMETERS else flow.inputs(node)
    if not any(bool((compact(reached) >= 0).any()) for reached in labels):
        return flow.of_fixed_width(node, "it meets a constant of fixed width")
    return _RULES.get(name, _unknown)(flow, node)


def _unknown(flow: Flow, node: Node) -> Any:
    return flow.freeze(node, f"no rule for {operation(node)}")


def _kept(flow: Flow, node: Node) -> Any:
    """Elementwise in one tensor; with another one (a tensor of bounds, of exponents) it is another operation."""
    return flow.at(node.args[0]) if len(node.all_input_nodes) == 1 else _unknown(flow, node)


def _moved(flow: Flow, node: Node) -> Any:
    flow.moved.append(flow.at(node.args[0]))
    return _kept(flow, node)


def _mixed(flow: Flow, node: Node) -> Any:
    return flow.freeze(node, f"{operation(node)} mixes it")


def _new(flow: Flow, node: Node) -> Tensor:
    return flow.of_fixed_width(node, f"it meets {operation(node)}, of fixed width")


def _binary(flow: Flow, node: Node) -> Tensor:
    """Elementwise: what meets is one channel, except where one side is spread over the channels of the other."""
    value, operands = node.meta["val"], [argument for argument in node.args[:2] if isinstance(argument, Node)]
    sides = [labels for operand in operands if (labels := flow.at(operand)) is not None]
    if len(operands) < 2 or len(sides) < 2:
        flow.moved += sides if operation(node) in ("add", "sub") else []
        return sides[0].expand(value.shape)
    sides = [labels.view(*[1] * (value.ndim - labels.ndim), *labels.shape) for labels in map(compact, sides)]
    given = [
        torch.Size([1] * (value.ndim - operand.meta["val"].ndim)) + operand.meta["val"].shape for operand in operands
    ]
    for one, other in ((0, 1), (1, 0)):
        if any(given[one][axis] == 1 for axis in flow.labels.axes(sides[other])):
            flow.labels.freeze(sides[one], f"{operation(node)} spreads it over the channels of another tensor")
            if flow.labels.axes(sides[one]):
                flow.labels.freeze(
                    sides[other], f"{operation(node)} with a tensor whose channels lie along another axis"
                )
            return sides[other].expand(value.shape)
    flow.moved += sides[1:] if operation(node) == "div" else []
    flow.labels.unite(sides[0], sides[1], same=True)
    one, other = torch.broadcast_tensors(*sides)
    return move_rules.rectangular(flow, compact(torch.where(one < 0, other, one)).expand(value.shape))


def _pool(flow: Flow, node: Node) -> Any:
    """Works on the last axes, up to the batch and the channels."""
    labels, value = flow.at(node.args[0]), node.meta["val"]
    outputs = list(value) if isinstance(value, list | tuple) else [value]
    spatial = [axis for axis in range(labels.ndim) if axis >= labels.ndim - int(operation(node)[-2])]
    if any(flow.labels.vary(labels, axis) for axis in spatial):
        return flow.freeze(node, f"{operation(node)} reduces over it")
    for axis in spatial:
        labels = labels.narrow(axis, 0, 1)
    pooled = [labels.expand(output.shape) for output in outputs]
    return pooled if isinstance(value, list | tuple) else pooled[0]


def _reduce(flow: Flow, node: Node) -> Tensor:
    labels, axes = flow.at(node.args[0]), node.args[1] if len(node.args) > 1 else None
    axes = range(labels.ndim) if axes is None else [axes] if isinstance(axes, int) else axes
    axes = sorted({axis % labels.ndim for axis in axes}, reverse=True)
    if any(flow.labels.vary(labels, axis) for axis in axes):
        return flow.freeze(node, f"{operation(node)} reduces over it")
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    return labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in axes]).reshape(
        node.meta["val"].shape
    )


def _within(flow: Flow, node: Node) -> Tensor:
    """Softmax and layer norm mix what lies along some axes, and keep the shape."""
    labels, name = flow.at(node.args[0]), operation(node)
    axes = [node.args[1]] if "softmax" in name else range(-len(node.args[1]), 0)
    if any(flow.labels.vary(labels, axis) for axis in axes):
        flow.freeze(node, f"{name} reduces over it", [labels])
    flow.moved.append(labels)
    return labels


def _group_norm(flow: Flow, node: Node) -> Tensor:
    flow.freeze(node, "group_norm reduces over it", [flow.at(node.args[0])])
    return flow.at(node.args[0])


_Rule = Callable[[Flow, Node], Any]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_KEEP_ZERO, _kept),
    **dict.fromkeys(_MOVE_ZERO, _moved),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_MOVES, move_rules.move),
    **dict.fromkeys(_NEW, _new),
    **dict.fromkeys(_MIX, _mixed),
    **dict.fromkeys(("slice", "select", "narrow", "index_select"), move_rules.cut),
    **dict.fromkeys(("split", "split_with_sizes", "unbind"), move_rules.split),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(("softmax", "log_softmax", "layer_norm", "rms_norm"), _within),
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), channel_norm),
    **dict.fromkeys(("concat", "cat", "concatenate"), move_rules.cat),
    "stack": move_rules.stack,
    "chunk": move_rules.chunk,
    "roll": move_rules.roll,
    "pad": move_rules.pad,
    "constant_pad_nd": move_rules.pad,
    "group_norm": _group_norm,
}
