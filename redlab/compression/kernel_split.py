"""Layers that compute each distinct kernel of an input channel once: RED's uneven depthwise separation."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from redlab.compression.split_layers import SplitLayer


class KernelSplit(SplitLayer):
    """Whole kernels are shared by the outputs: an uneven depthwise convolution, then sums (RED's separation)."""

    def _multiply(self, x: Tensor, values: Tensor, channels: Tensor, number: int, sizes: tuple[int, ...]) -> Tensor:
        own = self.geometry
        convolve = getattr(F, own.kind.lower())
        seen = own.pad(x)[channels].transpose(0, 1)
        out = convolve(seen, values[:, None], None, own.stride, 0, own.dilation, groups=len(values))
        return out.transpose(0, 1)

    @property
    def codes(self) -> Tensor:
        """The weight before its rows are scaled: the kernels, and each by its factor."""
        kernels = self._read(self.tables[0].values, self.lookup[0])
        return kernels if self.scales is None else kernels * self.scales[(..., *[None] * len(self.geometry.kernel))]

    def _count_lookups(self, space: tuple[int, ...]) -> int:
        """Of the sums of kernels that meet an input at all."""
        rows = self.lookup[0].cpu().numpy().ravel()
        seen = np.append(np.tile(self._sights(space), 1 + self.signed), 0)
        return int(seen[rows].sum())

    def _count_inner(self, space: tuple[int, ...]) -> int:
        return int((self._nonzero * self._meetings(space)).sum())

    @property
    def _nonzero(self) -> ndarray:
        """(rows, taps) which weights of each distinct kernel are multiplied."""
        return (self.tables[0].values.detach().flatten(1) != 0).cpu().numpy()

    def _sights(self, space: tuple[int, ...]) -> ndarray:
        """(rows,) at how many outputs some weight of each distinct kernel meets an input."""
        nonzero, none = self._nonzero, np.zeros(len(self.tables[0]), np.int64)
        return sum((outputs * (nonzero & mask).any(1) for outputs, mask in self.geometry.views(space)), none)

    def _count_products(self, space: tuple[int, ...]) -> tuple[int, int]:
        used, each = self._used(self.tables[0], self.lookup[0]), self._nonzero @ self._meetings(space)
        scaled = 0 if self.scales is None else self._count_lookups(space)
        return int((used * each).max(0).sum()) + scaled, int((used * each).sum()) + scaled
