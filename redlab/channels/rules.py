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

from redlab.channels import rules_moves
from redlab.channels.flow import Flow
from redlab.channels.labels import compact
from redlab.channels.rules_layers import channel_norm, layer
from redlab.channels.rules_zeros import keeps_zero
from redlab.network.trace import Graph, argument, is_layer, operation

_ELEMENTWISE = (
    *("relu", "relu6", "hardtanh", "silu", "gelu", "tanh", "hardswish", "leaky_relu", "elu", "celu", "selu", "mish"),
    *("hardshrink", "softshrink", "rrelu", "sigmoid", "hardsigmoid", "softplus", "log_sigmoid", "threshold", "dropout"),
    *("feature_dropout", "alpha_dropout", "feature_alpha_dropout", "abs", "neg", "positive", "sign", "sgn", "square"),
    *("sqrt", "rsqrt", "reciprocal", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logit", "erf", "erfc"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "round", "floor"),
    *("ceil", "trunc", "fix", "frac", "nan_to_num", "isnan", "isinf", "isfinite", "logical_not", "bitwise_not"),
    *("deg2rad", "rad2deg", "alias", "clone", "contiguous", "detach", "lift_fresh_copy", "zeros_like", "ones_like"),
    *("full_like", "clamp", "clamp_min", "clamp_max", "clip", "add", "sub", "subtract", "mul", "multiply", "div"),
    *("divide", "true_divide", "floor_divide", "remainder", "fmod", "maximum", "minimum", "fmax", "fmin", "pow"),
    *("float_power", "rsub", "hypot", "atan2", "logaddexp", "logaddexp2", "xlogy", "copysign", "where", "masked_fill"),
    *("addcmul", "addcdiv", "lerp", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"),
    *("bitwise_and", "bitwise_or", "bitwise_xor", "__and", "__or", "__xor"),
)
_CASTS = ("to", "_to_copy", "type_as")
_POOLS = (
    *("max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices"),
    *("max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d"),
    *("adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
    *("adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d"),
    *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa"),
    "_upsample_bicubic2d_aa",
)
_MOVES = (
    *("permute", "transpose", "t", "numpy_T", "mT", "mH", "movedim", "moveaxis", "swapaxes", "swapdims", "unsqueeze"),
    *("squeeze", "flatten", "unflatten", "expand", "view", "reshape", "expand_as", "view_as", "reshape_as"),
)
_REDUCTIONS = (
    *("mean", "sum", "nansum", "nanmean", "prod", "amax", "amin", "var", "std", "any", "all", "logsumexp", "argmax"),
    *("argmin", "count_nonzero", "linalg_vector_norm"),
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
    outputs = _RULES.get(name, _unknown)(flow, node)
    if not keeps_zero(flow, node):
        flow.moved += labels
    return outputs


def _unknown(flow: Flow, node: Node) -> Any:
    return flow.freeze(node, f"no rule for {operation(node)}")


def _elementwise(flow: Flow, node: Node) -> Tensor:
    """What meets is one channel, except where a tensor is spread over the channels of the others.

    Example: of ``h * gate`` with h (n, 8, 5, 5) and gate (n, 8, 1, 1), channel j of both becomes one; with a gate of
    (n, 1, 5, 5) the channels of h stay what they are, and the one of gate, which all of them need, freezes.
    """
    value = node.meta["val"]
    operands = [operand for operand in node.all_input_nodes if isinstance(flow.at(operand), Tensor)]
    if len(operands) == 1:
        return flow.at(operands[0]).expand(value.shape)
    sides = [_aligned(compact(flow.at(operand)), value.ndim) for operand in operands]
    given = [[1] * (value.ndim - operand.meta["val"].ndim) + [*operand.meta["val"].shape] for operand in operands]
    axes = {axis for side in sides for axis in flow.labels.axes(side)}
    wide = [side for side, shape in zip(sides, given, strict=True) if all(shape[axis] > 1 for axis in axes)]
    for side in sides:
        if not any(side is other for other in wide):
            _spread(flow, node, side, sides)
    result, *others = wide or sides
    for other in others if wide else []:
        flow.labels.unite(result, other, same=True)
        first, second = torch.broadcast_tensors(result, other)
        result = compact(torch.where(first < 0, second, first))
    return rules_moves.rectangular(flow, result.expand(value.shape))


def _cast(flow: Flow, node: Node) -> Tensor:
    """A second tensor only says which dtype."""
    return flow.at(node.args[0])


def _aligned(labels: Tensor, ndim: int) -> Tensor:
    """With leading axes of size 1, as broadcasting adds them."""
    return labels.view([1] * (ndim - labels.ndim) + [*labels.shape])


def _spread(flow: Flow, node: Node, side: Tensor, sides: list[Tensor]) -> None:
    """``side`` is of size 1 along the channels of another tensor: it serves all of them."""
    flow.labels.freeze(side, f"{operation(node)} spreads it over the channels of another tensor")
    if flow.labels.axes(side):
        for other in sides:
            flow.labels.freeze(other, f"{operation(node)} with a tensor whose channels lie along another axis")


def _mixed(flow: Flow, node: Node) -> Any:
    return flow.freeze(node, f"{operation(node)} mixes it")


def _new(flow: Flow, node: Node) -> Tensor:
    return flow.of_fixed_width(node, f"it meets {operation(node)}, of fixed width")


def _pool(flow: Flow, node: Node) -> Any:
    """Works on the last axes, up to the batch and the channels."""
    ranks = next(int(digit) for digit in operation(node) if digit.isdigit())
    return _over_space(flow, node, ranks)


def _sample(flow: Flow, node: Node) -> Any:
    """Reads at places that another tensor says."""
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
    """Softmax, cumulative sums and layer norm mix what lies along some axes, and keep the shape."""
    labels, shape = flow.at(node.args[0]), argument(node, "normalized_shape")
    axes = [argument(node, "dim")] if shape is None else range(-len(shape), 0)
    if any(flow.labels.vary(labels, axis) for axis in axes):
        flow.freeze(node, f"{operation(node)} reduces over it", [labels])
    return labels


def _group_norm(flow: Flow, node: Node) -> Tensor:
    """With as many groups as channels it is an instance norm."""
    labels = flow.at(node.args[0])
    if argument(node, "num_groups") == labels.shape[1]:
        return channel_norm(flow, node)
    flow.freeze(node, "group_norm reduces over it", [labels])
    return labels


_Rule = Callable[[Flow, Node], Any]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_CASTS, _cast),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_MOVES, rules_moves.move),
    **dict.fromkeys(("pad", "constant_pad_nd"), rules_moves.pad),
    **dict.fromkeys(_NEW, _new),
    **dict.fromkeys(_MIX, _mixed),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("max", "min"), _largest),
    **dict.fromkeys(("slice", "select", "narrow", "index_select"), rules_moves.cut),
    **dict.fromkeys(("split", "split_with_sizes", "tensor_split", "unbind"), rules_moves.split),
    **dict.fromkeys(("softmax", "log_softmax", "layer_norm", "rms_norm", "cumsum", "cumprod"), _within),
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), channel_norm),
    **dict.fromkeys(("concat", "cat", "concatenate"), rules_moves.cat),
    **dict.fromkeys(("repeat", "tile"), rules_moves.repeat),
    "repeat_interleave": rules_moves.repeat_interleave,
    "stack": rules_moves.stack,
    "chunk": rules_moves.chunk,
    "glu": rules_moves.glu,
    "roll": rules_moves.roll,
    "flip": rules_moves.flip,
    "pixel_shuffle": rules_moves.pixel_shuffle,
    "pixel_unshuffle": rules_moves.pixel_unshuffle,
    "channel_shuffle": rules_moves.channel_shuffle,
    "group_norm": _group_norm,
    "grid_sampler": _sample,
}
