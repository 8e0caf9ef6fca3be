"""What a split layer keeps: tables of the values that are multiplied, and what its ordinary layer remembered."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Table(nn.Module):
    """What is multiplied: row r holds the products of input channel ``channels[r]`` with ``values[r]``.

    Attributes:
        values: (rows,) distinct weight values, or (rows, *kernel) distinct kernels.
        channels: (rows,) int32.
    """

    def __init__(self, values: Tensor, channels: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("channels", channels)

    def __len__(self) -> int:
        return len(self.values)

    def part(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Values and channels of some rows, and of one more behind them whose products are never read."""
        values, channels = self.values[start:stop], self.channels[start:stop].long()
        return F.pad(values, (0, 0) * (values.ndim - 1) + (0, 1)), F.pad(channels, (0, 1))


# Of a split layer, and no other's; what its forward is, a layer says itself.
_OWN = ("geometry", "unit", "signed", "forward")


def remember(layer: nn.Module, other: nn.Module) -> None:
    """Give ``layer`` the buffers and attributes of the ``other`` that it stands for: what folding noted of its outputs,
    its stride and padding, whatever the network's code may ask it for.
    """
    for name, value in vars(other).items():
        if name not in _OWN:
            vars(layer).setdefault(name, value)
    for name, buffer in other.named_buffers(recurse=False):
        if name != "lookup":
            layer.register_buffer(name, buffer, persistent=name not in other._non_persistent_buffers_set)
