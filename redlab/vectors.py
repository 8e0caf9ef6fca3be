"""Weights as the vector that density and hashing work on: checked, contiguous, float32 or float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy import ndarray


def as_vector(weights: torch.Tensor | ndarray) -> ndarray:
    """``weights`` as a contiguous, finite float32 or float64 vector (16-bit types become float32, exactly).

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
    # The sum of finite float32 weights is finite in float64: one fast pass; look closer where it is not.
    with np.errstate(over="ignore", invalid="ignore"):
        total = vector.sum(dtype=np.float64)
    if not np.isfinite(total) and not (finite := np.isfinite(vector)).all():
        raise ValueError(
            f"weights hold {np.isnan(vector).sum()} NaN and {np.isinf(vector).sum()} infinite values of {vector.size}"
            f", the first at flat index {int(np.argmin(finite))}"
        )
    return vector


def binary_scale(vector: ndarray) -> int:
    """The power of two to divide float64 weights by, so that their squares neither overflow nor vanish; mostly 0."""
    if vector.dtype == np.float32:
        return 0  # everything is computed in float64
    exponent = int(np.frexp(max(abs(vector.min()), abs(vector.max())))[1])
    return exponent if abs(exponent) > 300 else 0
