"""The passes of ``passes_numpy``, compiled by numba: one read of the weights each, no temporaries.

Large layers are cut in as many parts as torch has threads; the kernels release the GIL, so plain Python threads run
them. No index is checked: callers refuse NaN and inf first. Loops run over indices, since LLVM vectorises those alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numba import njit
from numpy import ndarray

from redlab.hashing import passes_numpy

_PART = 1 << 17  # weights that are worth a thread
_SAMPLE = 1 << 12, 1 << 16  # the least and the most weights that tell roughly where the quartiles are


@njit(cache=True, nogil=True, fastmath=True)
def _squares(weights, shift):
    total = squares = 0.0
    for j in range(weights.size):
        w = weights[j]
        d = np.float64(w) - shift
        total += d
        squares += d * d
    return total, squares


def deviation(weights: ndarray) -> float:
    """See ``passes_numpy.deviation``."""
    # Sums about one of the weights: a narrow cluster far from zero loses no digits.
    totals, squares = zip(*_in_parts(_squares, weights, np.float64(weights[0])), strict=True)
    n, total = weights.size, sum(totals)
    return float(np.sqrt(max(sum(squares) - total * total / n, 0.0) / (n - 1))) if n > 1 else 0.0


@njit(cache=True, nogil=True)
def _around(weights, low, high, later_low, later_high):
    """Those in [low, high] or [later_low, later_high], and how many lie below the first and below the second."""
    found = np.empty(weights.size + 1, weights.dtype)
    n = below = below_later = 0
    for j in range(weights.size):
        w = weights[j]
        below += w < low
        below_later += w < later_low
        found[n] = w  # kept where the next line counts it: no branch to mispredict
        n += ((w >= low) & (w <= high)) | ((w >= later_low) & (w <= later_high))
    return found[:n], below, below_later


def quartiles(weights: ndarray) -> tuple[float, float]:
    """See ``passes_numpy.quartiles``: exact, from the weights around the quartiles of a sample."""
    n = weights.size
    if n < 4 * _SAMPLE[0]:
        return passes_numpy.quartiles(weights)
    sample = np.sort(weights[:: n // min(max(n // 32, _SAMPLE[0]), _SAMPLE[1])])
    # Five standard deviations of a sample quartile's rank; a sample in step with the weights' order may miss it still.
    slack = int(5 * np.sqrt(len(sample) * 0.25 * 0.75)) + 2
    middle = (np.array([0.25, 0.75]) * len(sample)).astype(np.int64)
    low, high = sample[middle - slack], sample[middle + slack]
    if low[1] <= high[0]:
        return passes_numpy.quartiles(weights)
    parts, first, second = zip(*_in_parts(_around, weights, low[0], high[0], low[1], high[1]), strict=True)
    near = np.sort(np.concatenate(parts))
    before = np.array([sum(first), sum(second) - np.searchsorted(near, low[1])])
    ranks = (np.array([0.25, 0.75]) * (n - 1)).astype(np.int64) - before
    inside = (ranks >= 0) & (ranks + 1 < len(near))
    if not inside.all() or not ((near[ranks] >= low) & (near[ranks + 1] <= high)).all():
        return passes_numpy.quartiles(weights)
    return passes_numpy.quartiles_of(near, n, before)


@njit(cache=True, nogil=True)
def _powers(weights, origin, scale, size):
    sums = np.zeros((size, 4))  # side by side: one cache line a weight
    for j in range(weights.size):
        w = weights[j]
        position = (np.float64(w) - origin) * scale
        f = position - int(position)
        cell = np.uintp(int(position))
        sums[cell, 0] += 1.0
        sums[cell, 1] += f
        sums[cell, 2] += f * f
        sums[cell, 3] += f * f * f
    return sums


@njit(cache=True, nogil=True)
def _share(sums):
    counts = np.zeros(len(sums))
    for i in range(1, len(sums) - 2):
        one, f, f2, f3 = sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3]
        counts[i - 1] += (f2 - (f3 + 2 * f) / 3) / 2
        counts[i] += one - f2 + (f3 - f) / 2
        counts[i + 1] += f + (f2 - f3) / 2
        counts[i + 2] += (f3 - f) / 6
    return counts


def bin_cubic(weights: ndarray, origin: float, step: float, size: int) -> ndarray:
    """See ``passes_numpy.bin_cubic``."""
    return _share(sum(_in_parts(_powers, weights, origin, 1.0 / step, size)))


@njit(cache=True, nogil=True, fastmath=True)
def _smooth(padded, half, smoothed):
    reach = len(half) - 1
    for start in range(0, len(smoothed), 512):  # blocks that stay in the nearest cache while the taps pass by
        block = smoothed[start : start + 512]
        block[:] = half[0] * padded[start + reach : start + reach + len(block)]
        for d in range(1, reach + 1):
            left = padded[start + reach - d : start + reach - d + len(block)]
            right = padded[start + reach + d : start + reach + d + len(block)]
            for i in range(len(block)):
                block[i] += half[d] * (left[i] + right[i])


def smooth(counts: ndarray, half: ndarray) -> ndarray:
    """See ``passes_numpy.smooth``."""
    smoothed = np.empty(len(counts))
    _smooth(np.pad(counts, len(half) - 1), half, smoothed)
    return smoothed


@njit(cache=True, nogil=True)
def _assort(weights, codes, low, scale, first, threshold, cells):
    member = np.full(cells, np.nan, weights.dtype)
    changes = np.zeros(cells, np.int64)  # how often a weight differs from the one before it in its cell
    for j in range(weights.size):
        w = weights[j]
        slot = np.uintp(int((np.float64(w) - low) * scale))  # unsigned: no test for indices from the end
        code = np.uintp(first[slot] + (w >= threshold[slot]))
        codes[j] = code
        changes[code] += member[code] != w
        member[code] = w
    return member, changes


def assort(weights: ndarray, low: float, high: float, edges: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """See ``passes_numpy.assort``."""
    table = passes_numpy.slots(weights.dtype, low, high, edges)
    if table is None:
        return passes_numpy.assort(weights, low, high, edges)
    codes = np.empty(weights.size, np.min_scalar_type(len(edges) + 1))
    made = _in_parts(_assort, (weights, codes), low, *table, len(edges) + 1)
    members, changes = (np.array(parts) for parts in zip(*made, strict=True))
    member = np.fmax.reduce(members)
    same = (members == member) | np.isnan(members)
    return codes, member, (changes <= 1).all(axis=0) & same.all(axis=0) & ~np.isnan(member)


@njit(cache=True, nogil=True)
def _sums(weights, codes, cells):
    count = np.zeros(cells, np.int64)
    total = np.zeros(cells)
    for j in range(weights.size):
        code = codes[j]
        count[code] += 1
        total[code] += weights[j]
    return count, total


def sums(weights: ndarray, codes: ndarray, cells: int) -> tuple[ndarray, ndarray]:
    """See ``passes_numpy.sums``."""
    count, total = zip(*_in_parts(_sums, (weights, codes), cells), strict=True)
    return sum(count), sum(total)


@njit(cache=True, nogil=True)
def _take(codes, found, values):
    for j in range(codes.size):
        found[j] = values[codes[j]]


def take(values: ndarray, codes: ndarray) -> ndarray:
    """See ``passes_numpy.take``."""
    found = np.empty(codes.size, values.dtype)
    _in_parts(_take, (codes, found), values)
    return found


def _in_parts(kernel: Callable, vectors: ndarray | tuple[ndarray, ...], *rest: object) -> list:
    """What ``kernel(*part, *rest)`` returns for each part of the vectors, the parts side by side in threads."""
    vectors = vectors if isinstance(vectors, tuple) else (vectors,)
    size = vectors[0].size
    parts = max(1, min(torch.get_num_threads(), size // _PART))
    if parts == 1:
        return [kernel(*vectors, *rest)]
    ends = np.linspace(0, size, parts + 1, dtype=np.int64)
    cut = [tuple(vector[start:stop] for vector in vectors) for start, stop in pairwise(ends)]
    others = [_pool().submit(kernel, *part, *rest) for part in cut[1:]]
    return [kernel(*cut[0], *rest), *(other.result() for other in others)]  # this thread works, too


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="redlab")
