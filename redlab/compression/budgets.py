"""Hashing a whole network within one budget, and what noise that adds to what it computes, without data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from redlab.compression.allocation import added_noise, allocate
from redlab.compression.budget import share_error
from redlab.compression.moments import mean_inputs
from redlab.compression.noise import LayerNoise, layer_noise
from redlab.hashing.networks import hash_layers
from redlab.network.example import Example
from redlab.network.layers import weight_layers
from redlab.network.recipe import input_mean_of
from redlab.network.result import Result

BUDGETS = ("noise", "products", "even")
# Above this, networks have lost points of accuracy (docs/defaults.md): it is where a warning begins.
MUCH_NOISE = 0.3


@torch.inference_mode(False)  # whatever the caller's mode: noise is differentiated
def hash_within(
    network: nn.Module,
    folded: Result,
    *,
    scale: str,
    example: Example | None,
    budget: str = "even",
    max_noise: float = 0.0,
    max_error: float | dict[str, float] | None = None,
    input_mean: tuple[float, ...] | None = None,
    **hashing: Any,
) -> Result:
    """``hash_layers`` within a budget.

    Arguments:
        folded: what ``prepare`` made, whose network this is.
        budget: "noise": ``allocate`` of ``max_noise``. "products": ``share_error`` of ``max_error``. "even": each layer
            its own ``max_error``.
        scale: "none", "row" or "auto": with the budget "noise" it decides layer by layer, with others it is "none".
        input_mean: of the network's input, by default what its recipe says.

    Returns:
        ``plan["noise"]`` is the noise that the errors of all layers add at the ends of their blocks, summed, as a share
        of the signal's variance there; ``plan["noise_unknown"]`` the layers of which a sixth of the rows' squared error
        stands in, as what reaches or leaves them is not known.

    Warns:
        that noise is large: the network may lose accuracy.
    """
    mean = input_mean_of(network) if input_mean is None else input_mean
    noise = layer_noise(mean_inputs(network, example, mean, folded.graph))
    if budget == "noise":
        found = allocate(network, max_noise, scale, noise, hashing["rule"], example)
        own: dict[str, Any] = {"max_error": found.errors, "scale": found.scales}
    else:
        own = {"max_error": max_error, "scale": "none" if scale == "auto" else scale}
        if budget == "products" and isinstance(max_error, float | int):
            own["max_error"] = share_error(network, max_error, example)
    result = hash_layers(network, **hashing, **own)
    total = total_noise(network, result.network, noise)
    if total > MUCH_NOISE:
        warnings.warn(
            f"the errors of the weights are expected to make {total:.2g} of the signal's variance; above {MUCH_NOISE} "
            "networks have lost accuracy: evaluate this one, or hash more finely",
            stacklevel=3,
        )
    unknown = [layer.name for layer in weight_layers(network) if not layer.skipped and layer.name not in noise]
    return replace(result, plan=result.plan | {"noise": total, "noise_unknown": unknown})


def total_noise(before: nn.Module, after: nn.Module, noise: Mapping[str, LayerNoise]) -> float:
    """What the errors of all layers add, of two networks of the same layers."""
    changed = {layer.name: layer.weight.detach() for layer in weight_layers(after) if not layer.skipped}
    return sum(
        added_noise(layer, changed[layer.name] - layer.weight.detach(), noise.get(layer.name))
        for layer in weight_layers(before)
        if layer.name in changed
    )
