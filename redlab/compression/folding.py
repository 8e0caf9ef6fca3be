"""Batch norms folded into the convolutions and linear layers beside them, exactly.

The formulas are the textbook's; which layers allow it: Yvinec et al. 2022, "To Fold or Not to Fold", arXiv 2203.14646.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from redlab.compression.norm_pairs import Pairs, find_pairs
from redlab.compression.norms import Acts, scale_and_shift, stand_in
from redlab.network.evaluating import first_line
from redlab.network.example import Example, Inputs, fit_example, remember_example
from redlab.network.forwards import has_own_forward
from redlab.network.layers import OUT_SCALE, Layer, copy_network, is_batch_norm, row_parameters, unwrap, weight_layers
from redlab.network.recipe import append_step
from redlab.network.result import Result, with_others
from redlab.network.trace import trace
from redlab.network.trial_run import calls_of, culprits, give_bias, note_bias


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
    asked_for: dict[str, str] = {}
    pairs, rest = find_pairs(graph, norms, example, asked_for)
    while found := _asked_for(network, example, pairs):  # with one left, another may find another layer
        asked_for |= found
        pairs, rest = find_pairs(graph, norms, example, asked_for)
    table = layers_table(network, pairs)
    step = pairs.step()
    apply_fold(network, step["folded"], step["ahead"], step.get("acts", {}))
    table["parameters_after"] = table["layer"].map(row_parameters(_rows(network))).astype("int64")
    if pairs.folded:
        append_step(network, step)
    remember_example(network, example)
    table = with_others(table, original, network)
    return Result(network, table, {"step": "fold", "options": {}} | step, graph=rest and rest.of(network))


@torch.no_grad()
def apply_fold(
    network: nn.Module, folded: Mapping[str, str], ahead: Collection[str] = (), acts: Mapping[str, Acts] | None = None
) -> None:
    """Fold in place and without tracing: how a network that the caller owns repeats a recorded step.

    Arguments:
        folded: from the name of each batch norm to the name of the layer that takes it.
        ahead: the batch norms among them whose layer comes after them.
        acts: by the name of a norm with a forward of its own, what it leaves (``norms.stand_in``).

    Raises:
        ValueError: a folded weight overflows its dtype, or ``acts`` names what is no activation.
    """
    for name, layer_name in folded.items():
        norm, layer = network.get_submodule(name), network.get_submodule(layer_name)
        weight, bias = (_after_norm if name in ahead else _before_norm)(layer, norm)
        _assign(layer, weight, bias, f"{name} folded into {layer_name}")
        if name not in ahead:
            _remember_statistics(layer, norm)
        _take_out(network, [name], acts or {})


def _before_norm(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and bias, in float64, of one layer that does what ``layer`` and then ``norm`` do."""
    scale, shift = scale_and_shift(norm, layer.weight.device)
    bias = 0.0 if layer.bias is None else layer.bias.double()
    # A transposed conv's weight is (n_in, n_out / groups, taps); every other one is (n_out, n_in / groups, taps).
    factors = _by_group(scale, layer) if isinstance(layer, _ConvTransposeNd) else scale[:, None]
    return _times(layer.weight, factors), scale * bias + shift


