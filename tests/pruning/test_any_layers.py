"""Layers of other people's classes are scored and pruned where they are: the graph decides, not the class."""

import copy

import pytest
import torch
import torch.nn.functional as F
from coupled import difference, removed_and_merged, zero
from nets import Net, randomise
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

from redlab import prune_channels, score_channels
from redlab.channels.coupling import couple


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


EXAMPLE = torch.randn(2, 3, 16, 16)


class SamePadding(nn.Conv2d):
    """Pads as TensorFlow does, in a forward of its own."""

    def forward(self, x):
        over = [
            max((size - 1) % step + kernel - step, 0)
            for size, step, kernel in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        ]
        x = F.pad(x, [over[1] // 2, over[1] - over[1] // 2, over[0] // 2, over[0] - over[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StaticPadding(nn.Conv2d):
    """Pads by a module of its own."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class NormAct(nn.BatchNorm2d):
    """A batch norm and its activation, in one forward."""

    def forward(self, x):
        return F.silu(super().forward(x))


class OwnLinear(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Together(nn.Module):
    """Convolution, norm and activation in one forward, that of a module which is none of them."""

    def __init__(self, before, after):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)

    def forward(self, x):
        x = self.conv(x)
        x = F.batch_norm(x, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias)
        return F.relu(x)


def of_own_classes():
    parts = {
        "stem": SamePadding(3, 8, 3, stride=2, bias=False),
        "norm": NormAct(8),
        "depthwise": StaticPadding(8, 8, 3, stride=2, groups=8),
        "together": Together(8, 12),
        "head": OwnLinear(12, 16),
        "last": OwnLinear(16, 5),
    }

    def forward(net, x):
        x = net.together(net.depthwise(net.norm(net.stem(x))))
        return net.last(net.head(x.mean((2, 3))).relu())

    return randomise(Net(forward, **parts))


def test_layers_and_norms_of_own_classes_are_pruned_in_place_and_keep_their_classes():
    network = of_own_classes()
    scores = score_channels(network, "magnitude", example=EXAMPLE)
    assert set(scores.values) == {"stem", "together.conv", "head"}
    pruned = prune_channels(network, scores, 0.4, example=EXAMPLE).network
    assert [type(module) for module in pruned.modules()] == [type(module) for module in network.modules()]
    for module in pruned.modules():
        if isinstance(module, _BatchNorm):
            assert module.num_features == len(module.running_mean) == len(module.weight)
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels) == (
                len(module.weight),
                module.weight.shape[1] * module.groups,
            )
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
    zeroed = copy.deepcopy(network)
    for group in couple(network, EXAMPLE):
        if group.name in scores.values:
            order = scores.values[group.name].argsort()
            kept = pruned.get_submodule(group.name).weight.shape[0]
            zero(zeroed, group, torch.tensor(order[: group.size - kept]))
    assert difference(zeroed, pruned, EXAMPLE) < 1e-5
    assert difference(network, pruned, EXAMPLE) > 1e-3


def test_what_is_zeroed_or_copied_in_them_leaves_without_a_trace():
    groups, smaller = removed_and_merged(of_own_classes(), EXAMPLE)
    assert [group.frozen for group in groups] == ["", "", "", "network output"]
    assert smaller.depthwise.groups == 6


class Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1, computed at every call."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


class Transposed(nn.Module):
    """A linear layer with its weight the other way round, as Conv1D of GPT-2."""

    def __init__(self, before, after):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(before, after)), nn.Parameter(torch.zeros(after))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


def test_computed_weights_stay_and_name_what_makes_them_plain():
    parts = {
        "a": Standardised(3, 8, 3),
        "b": parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
        "c": nn.Conv2d(8, 8, 3),
        "turned": Transposed(8, 6),
        "last": nn.Linear(6, 5),
    }
    network = Net(lambda net, x: net.last(net.turned(net.c(net.b(net.a(x))).relu().mean((2, 3)))), **parts).eval()
    scores = score_channels(network, "magnitude", example=EXAMPLE)
    for name in ("a", "b"):
        assert "prepare(network, fold=False)" in scores.skipped[name]
    prune_channels(network, scores, 0.3, example=EXAMPLE)
