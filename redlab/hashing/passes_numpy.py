"""The passes over all weights of a layer that density and hashing are made of: the numpy version.

Weights are contiguous float32 or float64 vectors, finite, never empty, without zeros where they are sent to cells;
positions are computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy import ndarray
from scipy.ndimage import correlate1d

# Weights that are worked on together, so that temporaries stay in tens of megabytes whatever the layer.
_AT_ONCE = 1 << 20
# Beyond this a table of slots no longer fits the cache: searching is faster.
_MOST_SLOTS = 1 << 20


def deviation(weights: ndarray) -> float:
    """Standard deviation (N - 1; 0 for one weight), summed in float64."""
    if weights.size < 2:
        return 0.0
    if weights.size <= _AT_ONCE:
        return float(weights.std(dtype=np.float64, ddof=1))
    mean = weights.mean(dtype=np.float64)
    squares = sum(float(np.square(part - mean).sum()) for part in _parts(weights))
    return float(np.sqrt(squares / (weights.size - 1)))


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
    return sum((_bin_cubic(part, origin, step, size) for part in _parts(weights)), np.zeros(()))


def _parts(weights: ndarray) -> Iterator[ndarray]:
    return (weights[start : start + _AT_ONCE] for start in range(0, weights.size, _AT_ONCE))


def _bin_cubic(weights: ndarray, origin: float, step: float, size: int) -> ndarray:
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
    codes = look_up(weights, low, edges, slots(weights.dtype, low, high, edges)).astype(np.min_scalar_type(cells))
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


def look_up(weights: ndarray, low: float, edges: ndarray, table: tuple[float, ndarray, ndarray] | None) -> ndarray:
    """The cell of each weight, by what ``slots`` returned for these edges."""
    if table is None:
        return np.searchsorted(edges, weights, side="right")
    scale, first, threshold = table
    slot = ((weights.astype(np.float64, copy=False) - low) * scale).astype(np.int64)
    return first[slot] + (weights >= threshold[slot])


def slots(dtype: np.dtype, low: float, high: float, edges: ndarray) -> tuple[float, ndarray, ndarray] | None:
    """Equal slots of the line, so narrow that each holds one edge at most: (slots per unit, cell below it, the edge).

    None where that takes too many.
    """
    gap = min(float(np.diff(edges.astype(np.float64)).min()) if len(edges) > 1 else np.inf, high - low)
    scale = 1.0001 / gap if gap > 0 else np.inf
    if not (high - low) * scale < _MOST_SLOTS:
        return None
    slot = ((edges.astype(np.float64) - low) * scale).astype(np.int64)
    size = max(int((high - low) * scale), int(slot.max(initial=0))) + 1
    threshold = np.full(size, np.inf, dtype)
    threshold[slot] = edges
    first = np.zeros(size + 1, np.int32)
    first[slot + 1] = 1
    return scale, np.cumsum(first, dtype=np.int32)[:-1], threshold
