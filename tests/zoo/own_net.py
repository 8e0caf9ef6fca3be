"""A network as a user writes one: a convolution of a class of its own, two inputs, a dict of outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Padded(nn.Conv2d):
    """A convolution that pads by itself."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (1, 1, 1, 1)))


class Net(nn.Module):
    """Of images and four numbers for each."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.second, self.last = Padded(width, 8, 3), nn.Linear(12, 5)

    def forward(self, image: Tensor, extra: Tensor) -> dict[str, Tensor]:
        seen = self.second(torch.relu(self.norm(self.first(image)))).relu().mean((2, 3))
        return {"logits": self.last(torch.cat([seen, extra], 1))}


def make() -> tuple[nn.Module, dict[str, Tensor]]:
    """The network and an example of its inputs."""
    return Net(), {"image": torch.rand(2, 3, 16, 16), "extra": torch.ones(2, 4)}


net = Net()
