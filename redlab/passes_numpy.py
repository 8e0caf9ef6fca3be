"""The passes over all weights of a layer that density and hashing are made of: the numpy version.

Weights are contiguous float32 or float64 vectors, finite, never empty; positions are computed in float64.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray


def moments(weights: ndarray) -> tuple[float, float, float, float]:
    """Smallest, largest, mean and standard deviation (N - 1) of the weights, summed in float64."""
    mean = weights.mean(dtype=np.float64)
    spread = weights.std(dtype=np.float64, ddof=1) if weights.size > 1 else 0.0
    return float(weights.min()), float(weights.max()), float(mean), float(spread)


def quartiles(weights: ndarray, low: float, high: float) -> tuple[float, float]:
    """First and third quartile, linear between order statistics (numpy's default)."""
    first, third = np.percentile(weights.astype(np.float64, copy=False), [25, 75])
    return float(first), float(third)


def bin_cubic(weights: ndarray, origin: float, step: float, size: int) -> ndarray:
    """Counts on the grid ``origin + i step``, each weight shared among the four points around it (cubic Lagrange).

    The shares sum to one and keep the weight's first three moments; the outer two are negative. The weights must lie
    between the second and the last but two points.
    """
    position = (weights.astype(np.float64, copy=False) - origin) * (1.0 / step)
    cell = position.astype(np.int64)
    f = position - cell
    powers = [np.bincount(cell, share, minlength=size)[:size] for share in (None, f, f * f, f * f * f)]
    return share_cubic(*(power.astype(np.float64) for power in powers))


def share_cubic(one: ndarray, f: ndarray, f2: ndarray, f3: ndarray) -> ndarray:
    """From the sums of 1, f, f^2, f^3 in each cell (f: how far a weight lies into it) to the counts of its points."""
    counts = one - f2 + (f3 - f) / 2
    counts[:-1] += (f2[1:] - (f3[1:] + 2 * f[1:]) / 3) / 2
    counts[1:] += f[:-1] + (f2[:-1] - f3[:-1]) / 2
    counts[2:] += (f3[:-2] - f[:-2]) / 6
    return counts


def tally(weights: ndarray, edges: ndarray) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Count, sum, smallest and largest of the non-zero weights in each of the cells that the edges part.

    An empty cell has count 0, sum 0, smallest inf and largest -inf.
    """
    ordered = np.sort(weights[weights != 0])
    ends = np.concatenate([[0], np.searchsorted(ordered, edges), [ordered.size]])
    count = np.diff(ends)
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
    least, most = np.full(len(count), np.inf), np.full(len(count), -np.inf)
    used = count > 0
    least[used], most[used] = ordered[ends[:-1][used]], ordered[ends[1:][used] - 1]
    return count, np.diff(sums[ends]), least, most


def lookup(weights: ndarray, edges: ndarray, values: ndarray) -> ndarray:
    """The value of each weight's cell; exact zeros stay zero."""
    found = values[np.searchsorted(edges, weights, side="right")]
    found[weights == 0] = 0
    return found
