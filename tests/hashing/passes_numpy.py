"""The passes over all weights of a layer by numpy: the oracle of ``redlab.hashing.passes``.

Weights are contiguous float32 or float64 vectors, finite, never empty, without zeros where they are sent to cells;
positions are computed in float64.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from scipy.ndimage import correlate1d


def deviation(weights: ndarray) -> float:
    """Standard deviation (N - 1; 0 for one weight), summed in float64."""
    if weights.size < 2:
        return 0.0
    return float(weights.std(dtype=np.float64, ddof=1))


def quartiles(weights: ndarray) -> tuple[float, float]:
    """First and third quartile, linear between order statistics (numpy's default)."""
    return quartiles_of(np.sort(weights), weights.size, 0)


def quartiles_of(ordered: ndarray, size: int, before: int | ndarray) -> tuple[float, float]:
    """The quartiles of ``size`` weights: ``ordered`` holds those around them, ``before`` each of them so many lack."""
    ranks = np.array([0.25, 0.75]) * (size - 1)
    below = np.floor(ranks).astype(np.int64)
    lower, upper = (ordered[np.minimum(rank, size - 1) - before].astype(np.float64) for rank in (below, below + 1))
    first, third = lower + (ranks - below) * (upper - lower)
    return float(first), float(third)


def bin_cubic(weights: ndarray, origin: float, step: float, size: int) -> ndarray:
    """Counts on the grid ``origin + i step``, each weight shared among the four points around it (cubic Lagrange).

    The shares sum to one and keep the weight's first three moments; the outer two are negative. The weights must lie
    between the second and the last but two points.
    """
    position = (weights.astype(np.float64, copy=False) - origin) * (1.0 / step)
    cell = position.astype(np.int64)
    f = position - cell
    shares = (None, f, f * f, f * f * f)
    one, f, f2, f3 = (np.bincount(cell, s, minlength=size)[:size].astype(np.float64) for s in shares)
    counts = one - f2 + (f3 - f) / 2
    counts[:-1] += (f2[1:] - (f3[1:] + 2 * f[1:]) / 3) / 2
    counts[1:] += f[:-1] + (f2[:-1] - f3[:-1]) / 2
    counts[2:] += (f3[:-2] - f[:-2]) / 6
    return counts


def smooth(counts: ndarray, half: ndarray) -> ndarray:
    """The symmetric filter whose taps from the middle on are ``half``, over counts that are zero beyond their ends.

    No FFT: its rounding makes false modes in the tails, where this sum of positive terms keeps its digits.
    """
    return correlate1d(counts, np.concatenate([half[:0:-1], half]), mode="constant")


def assort(weights: ndarray, low: float, high: float, edges: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Into the c cells that the edges part: (codes, member, lone).

    ``codes`` (N,) in the smallest unsigned dtype that holds c. ``member`` (c,) is one of the cell's weights, NaN where
    it is empty; ``lone`` (c,) says that all of them equal it.
    """
    cells = len(edges) + 1
    codes = np.searchsorted(edges, weights, side="right").astype(np.min_scalar_type(cells))
    ordered = np.sort(weights)
    ends = np.concatenate([[0], np.searchsorted(ordered, edges), [ordered.size]])
    used = np.diff(ends) > 0
    least, most = np.full(cells, np.nan, weights.dtype), np.full(cells, np.nan, weights.dtype)
    least[used], most[used] = ordered[ends[:-1][used]], ordered[ends[1:][used] - 1]
    return codes, most, least == most


def sums(weights: ndarray, codes: ndarray, cells: int) -> tuple[ndarray, ndarray]:
    """Count and float64 sum of the weights of each of so many codes."""
    return np.bincount(codes, minlength=cells), np.bincount(codes, weights, minlength=cells)


def take(values: ndarray, codes: ndarray) -> ndarray:
    """``values[codes]``."""
    return values[codes]
