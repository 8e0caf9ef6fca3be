"""Values that one whole number K makes, for the weights of a layer, or for their codes where rows have scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray

from redlab.hashing import row_scales
from redlab.hashing.cells import Cells, round_up
from redlab.hashing.vector import Vector


@dataclass(frozen=True, eq=False)
class Spaced:
    """The cells that ``make`` makes of a vector, for any K.

    Attributes:
        by_row: each row has a scale, which puts its largest magnitude on at most 1; else the layer has none.
        make: from a vector and K to cells.
        most: the largest K.
    """

    vector: Vector
    by_row: bool
    make: Callable[[Vector, int], Cells]
    most: int

    @cached_property
    def weights(self) -> Vector:
        """The vector itself, or its codes."""
        if not self.by_row:
            return self.vector
        largest = row_scales.largest_in(self.vector.weights, self.vector.ends)
        return self.vector.over(np.where(largest > 0, self.vector.precision.round(largest, np.ceil), 1.0))

    def cells(self, k: int) -> Cells:
        return self.make(self.weights, k)

    def error(self, k: int) -> float:
        """The relative L2 error of the layer, of values that codes may have."""
        return self.cells(k).as_codes().error()

    def start(self, error: float) -> int:
        """A first K to try; the search goes on from there."""
        return int(np.clip(1 / error, 1, self.most))


def cells_around(vector: Vector, edges: ndarray, centres: ndarray) -> Cells:
    """The cells between ascending edges, those alone that reach into the range of the weights."""
    first, last = np.searchsorted(edges, [vector.low, vector.high], side="right")
    return Cells.of(vector, round_up(edges[first:last], vector.weights.dtype), centres[first : last + 1])
