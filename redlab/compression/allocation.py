"""One budget of noise for a whole network, spent where it removes most products; which layers' rows get scales.

Rounding a weight to multiples of a step errs by step^2 / 12 in the mean square. ``noise`` says what that does at the
end of the layer's block; the counts of the rounded values say how many products are left. All of it is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from redlab.compression.noise import LayerNoise
from redlab.hashing.chance import expected_unique
from redlab.network.example import Example
from redlab.network.geometry import Geometry
from redlab.network.layers import Layer, is_depthwise, rows_of, unwrap, weight_layers
from redlab.network.trial_run import record_calls
from redlab.options import check_one_of
from redlab.progress import progress

SCALES = ("none", "row", "auto")
# The median layer of ResNet-20 makes a sixth of its weights' squared relative error at its block's end. That stands in
# where noise is not known.
_PER_SQUARE = 1 / 6
# The relative errors that are tried for every layer, and 0: to leave it as it is.
_ERRORS = np.geomspace(0.003, 0.5, 60)
_UNUSED = 0.1  # of a layer that is never called
_SAMPLE = 1 << 15  # weights of a layer that are counted, or as many as an input value meets


@dataclass
class Allocation:
    """What each layer may do, by its name.

    Attributes:
        errors: the relative L2 error of the weights, 0 for a layer that is left as it is.
        scales: "row" or "none".
        noise: what that is expected to add to the network's noise (``noise``).
    """

    errors: dict[str, float] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)


def allocate(
    network: nn.Module,
    max_noise: float,
    scale: str = "auto",
    noise: Mapping[str, LayerNoise] = MappingProxyType({}),
    rule: str = "uniform",
    example: Example | None = None,
) -> Allocation:
    """Errors and scales of all conv and linear layers, for the fewest products that a budget of noise allows.

    Minimises sum_l products_l for a given sum_l noise_l, by a Lagrange multiplier. Products are those expected after
    input splitting (unit "channel", w and -w together), scales counted.

    Arguments:
        max_noise: the noise of all layers together (``noise``), a share of the signal's variance.
        scale: "none", "row", or "auto": each layer takes what leaves fewer products at the same price of noise.
        noise: of the layers where it is known. Of the others a sixth of the squared relative error of the rows, each
            row counting alike, stands in.
        rule: where a row's scale puts its largest weight ("kde", "lloyd": its root mean square).
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.

    Raises:
        ValueError: a network that doesn't take ``example``, a ``max_noise`` that is not positive, NaN or inf weights.
    """
    if not 0 < max_noise < np.inf:
        raise ValueError(f"max_noise must be a positive number (0.05 is 5 % of the signal's variance), not {max_noise}")
    check_one_of("scale", scale, SCALES)
    network = unwrap(network)
    calls = record_calls(network, example)
    layers = [layer for layer in weight_layers(network) if not layer.skipped]
    modes = ("none", "row") if scale == "auto" else (scale,)
    offers = [
        _offers(layer, calls[layer.name], noise.get(layer.name), modes, rule)
        for layer in progress(layers, "budget")
        if layer.name in calls
    ]
    found = Allocation()
    for layer in layers:  # those that are never called
        found.errors[layer.name], found.scales[layer.name] = _UNUSED, modes[-1]
    for offer, choice in zip(offers, _cheapest(offers, max_noise), strict=True):
        found.errors[offer.name] = float(offer.errors[choice])
        found.scales[offer.name] = offer.scales[choice]
        found.noise[offer.name] = float(offer.noise[choice])
    return found


@dataclass(frozen=True)
class _Offers:
    """What one layer may do: for each choice its scale, error, products and noise."""

    name: str
    scales: list[str]
    errors: ndarray
    products: ndarray
    noise: ndarray


def _offers(
    layer: Layer, shapes: list[torch.Size], noise: LayerNoise | None, modes: tuple[str, ...], rule: str
) -> _Offers:
    weight = layer.weight.detach().double().cpu()
    if not weight.isfinite().all():
        raise ValueError(f"layer {layer.name}: NaN or inf among its weights")
    rows = rows_of(layer, weight).flatten(1).numpy()
    inputs = getattr(layer.module, "in_channels", layer.weight.shape[1])
    reads = sum(prod(shape) for shape in shapes)  # input values
    per_input = rows.size // inputs
    scales, errors = ["none"], [np.zeros(1)]
    products, noises = [np.array([reads * np.count_nonzero(rows) / inputs])], [np.zeros(1)]
    if not (energy := float(np.square(rows).sum())):  # nothing but zeros
        return _Offers(layer.name, scales, *errors, *products, *noises)
    most = _noise_of(layer, noise, weight.square(), rows)  # of a row whose weights are all rounded to zero
    each = _noise_of(layer, noise, (weight != 0).double(), rows)  # of an error of 1 in every weight but zeros
    counts = np.count_nonzero(rows, axis=1)
    for mode in modes:
        sizes = _sizes(rows, rule) if mode == "row" else np.ones(len(rows))
        steps = _ERRORS * np.sqrt(12 * energy / float(counts @ np.square(sizes)))
        extra = _scale_products(layer, shapes, counts) if mode == "row" else 0
        drawn = _sample(rows / sizes[:, None], max(_SAMPLE, per_input))
        products.append(np.array([reads * _distinct(drawn, step, per_input, rows.size) + extra for step in steps]))
        squares = np.square(sizes)[None] * np.square(steps)[:, None] / 12
        noises.append(np.minimum(squares * each, most).sum(1))
        scales, errors = scales + [mode] * len(steps), [*errors, _ERRORS]
    return _Offers(layer.name, scales, *map(np.concatenate, (errors, products, noises)))


def _sizes(rows: ndarray, rule: str) -> ndarray:
    """The scale of each row, up to a factor common to all."""
    found = np.sqrt(np.square(rows).mean(1)) if rule in ("kde", "lloyd") else np.abs(rows).max(1)
    return np.where(found > 0, found, 1.0)


def added_noise(layer: Layer, difference: Tensor, noise: LayerNoise | None) -> float:
    """What a change of a layer's weights adds to the network's noise; a stand-in where ``noise`` is None."""
    rows = rows_of(layer, layer.weight.detach().double().cpu()).flatten(1).numpy()
    return float(_noise_of(layer, noise, difference.double().cpu().square(), rows).sum())


def _noise_of(layer: Layer, noise: LayerNoise | None, squares: Tensor, rows: ndarray) -> ndarray:
    """(rows,) the noise that errors of these squares make; where that isn't known, of all rows alike."""
    if noise is not None:
        return noise.rows(squares.to(noise.gain)).double().cpu().numpy()
    energy, made = np.square(rows).sum(1), rows_of(layer, squares).flatten(1).sum(1).numpy()
    share = np.divide(made, energy, out=np.zeros_like(energy), where=energy > 0)
    return _PER_SQUARE * share / max(np.count_nonzero(energy), 1)


