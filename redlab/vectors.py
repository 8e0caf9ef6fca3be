"""Weights as the vector that density and hashing work on: checked, contiguous, float32 or float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy import ndarray

from redlab import passes


@dataclass(frozen=True, eq=False)
class Vector:
    """The weights of one layer, checked, with what every estimate asks of them.

    Attributes:
        weights: (N,) float32 or float64, contiguous, finite, N at least 1.
        low, high: the smallest and the largest of them.
        spread: their standard deviation (N - 1; 0 for one weight).
        shape: that of the tensor that they came in.
        ascending: whether they are sorted, so that nobody need sort a copy of them.
    """

    weights: ndarray
    low: float
    high: float
    spread: float
    shape: tuple[int, ...]
    ascending: bool = False

    @property
    def size(self) -> int:
        return self.weights.size

    @cached_property
    def energy(self) -> float:
        """The sum of their squares."""
        return float(np.square(self.weights, dtype=np.float64).sum())

    def times_two_to(self, exponent: int) -> Vector:
        """Each weight times 2^exponent, exactly."""
        return _measured(np.ldexp(self.weights, exponent), self.shape)


def as_vector(weights: torch.Tensor | ndarray) -> Vector:
    """``weights`` as a vector; 16-bit types become float32, exactly.

    Raises:
        TypeError: integer, bool or complex weights.
        ValueError: no weights, or NaN or inf among them.
    """
    if isinstance(weights, torch.Tensor):
        if not weights.is_floating_point():
            raise TypeError(f"weights must be real floating-point numbers, not {weights.dtype}")
        weights = weights.detach().cpu()
        weights = (weights if weights.dtype in (torch.float32, torch.float64) else weights.float()).numpy()
    weights = np.asarray(weights)
    if not np.issubdtype(weights.dtype, np.floating):
        raise TypeError(f"weights must be real floating-point numbers, not {weights.dtype}")
    if weights.size == 0:
        raise ValueError(f"weights are empty: shape {weights.shape}")
    vector = np.ascontiguousarray(weights, np.float64 if weights.dtype.itemsize > 4 else np.float32).ravel()
    low, high = vector.min(), vector.max()  # NaN where there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = ~np.isfinite(vector)
        raise ValueError(
            f"weights hold {np.isnan(vector).sum()} NaN and {np.isinf(vector).sum()} infinite values of {vector.size}"
            f", the first at flat index {int(np.argmax(bad))}"
        )
    return _measured(vector, tuple(weights.shape))


def _measured(values: ndarray, shape: tuple[int, ...]) -> Vector:
    with np.errstate(over="ignore", invalid="ignore"):  # squares of 1e200: see binary_scale
        return Vector(values, float(values.min()), float(values.max()), passes.deviation(values), shape)


def binary_scale(vector: Vector) -> int:
    """The power of two to divide float64 weights by, so that their squares neither overflow nor vanish; mostly 0."""
    if vector.weights.dtype == np.float32:
        return 0  # everything is computed in float64
    exponent = int(np.frexp(max(abs(vector.low), abs(vector.high)))[1])
    return exponent if abs(exponent) > 300 else 0
