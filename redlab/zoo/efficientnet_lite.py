"""EfficientNet-Lite0 in plain modules, and the names that its tensors have in the file of weights.

Tan & Le 2019 (arXiv 1905.11946), table 1; without squeeze-and-excitation and with ReLU6, as TensorFlow's release notes
of EfficientNet-Lite say.
"""

from __future__ import annotations

import re
from collections import OrderedDict

from torch import Tensor, nn

from redlab.zoo.architectures import ChannelAffine, conv_norm
from redlab.zoo.image_form import MEAN, STD

# (expansion, kernel, stride of the first, channels, blocks) of the seven stages.
STAGES = (
    *((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3)),
    *((6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
)
# What the file calls a part -> what it is called here, outside of blocks and in a block.
_OUTSIDE = {"_conv_stem": "stem.conv", "_bn0": "stem.bn", "_conv_head": "head.conv", "_bn1": "head.bn"}
_OUTSIDE |= {"_fc": "classifier"}
_INSIDE = {
    f"_{theirs}": f"{part}.{kind}"
    for part, conv, norm in (("expand", "expand_conv", "bn0"), ("depthwise", "depthwise_conv", "bn1"))
    for theirs, kind in ((conv, "conv"), (norm, "bn"))
} | {"_project_conv": "project.conv", "_bn2": "project.bn"}
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


class InvertedResidual(nn.Module):
    """Wider by a 1x1 convolution, a depthwise one, and narrow again: (n, before, h, w) -> (n, after, h', w').

    The input is added where it has the shape of the output.
    """

    def __init__(self, before: int, after: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = before * expansion
        parts = OrderedDict(expand=conv_norm(before, inner, 1, 1)) if expansion > 1 else OrderedDict()
        parts["depthwise"] = conv_norm(inner, inner, kernel, stride, groups=inner)
        parts["project"] = conv_norm(inner, after, 1, 1, activation=False)
        self.body = nn.Sequential(parts)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class EfficientNetLite0(nn.Module):
    """The network for images normalised by ImageNet's mean and std, which it maps to (255 x - 127) / 128 first.

    Its padding is TensorFlow's for sides that are multiples of 32, such as 224.
    """

    def __init__(self) -> None:
        super().__init__()
        self.input_map = to_centred_bytes()
        self.stem = conv_norm(3, 32, 3, 2)
        self.blocks = nn.Sequential(*_blocks(32))
        self.head = conv_norm(STAGES[-1][3], 1280, 1, 1)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, 1000)."""
        x = self.head(self.blocks(self.stem(self.input_map(x))))
        return self.classifier(x.mean((2, 3)))


def to_centred_bytes() -> ChannelAffine:
    """From images normalised by ImageNet's mean and std to (byte - 127) / 128, in which Google trained."""
    return ChannelAffine([255 * std / 128 for std in STD], [(255 * mean - 127) / 128 for mean in MEAN])


def _blocks(before: int) -> list[InvertedResidual]:
    blocks = []
    for expansion, kernel, stride, after, count in STAGES:
        for k in range(count):
            blocks.append(InvertedResidual(before, after, expansion, kernel, stride if k == 0 else 1))
            before = after
    return blocks


def adapt(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file under the names that ``EfficientNetLite0`` has; those of other names keep theirs."""
    return {_renamed(name): tensor for name, tensor in weights.items()}


def _renamed(name: str) -> str:
    if found := _BLOCK.fullmatch(name):
        block, part, tensor = found.groups()
        return f"blocks.{block}.body.{_INSIDE.get(part, part)}.{tensor}"
    part, _, tensor = name.partition(".")
    return f"{_OUTSIDE.get(part, part)}.{tensor}"
