"""Rule "power": even steps in a power of the weights, so that small ones get more values.

PowerQuant (Yvinec et al., ICLR 2023, arXiv 2301.09858): codes round(sign(w) |w|^a / s), the exponent chosen for the
smallest error. The exponents that are tried are our choice.
"""

from __future__ import annotations

import numpy as np

from redlab.hashing.cells import Cells
from redlab.hashing.spaced import cells_around
from redlab.hashing.vector import Vector

MOST = 80  # so that the smallest value of the smallest exponent, K^-2, is a code of 15 bits
_EXPONENTS = np.linspace(0.5, 1.0, 11)


def power(vector: Vector, k: int) -> Cells:
    """The values sign(j) (|j| / K)^(1 / a) times the largest magnitude, for j from -K to K: a of the smallest error."""
    return min((_at(vector, k, exponent) for exponent in _EXPONENTS[::-1]), key=Cells.error)


def _at(vector: Vector, k: int, exponent: float) -> Cells:
    largest = max(-vector.low, vector.high)
    codes = np.arange(-k, k + 1)
    centres, edges = (
        np.sign(at) * largest * (np.abs(at) / k) ** (1 / exponent) for at in (codes, 0.5 * (codes[1:] + codes[:-1]))
    )
    return cells_around(vector, edges, centres)
