"""Which weights of a layer share their products: the distinct ones of every unit, as tables and look-ups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from torch import Tensor, nn

from redlab.compression.split_layers import ChannelSplit, KernelSplit, SplitLayer, Table, TapSplit, remember
from redlab.network.geometry import Geometry
from redlab.network.layers import as_floats

UNITS = ("channel", "tap", "kernel")
# Kernels are multiples of one another where they agree to so many digits after both are scaled to a peak of 1.
_DIGITS = 6


def split_layer(layer: nn.Module, unit: str, signed: bool = False, up_to_scale: bool = False) -> SplitLayer:
    """The layer that does what a linear or conv ``layer`` does and computes each product of a ``unit`` once.

    Arguments:
        signed: w and -w share one product.
        up_to_scale: with unit "kernel", so do kernels that are multiples of one another, where that saves products.
    """
    geometry, weight, scales = Geometry.of(layer), layer.weight, None
    # With one tap the three units are one; but channels count the image's positions, not those of its padding.
    if len(geometry.taps) == 1 and not (unit == "channel" and geometry.padded):
        kind, parts = TapSplit, _scalars(geometry, weight, signed, per_tap=True)
    elif unit == "kernel":
        kind, (parts, scales) = KernelSplit, _kernels(geometry, weight, signed, up_to_scale)
    else:
        kind = TapSplit if unit == "tap" else ChannelSplit
        parts = _scalars(geometry, weight, signed, per_tap=unit == "tap")
    made = kind(geometry, unit, *parts, layer.bias, signed and scales is None, scales).train(layer.training)
    remember(made, layer)
    return made


def _channels(geometry: Geometry) -> ndarray:
    """The input channel that each slice of the weight reads: (outputs, inputs per group), one row where all agree."""
    outputs = 1 if geometry.groups == 1 else geometry.outputs
    groups = np.arange(outputs) // (geometry.outputs // geometry.groups)
    return groups[:, None] * geometry.per_group + np.arange(geometry.per_group)


def _scalars(geometry: Geometry, weight: Tensor, signed: bool, per_tap: bool) -> tuple[list[Table], Tensor]:
    """The distinct scalars of each input channel, of all taps together or ``per_tap``."""
    scalars = as_floats(weight).numpy().reshape(geometry.outputs, geometry.per_group, -1)
    magnitudes = np.abs(scalars) if signed else scalars
    # By hashing: to find the few values of hashed weights, np.unique would sort all weights.
    codes, codebook = pd.factorize(magnitudes.ravel(), sort=True, use_na_sentinel=False)
    size = len(codebook)
    codes = codes.reshape(scalars.shape) + _channels(geometry)[..., None] * size
    tables, lookup = [], []
    for taps in [slice(t, t + 1) for t in range(scalars.shape[2])] if per_tap else [slice(None)]:
        rows, found = _distinct(codes[..., taps], geometry.inputs * size)
        live = codebook[rows % size] != 0  # a product with zero is none
        place = np.where(live, np.cumsum(live) - 1, live.sum() * (1 + signed)).astype(np.int32)
        found = place[found]
        if signed:
            found += live.sum(dtype=np.int32) * (scalars[..., taps] < 0)
        tables.append(_table(codebook[rows[live] % size], rows[live] // size, weight))
        lookup.append(found.transpose(2, 0, 1))
    return tables, torch.from_numpy(np.ascontiguousarray(np.concatenate(lookup))).to(weight.device)


def _kernels(
    geometry: Geometry, weight: Tensor, signed: bool, up_to_scale: bool
) -> tuple[tuple[list[Table], Tensor], Tensor | None]:
    """The distinct kernels of each input channel; with ``up_to_scale`` and what each is multiplied by, if that pays."""
    with np.errstate(invalid="ignore"):  # a NaN of a damaged file stays one, without a word of numpy's
        kernels = as_floats(weight).numpy().reshape(geometry.outputs * geometry.per_group, -1) + 0.0
    channels = np.broadcast_to(_channels(geometry), (geometry.outputs, geometry.per_group)).ravel()
    alive = np.flatnonzero(kernels.any(1))
    sign = np.where(np.take_along_axis(kernels, (kernels != 0).argmax(1)[:, None], 1)[:, 0] < 0, -1.0, 1.0)
    plain = first_equal(kernels[alive] * sign[alive, None] if signed else kernels[alive], channels[alive])
    scales = None
    if up_to_scale:
        scaled, ratios = first_multiple(kernels[alive], channels[alive])
        cost = [np.count_nonzero(kernels[alive[np.unique(first)]]) for first in (plain, scaled)]
        if cost[1] + len(alive) < cost[0]:
            plain, signed = scaled, False
            scales = np.zeros(len(kernels))
            scales[alive] = ratios
    leaders, places = np.unique(plain, return_inverse=True)
    found = np.full(len(kernels), len(leaders) * (1 + signed), np.int32)
    found[alive] = places + len(leaders) * (signed & (sign[alive] != sign[alive[plain]]))
    values = kernels[alive[leaders]].reshape(-1, *geometry.kernel)
    shape = (geometry.outputs, geometry.per_group)
    table = _table(values, channels[alive[leaders]], weight)
    lookup = torch.from_numpy(found.reshape(1, *shape)).to(weight.device)
    return ([table], lookup), None if scales is None else torch.from_numpy(scales.reshape(shape)).to(weight)


def first_equal(rows: ndarray, channels: ndarray) -> ndarray:
    """For each row the first of the same channel that equals it."""
    leaders: dict[tuple[int, bytes], int] = {}
    rows = np.ascontiguousarray(rows + 0.0)  # + 0.0: no zero is negative
    keys = rows.view(f"V{rows.strides[0]}").ravel().tolist() if len(rows) else []
    pairs = zip(channels.tolist(), keys, strict=True)
    return np.array([leaders.setdefault(pair, row) for row, pair in enumerate(pairs)], np.int64)


def first_multiple(rows: ndarray, channels: ndarray) -> tuple[ndarray, ndarray]:
    """For each row the first of the same channel that is a multiple of it, and the row as a multiple of that one."""
    if not len(rows):
        return np.zeros(0, np.int64), np.zeros(0)
    peaks = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1).astype(np.float64)
    shapes, near = rows / peaks, 10.0**-_DIGITS
    # Rows that agree are neighbours along any direction; rounding them instead would part those that lie on an edge.
    order = np.lexsort((shapes @ np.random.default_rng(0).standard_normal(shapes.shape[1]), channels))
    alike = np.abs(np.diff(shapes[order], axis=0)).max(1) <= near
    alike &= np.diff(channels[order]) == 0
    classes = np.cumsum(np.concatenate([[0], ~alike]))
    leaders = np.full(classes[-1] + 1, len(rows))
    np.minimum.at(leaders, classes, order)
    first = np.empty(len(rows), np.int64)
    first[order] = leaders[classes]
    far = np.abs(shapes - shapes[first]).max(1) > near  # the end of a chain of neighbours
    first[far] = np.flatnonzero(far)
    return first, peaks[:, 0] / peaks[first, 0]


def _distinct(keys: ndarray, space: int) -> tuple[ndarray, ndarray]:
    """The distinct keys, ascending, and the place of each key among them; keys are below ``space``."""
    if space > 8 * keys.size + (1 << 20):  # weights that were never hashed
        rows, places = np.unique(keys, return_inverse=True)
        return rows, places.reshape(keys.shape)
    present = np.zeros(space, bool)
    present[keys] = True
    return np.flatnonzero(present), (np.cumsum(present, dtype=np.int32) - 1)[keys]


def _table(values: ndarray, channels: ndarray, like: Tensor) -> Table:
    made = Table(torch.from_numpy(np.ascontiguousarray(values)).to(like), torch.from_numpy(channels.astype(np.int32)))
    made.values.requires_grad_(like.requires_grad)
    return made.to(like.device)
