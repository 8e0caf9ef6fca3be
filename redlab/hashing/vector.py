"""Weights as the vector that density and hashing work on: checked, contiguous, float32 or float64, without zeros."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import torch
from numpy import ndarray

from redlab.hashing import passes, row_scales
from redlab.hashing.row_scales import Precision, RowScales, precision_of
from redlab.network.layers import as_floats

AT_ONCE = 1 << 18  # weights that are worked on together, so that temporaries stay at a few megabytes


class NotFinite(ValueError):
    """NaN or inf among weights, ``nan`` and ``infinite`` of them."""

    def __init__(self, weights: ndarray) -> None:
        self.nan, self.infinite = int(np.isnan(weights).sum()), int(np.isinf(weights).sum())
        first = int(np.argmax(~np.isfinite(weights)))
        super().__init__(
            f"weights hold {self.nan} NaN and {self.infinite} infinite values of {weights.size}, the first at flat "
            f"index {first}"
        )


@dataclass(frozen=True, eq=False)
class Vector:
    """The weights of one layer that are not exactly zero, checked, with what every estimate asks of them.

    Exact zeros belong to no cell: hashing leaves them zero. So no bandwidth, density or error counts them either.

    Attributes:
        weights: (N,) float32 or float64, contiguous, finite, N at least 1. In a layer of nothing but zeros, these.
        low, high: the smallest and the largest of them.
        spread: their standard deviation (N - 1; 0 for one weight).
        shape: that of the tensor that they came in, zeros included.
        live: (prod(shape),) which of the tensor's elements they are; None for all.
        precision: of the type that the tensor had.
        rows: the scales of its rows, where these are codes: a weight is a code times the scale of its row.
    """

    weights: ndarray
    low: float
    high: float
    spread: float
    shape: tuple[int, ...]
    live: ndarray | None
    precision: Precision
    rows: RowScales | None = None

    @property
    def size(self) -> int:
        return self.weights.size

    @property
    def zeros(self) -> int:
        """How many exact zeros stand beside them."""
        return prod(self.shape) - self.size

    @cached_property
    def energy(self) -> float:
        """The sum of the squared weights."""
        if self.rows is not None:
            return self.rows.energy(self.weights)
        return float(np.square(self.weights, dtype=np.float64).sum())

    @property
    def least_error(self) -> float:
        """About the relative L2 error of codes that are only rounded to what codes may be."""
        if self.rows is None:
            return 0.0
        squares = self.rows.squared @ np.diff(self.ends) * self.rows.grid**2 / 12
        return float(np.sqrt(squares / (self.energy or 1.0)))

    @cached_property
    def distinct(self) -> int:
        """How many different values they take."""
        ordered = np.sort(self.weights)
        return 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))

    def times_two_to(self, exponent: int) -> Vector:
        """Each weight times 2^exponent, exactly; what vanishes is a zero from then on."""
        return _measured(
            np.ldexp(self.whole(self.weights), exponent), self.shape, self.precision.times_two_to(exponent)
        )

    @cached_property
    def ends(self) -> ndarray:
        """(rows + 1,) where the rows of the tensor begin and end; one without a second axis is one row."""
        return row_scales.ends_of(self.shape, self.live)

    def over(self, scales: ndarray) -> Vector:
        """The codes: each weight over the scale of its row (rows,), see ``row_scales``."""
        codes = row_scales.divide(self.weights, self.ends, scales)
        low, high = float(codes.min()), float(codes.max())
        rows = RowScales(self.ends, scales, self.precision.grid(max(-low, high), scales))
        return replace(self, weights=codes, low=low, high=high, spread=passes.deviation(codes), rows=rows)

    def by_size(self) -> Vector:
        """The codes whose rows all have a root mean square of about 1, exact zeros left out."""
        found = row_scales.root_mean_squares(self.weights, self.ends)
        return self.over(np.where(found > 0, self.precision.round(found), 1.0))

    def whole(self, values: ndarray, zero: float = 0) -> ndarray:
        """(prod(shape),) what each weight has in ``values`` (N,), and ``zero`` at the exact zeros."""
        if self.live is None:
            return values
        made = np.full(self.live.size, zero, values.dtype)
        made[self.live] = values
        return made


def as_vector(weights: torch.Tensor | ndarray) -> Vector:
    """``weights`` as a vector; 16-bit types become float32, exactly.

    Raises:
        TypeError: neither tensor nor array; integer, bool or complex weights.
        ValueError: no weights, or NaN or inf among them.
    """
    kept: torch.dtype | np.dtype | None = None
    if isinstance(weights, torch.Tensor):
        if not weights.is_floating_point():
            raise TypeError(f"weights must be real floating-point numbers, not {weights.dtype}")
        kept, weights = weights.dtype, as_floats(weights).numpy()
    elif not isinstance(weights, ndarray | np.generic):
        raise TypeError(f"weights must be a torch tensor or a numpy array, not a {type(weights).__name__}")
    weights = np.asarray(weights)
    kept = kept or weights.dtype
    if not np.issubdtype(weights.dtype, np.floating):
        raise TypeError(f"weights must be real floating-point numbers, not {weights.dtype}")
    if weights.size == 0:
        raise ValueError(f"weights are empty: shape {weights.shape}")
    vector = np.ascontiguousarray(weights, np.float64 if weights.dtype.itemsize > 4 else np.float32).ravel()
    low, high = vector.min(), vector.max()  # NaN where there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NotFinite(vector)
    return _measured(vector, tuple(weights.shape), precision_of(kept))


def _measured(values: ndarray, shape: tuple[int, ...], precision: Precision) -> Vector:
    """The vector of finite numbers."""
    live = values != 0
    some = live.any() and not live.all()
    weights = values[live] if some else values
    with np.errstate(over="ignore", invalid="ignore"):  # squares of 1e200: see binary_scale
        spread = passes.deviation(weights)
    return Vector(weights, float(weights.min()), float(weights.max()), spread, shape, live if some else None, precision)


def binary_scale(vector: Vector) -> int:
    """The power of two to divide float64 weights by, so that their squares neither overflow nor vanish; mostly 0."""
    if vector.weights.dtype == np.float32:
        return 0  # everything is computed in float64
    exponent = int(np.frexp(max(abs(vector.low), abs(vector.high)))[1])
    return exponent if abs(exponent) > 300 else 0


def in_parts(weights: ndarray) -> Iterator[ndarray]:
    """A vector in pieces that fit a cache."""
    return (weights[start : start + AT_ONCE] for start in range(0, weights.size, AT_ONCE))


def error_of(pairs: Iterable[tuple[ndarray, ndarray]], scale: float) -> float:
    """||after - before|| / ||before|| of two vectors that come part by part, summed in float64.

    Arguments:
        pairs: a part of ``before`` and the same part of ``after``.
        scale: the largest magnitude: squares of 1e-200 vanish, those of 1e200 overflow.
    """
    moved = energy = 0.0
    for pair in pairs:
        old, new = (part.astype(np.float64) / (scale or 1.0) for part in pair)
        moved, energy = moved + float(np.square(new - old).sum()), energy + float(np.square(old).sum())
    return float(np.sqrt(moved / (energy or 1.0)))
