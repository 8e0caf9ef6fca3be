"""Bias correction: what rewriting a layer's weights adds to its mean output is taken off its bias.

From batch-norm statistics without data (Nagel et al., ICCV 2019, arXiv 1906.04721, "data-free quantization"), or from
the means over a few images. That RED++ networks gain by it is our finding; it is no part of the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from torch import Tensor, nn
from torch.utils.data import Dataset

from redlab.compression.moments import MeanInputs, mean_inputs
from redlab.network.evaluating import in_eval_mode
from redlab.network.example import Example, remember_example
from redlab.network.forwards import why_own_forward
from redlab.network.layers import Layer, copy_network, unwrap, weight_layers
from redlab.network.recipe import append_step, input_mean_of
from redlab.network.result import Result, with_others
from redlab.network.samples import Labelled, as_dataset, first_of
from redlab.network.trace import Graph, operations, retrace, tensor_name
from redlab.network.trial_run import without_bias

Mean = float | Sequence[float] | Tensor | ndarray
_IMAGES = 500  # of a dataset: more change the means by less than they matter


@torch.inference_mode(False)
@torch.no_grad()
def correct_biases(
    network: nn.Module,
    original: nn.Module | Result,
    statistics: str | Labelled = "batchnorm",
    example: Example | None = None,
    input_mean: Mean | None = None,
) -> Result:
    """Shift each conv and linear layer's bias so that its mean output is that of the ``original`` network.

    Arguments:
        network: ``original`` with other weights, hashed ones say; left untouched.
        original: folded, so that its layers remember what batch norm said of their outputs. Of what ``fold_batchnorm``
            returned, the graph is used too: nothing is traced again.
        statistics: "batchnorm": no data, the mean inputs follow from batch-norm statistics (see ``moments``); or a
            dataset, of whose first 500 images, in one batch, the mean outputs are measured, layer after layer.
        example: what the networks take, batch first; by default ``example_input(network)``, or the first image.
        input_mean: for "batchnorm", the mean of the network's input: a number, or one for each channel; by default
            what its recipe says. Where nothing is known of it, layers that it reaches before a batch norm are skipped.

    Returns:
        ``layers`` has a row per conv and linear layer: layer, kind, weights, ``shift`` (the largest change of a bias)
        and why a layer is ``skipped``: that its mean output is not known, say, or is not what the bias is added to.

    Raises:
        ValueError: the networks don't have the same layers, or can't be traced; an unknown ``statistics``; an
            ``input_mean`` that is not finite or of another number of channels.

    Example:
        >>> folded = fold_batchnorm(load_network("digits/mlp")).network
        >>> hashed = hash_network(folded, rule="uniform", levels=4).network
        >>> result = correct_biases(hashed, folded)
        >>> (result.layers["shift"] > 0).tolist()
        [True, True, True]
    """
    known, original = (original.graph, original.network) if isinstance(original, Result) else (None, original)
    network, original = unwrap(network), unwrap(original)
    corrected = copy_network(network)
    layers, before = _layers(corrected), _layers(original)
    if {name: layer.weight.shape for name, layer in layers.items()} != {n: b.weight.shape for n, b in before.items()}:
        raise ValueError("the two networks do not have the same layers: correct biases before channels are removed")
    if statistics == "batchnorm":
        mean = input_mean_of(original) if input_mean is None else as_means(input_mean)
        shifts, unknown = _expected_shifts(layers, before, mean_inputs(original, example, mean, known), example)
    elif isinstance(statistics, str):
        raise ValueError(f"statistics must be 'batchnorm' or a dataset, not {statistics!r}")
    else:
        shifts, unknown = _measured_shifts(corrected, original, as_dataset(statistics), example, known)
    gained = [name for name in shifts if layers[name].module.bias is None]
    for name, shift in shifts.items():
        add_bias(layers[name].module, shift)
    table = [_row(layer, shifts, unknown) for layer in weight_layers(corrected)]
    step = {"step": "correct_biases", "gained": gained}
    append_step(corrected, step)
    remember_example(corrected, example)
    options: dict[str, Any] = {"statistics": statistics if isinstance(statistics, str) else type(statistics).__name__}
    options |= {} if input_mean is None else {"input_mean": list(as_means(input_mean))}
    columns = ["layer", "kind", "weights", "shift", "skipped"]
    rows = with_others(pd.DataFrame(table, columns=columns), network, corrected)
    return Result(corrected, rows, step | {"options": options})


def as_means(input_mean: Mean) -> tuple[float, ...]:
    """As plain numbers, one for each channel or one for all.

    Raises:
        ValueError: they are none, or not finite.
    """
    try:
        means = np.atleast_1d(np.asarray(input_mean, np.float64))
    except (TypeError, ValueError):
        means = np.full(1, np.nan)
    if means.ndim != 1 or not len(means) or not np.isfinite(means).all():
        raise ValueError(f"input_mean must be a finite number, or one for each channel, not {input_mean!r}")
    return tuple(means.tolist())


def add_bias(layer: nn.Module, shift: Tensor) -> None:
    """Add to the bias of ``layer``, in place; it gains one where it has none."""
    if layer.bias is None:
        layer.bias = nn.Parameter(shift.to(layer.weight), requires_grad=layer.weight.requires_grad)
    else:
        layer.bias += shift.to(layer.bias)


def _layers(network: nn.Module) -> dict[str, Layer]:
    """The layers that a bias can be added to."""
    return {layer.name: layer for layer in weight_layers(network) if not layer.skipped and layer.parameter == "weight"}


_Shifts = tuple[dict[str, Tensor], dict[str, str]]  # by layer; and why others have none


def _expected_shifts(
    layers: dict[str, Layer], before: dict[str, Layer], inputs: MeanInputs, example: Example | None
) -> _Shifts:
    unbiased = without_bias(inputs.graph, _may_gain(before), example)
    unknown = {name: why for name, layer in before.items() if (why := _why_not(inputs.graph, layer, unbiased))}
    unknown = inputs.unknown | unknown
    shifts = {}
    for name, calls in inputs.calls.items():
        if name in layers and name not in unknown:
            difference = before[name].weight - layers[name].weight
            means = [node.target(given.mean, difference, None, *node.args[3:]) for node, given in calls]
            shifts[name] = torch.stack([_per_channel(mean, layers[name].module) for mean in means]).mean(0)
    return shifts, unknown


def _measured_shifts(
    corrected: nn.Module, original: nn.Module, dataset: Dataset, example: Example | None, known: Graph | None
) -> _Shifts:
    """Layer after layer: each is shifted before the next one sees what comes out."""
    inputs = first_of(dataset, _IMAGES).to(original)
    graph = retrace(original, inputs.first() if example is None else example, known)
    own, like = _layers(original), inputs.first() if example is None else example
    unbiased = without_bias(graph, _may_gain(own), like)
    found = {name: _why_not(graph, layer, unbiased) or _why_not_seen(graph, layer) for name, layer in own.items()}
    unknown = {name: why for name, why in found.items() if why}
    wanted: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}

    def remember(name: str, layer: nn.Module, out: Tensor) -> None:
        wanted[name] = _per_channel(out, layer)

    def shift(name: str, layer: nn.Module, out: Tensor) -> Tensor:
        shifts[name] = own = wanted[name] - _per_channel(out, layer)
        return out + own.view([-1, *[1] * (0 if isinstance(layer, nn.Linear) else out.ndim - 2)])

    for network, hook in ((original, remember), (copy_network(corrected), shift)):
        with in_eval_mode(network), _hooked(network, hook, [name for name, why in found.items() if not why]):
            inputs.run(network)
    return shifts, unknown


def _may_gain(layers: dict[str, Layer]) -> list[Layer]:
    return [layer for layer in layers.values() if layer.module.bias is None]


def _why_not(graph: Graph, layer: Layer, unbiased: Collection[str]) -> str:
    """Why what is added to the layer's bias is not added once to each convolution or product with its weight, or ""."""
    name = tensor_name(graph.network, layer)
    if not (calls := graph.calls(layer)):
        users = operations(graph.users(name))
        return f"its weight is used by {users}, not by a convolution or product" if users else "it is never called"
    if layer.module.bias is None:
        return why_own_forward(layer.module) or "it would not read a bias" if layer.name in unbiased else ""
    bias = graph.tensors.get(tensor_name(graph.network, layer, "bias"))
    added = {node for node in calls if bias is not None and bias in node.args[2:3]}
    readers = set() if bias is None else set(bias.users)
    return "" if added == set(calls) == readers else "its bias is shared, or added elsewhere"


