"""redlab's own architectures: a perceptron, the residual networks of CIFAR-10, and MobileNetV1.

CifarResNet: He et al. 2016 (arXiv 1512.03385, section 4.2). MobileNetV1: Howard et al. 2017 (arXiv 1704.04861).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from redlab.network.zero_pad import ZeroPadShortcut
from redlab.zoo.image_form import MEAN, STD

# (channels at width 1, stride) of the thirteen separable blocks, table 1 of the paper.
IMAGENET_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


class MLP(nn.Module):
    """Linear, batch norm and ReLU for each hidden width, then a linear layer.

    Arguments:
        inputs: values per image, all its pixels and channels.
        hidden: widths of the hidden layers.
        classes: of the answer.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], classes: int) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.hidden = nn.Sequential(*(_dense_block(b, a) for b, a in pairwise(widths)))
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) with ``inputs`` values each -> (n, classes)."""
        return self.classifier(self.hidden(x.flatten(1)))


def _dense_block(before: int, after: int) -> nn.Sequential:
    linear = nn.Linear(before, after, bias=False)  # the norm brings the bias
    return nn.Sequential(OrderedDict(linear=linear, bn=nn.BatchNorm1d(after), relu=nn.ReLU()))


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
        self.layer1 = _residual_stage(widths[0], widths[0], blocks[0], stride=1)
        self.layer2 = _residual_stage(widths[0], widths[1], blocks[1], stride=2)
        self.layer3 = _residual_stage(widths[1], widths[2], blocks[2], stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) -> (n, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def _residual_stage(before: int, after: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(before, after, stride)
    return nn.Sequential(first, *(BasicBlock(after, after, 1) for _ in range(blocks - 1)))


class ChannelAffine(nn.Module):
    """``scale * x + shift`` per channel, fixed: no parameters, nothing in the state dict."""

    def __init__(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> the same shape."""
        return x * self.scale + self.shift


def to_plus_minus_one() -> ChannelAffine:
    """From images normalised by ImageNet's mean and std to [-1, 1], in which Google trained."""
    return ChannelAffine([2 * std for std in STD], [2 * mean - 1 for mean in MEAN])


class MobileNetV1(nn.Module):
    """A convolution, separable blocks, the mean over space and a linear layer.

    Arguments:
        stem: (channels, stride) of the first convolution.
        blocks: (channels, stride) of each separable block.
        in_channels, classes: of the images and of the answer.
        input_map: what the images pass first; nothing by default.
    """

    def __init__(
        self,
        stem: tuple[int, int],
        blocks: Sequence[tuple[int, int]],
        in_channels: int = 3,
        classes: int = 1000,
        input_map: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.input_map = nn.Identity() if input_map is None else input_map
        self.stem = conv_norm(in_channels, stem[0], 3, stem[1])
        befores = [stem[0], *(channels for channels, _ in blocks)]
        self.blocks = nn.Sequential(*(_separable(b, a, s) for b, (a, s) in zip(befores, blocks, strict=False)))
        self.classifier = nn.Linear(befores[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) -> (n, classes); h and w are even wherever a stride of 2 meets them."""
        x = self.blocks(self.stem(self.input_map(x)))
        return self.classifier(x.mean((2, 3)))


def imagenet_mobilenet(width: float) -> MobileNetV1:
    """Google's network for 224x224 images at a width multiplier; its input is normalised as redlab's images are."""
    blocks = [(int(channels * width), stride) for channels, stride in IMAGENET_BLOCKS]
    return MobileNetV1((int(32 * width), 2), blocks, input_map=to_plus_minus_one())


def _separable(before: int, after: int, stride: int) -> nn.Sequential:
    depthwise = conv_norm(before, before, 3, stride, groups=before)
    return nn.Sequential(depthwise, conv_norm(before, after, 1, 1))


def conv_norm(
    before: int, after: int, kernel: int, stride: int, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    """A convolution, batch norm and ReLU6 as TensorFlow's networks have them: (n, before, h, w) -> (n, after, h', w').

    The padding is TensorFlow's SAME for an even image: at stride 2 the odd pixel is added at the bottom and right.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if stride == 2:
        first, last = (kernel - 2) // 2, (kernel - 1) // 2
        parts["pad"] = nn.ZeroPad2d((first, last, first, last))
    padding = kernel // 2 if stride == 1 else 0
    parts["conv"] = nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)
    parts["bn"] = nn.BatchNorm2d(after, eps=1e-3)  # Google's value
    if activation:
        parts["relu"] = nn.ReLU6()
    return nn.Sequential(parts)
