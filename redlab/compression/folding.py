"""Batch norms folded into the convolutions and linear layers beside them, exactly.

The formulas are the textbook's; which layers allow it: Yvinec et al. 2022, "To Fold or Not to Fold", arXiv 2203.14646.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from redlab.network.example import Example, Inputs, fit_example
from redlab.network.layers import Layer, copy_network, row_parameters, unwrap, weight_layers
from redlab.network.recipe import append_step
from redlab.network.result import Result, with_others
from redlab.network.trace import Graph, argument, in_place, is_layer, operation, operations, trace
from redlab.network.trial_run import NEVER, culprits, why_not_run, why_unseen, without_bias


@torch.inference_mode(False)  # whatever the caller's mode: the new network may be trained
def fold_batchnorm(network: nn.Module, example: Example | None = None) -> Result:
    """Fold every batch norm that allows it into the layer before it, or else into the layer after it.

    Before: conv, transposed conv or linear layer -> batch norm: W' = g W, b' = beta + g (b - mu) per output channel,
    g = gamma / sqrt(var + eps); the layer gains the buffers ``out_mean`` = beta and ``out_std`` = |gamma|.
    After: batch norm -> unpadded conv or linear layer, whose input channels take the scale and whose bias the shift.
    Both are exact in eval mode, computed in float64. Module names stay; a folded batch norm becomes ``nn.Identity``.
    If you train the folded network in a loop of your own, call ``forget_output_statistics`` after it (network/layers).

    Arguments:
        network: left untouched; the result is in eval mode.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.

    Returns:
        ``layers`` has a row per conv and linear layer, with the norms ``folded`` into it ("" for none), and a row per
        batch norm that stays, with the reason in ``skipped``. ``plan`` is the step that ``apply_fold`` repeats.

    Raises:
        ValueError: a batch norm holds NaN or inf, a folded weight overflows its dtype, or the network can't be traced.

    Example:
        >>> network = load_network("digits/resnet")
        >>> folded, image = fold_batchnorm(network).network, example_input(network)
        >>> torch.allclose(network(image), folded(image), atol=1e-4)
        True
    """
    original = unwrap(network)
    network = copy_network(original).eval()
    norms = _norms(network)
    graph = trace(network, example) if norms else None
    pairs, rest = _find_pairs(graph, norms, example, {})
    if asked_for := _asked_for(network, example, pairs):
        pairs, rest = _find_pairs(graph, norms, example, asked_for)
    table = _table(network, pairs)
    apply_fold(network, pairs.folded, pairs.ahead)
    table["parameters_after"] = table["layer"].map(row_parameters(_rows(network))).astype("int64")
    if pairs.folded:
        append_step(network, {"step": "fold", "folded": dict(pairs.folded), "ahead": list(pairs.ahead)})
    table = with_others(table, original, network)
    plan = {"step": "fold", "options": {}, "folded": pairs.folded, "ahead": pairs.ahead}
    return Result(network, table, plan, graph=rest and rest.of(network))


@torch.no_grad()
def apply_fold(network: nn.Module, folded: Mapping[str, str], ahead: Collection[str] = ()) -> None:
    """Fold in place and without tracing: how a network that the caller owns repeats a recorded step.

    Arguments:
        folded: from the name of each batch norm to the name of the layer that takes it.
        ahead: the batch norms among them whose layer comes after them.

    Raises:
        ValueError: a folded weight overflows its dtype.
    """
    for name, layer_name in folded.items():
        norm, layer = network.get_submodule(name), network.get_submodule(layer_name)
        weight, bias = (_after_norm if name in ahead else _before_norm)(layer, norm)
        _assign(layer, weight, bias, f"{name} folded into {layer_name}")
        if name not in ahead:
            _remember_statistics(layer, norm)
        _take_out(network, [name])


def _before_norm(layer: nn.Module, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The weight and bias, in float64, of one layer that does what ``layer`` and then ``norm`` do."""
    scale, shift = scale_and_shift(norm, layer.weight.device)
    bias = 0.0 if layer.bias is None else layer.bias.double()
    # A transposed conv's weight is (n_in, n_out / groups, taps); every other one is (n_out, n_in / groups, taps).
    factors = _by_group(scale, layer) if isinstance(layer, _ConvTransposeNd) else scale[:, None]
    return _times(layer.weight, factors), scale * bias + shift


