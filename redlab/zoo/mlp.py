"""A multi-layer perceptron with batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


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
        self.hidden = nn.Sequential(*(_dense(b, a) for b, a in pairwise(widths)))
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) with ``inputs`` values each -> (n, classes)."""
        return self.classifier(self.hidden(x.flatten(1)))


def _dense(before: int, after: int) -> nn.Sequential:
    block = nn.Sequential()
    block.add_module("linear", nn.Linear(before, after, bias=False))  # the norm brings the bias
    block.add_module("bn", nn.BatchNorm1d(after))
    block.add_module("relu", nn.ReLU())
    return block
