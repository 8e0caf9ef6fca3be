"""Balanced rounding: weights take the value on their other side, so that errors cancel where inputs are alike.

The pixels under a kernel are nearly equal, so that what a rounded kernel gets wrong is mostly the *sum* of its errors;
and the inputs of a row share the sign of their mean, so that the sum over the row matters next. Data-free, after SQuant
(Guo et al., ICLR 2022, arXiv 2202.07471); the greedy order and the use on any cells, evenly spaced or not, are ours.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import torch
from numpy import ndarray

from redlab.hashing.passes import compiled, side_by_side

_PART = 1 << 15  # weights that are worth a thread
_FEW = 32  # flips that are kept in order by insertion; more, by a heap


def balance(weights: ndarray, codes: ndarray, centres: ndarray, used: ndarray, shape: tuple[int, ...]) -> ndarray:
    """Move weights to the cell on their other side until each kernel's errors, then each row's, add up to nearly 0.

    Arguments:
        weights, codes: (N,) the weights and the cell of each; the code c (exact zeros) never moves.
        centres: (c,) the value of each cell, ascending; ``used`` says which hold weights: no other is moved to.
        shape: of the weights, rows first; what follows the second axis is a kernel.

    Returns:
        (N,) the new codes, at most one used cell from where they were. The sum of each row's errors is at most half the
        widest gap, wherever there are enough candidates; rows come last and may disturb a kernel's sum by a flip.
    """
    rows = shape[0] if len(shape) > 1 else 1
    new = codes.reshape(rows, -1).copy()
    ends = np.linspace(0, rows, max(1, min(torch.get_num_threads(), rows, codes.size // _PART)) + 1, dtype=np.int64)
    parts = [(weights.reshape(rows, -1)[start:stop], new[start:stop]) for start, stop in pairwise(ends)]
    side_by_side(_settle_rows, parts, prod(shape[2:]), *_tables(centres, used))
    return new.reshape(codes.shape)


def _tables(centres: ndarray, used: ndarray) -> tuple:
    """By code, that of exact zeros last: centre, cell below, cell above, how far these are; the least of all gaps."""
    centres, below, above = np.append(centres, 0.0), *(np.append(cells, -1) for cells in _neighbours(used))
    gaps = [np.where(cells < 0, np.inf, np.abs(centres[cells] - centres)) for cells in (below, above)]
    return centres, below, above, *gaps, min(gap.min() for gap in gaps)


def _neighbours(used: ndarray) -> tuple[ndarray, ndarray]:
    """For each cell the nearest used one below and above it, -1 where there is none."""
    places = np.where(used, np.arange(len(used)), -1)
    below = np.concatenate([[-1], np.maximum.accumulate(places)[:-1]])
    mirrored = np.where(used[::-1], np.arange(len(used)), -1)
    above = len(used) - 1 - np.concatenate([[-1], np.maximum.accumulate(mirrored)[:-1]])[::-1]
    return below, np.where(above < len(used), above, -1)


@compiled
def _strands(values, start, stop):
    """The sum from ``start`` to ``stop``, in eight strands."""
    total = 0.0
    if stop - start >= 8:
        a, b, c, d = values[start], values[start + 1], values[start + 2], values[start + 3]
        e, f, g, h = values[start + 4], values[start + 5], values[start + 6], values[start + 7]
        for j in range(start + 8, stop - 7, 8):
            a, b, c, d = a + values[j], b + values[j + 1], c + values[j + 2], d + values[j + 3]
            e, f, g, h = e + values[j + 4], f + values[j + 5], g + values[j + 6], h + values[j + 7]
        total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for j in range(stop - (stop - start) % 8, stop):
        total += values[j]
    return total


@compiled
def _sum(values, start, stop):
    """The sum from ``start`` to ``stop`` as numpy adds, whose digits are kept: halves of halves, down to 128 values.

    A walk through the tree of halves: numba can't cache what calls itself.
    """
    if stop - start <= 128:
        return _strands(values, start, stop)
    stops, lefts, right, depth = np.full(64, stop), np.empty(64), np.zeros(64, np.bool_), 0
    while True:
        while stops[depth] - start > 128:
            half = (stops[depth] - start) // 2
            depth += 1
            stops[depth], right[depth] = start + half - half % 8, False
        total = _strands(values, start, stops[depth])
        start = stops[depth]
        while depth and right[depth]:
            total = lefts[depth] + total
            depth -= 1
        if depth == 0:
            return total
        lefts[depth], right[depth], stops[depth] = total, True, stops[depth - 1]


@compiled
def _cheapest(start, stop, codes, errors, gaps, sign, costs, places, room):
    """The cheapest flips that take something off the sum, ``room`` at most, in order: how many. Ties: first come."""
    size, worst = 0, np.inf
    for j in range(start, stop):
        helps = errors[j] * sign
        cost = gaps[codes[j]] - 2 * helps
        if (cost < worst) & (helps > 0):  # one branch, mostly not taken
            i = min(size, room - 1)
            while i and costs[i - 1] > cost:
                costs[i], places[i] = costs[i - 1], places[i - 1]
                i -= 1
            costs[i], places[i] = cost, j
            size = min(size + 1, room)
            worst = costs[room - 1] if size == room else np.inf
    return size


@compiled
def _heap(start, stop, codes, errors, gaps, sign, costs, places):
    """All flips that take something off the sum, as a heap: how many."""
    size = 0
    for j in range(start, stop):
        helps = errors[j] * sign
        costs[size], places[size] = gaps[codes[j]] - 2 * helps, j
        size += (helps > 0) & (gaps[codes[j]] < np.inf)
    for i in range(size // 2 - 1, -1, -1):
        _sink(costs, places, i, size)
    return size


@compiled
def _sink(costs, places, i, size):
    """Item i of a heap goes down until none below it costs less or, at the same cost, stands before it."""
    cost, place = costs[i], places[i]
    while 2 * i + 1 < size:
        k = 2 * i + 1
        if k + 1 < size and (costs[k + 1] < costs[k] or (costs[k + 1] == costs[k] and places[k + 1] < places[k])):
            k += 1
        if cost < costs[k] or (cost == costs[k] and place < places[k]):
            break
        costs[i], places[i] = costs[k], places[k]
        i = k
    costs[i], places[i] = cost, place


@compiled
def _settle(start, stop, weights, codes, errors, tables, costs, places):
    """Make the flips that bring the sum of the errors from ``start`` to ``stop`` nearest to 0.

    Those weights flip first whose squared error grows least for what they take off the sum. Every flip takes the least
    gap or more, so that few are asked for. ``costs`` and ``places`` are room for as many as there are weights.
    """
    centres, below, above, gaps_below, gaps_above, least = tables
    total, n = _sum(errors, start, stop), stop - start
    left = abs(total)
    if left <= least / 2:
        return
    other, gaps, sign = (below, gaps_below, 1.0) if total > 0 else (above, gaps_above, -1.0)
    room = n if left >= n * least else int(left / least + 1.5)
    few = room <= _FEW
    if few:
        size = _cheapest(start, stop, codes, errors, gaps, sign, costs, places, min(room, n))
    else:
        size = _heap(start, stop, codes, errors, gaps, sign, costs, places)
    taken, first = 0.0, 0
    while first < size:
        j = places[first]
        gap = gaps[codes[j]]
        taken += gap
        if not taken - gap / 2 < left:  # it would take twice what is left of the sum, or more
            break
        codes[j] = other[codes[j]]
        errors[j] = centres[codes[j]] - np.float64(weights[j])
        if few:
            first += 1
        else:
            size -= 1
            costs[0], places[0] = costs[size], places[size]
            _sink(costs, places, 0, size)


@compiled
def _settle_rows(weights, codes, kernel, *tables):
    """Settle the kernels of each row, then the row: (rows, n) weights and codes, which change in place."""
    n = weights.shape[1]
    errors, costs, places = np.empty(n), np.empty(n), np.empty(n, np.int64)
    for row in range(len(weights)):
        own, cells = weights[row], codes[row]
        for j in range(n):
            errors[j] = tables[0][cells[j]] - np.float64(own[j])
        if kernel > 1:
            for i in range(0, n, kernel):
                _settle(i, i + kernel, own, cells, errors, tables, costs, places)
        _settle(0, n, own, cells, errors, tables, costs, places)
