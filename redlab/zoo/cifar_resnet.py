"""The residual networks of the CIFAR-10 experiments of He et al. 2016 (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from redlab.network.zero_pad import ZeroPadShortcut


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the shortcut: (n, before, h, w) -> (n, after, h', w')."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        same_shape = stride == 1 and before == after
        self.shortcut = nn.Identity() if same_shape else ZeroPadShortcut(before, after, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of basic blocks, the second and third at half the resolution of the one before.

    Arguments:
        blocks: blocks per stage; (3, 3, 3) is ResNet-20, (9, 9, 9) is ResNet-56.
        widths: channels per stage.
        in_channels, classes: of the images and of the answer.
    """

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int] = (16, 32, 64), in_channels: int = 3, classes: int = 10
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(widths[0], widths[0], blocks[0], stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks[1], stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks[2], stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) -> (n, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def _stage(before: int, after: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(before, after, stride)
    return nn.Sequential(first, *(BasicBlock(after, after, 1) for _ in range(blocks - 1)))
