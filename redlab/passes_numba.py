"""The passes of ``passes_numpy``, compiled by numba: one read of the weights each, no temporaries.

They use one thread and release the GIL. No index is checked: callers refuse NaN and inf first.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy import ndarray

from redlab import passes_numpy

# Quartiles are found exactly from a histogram and the few weights in the bins that hold them.
_BINS = 4096
# Beyond this a table no longer fits the cache.
_MOST_SLOTS = 1 << 20


@njit(cache=True, nogil=True, fastmath=True)
def _ends(weights):
    low = high = weights[0]
    for w in weights:
        low = min(low, w)
        high = max(high, w)
    return low, high


@njit(cache=True, nogil=True, fastmath=True)
def _moments(weights):
    shift = np.float64(weights[0])  # sums about a weight: a narrow cluster far from zero loses no digits
    low = high = weights[0]
    total = squares = 0.0
    for w in weights:
        low = min(low, w)
        high = max(high, w)
        d = np.float64(w) - shift
        total += d
        squares += d * d
    return np.float64(low), np.float64(high), shift, total, squares


def moments(weights: ndarray) -> tuple[float, float, float, float]:
    """See ``passes_numpy.moments``."""
    low, high, shift, total, squares = _moments(weights)
    n = weights.size
    variance = max(squares - total * total / n, 0.0) / (n - 1) if n > 1 else 0.0
    return low, high, shift + total / n, float(np.sqrt(variance))


@njit(cache=True, nogil=True)
def _histogram(weights, low, scale):
    counts = np.zeros(_BINS, np.int64)
    for w in weights:
        counts[min(int((np.float64(w) - low) * scale), _BINS - 1)] += 1
    return counts


@njit(cache=True, nogil=True)
def _members(weights, low, scale, wanted, size):
    found = np.empty(size, np.float64)
    n = 0
    for w in weights:
        if wanted[min(int((np.float64(w) - low) * scale), _BINS - 1)]:
            found[n] = w
            n += 1
    return found


def quartiles(weights: ndarray, low: float, high: float) -> tuple[float, float]:
    """See ``passes_numpy.quartiles``."""
    if low == high:
        return low, high
    scale = _BINS / (high - low)
    counts = _histogram(weights, low, scale)
    ends = np.cumsum(counts)
    ranks = np.array([0.25, 0.75]) * (weights.size - 1)
    below = np.floor(ranks).astype(np.int64)
    needed = np.minimum(np.concatenate([below, below + 1]), weights.size - 1)
    bins = np.searchsorted(ends, needed, side="right")
    wanted = np.zeros(_BINS, np.bool_)
    wanted[bins] = True
    members = np.sort(_members(weights, low, scale, wanted, int(counts[wanted].sum())))
    skipped = np.cumsum(np.where(wanted, 0, counts))[bins]  # weights before each bin that were not collected
    lower, upper = members[needed - skipped].reshape(2, 2)
    first, third = lower + (ranks - below) * (upper - lower)
    return float(first), float(third)


@njit(cache=True, nogil=True)
def _powers(weights, origin, scale, size):
    sums = np.zeros((size, 4))  # side by side: one cache line a weight
    for w in weights:
        position = (np.float64(w) - origin) * scale
        cell = int(position)
        f = position - cell
        sums[cell, 0] += 1.0
        sums[cell, 1] += f
        sums[cell, 2] += f * f
        sums[cell, 3] += f * f * f
    return sums


def bin_cubic(weights: ndarray, origin: float, step: float, size: int) -> ndarray:
    """See ``passes_numpy.bin_cubic``."""
    return passes_numpy.share_cubic(*np.ascontiguousarray(_powers(weights, origin, 1.0 / step, size).T))


@njit(cache=True, nogil=True)
def _tally(weights, low, scale, first, threshold, cells):
    count = np.zeros(cells, np.int64)
    total = np.zeros(cells)
    least = np.full(cells, np.inf)
    most = np.full(cells, -np.inf)
    for w in weights:
        if w != 0:
            slot = int((np.float64(w) - low) * scale)
            code = first[slot] + (w >= threshold[slot])
            count[code] += 1
            total[code] += w
            least[code] = min(least[code], w)
            most[code] = max(most[code], w)
    return count, total, least, most


def tally(weights: ndarray, edges: ndarray) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """See ``passes_numpy.tally``."""
    slots = _slots(weights, edges)
    return passes_numpy.tally(weights, edges) if slots is None else _tally(weights, *slots, len(edges) + 1)


@njit(cache=True, nogil=True)
def _lookup(weights, low, scale, table, found):
    for j in range(weights.size):
        w = weights[j]
        slot = int((np.float64(w) - low) * scale)
        value = table[slot, 1] if w >= table[slot, 2] else table[slot, 0]
        found[j] = value if w != 0 else w


def lookup(weights: ndarray, edges: ndarray, values: ndarray) -> ndarray:
    """See ``passes_numpy.lookup``."""
    slots = _slots(weights, edges)
    if slots is None:
        return passes_numpy.lookup(weights, edges, values)
    low, scale, first, threshold = slots
    # One row (below, above, threshold) a slot: one cache line a weight instead of three.
    table = np.stack([values[first], values[np.minimum(first + 1, len(edges))], threshold], axis=1)
    found = np.empty(weights.size, values.dtype)
    _lookup(weights, low, scale, table, found)
    return found


def _slots(weights: ndarray, edges: ndarray) -> tuple[float, float, ndarray, ndarray] | None:
    """Equal slots, narrow enough that each holds one edge at most: the cell below it and the edge.

    None where that takes too many slots: then sorting is faster.
    """
    low, high = (float(end) for end in _ends(weights))
    if high == low:
        return None
    gap = min(float(np.diff(edges.astype(np.float64)).min()) if len(edges) > 1 else np.inf, high - low)
    scale = 1.0001 / gap if gap > 0 else np.inf
    if not (high - low) * scale < _MOST_SLOTS:
        return None
    slot = ((edges.astype(np.float64) - low) * scale).astype(np.int64)
    size = max(int((high - low) * scale), int(slot.max(initial=0))) + 1
    threshold = np.full(size, np.inf, weights.dtype)
    threshold[slot] = edges
    first = np.zeros(size + 1, np.int64)
    first[slot + 1] = 1
    return low, scale, np.cumsum(first)[:-1], threshold
