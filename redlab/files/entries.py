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


class Inert:
    """What a pickle gets to hold: it can set nothing on it."""

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Storage(Inert):
    """Numbers in a file, by the ``key`` of their record: ``size`` elements of ``dtype`` from element ``shift`` on."""

    key: str
    dtype: torch.dtype
    size: int
    shift: int = 0

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Entry(Inert):
    """One tensor of a checkpoint.

    Attributes:
        name: as the file has it; "" in a pickle, before the keys that lead to it are known.
        shape: its sizes; () for a scalar.
        dtype: torch's, or the file's own word for a type that torch does not have.
        file: the file that holds it; ``offset``, the byte where it begins there.
        stride: steps along each axis, in elements; None for one row after the other.
        shares: the tensor before it, by name, whose bytes it shares, or "".
        skipped: why it cannot be read, or "".
        role: ``WEIGHT`` for a tensor of the network by its name; ``NESTED`` for one deeper in dicts and lists;
            ``BESIDE`` for one that does not belong to the network (an optimizer's).
        swapped: whether the file has the other byte order than this machine.
        storage: of a pickled tensor, what it is a view of. While it has no name, ``offset`` counts from there.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    file: Path = Path()
    offset: int = 0
    stride: tuple[int, ...] | None = None
    shares: str = ""
    skipped: str = ""
    role: str = WEIGHT
    swapped: bool = False
    storage: Storage | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes its elements take without sharing; 0 for a type that torch does not have."""
        return self.size * getattr(self.dtype, "itemsize", 0)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """From its first to its last element, in elements of its storage: 22 for two of ten columns, of three rows."""
        if self.stride is None or not self.size:
            return self.size
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def end(self) -> int:
        """The byte behind its last element, counted as ``offset`` is."""
        return self.offset + self.span * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor in memory of its own. It takes its size once; a scattered one is copied from a mapped file.

        Raises:
            ValueError: the file ends before the tensor does.
            OSError: the file cannot be read.
        """
        if not self.size:
            return torch.empty(self.shape, dtype=self.dtype)
        scattered = self.span > self.size
        content = self._stored(self.span * self.dtype.itemsize, scattered)
        if self.swapped:
            each = self.dtype.itemsize // (2 if self.dtype.is_complex else 1)
            content = content.reshape(-1, each)[:, ::-1].reshape(-1)
        flat = torch.from_numpy(content).view(self.dtype)
        found = flat.reshape(self.shape) if self.stride is None else flat.as_strided(self.shape, self.stride)
        return found.clone() if scattered else found

    def _stored(self, count: int, scattered: bool) -> np.ndarray:
        try:
            if scattered:
                return np.memmap(self.file, np.uint8, "c", self.offset, count)
            found = np.fromfile(self.file, np.uint8, count, offset=self.offset)
        except (ValueError, OverflowError):  # it reaches beyond the end of this file, or of any
            found = np.empty(0, np.uint8)
        if len(found) < count:
            raise ValueError(f"{self.file} ends within {self.name!r}: it is damaged, or was cut while it was read")
        return found


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