def _after_norm(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and bias, in float64, of one layer that does what ``norm`` and then ``layer`` do."""
    scale, shift = scale_and_shift(norm, layer.weight.device)
    bias = 0.0 if layer.bias is None else layer.bias.double()
    bias = bias + _times(layer.weight, _by_group(shift, layer)).flatten(1).sum(1)
    return _times(layer.weight, _by_group(scale, layer)), bias


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
    layer._buffers.pop(OUT_SCALE, None)  # of the rows as they were
    like = layer.weight if layer.bias is None else layer.bias
    layer.bias = nn.Parameter(bias, requires_grad=like.requires_grad)


def _remember_statistics(layer: nn.Module, norm: nn.Module) -> None:
    """What the norm knew of the layer's outputs: bias correction and the search for dead filters need it."""
    mean = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    std = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight.abs()
    layer.register_buffer("out_mean", mean.to(layer.weight, copy=True))
    layer.register_buffer("out_std", std.to(layer.weight, copy=True))


def _asked_for(network: nn.Module, example: Example | None, pairs: Pairs) -> dict[str, str]:
    """Norms among those to be folded that the network's code asks for, or whose layer it asks for a bias, and why.

    It is tried with the norms taken out and the weights as they are: only shapes count.
    """
    inputs = fit_example(network, example).first() if pairs.folded else Inputs()
    gaining = [name for name in dict.fromkeys(pairs.folded.values()) if network.get_submodule(name).bias is None]
    known = {name for name in gaining if _is_plain(network.get_submodule(name))}
    suspect = {name for name in gaining if name not in known}

    def calls(norms: Sequence[str], biases: Sequence[str] = ()) -> list[str]:
        return calls_of(network, inputs, partial(_as_folded, norms=norms, biases=biases, acts=pairs.acts))

    def watched(copied: nn.Module) -> None:
        _take_out(copied, list(pairs.folded), pairs.acts)
        for name in known:
            note_bias(copied.get_submodule(name), partial(suspect.add, name))

    try:
        before = calls_of(network, inputs, watched) if pairs.folded else []
    except ValueError:
        found = culprits(list(pairs.folded), partial(_error, calls))
        return {name: f"the network's code asks for the norm itself: {why}" for name, why in found.items()}

    def same(names: Sequence[str]) -> str:
        return "" if calls(list(pairs.folded), names) == before else "it does something else where there is one"

    found = culprits([name for name in gaining if name in suspect], partial(_error, same))
    why = {name: f"the network's code looks for a bias of {name}: {reason}" for name, reason in found.items()}
    return {norm: why[layer] for norm, layer in pairs.folded.items() if layer in why}


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer without a bias does what it does with one, and knows when its bias is asked for."""
    return not has_own_forward(layer) and "bias" in layer._parameters


def _error(run: Callable[[Sequence[str]], Any], names: Sequence[str]) -> str:
    """What ``run`` says of ``names``, or the reason of the ValueError that it raises."""
    try:
        said = run(names)
    except ValueError as error:
        return first_line(error.__cause__)
    return said if isinstance(said, str) else ""


def _as_folded(network: nn.Module, norms: Collection[str], biases: Collection[str], acts: Mapping[str, Acts]) -> None:
    """Take out norms and give layers biases of zeros, in place: the calls of a plain layer stay the same with one."""
    _take_out(network, norms, acts)
    for name in biases:
        give_bias(network.get_submodule(name))


def _take_out(network: nn.Module, names: Collection[str], acts: Mapping[str, Acts]) -> None:
    """Put what is left of each norm in its place, in place, under all its names."""
    for name in names:
        norm = network.get_submodule(name)
        rest = stand_in(norm, acts.get(name, ()))
        for alias in [a for a, module in network.named_modules(remove_duplicate=False) if module is norm]:
            network.set_submodule(alias, rest)


def _norms(network: nn.Module) -> dict[str, nn.Module]:
    norms = {row.name: row.module for row in _rows(network) if is_batch_norm(row.module)}
    for name, norm in norms.items():
        for key, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            if not tensor.is_meta and not tensor.isfinite().all():
                raise ValueError(f"{name}: NaN or inf in its {key}")
    return norms


def _rows(network: nn.Module) -> list[Layer]:
    """Every conv, linear layer and batch norm, in the order of the modules."""
    modules = dict(network.named_modules())
    norms = [Layer(path, type(m).__name__, m, "weight") for path, m in modules.items() if is_batch_norm(m)]
    position = {module: index for index, module in enumerate(modules.values())}
    return sorted([*weight_layers(network), *norms], key=lambda row: position[row.module])


def layers_table(network: nn.Module, pairs: Pairs | None = None) -> pd.DataFrame:
    """The rows before the fold: the parameters of a norm count with the layer that takes it.

    Without ``pairs`` nothing is folded, and norms have no rows.
    """
    before, rows = row_parameters(_rows(network)), []
    names = {layer.name for layer in weight_layers(network)}
    pairs = pairs or Pairs(folded={row.name: "" for row in _rows(network) if row.name not in names})
    for row in [row for row in _rows(network) if row.name not in pairs.folded]:
        norms = [name for name, layer in pairs.folded.items() if layer == row.name]
        weights = 0 if row.name in pairs.left or is_lazy(row.weight) else row.weight.numel()
        count = sum(before[name] for name in (row.name, *norms))
        rows.append((row.name, row.kind, weights, ", ".join(norms), count, count, pairs.left.get(row.name, "")))
    columns = ["layer", "kind", "weights", "folded", "parameters_before", "parameters_after", "skipped"]
    return pd.DataFrame(rows, columns=columns)
