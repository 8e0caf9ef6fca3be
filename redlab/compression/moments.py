"""What goes into each layer on average, without data: means and variances pushed through the traced network.

Batch norm tells mean and spread of what it put out in training; through an activation they follow from the normal
distribution, E[f(N(mean, std^2))], as in data-free quantization (Nagel et al., ICCV 2019, arXiv 1906.04721). Ours are
the rest: the terms of sums and products count as independent, pooled neighbours as equal, images as of the mean that
is known of them and variance 1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from redlab.network.example import Example, fit_example
from redlab.network.layers import Layer, output_statistics, unwrap, weight_layers
from redlab.network.trace import Graph, is_layer, module_path, operation, retrace
from redlab.network.trial_run import NEVER, why_unseen

# Functions of one value at a time.
FUNCTIONS = frozenset((
    "relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "sigmoid", "tanh", "softplus", "prelu", "clamp", "clamp_min", "clamp_max", "abs",
))  # fmt: skip
# What does to means and variances what it does to values, or nearly so.
MOVEMENTS = frozenset((
    "view", "_unsafe_view", "reshape", "flatten", "permute", "transpose", "t", "expand", "squeeze", "unsqueeze",
    "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "contiguous", "clone", "alias",
    "detach", "roll", "pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "mean", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "max_pool1d",
    "max_pool2d", "max_pool3d", "dropout", "feature_dropout", "pixel_shuffle", "channel_shuffle", "to", "_to_copy",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d",
))  # fmt: skip
# A batch norm in eval mode: as PyTorch calls it, and as exported programs do, with three outputs.
BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")
# Norms of one input's own statistics. What they put out is known nearly: of all channels together, not of each.
_OWN_NORMS = ("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm")
_DEVIATIONS = 4.5  # how far the integral over a normal distribution reaches, and in how many steps
_STEPS = 61


@dataclass(frozen=True)
class Moments:
    """Mean and variance of every value of an activation; both have its shape, with a batch of one."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class _Unknown:
    """Why the moments of an activation are not known."""

    reason: str


@dataclass
class MeanInputs:
    """What the layers of a network get.

    Attributes:
        calls: by layer name, for each of its calls: the traced call, and the moments of its input.
        unknown: by layer name, why the mean is not known.
        graph: the network as it was traced.
        values: of every operation, what is known of its output: moments, a constant, a list of them, or why nothing is.
        norms: whether outputs of layer, group and instance norms count as known.
    """

    graph: Graph
    calls: dict[str, list[tuple[Node, Moments]]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    values: dict[Node, Any] = field(default_factory=dict)
    norms: bool = False


@torch.no_grad()
def mean_inputs(
    network: nn.Module,
    example: Example | None = None,
    input_mean: Sequence[float] | None = (0.0,),
    known: Graph | None = None,
    norms: bool = False,
) -> MeanInputs:
    """The mean input of every conv and linear layer of ``network``, whose batch norms were folded where they could be.

    Arguments:
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        input_mean: of the network's input, or of each of several: a number for each channel (second axis), or one for
            all; None: unknown.
        known: the graph of the network. It is traced anew where that is of several inputs at once: one is enough here.
        norms: count what layer, group and instance norms put out as known: mean bias, variance weight squared. That
            holds for their channels together, which is enough for ranges; a mean of each channel is another matter.

    Raises:
        ValueError: the network can't be traced, or its input has another number of channels.
    """
    network = unwrap(network)
    graph = retrace(network, fit_example(network, example).first(), known)
    named = [network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)]
    tensors = {name: tensor.detach() for each in named for name, tensor in each}
    values: dict[Node, Any] = {node: tensors[name] for name, node in graph.tensors.items()} | graph.constants
    inputs = MeanInputs(graph, norms=norms)
    # Of a tied tensor there may be placeholders that nobody reads.
    given = [node for node in graph.fx.nodes if node.op == "placeholder" and node not in values and node.users]
    values |= {node: _of_input(node, input_mean, len(given)) for node in given}
    for node in graph.fx.nodes:
        if node.op == "call_function":
            values[node] = _push(graph, node, values, inputs)
    inputs.unknown |= _unseen(graph, inputs, example)
    inputs.values = values
    return inputs


def _unseen(graph: Graph, inputs: MeanInputs, example: Example | None) -> dict[str, str]:
    """The layers that run, and that the graph shows no call of."""
    seen = inputs.calls.keys() | inputs.unknown.keys()
    rest = [layer for layer in weight_layers(graph.network) if layer.name not in seen and not layer.skipped]
    reasons = why_unseen(graph, [f"{layer.name}.weight" for layer in rest if layer.parameter == "weight"], example)
    return {name.removesuffix(".weight"): why for name, why in reasons.items() if why != NEVER}


