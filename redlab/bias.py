"""Bias correction: what rewriting a layer's weights adds to its mean output is taken off its bias.

From batch-norm statistics without data (Nagel et al., ICCV 2019, arXiv 1906.04721, "data-free quantization"), or from
the means over a few images. That RED++ networks gain by it is our finding; it is no part of the papers.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from redlab.evaluation import in_eval_mode
from redlab.example import Example
from redlab.layers import Layer, copy_network, unwrap, weight_layers
from redlab.moments import mean_inputs
from redlab.recipe import append_step
from redlab.result import Result
from redlab.samples import Labelled, as_dataset, first_of

_IMAGES = 500  # of a dataset: more change the means by less than they matter


@torch.inference_mode(False)
@torch.no_grad()
def correct_biases(
    network: nn.Module, original: nn.Module, statistics: str | Labelled = "batchnorm", example: Example | None = None
) -> Result:
    """Shift each conv and linear layer's bias so that its mean output is that of the ``original`` network.

    Arguments:
        network: ``original`` with other weights, hashed ones say; left untouched.
        original: folded, so that its layers remember what batch norm said of their outputs.
        statistics: "batchnorm": no data, the mean inputs follow from batch-norm statistics (see ``moments``); or a
            dataset, of whose first 500 images, in one batch, the mean outputs are measured, layer after layer.
        example: what the networks take, batch first; by default ``example_input(network)``.

    Returns:
        ``layers`` has a row per conv and linear layer: layer, kind, weights, ``shift`` (the largest change of a bias)
        and why a layer is ``skipped``.

    Raises:
        ValueError: the networks don't have the same layers, or can't be traced; an unknown ``statistics``.

    Example:
        >>> folded = fold_batchnorm(load_network("digits/mlp")).network
        >>> hashed = hash_network(folded, rule="uniform", levels=4).network
        >>> result = correct_biases(hashed, folded)
        >>> (result.layers["shift"] > 0).tolist()
        [False, True, True]
    """
    network, original = unwrap(network), unwrap(original)
    corrected = copy_network(network)
    layers, before = _layers(corrected), _layers(original)
    if {name: layer.weight.shape for name, layer in layers.items()} != {n: b.weight.shape for n, b in before.items()}:
        raise ValueError("the two networks do not have the same layers: correct biases before channels are removed")
    if statistics == "batchnorm":
        shifts, unknown = _expected_shifts(layers, original, example)
    elif isinstance(statistics, str):
        raise ValueError(f"statistics must be 'batchnorm' or a dataset, not {statistics!r}")
    else:
        shifts, unknown = _measured_shifts(corrected, original, as_dataset(statistics)), {}
    gained = [name for name in shifts if layers[name].module.bias is None]
    for name, shift in shifts.items():
        add_bias(layers[name].module, shift)
    table = [_row(layer, shifts, unknown) for layer in weight_layers(corrected)]
    step = {"step": "correct_biases", "gained": gained}
    append_step(corrected, step)
    source = statistics if isinstance(statistics, str) else type(statistics).__name__
    columns = ["layer", "kind", "weights", "shift", "skipped"]
    return Result(corrected, pd.DataFrame(table, columns=columns), step | {"options": {"statistics": source}})


def add_bias(layer: nn.Module, shift: Tensor) -> None:
    """Add to the bias of ``layer``, in place; it gains one where it has none."""
    if layer.bias is None:
        layer.bias = nn.Parameter(shift.to(layer.weight), requires_grad=layer.weight.requires_grad)
    else:
        layer.bias += shift.to(layer.bias)


def _layers(network: nn.Module) -> dict[str, Layer]:
    """The layers that a bias can be added to."""
    return {layer.name: layer for layer in weight_layers(network) if not layer.skipped and layer.parameter == "weight"}


def _expected_shifts(
    layers: dict[str, Layer], original: nn.Module, example: Example | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    inputs, before = mean_inputs(original, example), _layers(original)
    shifts = {}
    for name, calls in inputs.calls.items():
        if name in layers and name not in inputs.unknown:
            difference = before[name].weight - layers[name].weight
            means = [node.target(given.mean, difference, None, *node.args[3:]) for node, given in calls]
            shifts[name] = torch.stack([_per_channel(mean, layers[name].module) for mean in means]).mean(0)
    return shifts, inputs.unknown


def _measured_shifts(corrected: nn.Module, original: nn.Module, dataset: Dataset) -> dict[str, Tensor]:
    """Layer after layer: each is shifted before the next one sees what comes out."""
    inputs = first_of(dataset, _IMAGES).to(original)
    wanted: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}

    def remember(name: str, layer: nn.Module, out: Tensor) -> None:
        wanted.setdefault(name, _per_channel(out, layer))

    def shift(name: str, layer: nn.Module, out: Tensor) -> Tensor:
        own = shifts.setdefault(name, wanted[name] - _per_channel(out, layer))
        return out + own.view([-1, *[1] * (0 if isinstance(layer, nn.Linear) else out.ndim - 2)])

    for network, hook in ((original, remember), (copy_network(corrected), shift)):
        with in_eval_mode(network), _hooked(network, hook):
            inputs.run(network)
    return shifts


class _hooked:
    """Inside, ``hook(name, layer, output)`` is called after each layer; what it returns replaces the output."""

    def __init__(self, network: nn.Module, hook) -> None:
        self._network, self._hook = network, hook

    def __enter__(self) -> None:
        self._handles = [
            layer.module.register_forward_hook(lambda module, _, out, name=name: self._hook(name, module, out))
            for name, layer in _layers(self._network).items()
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _per_channel(out: Tensor, layer: nn.Module) -> Tensor:
    """The mean over all but the channels: along the last axis of a linear layer's output, else along the second."""
    axis = out.ndim - 1 if isinstance(layer, nn.Linear) else 1
    return out.mean([k for k in range(out.ndim) if k != axis])


def _row(layer: Layer, shifts: dict[str, Tensor], unknown: dict[str, str]) -> tuple:
    never = "it is never called" if layer.parameter == "weight" else "its weight is used without a call of the layer"
    why = layer.skipped or unknown.get(layer.name, "") or ("" if layer.name in shifts else never)
    count = 0 if "lazy" in layer.skipped else layer.weight.numel()
    shift = float(shifts[layer.name].abs().max()) if layer.name in shifts and not why else 0.0
    return layer.name, layer.kind, count, shift, why
