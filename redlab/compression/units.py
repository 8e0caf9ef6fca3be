"""Which weights of a layer share their products: the distinct ones of every unit, as tables and look-ups."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from torch import Tensor, nn

from redlab.compression.kernel_split import KernelSplit
from redlab.compression.split_layers import ChannelSplit, SplitLayer, Table, TapSplit, remember
from redlab.network.geometry import Geometry
from redlab.network.layers import OUT_SCALE, as_floats
from redlab.network.row_scales import factor_rows

UNITS = ("channel", "tap", "kernel")
# Kernels are multiples of one another where they agree to so many digits after both are scaled to a peak of 1.
_DIGITS = 6


def split_layer(layer: nn.Module, unit: str, signed: bool = False, up_to_scale: bool = False) -> SplitLayer:
    """The layer that does what a linear or conv ``layer`` does and computes each product of a ``unit`` once.

    Where the layer has row scales (buffer ``out_scale``), the codes of its rows are compared in place of its weights.
    It does without where no two rows meet an input, as in most depthwise convolutions, or where kernels take fewer
    products as they are: a row has as many distinct codes as weights, and its scale would come on top.

    Arguments:
        signed: w and -w share one product.
        up_to_scale: with unit "kernel", so do kernels that are multiples of one another, where that saves products.
    """
    geometry, weight, scales = Geometry.of(layer), layer.weight, None
    shared = geometry.outputs > geometry.groups  # whether two rows meet an input
    codes, rows = factor_rows(weight, getattr(layer, OUT_SCALE, None) if shared else None)
    # With one tap the three units are one; but channels count the image's positions, not those of its padding.
    if len(geometry.taps) == 1 and not (unit == "channel" and geometry.padded):
        kind, parts = TapSplit, _scalars(geometry, codes, weight, signed, per_tap=True)
    elif unit == "kernel":
        kind, (parts, scales, rows) = KernelSplit, _kernels(geometry, codes, rows, weight, signed, up_to_scale)
    else:
        kind = TapSplit if unit == "tap" else ChannelSplit
        parts = _scalars(geometry, codes, weight, signed, per_tap=unit == "tap")
    rows = None if rows is None else rows.to(weight.device)
    made = kind(geometry, unit, *parts, layer.bias, signed and scales is None, scales, rows).train(layer.training)
    remember(made, layer)
    return made


def _channels(geometry: Geometry) -> ndarray:
    """The input channel that each slice of the weight reads: (outputs, inputs per group), one row where all agree."""
    outputs = 1 if geometry.groups == 1 else geometry.outputs
    groups = np.arange(outputs) // (geometry.outputs // geometry.groups)
    return groups[:, None] * geometry.per_group + np.arange(geometry.per_group)


def _scalars(
    geometry: Geometry, codes: Tensor, weight: Tensor, signed: bool, per_tap: bool
) -> tuple[list[Table], Tensor]:
    """The distinct scalars of each input channel, of all taps together or ``per_tap``."""
    scalars = as_floats(codes).numpy().reshape(geometry.outputs, geometry.per_group, -1)
    magnitudes = np.abs(scalars) if signed else scalars
    # By hashing: to find the few values of hashed weights, np.unique would sort all weights.
    keys, codebook = pd.factorize(magnitudes.ravel(), sort=True, use_na_sentinel=False)
    size = len(codebook)
    keys = keys.reshape(scalars.shape) + _channels(geometry)[..., None] * size
    tables, lookup = [], []
    for taps in [slice(t, t + 1) for t in range(scalars.shape[2])] if per_tap else [slice(None)]:
        rows, found = _distinct(keys[..., taps], geometry.inputs * size)
        live = codebook[rows % size] != 0  # a product with zero is none
        place = np.where(live, np.cumsum(live) - 1, live.sum() * (1 + signed)).astype(np.int32)
        found = place[found]
        if signed:
            found += live.sum(dtype=np.int32) * (scalars[..., taps] < 0)
        tables.append(_table(codebook[rows[live] % size], rows[live] // size, weight))
        lookup.append(found.transpose(2, 0, 1))
    return tables, torch.from_numpy(np.ascontiguousarray(np.concatenate(lookup))).to(weight.device)


def _kernels(
    geometry: Geometry, codes: Tensor, rows: Tensor | None, weight: Tensor, signed: bool, up_to_scale: bool
) -> tuple[tuple[list[Table], Tensor], Tensor | None, Tensor | None]:
    """The distinct kernels of each input channel, what each is multiplied by, and what each row: None where 1.

    Of kernels of weights, of codes and (``up_to_scale``) of multiples of codes, those that take the fewest products.
    """
    channels = np.broadcast_to(_channels(geometry), (geometry.outputs, geometry.per_group)).ravel()
    made = _Kernels(geometry, codes, channels, signed)
    spent = 0 if rows is None else int((rows != 1).sum())
    scales, plain, used = None, made, rows
    if rows is not None and (own := _Kernels(geometry, weight, channels, signed)).products <= made.products + spent:
        plain, used, spent = own, None, 0
    if up_to_scale:
        multiples, ratios = made.up_to_scale()
        if multiples.products + len(made.alive) < plain.products + spent:
            scales = np.zeros(len(channels))
            scales[made.alive] = ratios
            scales = scales.reshape(geometry.outputs, -1) * (1 if rows is None else as_floats(rows).numpy()[:, None])
            plain, used = multiples, None
    factors = None if scales is None else torch.from_numpy(scales).to(weight)
    return plain.tables(geometry, weight), factors, used


class _Kernels:
    """The kernels (n_out n_in / groups, taps) of a layer, and which of them share their products.

    Attributes:
        values: the kernels, and ``channels`` the input that each one meets.
        alive: the places of those that are not all zero; ``first``: for each of these, the one that it shares with.
        sign: of the first weight of each, and ``signed`` whether opposite ones share.
        products: how many there are at a position.
    """

    def __init__(self, geometry: Geometry, weight: Tensor, channels: ndarray, signed: bool) -> None:
        with np.errstate(invalid="ignore"):  # a NaN of a damaged file stays one, without a word of numpy's
            self.values = as_floats(weight).numpy().reshape(len(channels), -1) + 0.0
        self.channels, self.signed, self.alive = channels, signed, np.flatnonzero(self.values.any(1))
        leading = np.take_along_axis(self.values, (self.values != 0).argmax(1)[:, None], 1)[:, 0]
        self.sign = np.where(leading < 0, -1.0, 1.0)
        alive = self.values[self.alive]
        self.first = first_equal(alive * self.sign[self.alive, None] if signed else alive, channels[self.alive])

    @property
    def products(self) -> int:
        return int(np.count_nonzero(self.values[self.alive[np.unique(self.first)]]))

    def up_to_scale(self) -> tuple[_Kernels, ndarray]:
        """The same where multiples share, and what each alive kernel is multiplied by."""
        found = copy.copy(self)
        found.signed = False
        found.first, ratios = first_multiple(self.values[self.alive], self.channels[self.alive])
        return found, ratios

    def tables(self, geometry: Geometry, weight: Tensor) -> tuple[list[Table], Tensor]:
        """The table of distinct kernels, and the look-ups (1, n_out, n_in / groups) in it."""
        leaders, places = np.unique(self.first, return_inverse=True)
        found = np.full(len(self.values), len(leaders) * (1 + self.signed), np.int32)
        opposite = self.sign[self.alive] != self.sign[self.alive[self.first]]
        found[self.alive] = places + len(leaders) * (self.signed & opposite)
        chosen = self.alive[leaders]
        table = _table(self.values[chosen].reshape(-1, *geometry.kernel), self.channels[chosen], weight)
        return [table], torch.from_numpy(found.reshape(1, geometry.outputs, -1)).to(weight.device)


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
