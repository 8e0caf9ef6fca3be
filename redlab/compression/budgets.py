"""Hashing a whole network within one budget, and what noise that adds to what it computes, without data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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
MUCH_NOISE = 0.5


def hash_within(
    network: nn.Module,
    folded: Result,
    *,
    max_error: float | dict[str, float] | None,
    budget: str,
    scale: str,
    example: Example | None,
    input_mean: tuple[float, ...] | None = None,
    **hashing: Any,
) -> Result:
    """``hash_layers`` within a budget.

    Arguments:
        folded: what ``prepare`` made, whose network this is.
        budget: "noise": ``allocate`` by the noise at the end of each layer's block. "products": the same by the squared
            relative error of the rows; with scale "none", ``share_error``. "even": each layer its own ``max_error``.
        scale: "none", "row" or "auto", which the budget decides; "none" where there is none to share.
        input_mean: of the network's input, by default what its recipe says.

    Returns:
        ``plan["noise"]`` is the noise that the errors of all layers add at the ends of their blocks, summed, as a share
        of the signal's variance there.

    Warns:
        that noise is large: the network may lose accuracy.
    """
    mean = input_mean_of(network) if input_mean is None else input_mean
    noise = layer_noise(mean_inputs(network, example, mean, folded.graph))
    if budget == "even" or isinstance(max_error, dict) or max_error is None:
        shared: dict[str, Any] = {"max_error": max_error, "scale": "none" if scale == "auto" else scale}
    elif budget == "products" and scale == "none":
        shared = {"max_error": share_error(network, max_error, example), "scale": scale}
    else:
        known = noise if budget == "noise" else None
        found = allocate(network, max_error, scale, known, hashing.get("rule", "kde"), example)
        shared = {"max_error": found.errors, "scale": found.scales}
    result = hash_layers(network, **hashing, **shared)
    total = total_noise(network, result.network, noise)
    if total > MUCH_NOISE:
        warnings.warn(
            f"the errors of the weights are expected to make {total:.2g} times the signal's variance; above "
            f"{MUCH_NOISE} networks lose accuracy: evaluate this one, or pass a smaller max_error than {max_error}",
            stacklevel=2,
        )
    return replace(result, plan=result.plan | {"noise": total})


def total_noise(before: nn.Module, after: nn.Module, noise: Mapping[str, LayerNoise]) -> float:
    """What the errors of all layers add, of two networks of the same layers."""
    changed = {layer.name: layer.weight.detach() for layer in weight_layers(after) if not layer.skipped}
    return sum(
        added_noise(layer, changed[layer.name] - layer.weight.detach(), noise.get(layer.name))
        for layer in weight_layers(before)
        if layer.name in changed
    )
