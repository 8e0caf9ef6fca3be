"""Rule "residual": even steps, and finer ones for what they leave; a value is the sum of both.

REx (Yvinec et al., NeurIPS 2023, arXiv 2203.14645): W = R_1 + R_2, R_k = Q(W - what was there before). Two levels, and
as many values for each, are our choice. The codebook holds the sums.
"""

from __future__ import annotations

import numpy as np

from redlab.hashing.cells import Cells
from redlab.hashing.spaced import cells_around
from redlab.hashing.vector import Vector

MOST = 100  # so that a step of the second level is a code of 15 bits


def residual(vector: Vector, k: int) -> Cells:
    """The sums of -K ... K steps of the first level and -K ... K of the second, whose last value is all that is left.

    With K = 1 and weights up to 1 that leave at most 0.4, the values about 1 are 0.6, 1 and 1.4. The edges are halfway,
    and between 0.4 and 0.6 at 0.5, where the first level changes.
    """
    weights = vector.weights.astype(np.float64)
    coarse = max(-vector.low, vector.high) / k
    left = float(np.abs(weights - coarse * np.rint(weights / coarse)).max())
    first, second = np.arange(-k, k + 1)[:, None] * coarse, np.arange(-k, k + 1) * (left / k) if left else np.zeros(1)
    centres = (first + second).ravel()
    edges = (first + np.append(0.5 * (second[1:] + second[:-1]), 0.5 * coarse)).ravel()[:-1]
    apart = np.append(np.diff(centres) > 1e-9 * coarse, True)  # two values of the first level may meet
    return cells_around(vector, edges[apart[:-1]], centres[apart])
