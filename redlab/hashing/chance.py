"""How many distinct values chance would leave: the birthday problem behind input splitting."""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.special import gammaln

from redlab.options import plain_options


@plain_options
def expected_unique(counts: ArrayLike, n: float, replace: bool = False, total: int | None = None) -> float:
    """The expected number of distinct values among ``n`` weights out of a layer's N.

    Without replacement, since the units of one layer share its weights: E[r] = sum_c (1 - C(N - N_c, n) / C(N, n)),
    exact under a random permutation of them. With replacement: E[r] = sum_c (1 - (1 - N_c / N)^n), for m equally
    frequent values m (1 - (1 - 1/m)^n). The index terms of RED++ (arXiv 2110.01397) name the birthday problem; the
    formulas are our choice.

    Arguments:
        counts: (m,) how many of the weights have each value that is counted; zero, whose products cost nothing, is
            left out of them.
        n: weights in a unit, from 0 to N.
        total: N, where ``counts`` leave some weights out; by default their sum.

    Raises:
        ValueError: counts that are negative or no whole numbers, or more than ``total``; an ``n`` that isn't there.

    Example:
        >>> round(expected_unique(np.ones(365), 23, replace=True), 2)
        22.32
    """
    counts = np.asarray(counts, np.float64)
    if not np.isfinite(counts).all():
        raise ValueError("counts must be whole numbers of at least 0, not NaN or inf")
    total = int(counts.sum()) if total is None else total
    if (counts < 0).any() or (counts % 1 != 0).any() or counts.sum() > total:
        raise ValueError(f"counts must be whole numbers of at least 0, {total} in all at most")
    if not 0 <= n <= total or n % 1:
        raise ValueError(f"n must lie in 0 ... {total}: a unit of {n} weights cannot be drawn from {total}")
    counts = counts[counts > 0]
    with np.errstate(divide="ignore"):  # log 0, where every weight has one value
        missed = n * np.log1p(-counts / total) if replace and n else _log_missed(counts, n, total)
    return float(-np.expm1(missed).sum()) + 0.0  # nothing drawn gives 0, not -0


def _log_missed(counts: ndarray, n: float, total: int) -> ndarray:
    """The logarithm of C(N - N_c, n) / C(N, n), -inf where fewer than n weights have another value."""
    others = np.maximum(total - counts, n)
    ratio = gammaln(others + 1) - gammaln(others - n + 1) - gammaln(total + 1) + gammaln(total - n + 1)
    return np.where(total - counts >= n, ratio, -np.inf)