def _scale_products(layer: Layer, shapes: list[torch.Size], counts: ndarray) -> int:
    """One for each output value of a row with weights; none in depthwise layers, which split by their own values."""
    if is_depthwise(layer.module):
        return 0
    if layer.parameter != "weight":
        return int(np.count_nonzero(counts)) * sum(prod(shape[:-1]) for shape in shapes)
    geometry = Geometry.of(layer.module)
    inner = len(geometry.kernel)
    cut = [(shape[: len(shape) - inner - 1], tuple(shape[len(shape) - inner :])) for shape in shapes]
    return int(np.count_nonzero(counts)) * sum(prod(images) * prod(geometry.sizes(space)) for images, space in cut)


def _sample(values: ndarray, size: int) -> ndarray:
    """So many of them, which tell how often each rounded value occurs; the same ones every time."""
    values = values.ravel()
    return values if values.size <= size else np.random.default_rng(0).choice(values, size, replace=False)


def _distinct(drawn: ndarray, step: float, per_input: int, size: int) -> float:
    """The distinct magnitudes but zero that an input value is expected to meet, of a layer of so many weights."""
    values, counts = np.unique(np.rint(np.abs(drawn) / step), return_counts=True)
    whole = drawn.size == size
    return expected_unique(counts[values != 0], per_input, replace=not whole, total=drawn.size)


def _cheapest(offers: list[_Offers], budget: float) -> list[int]:
    """The choice of each layer: a multiplier prices the noise, and is bisected until all of it fits the budget."""
    if not offers:
        return []
    whole = max(sum(float(offer.products[0]) for offer in offers), 1.0)
    low, high = 1e-12, 1e12
    for _ in range(100):
        price = np.sqrt(low * high)
        choices = [int((offer.products / whole + price * offer.noise).argmin()) for offer in offers]
        spent = sum(float(offer.noise[choice]) for offer, choice in zip(offers, choices, strict=True))
        low, high = (price, high) if spent > budget else (low, price)
    return [int((offer.products / whole + high * offer.noise).argmin()) for offer in offers]
