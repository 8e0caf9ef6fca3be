"""Small networks for the tests, and what is done to them."""

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import TensorDataset

from redlab import load_network, prune_channels, score_channels


class Net(nn.Module):
    """Modules by name, and a function of them and the input."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


def randomised(network):
    """``network`` in eval mode, its batch norms as training might leave them; in place."""
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, _BatchNorm):
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)
    return network.eval()


@torch.no_grad()
def randomise(network):
    """Any network in eval mode; what hides errors in torchvision's values is drawn anew, gammas of both signs."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, _BatchNorm) and module.weight is not None:
            module.weight.uniform_(0.7, 1.3).mul_(torch.randn_like(module.weight).sign())
            module.bias.normal_(0, 0.3)
        if isinstance(getattr(module, "layer_scale", None), nn.Parameter):
            module.layer_scale.normal_(1, 0.3)
    if isinstance(head := getattr(getattr(network, "heads", None), "head", None), nn.Linear):
        head.weight.normal_(0, 0.02)
    return network.eval()


def mlp(*widths):
    """Linear layers with ReLUs between them, in float64."""
    layers = [module for one, other in pairwise(widths) for module in (nn.Linear(one, other), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double().eval()


def read_twice(inputs, width, one, two):
    """A linear layer that two others read, behind a ReLU."""

    def forward(net, x):
        x = net.one(x).relu()
        return torch.cat([net.two(x), net.three(x)], 1)

    return Net(forward, one=nn.Linear(inputs, width), two=nn.Linear(width, one), three=nn.Linear(width, two))


def grouped():
    """A residual block with a grouped convolution, as in ResNeXt; takes 3 channels."""
    parts = [*_conv(16, 32, 1), *_conv(32, 32, 3, groups=4), *_conv(32, 16, 1)[:2]]
    net = Net(
        lambda net, x: net.head(net.pool(_added(net.block, net.stem(x))).flatten(1)),
        stem=nn.Sequential(*_conv(3, 16, 3)),
        block=nn.Sequential(*parts),
        pool=nn.AdaptiveAvgPool2d(1),
        head=nn.Linear(16, 5),
    )
    return randomised(net)


def depthwise():
    """Depthwise convolutions, one with two filters a channel, and a flatten before the linear layer; takes 3x8x8."""
    parts = [*_conv(3, 8, 3), *_conv(8, 8, 3, groups=8), *_conv(8, 12, 1), *_conv(12, 24, 3, groups=12)]
    return randomised(nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 5)))


def concatenated():
    """Each layer reads all before it, as in DenseNet; takes 3 channels."""

    def forward(net, x):
        x = net.stem(x)
        for layer in (net.one, net.two):
            x = torch.cat([x, layer(x)], 1)
        return net.head(net.last(x).mean((2, 3)))

    def layer(before, after):
        return nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, after, 3, padding=1, bias=False))

    last = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU())
    stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    return randomised(Net(forward, stem=stem, one=layer(8, 6), two=layer(14, 6), last=last, head=nn.Linear(20, 5)))


def flat():
    """Convolutions with biases and a linear layer that reads each channel at 16 places; takes 3x4x4."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 5)),
    ).eval()


DIGITS = ("digits/resnet", "digits/mobilenet", "digits/mlp")
SMALL = {"grouped": (3, 8, 8), "depthwise": (3, 8, 8), "concatenated": (3, 8, 8), "flat": (3, 4, 4)}


def made(name, count=4):
    """A network of ``DIGITS`` or ``SMALL`` with random statistics, and images for it."""
    if name in DIGITS:
        return randomised(load_network(name)), torch.randn(count, 1, 8, 8)
    return globals()[name](), torch.randn(count, *SMALL[name])


def labelled(example, count=12, classes=5, seed=0):
    """A dataset of random images like ``example`` and random labels."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *example.shape[1:], generator=draw, dtype=example.dtype)
    return TensorDataset(images, torch.randint(classes, (count,), generator=draw))


def difference(one, other, images):
    """How far ``other`` is from what ``one`` answers, over its length."""
    with torch.no_grad():
        wanted, got = one(images), other(images)
    return float((wanted - got).norm() / wanted.norm())


@torch.no_grad()
def copy_channel(network, group, source, target, scale=1.0, readers=False):
    """Make all that produces channel ``target`` (or, ``readers``, what reads it) ``scale`` times that of ``source``."""
    for member in group.consumers if readers else group.producers:
        slices = tensor_of(network, member.tensor).movedim(member.dim, 0)
        slices[member.index[target]] = scale * slices[member.index[source]]


def prune_these(network, gone, images, compensation="none", heirs=None, scores=None):
    """Prune exactly the channels of ``gone``, by group; ``scores``: any of its groups, where there are some."""
    scores = score_channels(network, "magnitude", example=images[:1]) if scores is None else scores
    kept = {name: np.isin(np.arange(own.size), gone.get(name, []), invert=True) for name, own in scores.values.items()}
    values = {name: mask.astype(float) for name, mask in kept.items()}
    scores = replace(scores, values=values, heirs=heirs or {}, network="")
    share = sum(map(len, gone.values())) / len(scores)
    return prune_channels(network, scores, share, compensation=compensation, example=images[:1])


@torch.no_grad()
def silence(network, group, channels):
    """Make all that reads the channels 0."""
    for member in group.consumers:
        tensor_of(network, member.tensor).index_fill_(member.dim, member.index[channels].flatten(), 0)


def tensor_of(network, name):
    """The parameter or buffer of this name."""
    path, _, own = name.rpartition(".")
    return getattr(network.get_submodule(path), own)


def _conv(before, after, taps, groups=1):
    conv = nn.Conv2d(before, after, taps, padding=taps // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(after), nn.ReLU()


def _added(block, x):
    return (x + block(x)).relu()


def terms(layer, shape):
    """What a conv or linear layer multiplies on an input of that shape: it counts them itself, in ones and zeros."""
    counting = copy.deepcopy(layer)
    with torch.no_grad():
        counting.weight.copy_(counting.weight != 0)
        counting.bias = None
        return round(float(counting.double()(torch.ones(shape, dtype=torch.float64)).sum()))
