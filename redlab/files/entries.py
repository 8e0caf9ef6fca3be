"""The tensors of a checkpoint before they are read: where each one is in its file, and in which layout."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

WEIGHT, NESTED, BESIDE = "weight", "nested", "beside"
OPTIMIZERS = "an optimizer's, no weight of the network"  # why such a tensor is skipped


@dataclass(frozen=True, eq=False)
class Entry:
    """One tensor of a checkpoint.

    Attributes:
        name: as the file has it.
        shape: its sizes; () for a scalar.
        dtype: torch's, or the file's own word for a type that torch does not have.
        file: the file that holds it; ``offset``, the byte where it begins there.
        stride: steps along each axis, in elements; None for one row after the other.
        shares: the tensor before it, by name, whose bytes it shares, or "".
        skipped: why it cannot be read, or "".
        role: ``WEIGHT`` for a tensor of the network by its name; ``NESTED`` for one deeper in dicts and lists;
            ``BESIDE`` for one that does not belong to the network (an optimizer's).
        swapped: whether the file has the other byte order than this machine.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    file: Path
    offset: int = 0
    stride: tuple[int, ...] | None = None
    shares: str = ""
    skipped: str = ""
    role: str = WEIGHT
    swapped: bool = False

    @property
    def nbytes(self) -> int:
        """How many bytes its elements take without sharing; 0 for a type that torch does not have."""
        return self.size * getattr(self.dtype, "itemsize", 0)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def read(self) -> Tensor:
        """The tensor in memory of its own. It takes its size once; a scattered one is copied from a mapped file.

        Raises:
            ValueError: the file ends before the tensor does.
            OSError: the file cannot be read.
        """
        if not self.size:
            return torch.empty(self.shape, dtype=self.dtype)
        stride = torch.empty(self.shape, device="meta").stride() if self.stride is None else self.stride
        span = span_of(self.shape, stride)
        stored = self._stored(span * self.dtype.itemsize, mapped=span > self.size)
        content = self._in_our_order(stored) if self.swapped else stored
        found = torch.from_numpy(content).view(self.dtype).as_strided(self.shape, stride)
        return found.clone() if span > self.size else found

    def _stored(self, count: int, mapped: bool) -> np.ndarray:
        try:
            if mapped:
                return np.memmap(self.file, np.uint8, "c", self.offset, count)
            found = np.fromfile(self.file, np.uint8, count, offset=self.offset)
        except (ValueError, OverflowError):  # it reaches beyond the end of this file, or of any
            found = np.empty(0, np.uint8)
        if len(found) < count:
            raise ValueError(f"{self.file} ends within {self.name!r}: it is damaged, or was cut while it was read")
        return found

    def _in_our_order(self, stored: np.ndarray) -> np.ndarray:
        each = self.dtype.itemsize // (2 if self.dtype.is_complex else 1)
        return stored.reshape(-1, each)[:, ::-1].reshape(-1)


def span_of(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """From the first to the last element of a tensor, in elements of its storage; 0 for an empty one.

    Example:
        >>> span_of((3, 2), (10, 1))  # two columns of a (3, 10) array: two rows of ten, then two elements
        22
    """
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


@dataclass(frozen=True, eq=False)
class Listing:
    """What a checkpoint holds.

    Attributes:
        entries: its tensors.
        left_out: the other items (an argparse.Namespace, for example), by name: what each is.
        versions: of the network's modules, as a state dict has them in ``_metadata``; or None.
    """

    entries: list[Entry]
    left_out: dict[str, str] = field(default_factory=dict)
    versions: Any = None
