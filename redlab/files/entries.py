"""The tensors of a checkpoint before they are read: where each lies in its file, and how it is laid out there.

Files are read, not mapped: what was read and dropped again no longer counts as memory of the process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Bytes that are read together although only some of them belong to the tensor (a slice of columns, say).
_AT_ONCE = 1 << 24
WEIGHT, NESTED, BESIDE = "weight", "nested", "beside"
OPTIMIZERS = "an optimizer's, no weight of the network"  # why such a tensor is skipped


@dataclass(frozen=True, eq=False)
class Entry:
    """One tensor of a checkpoint.

    Attributes:
        name: as the file has it.
        shape: its sizes; () for a scalar.
        dtype: torch's, or the file's own word for what torch does not have.
        file: the file that it lies in, and ``offset``, where in it the tensor begins, in bytes.
        stride: steps along each axis, in elements; None for one row after the other.
        shares: the tensor before it, by name, whose bytes it shares, or "".
        skipped: why it cannot be read, or "".
        held: the tensor itself, where it is in memory already.
        role: ``WEIGHT``, a tensor of the network by its name; ``NESTED``, one deeper in dicts and lists; ``BESIDE``,
            one that is no weight of it: an optimizer's, say.
        swapped: whether the bytes of a number are in the other order than here.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    file: Path
    offset: int = 0
    stride: tuple[int, ...] | None = None
    shares: str = ""
    skipped: str = ""
    held: Tensor | None = None
    role: str = WEIGHT
    swapped: bool = False

    @property
    def nbytes(self) -> int:
        """How many bytes its elements take, each by itself; 0 where torch has no such elements."""
        return self.size * getattr(self.dtype, "itemsize", 0)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def read(self) -> Tensor:
        """The tensor, in memory of its own and little more: once its size, unless it lies scattered in a larger one.

        Raises:
            ValueError: the file ends before the tensor does.
            OSError: the file cannot be read.
        """
        if self.held is not None:
            return self.held.detach().clone()
        if not self.size:
            return torch.empty(self.shape, dtype=self.dtype)
        if self.stride is None:
            return self._span(self.offset, self.size).view(self.shape)
        if span_of(self.shape, self.stride) == self.size:
            return self._span(self.offset, self.size).as_strided(self.shape, self.stride)
        found = torch.empty(self.shape, dtype=self.dtype)
        self._gather(found, self.offset, self.stride)
        return found

    def _gather(self, found: Tensor, offset: int, stride: tuple[int, ...]) -> None:
        """Fill ``found``, in halves of its longest way through the file where that is too much to read at once."""
        span, shape = span_of(found.shape, stride), tuple(found.shape)
        if span * found.element_size() <= _AT_ONCE or found.numel() == 1:
            found.copy_(self._span(offset, span).as_strided(shape, stride))
            return
        axis = max(range(found.ndim), key=lambda k: (shape[k] - 1) * stride[k])
        half = shape[axis] // 2
        self._gather(found.narrow(axis, 0, half), offset, stride)
        begin = offset + half * stride[axis] * found.element_size()
        self._gather(found.narrow(axis, half, shape[axis] - half), begin, stride)

    def _span(self, offset: int, count: int) -> Tensor:
        content = np.empty(count * self.dtype.itemsize, np.uint8)
        with self.file.open("rb", buffering=0) as file:
            try:
                file.seek(offset)
            except OverflowError:
                raise ValueError(f"{self.file} is damaged: {self.name!r} reaches beyond the end of any file") from None
            view, done = content.data, 0
            while done < len(view) and (got := file.readinto(view[done:])):  # one call reads 2 GB at most
                done += got
        if done < len(view):
            raise ValueError(f"{self.file} ends within {self.name!r}: it was cut while it was read")
        if self.swapped:
            each = self.dtype.itemsize // (2 if self.dtype.is_complex else 1)
            content = content.reshape(-1, each)[:, ::-1].reshape(-1)  # a copy
        return torch.from_numpy(content).view(self.dtype)


def span_of(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """From the first to the last element of a tensor, in elements of its storage; 0 for an empty one."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


@dataclass(frozen=True, eq=False)
class Listing:
    """What a checkpoint holds.

    Attributes:
        entries: its tensors.
        left_out: what else stands among them, an object that only code of others could make, say: by its name what it
            is.
        versions: those of the network's modules, as a state dict has them in ``_metadata``; or None.
    """

    entries: list[Entry]
    left_out: dict[str, str] = field(default_factory=dict)
    versions: Any = None
