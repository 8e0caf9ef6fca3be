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

from redlab.cifar_resnet import ZeroPadShortcut
from redlab.flow import Flow
from redlab.graph import Graph, is_layer, module_path, operation
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
    flow.labels.unite(*sides, same=True)
    one, other = torch.broadcast_tensors(*sides)
    return _rectangular(flow, compact(torch.where(one < 0, other, one)).expand(value.shape))


def _rectangular(flow: Flow, labels: Tensor) -> Tensor:
    """Channels leave as whole slices along one axis: the one with the most channels."""
    axes = flow.labels.axes(labels)
    if len(axes) > 1:
        roots = flow.labels.together(compact(labels))
        counts = {axis: len(torch.unique(roots.movedim(axis, 0).flatten(1), dim=0)) for axis in axes}
        kept = max(axes, key=lambda axis: (counts[axis], axis))
        for axis in axes:
            if axis != kept:
                flow.labels.unite_along(labels, axis, same=False)
    return labels


def _move(flow: Flow, node: Node) -> Tensor:
    """Moves data only: executed on the labels."""
    labels, value = flow.at(node.args[0]), node.meta["val"]
    name = operation(node)
    if name in ("view", "reshape", "view_as", "unflatten", "flatten"):
        return _rectangular(flow, labels.reshape(value.shape))
    if name in ("expand", "expand_as"):
        return labels.expand(value.shape)
    return node.target(labels, *node.args[1:], **node.kwargs)


def _cat(flow: Flow, node: Node) -> Tensor:
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    parts, value = [flow.at(part) for part in node.args[0]], node.meta["val"]
    axis %= value.ndim
    parts = [part for part in parts if part.ndim == value.ndim]  # cat skips empty one-dimensional tensors
    small = [compact(part) for part in parts]
    sizes = [max(part.shape[a] for part in small) for a in range(value.ndim)]
    whole = [
        p.expand([o.shape[a] if a == axis else sizes[a] for a in range(value.ndim)])
        for p, o in zip(small, parts, strict=True)
    ]
    return _rectangular(flow, torch.cat(whole, axis).expand(value.shape))


def _stack(flow: Flow, node: Node) -> Tensor:
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return _rectangular(flow, torch.stack([flow.at(part) for part in node.args[0]], axis))


def _cut(flow: Flow, node: Node) -> Any:
    """Takes a part of an axis: allowed where no channels lie along it, else the cut is fixed in the code."""
    labels = flow.at(node.args[0])
    axis = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % labels.ndim
    outputs = node.meta["val"]
    same_shape = isinstance(outputs, Tensor) and outputs.shape == labels.shape
    if flow.labels.vary(labels, axis) and not same_shape:
        return flow.freeze(node, f"{operation(node)} cuts it at a fixed place")
    return node.target(labels, *node.args[1:], **node.kwargs)


def _chunk(flow: Flow, node: Node) -> Any:
    """Equal chunks stay equal where channel j of every chunk leaves together."""
    labels, axis = flow.at(node.args[0]), node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    chunks = list(torch.chunk(labels, node.args[1], axis))
    if not flow.labels.vary(labels, axis):
        return chunks
    if len(chunks) != node.args[1] or len({chunk.shape for chunk in chunks}) > 1:
        return flow.freeze(node, "chunk cuts it into unequal parts")
    for chunk in chunks[1:]:
        flow.labels.unite(chunks[0], chunk, same=False)
    return chunks


def _split(flow: Flow, node: Node) -> Any:
    """``split`` and ``unbind``; ``split`` is handed its sizes, which do not follow the channels."""
    labels, name = flow.at(node.args[0]), operation(node)
    at = 1 if name == "unbind" else 2
    axis = (node.args[at] if len(node.args) > at else node.kwargs.get("dim", 0)) % labels.ndim
    if flow.labels.vary(labels, axis):
        return flow.freeze(node, f"{name} cuts it at a fixed place")
    return list(node.target(labels, *node.args[1:], **node.kwargs))


def _roll(flow: Flow, node: Node) -> Tensor:
    labels, axes = flow.at(node.args[0]), node.args[2] if len(node.args) > 2 else ()
    if not axes or any(flow.labels.vary(labels, axis) for axis in axes):
        return flow.freeze(node, "roll moves it by a fixed distance")
    return labels


def _pad(flow: Flow, node: Node) -> Tensor:
    """Beside an axis without channels the border belongs to the channels beside it."""
    labels, value = flow.at(node.args[0]), node.meta["val"]
    module = flow.graph.network.get_submodule(module_path(node))
    longer = [axis for axis in range(value.ndim) if value.shape[axis] != labels.shape[axis]]
    if type(module) is ZeroPadShortcut:
        return _zero_pad(flow, node, module)
    if any(flow.labels.vary(labels, axis) for axis in longer):
        return flow.freeze(node, f"{operation(node)} adds channels of a fixed number")
    for axis in longer:
        labels = labels.narrow(axis, 0, 1)
    return labels.expand(value.shape)


def _zero_pad(flow: Flow, node: Node, module: ZeroPadShortcut) -> Tensor:
    """The zeros of our CIFAR ResNets' shortcut are channels of their own: its widths are attributes."""
    labels = compact(flow.at(node.args[0]))
    zeros = flow.labels.fresh(count := module.zeros_before + module.zeros_after).view(1, count, 1, 1)
    flow.meet(node, [(module_path(node), 0)], "padding", zeros.flatten())
    before, after = zeros[:, : module.zeros_before], zeros[:, module.zeros_before :]
    return torch.cat([before, labels[:, :, :1, :1], after], 1).expand(node.meta["val"].shape)


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
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(_NEW, _new),
    **dict.fromkeys(_MIX, _mixed),
    **dict.fromkeys(("slice", "select", "narrow", "index_select"), _cut),
    **dict.fromkeys(("split", "split_with_sizes", "unbind"), _split),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(("softmax", "log_softmax", "layer_norm", "rms_norm"), _within),
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), channel_norm),
    **dict.fromkeys(("concat", "cat", "concatenate"), _cat),
    "stack": _stack,
    "chunk": _chunk,
    "roll": _roll,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "group_norm": _group_norm,
}
