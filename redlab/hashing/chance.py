"""The chance level: how many distinct values chance leaves of a unit, and hashing of random weights.

The birthday problem stands behind input splitting. Few values are left of any large sample that is hashed, too: only
the difference to the random twin says something about training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.special import gammaln

from redlab.hashing.rules import Rule
from redlab.hashing.vector import as_vector
from redlab.hashing.weights import hash_vector
from redlab.network.result import of_layers
from redlab.options import plain_options

# More weights are not drawn: their numbers are extended from a sixteenth of this many and from this many as a power of
# the size. Of 16 M weights this misses the distinct values after hashing by a tenth, those before by a seventh.
_MOST = 1 << 20
_SEED = 0


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


class Draw(NamedTuple):
    """Random weights to hash: how many, of which type, by which rule (whose bandwidth is in standard deviations)."""

    size: int
    dtype: torch.dtype
    rule: Rule
    rows: int = 1

    @classmethod
    def like(cls, weights: ndarray, dtype: torch.dtype, rule: Rule, rows: int = 1) -> Draw:
        """As many as ``weights``, in as many rows where these get scales.

        A bandwidth that is a number keeps its ratio to their standard deviation.
        """
        if rule.scale == "row":
            return cls(weights.size, dtype, rule, rows)
        if not isinstance(rule.bandwidth, str):
            scale = float(np.abs(weights).max()) or 1.0  # squares of 1e200 overflow
            spread = float((weights / scale).std(dtype=np.float64)) or 1.0
            rule = replace(rule, bandwidth=rule.bandwidth / scale / spread)
        return cls(weights.size, dtype, rule)

    def of_size(self, size: int) -> Draw:
        """As many weights as ``size``, or a few less: in whole rows of the same length where that is less."""
        length = min(self.size // self.rows, size)
        return (
            self._replace(size=size - size % length, rows=size // length) if self.rows > 1 else self._replace(size=size)
        )


@cache
def random_counts(draw: Draw) -> tuple[int, int]:
    """How many distinct values Gaussian random weights have, before and after hashing; the seed is fixed.

    Example:
        >>> from redlab.hashing.rules import Rule
        >>> random_counts(Draw(2304, torch.float32, Rule()))
        (2304, 57)
    """
    if draw.size > _MOST:
        small, large = (np.array(random_counts(draw.of_size(size))) for size in (_MOST // 16, _MOST))
        growth = np.log(large / small) / np.log(16)
        before, after = np.rint(large * (draw.size / _MOST) ** growth).astype(int).tolist()
        return min(before, draw.size), after
    wide = torch.float64 if draw.dtype == torch.float64 else torch.float32
    drawn = torch.randn(draw.size, dtype=wide, generator=torch.Generator().manual_seed(_SEED)).to(draw.dtype)
    drawn = drawn.reshape(draw.rows, -1)
    vector = as_vector(drawn)
    return vector.distinct + (vector.zeros > 0), len(hash_vector(vector, drawn, draw.rule).codebook)


@dataclass(frozen=True, eq=False)
class RandomTwin:
    """The random twin of a hashed network: its text is the share of distinct values that hashing leaves of it.

    Gaussian random weights of each layer's size are hashed by the same settings. Hashing knows no scale, so that their
    standard deviation does not matter (a bandwidth given as a number is scaled). Layers that hashing left alone count
    as they are.

    Attributes:
        draws: what stands for the weights of each layer that was hashed, by name.
        table: the ``layers`` of the network's own result.
    """

    draws: dict[str, Draw]
    table: pd.DataFrame

    @cached_property
    def layers(self) -> pd.DataFrame:
        """layer, kind, weights, distinct_before, distinct and skipped of the twin, one row a conv or linear layer."""
        rows = of_layers(self.table)[["layer", "kind", "weights", "distinct_before", "distinct", "skipped"]].copy()
        for row, name in zip(rows.index, rows["layer"], strict=True):
            if name in self.draws:
                rows.loc[row, ["distinct_before", "distinct"]] = random_counts(self.draws[name])
        return rows

    def __str__(self) -> str:
        before, after = (self.layers[name].sum() for name in ("distinct_before", "distinct"))
        return f"random weights of these sizes: {after / before:.2%}" if self.draws else ""