def _after_norm(layer: nn.Module, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The weight and bias, in float64, of one layer that does what ``norm`` and then ``layer`` do."""
    scale, shift = scale_and_shift(norm, layer.weight.device)
    bias = 0.0 if layer.bias is None else layer.bias.double()
    bias = bias + _times(layer.weight, _by_group(shift, layer)).flatten(1).sum(1)
    return _times(layer.weight, _by_group(scale, layer)), bias


def scale_and_shift(norm: _BatchNorm, device: torch.device) -> tuple[Tensor, Tensor]:
    """``norm`` in eval mode as x -> scale x + shift: one number of each per channel, in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else norm.weight.double() * scale
    shift = -scale * norm.running_mean.double()
    shift = shift if norm.bias is None else norm.bias.double() + shift
    return scale.to(device), shift.to(device)


def _by_group(values: Tensor, layer: nn.Module) -> Tensor:
    """One value per channel -> (rows, channels / groups): every row of the weight gets those of its own group."""
    groups = getattr(layer, "groups", 1)  # a linear layer has one
    return values.view(groups, 1, -1).expand(-1, len(layer.weight) // groups, -1).flatten(0, 1)


def _times(weight: Tensor, factors: Tensor) -> Tensor:
    return weight.double() * factors[(..., *[None] * (weight.ndim - 2))]


def _assign(layer: nn.Module, weight: Tensor, bias: Tensor, what: str) -> None:
    weight, bias = weight.to(layer.weight.dtype), bias.to(layer.weight.dtype)
    # A network on the meta device has shapes and no values; one that was broken before is not our finding.
    if not weight.is_meta and layer.weight.isfinite().all() and not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(f"{what} overflows {weight.dtype}: convert the network to float32 first")
    layer.weight.data = weight
    like = layer.weight if layer.bias is None else layer.bias
    layer.bias = nn.Parameter(bias, requires_grad=like.requires_grad)


def _remember_statistics(layer: nn.Module, norm: _BatchNorm) -> None:
    """What the norm knew of the layer's outputs: bias correction and the search for dead filters need it."""
    mean = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    std = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight.abs()
    layer.register_buffer("out_mean", mean.to(layer.weight, copy=True))
    layer.register_buffer("out_std", std.to(layer.weight, copy=True))


@dataclass
class _Pairs:
    """Which layer takes each batch norm, which norms come before their layer, and why others are left.

    ``unbiased``: the layers whose own forward would not read a bias.
    """

    folded: dict[str, str] = field(default_factory=dict)
    ahead: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    unbiased: set[str] = field(default_factory=set)


def _asked_for(network: nn.Module, example: Example | None, pairs: _Pairs) -> dict[str, str]:
    """The norms among those to be folded that the network doesn't run without, and why: its code asks for their values.

    It is tried with the norms taken out and the weights as they are: only shapes count.
    """
    inputs = fit_example(network, example).first() if pairs.folded else Inputs()

    def why_not(names: Sequence[str]) -> str:
        return why_not_run(network, inputs, partial(_take_out, names=names))

    found = culprits(list(pairs.folded), why_not)
    return {name: f"the network's code asks for the norm itself: {why}" for name, why in found.items()}


def _take_out(network: nn.Module, names: Collection[str]) -> None:
    """Put an Identity in the place of each norm, in place: it has the norm's numbers, such as its ``num_features``."""
    for name in names:
        norm = network.get_submodule(name)
        stand_in = nn.Identity().train(norm.training)
        for key in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
            setattr(stand_in, key, getattr(norm, key))
        for alias in [a for a, module in network.named_modules(remove_duplicate=False) if module is norm]:
            network.set_submodule(alias, stand_in)


def _norms(network: nn.Module) -> dict[str, _BatchNorm]:
    norms = {row.name: row.module for row in _rows(network) if isinstance(row.module, _BatchNorm)}
    for name, norm in norms.items():
        for key, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            if not tensor.is_meta and not tensor.isfinite().all():
                raise ValueError(f"{name}: NaN or inf in its {key}")
    return norms


def _find_pairs(
    graph: Graph | None, norms: Mapping[str, _BatchNorm], example: Example | None, asked_for: Mapping[str, str]
) -> tuple[_Pairs, Graph | None]:
    """Also what is left of the graph without the norms that are folded."""
    pairs = _Pairs(left=dict(asked_for))
    if graph is None:
        return pairs, None
    graph, found = graph.of(graph.network), True
    pairs.left |= _uncalled(graph, norms, example)
    pairs.unbiased = without_bias(graph, [own for own in graph.layers.values() if own.module.bias is None], example)
    norms = {name: norm for name, norm in norms.items() if name not in pairs.left}
    while found:  # a norm that is folded away may leave another one beside a layer
        found = any([_pair(graph, name, norms[name], pairs) for name in norms if name not in pairs.folded])
    return pairs, graph


def _uncalled(graph: Graph, norms: Mapping[str, _BatchNorm], example: Example | None) -> dict[str, str]:
    """The norms that the graph doesn't show, and why."""
    means = {f"{name}.running_mean": name for name, norm in norms.items() if norm.running_mean is not None}
    reasons = why_unseen(graph, [mean for mean in means if not graph.users(mean)], example)
    return {means[mean]: f"it is {why}" if why == NEVER else why for mean, why in reasons.items()}


def _pair(graph: Graph, name: str, norm: _BatchNorm, pairs: _Pairs) -> bool:
    """Try one norm: enter it into ``pairs``, and take it out of the graph if it folds."""
    if why := _why_not_norm(graph, name, norm):
        pairs.left[name] = why
        return False
    (node,) = graph.users(f"{name}.running_mean")
    previous, following = node.args[0], next(iter(node.users))
    why = _why_not_previous(graph, previous, pairs.unbiased)
    if why and (why_following := _why_not_following(graph, node, following, pairs.unbiased)):
        pairs.left[name] = why_following if is_layer(following) and not is_layer(previous) else why
        return False
    pairs.left.pop(name, None)
    pairs.folded[name] = graph.layers[(following if why else previous).args[1]].name
    pairs.ahead += [name] if why else []
    node.replace_all_uses_with(previous)
    graph.fx.erase_node(node)
    return True


def _why_not_norm(graph: Graph, name: str, norm: _BatchNorm) -> str:
    """Why a norm can't be folded whatever stands beside it, or ""."""
    if norm.running_mean is None:
        return "no running statistics"
    calls = graph.users(f"{name}.running_mean")
    if len(calls) != 1:
        return f"it is called {len(calls)} times"
    if not graph.is_plain(calls[0]):
        return "its class or a hook gives it a forward of its own"
    for tensor in ("running_var", "weight", "bias"):
        if others := [user for user in graph.users(f"{name}.{tensor}") if user is not calls[0]]:
            return f"its {tensor} is also used by {operations(others)}"
    return ""


def _why_not_previous(graph: Graph, node: Node, unbiased: Collection[str]) -> str:
    if not is_layer(node):
        return f"its input comes from {operation(node)}, not from a conv or linear layer"
    if why := graph.why_fixed(node):
        return why
    layer = graph.layers[node.args[1]]
    if layer.name in unbiased:
        return f"{layer.name} has a forward of its own that would not read the bias: prepare(network) makes it plain"
    if len(node.users) > 1:
        others = [user for user in node.users if operation(user) != "batch_norm"] or node.users
        return f"the output of {layer.name} also goes to {operations(others)}"
    return _why_not_features(node, layer)


def _why_not_following(graph: Graph, norm: Node, node: Node, unbiased: Collection[str]) -> str:
    if not is_layer(node) or node.args[0] is not norm or len(norm.users) > 1:
        return f"its output goes to {operations(norm.users)}, not to one conv or linear layer"
    if why := graph.why_fixed(node):
        return why
    layer = graph.layers[node.args[1]]
    if layer.name in unbiased:
        return f"{layer.name} has a forward of its own that would not read the bias: prepare(network) makes it plain"
    if isinstance(layer.module, _ConvTransposeNd):
        return f"transposed conv {layer.name} after it: not exact at the border"
    if _is_padded(node):
        return f"zero padding in conv {layer.name}: not exact at the border"
    # As an Identity the norm would hand on its input itself, which may change before the layer reads it.
    nodes = list(graph.fx.nodes)
    if any(in_place(between) for between in nodes[nodes.index(norm) : nodes.index(node)]):
        return f"an in-place operation runs between it and {layer.name}"
    return _why_not_features(norm, layer)


def _is_padded(node: Node) -> bool:
    """Whether a convolution adds zeros at the border by itself."""
    padding = argument(node, "padding", [])
    if padding == "same":
        return any(size > 1 for size in node.args[1].meta["val"].shape[2:])
    return padding != "valid" and any(padding)


def _why_not_features(between: Node, layer: Layer) -> str:
    """A norm works on axis 1, a layer on the features of (batch, features), the channels of (batch, channels, ...)."""
    same = between.meta["val"].ndim == layer.weight.ndim
    return "" if same else f"it normalises another axis than the features of {layer.name}"


def _rows(network: nn.Module) -> list[Layer]:
    """Every conv, linear layer and batch norm, in the order of the modules."""
    modules = dict(network.named_modules())
    norms = [Layer(path, type(m).__name__, m, "weight") for path, m in modules.items() if isinstance(m, _BatchNorm)]
    position = {module: index for index, module in enumerate(modules.values())}
    return sorted([*weight_layers(network), *norms], key=lambda row: position[row.module])


def _table(network: nn.Module, pairs: _Pairs) -> pd.DataFrame:
    """The rows before the fold: the parameters of a norm count with the layer that takes it."""
    before, rows = row_parameters(_rows(network)), []
    for row in [row for row in _rows(network) if row.name not in pairs.folded]:
        norms = [name for name, layer in pairs.folded.items() if layer == row.name]
        weights = 0 if row.name in pairs.left or is_lazy(row.weight) else row.weight.numel()
        count = sum(before[name] for name in (row.name, *norms))
        rows.append((row.name, row.kind, weights, ", ".join(norms), count, count, pairs.left.get(row.name, "")))
    columns = ["layer", "kind", "weights", "folded", "parameters_before", "parameters_after", "skipped"]
    return pd.DataFrame(rows, columns=columns)
