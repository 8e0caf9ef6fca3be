"""A layer's weights as indices into a table of the values that occur, in the widths that Core ML stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from redlab.network.layers import Layer, as_floats, out_scale
from redlab.network.row_scales import factor_rows, rows_first

BITS = (1, 2, 3, 4, 6, 8)  # of an index, as Core ML has them


@dataclass(frozen=True, eq=False)
class Palette:
    """The weights of a layer as tables, and an index into one of them for each.

    Attributes:
        table: float32 (*blocks, 2^bits), each ascending; what is left over repeats the last value. ``blocks`` says, for
            each axis of the weight, in how many equal parts it is divided. Each block has a table: one for all, or one
            for each row.
        indices: uint8, in the shape of the weight.
        scales: float32 (*blocks), one for each row of the weight. None: the tables hold the weights themselves.

    Example: rows (0, 3, 3) and (0, 0, 3) have the table [[[0, 3]]] of 1 bit and the indices (0, 1, 1) and (0, 0, 1).
    """

    table: ndarray
    indices: ndarray
    scales: ndarray | None = None

    @property
    def bits(self) -> int:
        """Of an index."""
        return self.table.shape[-1].bit_length() - 1

    @property
    def tables(self) -> int:
        """How many there are."""
        return self.table.size >> self.bits

    @property
    def bytes(self) -> int:
        """Of the indices, the tables and the scales, without padding."""
        numbers = self.table.size + (0 if self.scales is None else self.scales.size)
        return -(-self.indices.size * self.bits // 8) + 4 * numbers

    @property
    def values(self) -> ndarray:
        """The weights, float32."""
        blocks, shape = self.table.shape[:-1], self.indices.shape
        which = _spread(np.arange(self.tables).reshape(blocks), shape)
        values = self.table.reshape(self.tables, -1)[which, self.indices]
        return values if self.scales is None else values * _spread(self.scales, shape)

    def same_as(self, other: Palette) -> bool:
        """Whether every number is the same."""
        same = np.array_equal(self.table, other.table) and np.array_equal(self.indices, other.indices)
        if self.scales is None or other.scales is None:
            return same and self.scales is other.scales
        return same and np.array_equal(self.scales, other.scales)


def palette_of(layer: Layer, scaled: bool = False) -> Palette | None:
    """The palette of a layer that takes the fewest bytes; None if each has a table of more than 256 entries.

    A layer has one table. Where its rows were hashed up to a scale, a table for each row is tried too, and, if the
    format can be ``scaled``, one table of codes with a scale for each row, where their products in float32 give every
    weight back exactly. -0 is stored as 0.
    """
    weight = rows_first(as_floats(layer.weight), layer.module)
    codes, scales = factor_rows(weight, out_scale(layer))
    found = [_palette(layer, weight, each=False)]
    blocks = _along_rows(layer)
    # Core ML's tools divide a weight along one axis only.
    if scales is not None and blocks.count(1) >= len(blocks) - 1:
        found.append(_palette(layer, weight, each=True))
    if scales is not None and scaled:
        own = _palette(layer, codes, each=False)
        own = own and Palette(own.table, own.indices, as_floats(scales).numpy().reshape(blocks))
        found.append(own if own and np.array_equal(own.values, as_floats(layer.weight).numpy()) else None)
    return min(filter(None, found), key=lambda palette: palette.bytes, default=None)


def _palette(layer: Layer, rows: Tensor, each: bool) -> Palette | None:
    """With a table for ``each`` row, or one for all of them."""
    values = rows.numpy() + np.float32(0)  # no -0
    flat = values.reshape(len(values) if each else 1, -1)
    order = np.argsort(flat, axis=1)
    ascending = np.take_along_axis(flat, order, axis=1)
    ranks = np.zeros(flat.shape, dtype=np.int64)
    np.cumsum(ascending[:, 1:] != ascending[:, :-1], axis=1, out=ranks[:, 1:])
    bits = next((bits for bits in BITS if ranks.max() < 1 << bits), None)
    if bits is None:
        return None
    table = np.repeat(ascending[:, -1:], 1 << bits, axis=1)
    np.put_along_axis(table, ranks, ascending, axis=1)
    indices = np.empty(flat.shape, dtype=np.uint8)
    np.put_along_axis(indices, order, ranks.astype(np.uint8), axis=1)
    ordered = rows_first(torch.from_numpy(indices.reshape(values.shape)), layer.module).numpy()
    return Palette(table.reshape(*(_along_rows(layer) if each else (1,) * values.ndim), -1), ordered)


def _along_rows(layer: Layer) -> tuple[int, ...]:
    """In how many blocks the rows divide a weight along each of its axes.

    The rows of a transposed convolution lie along the second axis, those of a group one after another: a block of the
    first axis is a group.
    """
    taps = (1,) * (layer.weight.ndim - 2)
    if not getattr(layer.module, "transposed", False):
        return len(layer.weight), 1, *taps
    return layer.module.groups, layer.weight.shape[1], *taps


def _spread(blocks: ndarray, shape: tuple[int, ...]) -> ndarray:
    """An entry a block as one for each number of an array of ``shape``."""
    for axis, length in enumerate(shape):
        blocks = np.repeat(blocks, length // blocks.shape[axis], axis)
    return blocks
