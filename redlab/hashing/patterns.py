"""Types of one or two bytes an element by their bit patterns, which are so few that a table answers for all weights."""

from __future__ import annotations

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

_AT_ONCE = 1 << 18


def as_patterns(tensor: Tensor) -> ndarray:
    """The bit patterns of a tensor of one or two bytes an element, as unsigned numbers; a view in its shape."""
    return tensor.view(torch.uint8 if tensor.element_size() == 1 else torch.uint16).numpy()


def values_of(dtype: torch.dtype) -> ndarray:
    """(256,) or (65536,) the number that each bit pattern of a floating type stands for, as float32."""
    every = torch.arange(256**dtype.itemsize).to(torch.uint8 if dtype.itemsize == 1 else torch.uint16)
    return every.view(dtype).float().numpy()


def tally(tensor: Tensor) -> tuple[ndarray, ndarray]:
    """The numbers in a floating tensor of one axis, ascending, NaN last, and how often each pattern is there.

    -0.0 and 0.0 are two patterns, and so stand side by side.
    """
    bits, values = as_patterns(tensor), values_of(tensor.dtype)
    counts = np.zeros(len(values), np.int64)
    for start in range(0, bits.size, _AT_ONCE):
        counts += np.bincount(bits[start : start + _AT_ONCE], minlength=len(values))
    order = np.argsort(values, kind="stable")
    order = order[counts[order] > 0]
    return values[order], counts[order]
