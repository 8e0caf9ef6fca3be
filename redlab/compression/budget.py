"""One error budget for a whole network, spent where it removes most products."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from numpy import ndarray
from torch import nn

from redlab.hashing.chance import expected_unique
from redlab.network.example import Example
from redlab.network.layers import Layer, is_depthwise, unwrap, weight_layers
from redlab.network.trial_run import record_calls
from redlab.options import plain_options

BUDGETS = ("even", "products")
# What a layer's error may be, as a multiple of the mean: finer steps change little, and so would larger errors.
_FACTORS = np.geomspace(0.1, 3.0, 35)


@plain_options
def share_error(network: nn.Module, max_error: float, example: Example | None = None) -> dict[str, float]:
    """A ``max_error`` for every conv and linear layer, by name, for ``hash_network``: data-free.

    Their root mean square is ``max_error``, and the products expected after input splitting (unit "channel", values
    evenly spaced) are as few as that allows: minimise sum_l products_l(e_l) for a given sum_l e_l^2. As if a relative
    error hurt alike wherever it is made, layers with few products (the first and the last) get small errors, those with
    many large ones. Depthwise layers get 0 and stay as they are: their filters share no product with one another, and
    their scales differ so much, once batch norm is folded, that one grid for all is ruinous. All of this is our choice.

    Layers that are never called get ``max_error`` itself.

    Arguments:
        max_error: the root mean square of the layers' relative L2 errors.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.

    Raises:
        ValueError: a network that doesn't take ``example``, a ``max_error`` that is not positive, NaN or inf weights.

    Example:
        >>> errors = share_error(load_network("digits/resnet"), max_error=0.15)
        >>> np.sqrt(np.mean(np.square(list(errors.values())))).round(6).item()
        0.15
        >>> min(errors, key=errors.get), max(errors, key=errors.get)
        ('linear', 'layer2.0.conv1')
    """
    if not 0 < max_error < np.inf:
        raise ValueError(f"max_error must be a positive number (0.05 is 5 %), not {max_error}")
    network = unwrap(network)
    calls = record_calls(network, example)
    layers = [layer for layer in weight_layers(network) if not layer.skipped]
    errors = {layer.name: 0.0 if is_depthwise(layer.module) else max_error for layer in layers}
    layers = [layer for layer in layers if errors[layer.name] and layer.name in calls]
    costs = [_expected_products(layer, calls[layer.name], max_error) for layer in layers]
    if layers:
        factors = _cheapest(np.array(costs) / max(np.sum(costs), 1.0))
        errors |= {layer.name: float(max_error * own) for layer, own in zip(layers, factors, strict=True)}
    return errors


def _expected_products(layer: Layer, shapes: list[torch.Size], max_error: float) -> ndarray:
    """The products that splitting should leave of a layer at each of the errors."""
    weights = layer.weight.detach().double().cpu().numpy().ravel()
    if not np.isfinite(weights).all():
        raise ValueError(f"layer {layer.name}: NaN or inf among its weights")
    inputs = getattr(layer.module, "in_channels", layer.weight.shape[1])
    positions = sum(prod(shape) / inputs for shape in shapes)
    # Rounding to multiples of a step errs by step / sqrt(12) a weight that is not zero.
    steps = _FACTORS * max_error * np.sqrt(12 * (np.sum(weights**2) / max(np.count_nonzero(weights), 1)))
    return np.array([positions * inputs * _distinct(weights, step, inputs) for step in steps])


def _distinct(weights: ndarray, step: float, units: int) -> float:
    """The distinct values but zero expected in each of so many units of a layer rounded to multiples of ``step``."""
    if step == 0:
        return 0.0
    values, counts = np.unique(np.rint(weights / step), return_counts=True)
    return expected_unique(counts[values != 0], weights.size // units, total=weights.size)


def _cheapest(costs: ndarray) -> ndarray:
    """(layers, factors) shares of products -> the factor of each layer, of root mean square 1 or just below.

    A Lagrange multiplier prices the squared errors; it is bisected until they meet the budget.
    """
    costs = np.minimum.accumulate(costs, axis=1)
    low, high = 1e-12, 1e12
    for _ in range(100):
        price = np.sqrt(low * high)
        chosen = _FACTORS[(costs + price * _FACTORS**2).argmin(1)]
        low, high = (price, high) if np.sqrt(np.mean(chosen**2)) > 1 else (low, price)
    chosen = _FACTORS[(costs + high * _FACTORS**2).argmin(1)]
    return chosen / np.sqrt(np.mean(chosen**2))  # the last of the budget: the grid and the price leave some
