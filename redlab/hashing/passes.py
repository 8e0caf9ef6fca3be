"""The passes over all weights of a layer that density and hashing are made of, compiled: one read each, no temporaries.

Weights are contiguous float32 or float64 vectors, finite, never empty, without zeros where they are sent to cells;
positions are computed in float64. Large layers are cut in as many parts as torch has threads; the kernels release the
GIL, so plain Python threads run them. No index is checked: callers refuse NaN and inf first. Loops run over indices,
since LLVM vectorises those alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch
from numba import njit
from numpy import ndarray

# Beyond this a table of slots no longer fits the cache: searching is faster.
_MOST_SLOTS = 1 << 20
_PART = 1 << 17  # weights that are worth a thread
_SAMPLE = 1 << 12, 1 << 16  # the least and the most weights that tell roughly where the quartiles are


def compiled(kernel: Callable, fastmath: bool = False) -> Callable:
    try:
        return njit(kernel, cache=True, nogil=True, fastmath=fastmath)
    except RuntimeError:  # nowhere to cache: compiled anew in every process
        return njit(kernel, nogil=True, fastmath=fastmath)


@partial(compiled, fastmath=True)
def _squares(weights, shift):
    total = squares = 0.0
    for j in range(weights.size):
        w = weights[j]
        d = np.float64(w) - shift
        total += d
        squares += d * d
    return total, squares


def deviation(weights: ndarray) -> float:
    """Standard deviation (N - 1; 0 for one weight), summed in float64."""
    # Sums about one of the weights: a narrow cluster far from zero loses no digits.
    totals, squares = zip(*_in_parts(_squares, weights, np.float64(weights[0])), strict=True)
    n, total = weights.size, sum(totals)
    return float(np.sqrt(max(sum(squares) - total * total / n, 0.0) / (n - 1))) if n > 1 else 0.0


@compiled
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
    """First and third quartile, linear between order statistics, exact: from the weights around those of a sample."""
    n = weights.size
    if n < 4 * _SAMPLE[0]:
        return _quartiles_of(np.sort(weights), n, 0)
    sample = np.sort(weights[:: n // min(max(n // 32, _SAMPLE[0]), _SAMPLE[1])])
    # Five standard deviations of a sample quartile's rank; a sample in step with the weights' order may miss it still.
    slack = int(5 * np.sqrt(len(sample) * 0.25 * 0.75)) + 2
    middle = (np.array([0.25, 0.75]) * len(sample)).astype(np.int64)
    low, high = sample[middle - slack], sample[middle + slack]
    if low[1] <= high[0]:
        return _quartiles_of(np.sort(weights), n, 0)
    parts, first, second = zip(*_in_parts(_around, weights, low[0], high[0], low[1], high[1]), strict=True)
    near = np.sort(np.concatenate(parts))
    before = np.array([sum(first), sum(second) - np.searchsorted(near, low[1])])
    ranks = (np.array([0.25, 0.75]) * (n - 1)).astype(np.int64) - before
    inside = (ranks >= 0) & (ranks + 1 < len(near))
    if not inside.all() or not ((near[ranks] >= low) & (near[ranks + 1] <= high)).all():
        return _quartiles_of(np.sort(weights), n, 0)
    return _quartiles_of(near, n, before)


def _quartiles_of(ordered: ndarray, size: int, before: int | ndarray) -> tuple[float, float]:
    """The quartiles of ``size`` weights: ``ordered`` holds those around them, ``before`` each of them so many lack."""
    ranks = np.array([0.25, 0.75]) * (size - 1)
    below = np.floor(ranks).astype(np.int64)
    lower, upper = (ordered[np.minimum(rank, size - 1) - before].astype(np.float64) for rank in (below, below + 1))
    first, third = lower + (ranks - below) * (upper - lower)
    return float(first), float(third)


@compiled
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


@compiled
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
    """Counts on the grid ``origin + i step``, each weight shared among the four points around it (cubic Lagrange).

    The shares sum to one and keep the weight's first three moments; the outer two are negative. The weights must lie
    between the second and the last but two points.
    """
    return _share(sum(_in_parts(_powers, weights, origin, 1.0 / step, size)))


@partial(compiled, fastmath=True)
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
    """The symmetric filter whose taps from the middle on are ``half``, over counts that are zero beyond their ends.

    No FFT: its rounding makes false modes in the tails, where this sum of positive terms keeps its digits.
    """
    smoothed = np.empty(len(counts))
    _smooth(np.pad(counts, len(half) - 1), half, smoothed)
    return smoothed


@compiled
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
    """Into the c cells that the edges part: (codes, member, lone).

    ``codes`` (N,) in the smallest unsigned dtype that holds c. ``member`` (c,) is one of the cell's weights, NaN where
    it is empty; ``lone`` (c,) says that all of them equal it.
    """
    if (table := _slots(weights.dtype, low, high, edges)) is None:
        return _assort_by_search(weights, edges)
    codes = np.empty(weights.size, np.min_scalar_type(len(edges) + 1))
    made = _in_parts(_assort, (weights, codes), low, *table, len(edges) + 1)
    members, changes = (np.array(parts) for parts in zip(*made, strict=True))
    member = np.fmax.reduce(members)
    same = (members == member) | np.isnan(members)
    return codes, member, (changes <= 1).all(axis=0) & same.all(axis=0) & ~np.isnan(member)


def _assort_by_search(weights: ndarray, edges: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    cells = len(edges) + 1
    codes = np.searchsorted(edges, weights, side="right").astype(np.min_scalar_type(cells))
    ordered = np.sort(weights)
    ends = np.concatenate([[0], np.searchsorted(ordered, edges), [ordered.size]])
    used = np.diff(ends) > 0
    least, most = np.full(cells, np.nan, weights.dtype), np.full(cells, np.nan, weights.dtype)
    least[used], most[used] = ordered[ends[:-1][used]], ordered[ends[1:][used] - 1]
    return codes, most, least == most


def _slots(dtype: np.dtype, low: float, high: float, edges: ndarray) -> tuple[float, ndarray, ndarray] | None:
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


@compiled
def _sums(weights, codes, cells):
    count = np.zeros(cells, np.int64)
    total = np.zeros(cells)
    for j in range(weights.size):
        code = codes[j]
        count[code] += 1
        total[code] += weights[j]
    return count, total


def sums(weights: ndarray, codes: ndarray, cells: int) -> tuple[ndarray, ndarray]:
    """Count and float64 sum of the weights of each of so many codes."""
    count, total = zip(*_in_parts(_sums, (weights, codes), cells), strict=True)
    return sum(count), sum(total)


@compiled
def _take(codes, found, values):
    for j in range(codes.size):
        found[j] = values[codes[j]]


def take(values: ndarray, codes: ndarray) -> ndarray:
    """``values[codes]``."""
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
    return side_by_side(kernel, [tuple(own[start:stop] for own in vectors) for start, stop in pairwise(ends)], *rest)


def side_by_side(kernel: Callable, parts: list[tuple], *rest: object) -> list:
    """What ``kernel(*part, *rest)`` returns for each of the parts, one thread each."""
    others = [_pool().submit(kernel, *part, *rest) for part in parts[1:]]
    return [kernel(*parts[0], *rest), *(other.result() for other in others)]  # this thread works, too


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="redlab")