def _of_input(node: Node, mean: Sequence[float] | None, inputs: int) -> Any:
    """What the network gets, of variance 1; of several inputs one number alone can be the mean of all."""
    like = node.meta["val"]
    if not isinstance(like, Tensor):
        return like
    if not like.is_floating_point():
        return _Unknown("the network's input is of whole numbers, whose mean is not known")
    if mean is None or (inputs > 1 and len(mean) > 1):
        return _Unknown("the mean of the network's input is not known: pass input_mean")
    channels = like.shape[1] if like.ndim > 1 else 1
    if len(mean) not in (1, channels):
        raise ValueError(f"input_mean has {len(mean)} numbers, and the network's input {channels} channels")
    ones = torch.ones(like.shape, dtype=like.dtype, device=like.device)
    return Moments(ones * ones.new_tensor(mean).view([1, -1, *[1] * (like.ndim - 2)][: like.ndim]), ones)


def _push(graph: Graph, node: Node, known: dict[Node, Any], inputs: MeanInputs) -> Any:
    """What is known of the output of ``node``: moments, the value of a constant, a list of them, or why nothing is."""
    args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
    if runs_layer(node) and node.args[1] in graph.layers:
        return _through_layer(graph, node, args, inputs)
    if operation(node) in BATCH_NORMS and node.target is not operator.getitem:
        return _normed(node, args[1], args[2])
    if inputs.norms and operation(node) in _OWN_NORMS and node.target is not operator.getitem:
        return _self_normed(node, args)
    if isinstance(length := node.meta.get("val"), int):  # known, whatever the values are
        return length
    given = tree_leaves(args)
    if unknown := next((arg for arg in given if isinstance(arg, _Unknown)), None):
        return unknown
    if not any(isinstance(arg, Moments) for arg in given):
        return node.target(*args, **kwargs)
    name = operation(node)
    if node.target is operator.getitem:
        return args[0][args[1]]
    if name in FUNCTIONS and isinstance(args[0], Moments):
        return _through_function(node, args, kwargs)
    if name in MOVEMENTS and isinstance(args[0], Moments):
        return _moved(node, args, kwargs)
    if name in _RULES:
        return _RULES[name](*args, **kwargs)
    return _Unknown(f"{name} is in its way, whose mean output is not known")


def runs_layer(node: Node) -> bool:
    """Whether it is a convolution or a linear layer, also one that an exported program calls by its general name."""
    return is_layer(node) or operation(node) == "convolution"


def _through_layer(graph: Graph, node: Node, args: tuple, inputs: MeanInputs) -> Moments | _Unknown:
    layer, given = called_layer(graph, node), args[0]
    given = as_moments(given) if isinstance(given, Tensor) else given
    if isinstance(given, Moments):
        inputs.calls.setdefault(layer.name, []).append((node, given))
    elif isinstance(given, _Unknown):
        inputs.unknown.setdefault(layer.name, given.reason)
    if (known := output_statistics(layer.module)) is not None:
        mean, std = (_along_channels(values, node) for values in known)
        return Moments(mean, std**2)
    if not isinstance(given, Moments):
        return given
    bias = args[2] if len(args) > 2 else None
    mean = node.target(given.mean, args[1], bias, *args[3:])
    return Moments(mean, node.target(given.variance, args[1] ** 2, None, *args[3:]))


def called_layer(graph: Graph, node: Node) -> Layer:
    """The layer that runs ``node``: of several that share a weight, the one whose call it is."""
    layer, path = graph.layers[node.args[1]], module_path(node)
    module = graph.network.get_submodule(path)
    return replace(layer, name=path, module=module) if path and type(module) is type(layer.module) else layer


def _along_channels(values: Tensor, node: Node) -> Tensor:
    """(channels,) as the output of a layer has them: along the last axis of a linear one, else along the second."""
    shape = node.meta["val"].shape
    axis = len(shape) - 1 if operation(node) == "linear" else 1
    return values.view([-1 if k == axis else 1 for k in range(len(shape))]).expand(shape)


def _normed(node: Node, weight: Tensor | None, bias: Tensor | None) -> Moments | list:
    """A batch norm that stays puts out what it learnt to, whatever goes in."""
    several = isinstance(node.meta["val"], list | tuple)
    like = node.meta["val"][0] if several else node.meta["val"]
    ones = torch.ones(like.shape, dtype=like.dtype, device=like.device)
    shape = [1, -1, *[1] * (like.ndim - 2)]
    mean = 0 * ones if bias is None else bias.view(shape) * ones
    moments = Moments(mean, ones if weight is None else weight.view(shape).square() * ones)
    return [moments, None, None] if several else moments