def _why_not_seen(graph: Graph, layer: Layer) -> str:
    """Why a layer doesn't put out what its bias is added to, or does so several times; or ""."""
    calls = graph.calls(layer)
    if why := why_own_forward(layer.module):
        return why
    if any(graph.caller(node) is not layer.module for node in calls):
        return "its weight is used without a call of the layer"
    return "" if len(calls) == 1 else f"it is called {len(calls)} times"


@contextmanager
def _hooked(network: nn.Module, hook: Callable, names: Collection[str]) -> Iterator[None]:
    """Inside, ``hook(name, layer, output)`` is called after each of some layers; what it returns replaces that."""
    with ExitStack() as hooks:
        for name, layer in _layers(network).items():
            if name in names:
                own = lambda module, _, out, name=name: hook(name, module, out)  # noqa: E731
                hooks.callback(layer.module.register_forward_hook(own).remove)
        yield


def _per_channel(out: Tensor, layer: nn.Module) -> Tensor:
    """The mean over all but the channels: along the last axis of a linear layer's output, else along the second."""
    axis = out.ndim - 1 if isinstance(layer, nn.Linear) else 1
    return out.mean([k for k in range(out.ndim) if k != axis])


def _row(layer: Layer, shifts: dict[str, Tensor], unknown: dict[str, str]) -> tuple:
    never = "it is never called" if layer.parameter == "weight" else "its weight is used without a call of the layer"
    why = layer.skipped or unknown.get(layer.name, "") or ("" if layer.name in shifts else never)
    shift = float(shifts[layer.name].abs().max()) if layer.name in shifts and not why else 0.0
    return layer.name, layer.kind, layer.size, shift, why
