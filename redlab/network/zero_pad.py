"""A shortcut that pads channels with zeros, whose widths a step may change."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ZeroPadShortcut(nn.Module):
    """Shortcut "option A": every ``stride``-th pixel, the missing channels zero, no parameters.

    Arguments:
        before, after: channels of its input and of its output; half of the zeros are before, half after.
        stride: 1 or 2.

    ``zeros_before`` and ``zeros_after`` are plain attributes: a step that removes channels sets their new widths.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.zeros_before = (after - before) // 2
        self.zeros_after = after - before - self.zeros_before

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) -> (n, after, ceil(h / stride), ceil(w / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros_before, self.zeros_after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, zeros_before={self.zeros_before}, zeros_after={self.zeros_after}"