def _self_normed(node: Node, args: tuple) -> Moments | list:
    """Weight and bias lie along the last axes of a layer norm, along the second of others."""
    several = isinstance(node.meta["val"], list | tuple)
    like = node.meta["val"][0] if several else node.meta["val"]
    name = operation(node)
    places = {"layer_norm": (2, 3), "native_layer_norm": (2, 3), "group_norm": (2, 3)}.get(name, (1, 2))
    weight, bias = (args[place] if len(args) > place else None for place in places)
    if "layer" not in name:
        weight, bias = (own if own is None else own.view([1, -1, *[1] * (like.ndim - 2)]) for own in (weight, bias))
    ones = torch.ones(like.shape, dtype=like.dtype, device=like.device)
    mean = 0 * ones if bias is None else ones * bias
    moments = Moments(mean, ones if weight is None else ones * weight**2)
    return [moments, None, None] if several else moments


def _through_function(node: Node, args: tuple, kwargs: dict) -> Moments:
    """E[f(x)] and its variance for normal x."""
    mean, square = torch.zeros_like(args[0].mean), torch.zeros_like(args[0].mean)
    for share, x in normal_points(args[0]):
        value = node.target(x, *args[1:], **kwargs)
        mean += share * value
        square += share * value**2
    return Moments(mean, (square - mean**2).clamp_min(0))


def normal_points(given: Moments) -> Iterator[tuple[float, Tensor]]:
    """Values of a normal distribution at equal steps, a fresh tensor each, and the share that each stands for."""
    std = given.variance.clamp_min(0).sqrt()
    places = torch.linspace(-_DEVIATIONS, _DEVIATIONS, _STEPS, dtype=torch.float64)
    for place, share in zip(places.tolist(), torch.softmax(-(places**2) / 2, 0).tolist(), strict=True):
        yield share, given.mean + place * std


def _moved(node: Node, args: tuple, kwargs: dict) -> Any:
    parts = [node.target(args[0].mean, *args[1:], **kwargs), moved_variance(node, args[0].variance, args, kwargs)]
    if isinstance(parts[0], Tensor):
        return Moments(*parts)
    return [Moments(*pair) for pair in zip(*parts, strict=True)]


def moved_variance(node: Node, variance: Tensor, args: tuple, kwargs: dict) -> Any:
    """What a movement makes of a variance: a border of another constant than zero has none either."""
    spread = args[:2] if operation(node) == "constant_pad_nd" or args[2:3] == ("constant",) else args
    return node.target(variance, *spread[1:], **kwargs)


def _sum(a: Any, b: Any, *, alpha: float = 1) -> Moments:
    a, b = as_moments(a), as_moments(b)
    return Moments(a.mean + alpha * b.mean, a.variance + alpha**2 * b.variance)


def _product(a: Any, b: Any) -> Moments:
    a, b = as_moments(a), as_moments(b)
    variance = a.variance * b.variance + a.variance * b.mean**2 + b.variance * a.mean**2
    return Moments(a.mean * b.mean, variance)


def _quotient(a: Any, b: Any, **_: Any) -> Moments | _Unknown:
    return _Unknown("a division by an activation is in its way") if isinstance(b, Moments) else _product(a, 1 / b)


def _joined(parts: list, dim: int = 0) -> Moments:
    parts = [as_moments(part) for part in parts]
    return Moments(torch.cat([p.mean for p in parts], dim), torch.cat([p.variance for p in parts], dim))


def _gated(given: Moments, dim: int = -1) -> Moments:
    """Half of the channels times a sigmoid of the others."""
    means, variances = given.mean.chunk(2, dim), given.variance.chunk(2, dim)
    gate = Moments(torch.zeros_like(means[1]), torch.zeros_like(means[1]))
    for share, x in normal_points(Moments(means[1], variances[1])):
        value = x.sigmoid()
        gate = Moments(gate.mean + share * value, gate.variance + share * value**2)
    return _product(Moments(means[0], variances[0]), Moments(gate.mean, (gate.variance - gate.mean**2).clamp_min(0)))


def _strided(given: Moments, size: Sequence[int], stride: Sequence[int], *_: Any) -> Moments | _Unknown:
    """Averages of each channel in another layout, as exported programs have them, are the same averages."""
    if list(size) == list(given.mean.shape) and sum(length > 1 for length in size) <= 1:
        return given
    return _Unknown("as_strided is in its way, whose mean output is not known")


def as_moments(value: Any) -> Moments:
    """A constant has no variance."""
    if isinstance(value, Moments):
        return value
    value = torch.as_tensor(value)
    return Moments(value, torch.zeros_like(value))


_RULES: dict[str, Callable[..., Any]] = {
    "add": _sum,
    "sub": lambda a, b, *, alpha=1: _sum(a, b, alpha=-alpha),
    "mul": _product,
    "div": _quotient,
    "cat": _joined,
    "concat": _joined,
    "sym_size": lambda of, dim: as_moments(of).mean.shape[dim],
    "glu": _gated,
    "as_strided": _strided,
}
