"""Evenly spaced values, -K ... K times a step: one step a layer, or one a row by the scales of the rows.

The values of a row are s_o step k. The step is a power of two, the same for the whole layer; what is left of a row's
own step is in its scale s_o, so that all rows share their codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray

from redlab.hashing import row_scales
from redlab.hashing.cells import Cells, round_up
from redlab.hashing.vector import Vector

CLIPS = ("max", "mse")


@dataclass(frozen=True, eq=False)
class Grid:
    """The values -K ... K times a step for the weights of one layer, for any K.

    Attributes:
        by_row: one step a row, else one a layer.
        least_squares: the step has the smallest squared error at K, and larger weights take the value K; else the
            largest weight takes K.
    """

    vector: Vector
    by_row: bool
    least_squares: bool

    @property
    def most(self) -> int:
        """The largest K."""
        return 2**self.vector.precision.code - 1 if self.by_row else 2**31

    @cached_property
    def ends(self) -> ndarray:
        """Where the weights that share a step begin and end."""
        return self.vector.ends if self.by_row else np.array([0, self.vector.size])

    @cached_property
    def largest(self) -> ndarray:
        """(rows,) the largest magnitudes; 1 for a row of zeros."""
        found = row_scales.largest_in(self.vector.weights, self.ends)
        return np.where(found > 0, found, 1.0)

    def step(self, k: int) -> float:
        """The power of two that codes are multiples of: K times it is at most 1, and more than a half."""
        return 2.0 ** -int(k - 1).bit_length()

    def steps(self, k: int) -> ndarray:
        """(rows,) the distance of two values in each row."""
        weights, ends, widest = self.vector.weights, self.ends, self.largest / k
        steps = row_scales.least_squares_steps(weights, ends, self.largest, k) if self.least_squares else widest
        return self._scales(steps, widest, k) * self.step(k) if self.by_row else steps

    def _scales(self, steps: ndarray, widest: ndarray, k: int) -> ndarray:
        """(rows,) scales of few bits: rounded up, so that nothing is clipped, or the best of those near the steps."""
        precision, step = self.vector.precision, self.step(k)
        near = [precision.round(widest / step, np.ceil)]
        if self.least_squares:
            near += [precision.round(steps / step, how) for how in (np.floor, np.ceil)]
        tried = np.maximum(near, precision.tiny / step)  # one step must not vanish
        if len(tried) == 1:
            return tried[0]
        errors = [row_scales.grid_errors(self.vector.weights, self.ends, own * step, k) for own in tried]
        return tried[np.argmin(errors, axis=0), np.arange(len(steps))]

    def error(self, k: int) -> float:
        """The relative L2 error of the layer, each weight at its nearest value."""
        squares = row_scales.grid_errors(self.vector.weights, self.ends, self.steps(k), k)
        return float(np.sqrt(squares.sum() / (self.vector.energy or 1.0)))

    def cells(self, k: int) -> Cells:
        """The cells around the values; of the codes where rows have scales."""
        if not self.by_row:
            return uniform(self.vector, float(self.steps(k)[0]), k)
        step = self.step(k)
        scales = np.where(np.diff(self.ends) > 0, self.steps(k) / step, 1.0)
        return uniform(self.vector.over(scales), step, k)

    def start(self, error: float) -> int:
        """About which K has that error: rounding errs by step / sqrt(12) a weight."""
        squares = np.square(self.largest) @ np.diff(self.ends) / 12
        return int(np.clip(np.sqrt(squares / (self.vector.energy or 1.0)) / error, 1, self.most))


def uniform(vector: Vector, step: float, most: float = np.inf) -> Cells:
    """Round to the nearest multiple of ``step``, so that zero is a value, up to ``most`` times it."""
    first, last = (float(np.clip(np.rint(end / step), -most, most)) for end in (vector.low, vector.high))
    few = last - first < 4 * vector.size + 1024
    every = lambda: np.unique(np.clip(np.rint(vector.weights / np.float64(step)), -most, most))  # noqa: E731
    multiples = np.arange(first, last + 1) if few else every()
    edges = (0.5 * (multiples[1:] + multiples[:-1])) * step
    return Cells.of(vector, round_up(edges, vector.weights.dtype), multiples * step, step)


def fewest(error: Callable[[int], float], bound: float, start: int, most: int) -> int:
    """The smallest K up to ``most`` whose error is within ``bound`` while that of K - 1 is not; ``most`` if none is.

    The error of K steps is about as 1 / K: each K that is tried follows from the one before, or halves what is left.
    """
    low, high, k, tries = 0, most + 1, start, 0
    while high - low > 1:
        found, tries = error(k), tries + 1
        if found <= bound:
            high = k
        else:
            low = k
        guess = np.ceil(k * found / bound) if tries < 8 else (low + min(high, 4 * low)) // 2
        k = int(np.clip(guess, low + 1, high - 1))
    return min(high, most)
