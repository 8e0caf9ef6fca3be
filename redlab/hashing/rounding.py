"""Balanced rounding: which of the two nearest values a weight takes, so that errors cancel where inputs are alike.

The pixels under a kernel are nearly equal, so that what a rounded kernel gets wrong is mostly the *sum* of its errors;
and the inputs of a row share the sign of their mean, so that the sum over the row matters next. Data-free, after SQuant
(Guo et al., ICLR 2022, arXiv 2202.07471); the greedy order and the use on any cells, evenly spaced or not, are ours.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

# Weights that are balanced at once, in whole rows: their errors and gaps stay in tens of megabytes.
_AT_ONCE = 1 << 20


def balance(weights: ndarray, codes: ndarray, centres: ndarray, used: ndarray, shape: tuple[int, ...]) -> ndarray:
    """Move weights to the cell on their other side until each kernel's errors, then each row's, add up to nearly 0.

    Arguments:
        weights, codes: (N,) the weights and the cell of each; codes beyond the cells (exact zeros) never move.
        centres: (c,) the value of each cell, ascending; ``used`` says which hold weights: no other is moved to.
        shape: of the weights, rows first; what follows the second axis is a kernel.

    Returns:
        (N,) the new codes, at most one used cell from where they were. The sum of each row's errors is at most half the
        widest gap, wherever there are enough candidates; rows come last and may disturb a kernel's sum by a flip.
    """
    rows = shape[0] if len(shape) > 1 else 1
    kernel = int(np.prod(shape[2:])) if weights.size else 1
    neighbours = _neighbours(used)
    new = codes.reshape(rows, -1).copy()
    step = max(1, _AT_ONCE * rows // max(1, weights.size))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        own = weights.reshape(rows, -1)[part].astype(np.float64)
        if kernel > 1:
            new[part] = _settle(own.reshape(-1, kernel), new[part].reshape(-1, kernel), centres, neighbours).reshape(
                own.shape
            )
        new[part] = _settle(own, new[part], centres, neighbours)
    return new.reshape(codes.shape)


def _neighbours(used: ndarray) -> tuple[ndarray, ndarray]:
    """For each cell the nearest used one below and above it, -1 where there is none."""
    places = np.where(used, np.arange(len(used)), -1)
    below = np.concatenate([[-1], np.maximum.accumulate(places)[:-1]])
    mirrored = np.where(used[::-1], np.arange(len(used)), -1)
    above = len(used) - 1 - np.concatenate([[-1], np.maximum.accumulate(mirrored)[:-1]])[::-1]
    return below, np.where(above < len(used), above, -1)


def _settle(weights: ndarray, codes: ndarray, centres: ndarray, neighbours: tuple[ndarray, ndarray]) -> ndarray:
    """The codes (groups, n) after the flips that bring the sum of each group's errors nearest to 0.

    In each group those weights flip first whose squared error grows least for what they take off the sum.
    """
    live = codes < len(centres)
    cell = np.where(live, codes, 0)
    error = np.where(live, centres[cell] - weights, 0.0)
    total = error.sum(1, keepdims=True)
    other = np.where(error > 0, neighbours[0][cell], neighbours[1][cell])
    gap = np.abs(centres[other] - centres[cell])
    helps = live & (other >= 0) & (error * total > 0)
    order = np.argsort(np.where(helps, gap - 2 * np.abs(error), np.inf), axis=1, kind="stable")
    gap, helps = (np.take_along_axis(own, order, axis=1) for own in (gap, helps))
    # A flip is made while it takes less than twice what is left of the sum; what doesn't help stands last.
    flips = helps & (np.cumsum(gap, axis=1) - gap / 2 < np.abs(total))
    flipped = np.zeros(codes.shape, bool)
    np.put_along_axis(flipped, order, np.logical_and.accumulate(flips, axis=1), axis=1)
    return np.where(flipped, other, codes)
