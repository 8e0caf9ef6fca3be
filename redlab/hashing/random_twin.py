"""What hashing makes of random weights: the chance level beside what it makes of a trained network.

Few values are left of any large sample. Only the difference to the random twin says something about training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy import ndarray

from redlab.hashing.rules import Rule
from redlab.hashing.vector import as_vector
from redlab.hashing.weights import hash_vector
from redlab.network.result import of_layers

# More weights are not drawn: their numbers are extended from a sixteenth of this many and from this many as a power of
# the size. Of 16 M weights this misses the distinct values after hashing by a tenth, those before by a seventh.
_MOST = 1 << 20
_SEED = 0


class Draw(NamedTuple):
    """Random weights to hash: how many, of which type, by which rule (whose bandwidth is in standard deviations)."""

    size: int
    dtype: torch.dtype
    rule: Rule

    @classmethod
    def like(cls, weights: ndarray, dtype: torch.dtype, rule: Rule) -> Draw:
        """As many as ``weights``; a bandwidth that is a number keeps its ratio to their standard deviation."""
        if not isinstance(rule.bandwidth, str):
            scale = float(np.abs(weights).max()) or 1.0  # squares of 1e200 overflow
            spread = float((weights / scale).std(dtype=np.float64)) or 1.0
            rule = replace(rule, bandwidth=rule.bandwidth / scale / spread)
        return cls(weights.size, dtype, rule)


@cache
def random_counts(draw: Draw) -> tuple[int, int]:
    """How many distinct values Gaussian random weights have, before and after hashing; the seed is fixed.

    Example:
        >>> from redlab.hashing.rules import Rule
        >>> random_counts(Draw(2304, torch.float32, Rule()))
        (2304, 57)
    """
    if draw.size > _MOST:
        small, large = (np.array(random_counts(draw._replace(size=size))) for size in (_MOST // 16, _MOST))
        growth = np.log(large / small) / np.log(16)
        before, after = np.rint(large * (draw.size / _MOST) ** growth).astype(int).tolist()
        return min(before, draw.size), after
    wide = torch.promote_types(draw.dtype, torch.float32)
    drawn = torch.randn(draw.size, dtype=wide, generator=torch.Generator().manual_seed(_SEED)).to(draw.dtype)
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
