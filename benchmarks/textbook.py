"""Textbook quantization, written apart from redlab's rules: uniform codes of so many bits, a step a layer or a row.

A weight is step x code with a code from -K to K, K = 2^(bits - 1) - 1, in every layer. Batch norm is folded first.
Rounding is to the nearest code or balanced (SQuant's idea, by redlab's pass). The step puts the largest magnitude on K,
or makes the squared error smallest (clip "mse"). The products left are those that redlab's splitting leaves of the
codes (unit "channel", w and -w share one), scales counted by its rule. No channel is removed.
"""

from __future__ import annotations

from collections import Counter
from functools import cache, lru_cache

import numpy as np
import torch
from torch import nn

from benchmarks.measures import original
from redlab import measure_cost, split_inputs
from redlab.compression.bias import correct_biases
from redlab.compression.preparing import prepare_for
from redlab.hashing.balancing import balance
from redlab.network.layers import OUT_SCALE, copy_network, weight_layers
from redlab.network.result import Result, of_layers

_FACTORS = np.linspace(0.3, 1.0, 36)  # of the step that clips nothing, from which least squares begin


def quantised(
    name: str, bits: int, per: str, clip: str = "max", rounding: str = "nearest", correct_bias: str = "none"
) -> tuple[nn.Module, dict[str, float]]:
    """The network of that name with its codes times their steps, and what is left, as ``scales.left_of`` has it."""
    network, left = _rounded(name, bits, per, clip, rounding)
    return (correct_biases(network, prepared(name)).network if correct_bias != "none" else network), left


@cache
def prepared(name: str) -> Result:
    return prepare_for(original(name), None)


@lru_cache(maxsize=8)
def _rounded(name: str, bits: int, per: str, clip: str, rounding: str) -> tuple[nn.Module, dict[str, float]]:
    network, codes = (copy_network(prepared(name).network) for _ in range(2))
    found = Counter()
    for layer, twin in zip(weight_layers(network), weight_layers(codes), strict=True):
        if layer.skipped:
            continue
        weight = layer.weight.detach().double().numpy()
        code, step = codes_of(weight.reshape(len(weight), -1), weight.shape, 2 ** (bits - 1) - 1, per, clip, rounding)
        found["scales"] += int((code != 0).any(1).sum()) if per == "row" else 0
        found["distinct"] += len(np.unique(code))
        for own, values in ((layer, code * step), (twin, 2 * code if per == "row" else code)):
            own.weight.data = torch.from_numpy(values).view(own.weight.shape).to(own.weight.dtype)
        if per == "row":  # any scale but 1 costs as much as the step
            twin.module.register_buffer(OUT_SCALE, torch.full([len(code)], 2.0))
    total = of_layers(split_inputs(codes, signed=True).layers).sum(numeric_only=True)
    before = measure_cost(original(name)).attrs["products"]
    left = {what: total[f"products_{of}"] / before for what, of in _SHARES}
    left["additions"] = total["additions_after"] / before
    return network, left | {"distinct": found["distinct"], "scales": found["scales"]}


_SHARES = (("products", "after"), ("unsigned", "unsigned"))


def codes_of(
    rows: np.ndarray, shape: tuple[int, ...], largest: int, per: str, clip: str, rounding: str
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of (rows, weights) from -largest to largest, whole numbers as float64; and the steps, (rows or 1, 1)."""
    step = _steps(rows if per == "row" else rows.reshape(1, -1), largest, clip)
    scaled = rows / step
    codes = np.clip(np.rint(scaled), -largest, largest)
    if rounding == "balanced":
        centres, used = np.arange(-largest, largest + 1.0), np.ones(2 * largest + 1, bool)
        codes = balance(scaled.ravel(), (codes + largest).astype(int).ravel(), centres, used, shape) - largest
    return codes.reshape(rows.shape).astype(float), step


def _steps(rows: np.ndarray, largest: int, clip: str) -> np.ndarray:
    top = np.abs(rows).max(1, keepdims=True) / largest
    top[top == 0] = 1
    if clip == "max":
        return top
    best, least = top, np.full_like(top, np.inf)
    for factor in _FACTORS:
        step = factor * top
        codes = np.clip(np.rint(rows / step), -largest, largest)
        product, square = (rows * codes).sum(1, keepdims=True), (codes**2).sum(1, keepdims=True)
        step = np.where(product > 0, product / np.maximum(square, 1), step)
        error = ((np.clip(np.rint(rows / step), -largest, largest) * step - rows) ** 2).sum(1, keepdims=True)
        best, least = np.where(error < least, step, best), np.minimum(error, least)
    return best
