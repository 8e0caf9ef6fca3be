"""A network and images as a user might bring them: one file that redlab opens by FILE.py:NAME.

A subclass of the convolution, two inputs, and the logits in a dict; labels are what the network itself answers.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset


class SameConv(nn.Conv2d):
    """A convolution that pads by itself, so that an odd image shrinks by its stride alone."""

    def forward(self, x):
        """(n, c, h, w)."""
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


class Unit(nn.Module):
    """Convolution, norm, activation."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv = SameConv(inputs, outputs, 3, stride, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        """(n, c, h, w)."""
        return F.relu(self.norm(self.conv(x)))


class TwoInputs(nn.Module):
    """An image and four measurements, in five classes."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = Unit(1, 16), Unit(16, 24, 2), Unit(24, 24)
        self.measured = nn.Linear(4, 8)
        self.head = nn.Linear(32, 5)

    def forward(self, image, measured):
        """(n, 1, 8, 8) and (n, 4)."""
        seen = self.third(self.second(self.first(image))).mean((2, 3))
        return {"logits": self.head(torch.cat([seen, F.relu(self.measured(measured))], 1))}


class Drawn(Dataset):
    """Random inputs; the labels are the network's own answers."""

    def __init__(self, seed, count):
        draw = torch.Generator().manual_seed(seed)
        self.images, self.measured = (torch.randn(count, *s, generator=draw) for s in ((1, 8, 8), (4,)))
        with torch.no_grad():
            self.labels = make()[0](self.images, self.measured)["logits"].argmax(1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return (self.images[index], self.measured[index]), int(self.labels[index])


def make():
    """The network, always the same one, and what it is called with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TwoInputs()
        network.train()
        network(torch.randn(64, 1, 8, 8), torch.randn(64, 4))  # gives the norms statistics of their own
        network.head.weight.data *= 8  # spreads the answers over the classes
    return network.eval(), (torch.randn(1, 1, 8, 8), torch.randn(1, 4))


def images(split="test"):
    """200 of each split."""
    return Drawn({"test": 1, "train": 2}[split], 200)
