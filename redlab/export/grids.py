"""Weights as whole numbers times one step a row: read off where hashing made them, else rounded to them.

A layer that was hashed by rule "uniform" has such codes; any other is quantized by rows, symmetrically, to the largest
magnitude of each row, and what that adds to its mean output is taken off its bias (Nagel et al., ICCV 2019,
arXiv 1906.04721). Nothing is rounded twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from redlab.network.layers import Layer
from redlab.network.row_scales import rows_first

# The largest code by bits. Where a CPU multiplies bytes into pairs of 16 bits, 255 * 64 * 2 still fits, so that 7 bits
# are exact everywhere.
LARGEST = {8: 127, 7: 64, 4: 7}
_ROUNDING = 4  # units in the last place that a weight may lie off code * step
_TRIES = 64  # a step may be so many times smaller than the smallest difference of two values


@dataclass(frozen=True)
class Rows:
    """The weights of a layer as codes times steps.

    Attributes:
        codes: int8, in the shape of the weight.
        steps: float32 (rows,), above 0.
        hashed: whether the weights were so already.
    """

    codes: ndarray
    steps: ndarray
    hashed: bool

    def at_least(self, least: ndarray | float) -> Rows:
        """With larger steps where they are below ``least``, (rows,) or one; codes lie along the first axis."""
        steps = np.maximum(self.steps, least).astype(np.float32)
        if (steps == self.steps).all():
            return self
        shrink = (self.steps / steps).reshape(-1, *[1] * (self.codes.ndim - 1))
        return replace(self, codes=np.rint(self.codes * shrink).astype(np.int8), steps=steps)


def read_rows(layer: Layer, bits: int) -> Rows | None:
    """The codes of a layer whose weights are whole multiples of one step a row, of so many bits; None if they aren't.

    Example: rows (-0.2, 0.1, 0) and (3, 0, -1): steps 0.1 and 1, codes (-2, 1, 0) and (3, 0, -1).
    """
    weight = rows_first(layer.weight.detach().float().cpu(), layer.module)
    rows, steps = weight.flatten(1).numpy().astype(np.float64), []
    for row in rows:
        if (step := _step_of(row, LARGEST[bits])) is None:
            return None
        steps.append(step)
    codes = np.rint(rows / np.array(steps)[:, None])
    return Rows(_back(codes, weight, layer), np.array(steps, np.float32), True)


def round_rows(layer: Layer, bits: int) -> Rows:
    """The codes nearest to a layer's weights; the largest weight of each row has the largest code."""
    weight = rows_first(layer.weight.detach().float().cpu(), layer.module)
    rows = weight.flatten(1).numpy()
    largest = np.abs(rows).max(axis=1, initial=0)
    steps = np.where(largest > 0, largest, 1.0) / LARGEST[bits]
    steps = np.maximum(steps, np.finfo(np.float32).tiny).astype(np.float32)
    return Rows(_back(np.rint(rows / steps[:, None]), weight, layer), steps, False)


def _back(codes: ndarray, rows: Tensor, layer: Layer) -> ndarray:
    """int8 in the order of the layer's weight."""
    return rows_first(torch.from_numpy(codes.astype(np.int8)).reshape(rows.shape), layer.module).contiguous().numpy()


def weight_of(layer: Layer, rows: Rows) -> Tensor:
    """The float32 weight that the codes stand for, as an engine multiplies them out."""
    codes = rows_first(torch.from_numpy(rows.codes).float(), layer.module)
    steps = torch.from_numpy(rows.steps).view(-1, *[1] * (codes.ndim - 1))
    return rows_first(codes * steps, layer.module).contiguous()


def _step_of(values: ndarray, largest: int) -> float | None:
    """The largest step of which all values are multiples, up to ``largest`` times it; None if there is none."""
    distinct = np.unique(np.abs(values))
    distinct = distinct[distinct > 0]
    if not len(distinct):
        return 1.0
    if len(distinct) > largest:
        return None
    gap = np.diff(distinct, prepend=0.0).min()
    allowed = _ROUNDING * np.finfo(np.float32).eps * distinct[-1]
    for part in range(1, _TRIES + 1):
        codes = np.rint(distinct / (gap / part))
        if codes[-1] > largest:
            return None
        step = float(distinct @ codes / (codes @ codes))  # the mean over all values: gap alone is rounded
        if np.abs(codes * step - distinct).max() <= allowed:
            return _exact_step(step, codes, distinct)
    return None


def _exact_step(step: float, codes: ndarray, values: ndarray) -> float:
    """The float32 step whose products with the codes are the values bit for bit, if there is one; else ``step``."""
    codes, values = codes.astype(np.float32), values.astype(np.float32)
    for candidate in np.unique(np.append(values / codes, np.float32(step))):
        if np.array_equal(codes * candidate, values):
            return float(candidate)
    return step
