"""MobileNetV1: depthwise separable convolutions (Howard et al. 2017, arXiv 1704.04861)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from redlab.zoo.image_folder import MEAN, STD

# (channels at width 1, stride) of the thirteen separable blocks, table 1 of the paper.
IMAGENET_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


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
        eps: of every batch norm; Google's value by default.
    """

    def __init__(
        self,
        stem: tuple[int, int],
        blocks: Sequence[tuple[int, int]],
        in_channels: int = 3,
        classes: int = 1000,
        input_map: nn.Module | None = None,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self.input_map = nn.Identity() if input_map is None else input_map
        self.stem = _conv_norm(in_channels, stem[0], 3, stem[1], eps)
        befores = [stem[0], *(channels for channels, _ in blocks)]
        self.blocks = nn.Sequential(*(_separable(b, a, s, eps) for b, (a, s) in zip(befores, blocks, strict=False)))
        self.classifier = nn.Linear(befores[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) -> (n, classes); h and w are even wherever a stride of 2 meets them."""
        x = self.blocks(self.stem(self.input_map(x)))
        return self.classifier(x.mean((2, 3)))


def imagenet_mobilenet(width: float) -> MobileNetV1:
    """Google's network for 224x224 images at a width multiplier; its input is normalised as redlab's images are."""
    blocks = [(int(channels * width), stride) for channels, stride in IMAGENET_BLOCKS]
    return MobileNetV1((int(32 * width), 2), blocks, input_map=to_plus_minus_one())


def _separable(before: int, after: int, stride: int, eps: float) -> nn.Sequential:
    depthwise = _conv_norm(before, before, 3, stride, eps, groups=before)
    return nn.Sequential(depthwise, _conv_norm(before, after, 1, 1, eps))


def _conv_norm(before: int, after: int, kernel: int, stride: int, eps: float, groups: int = 1) -> nn.Sequential:
    # TensorFlow's SAME padding: at stride 2 an even image gets one pixel at the bottom and right only.
    padding = kernel // 2 if stride == 1 else 0
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if stride == 2:
        parts["pad"] = nn.ZeroPad2d((0, 1, 0, 1))
    parts["conv"] = nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)
    parts["bn"] = nn.BatchNorm2d(after, eps=eps)
    parts["relu"] = nn.ReLU6()
    return nn.Sequential(parts)
