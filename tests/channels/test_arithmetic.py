"""Code that computes with its own width: a network with fewer channels would compute something else, so they stay."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from redlab import merge_neurons
from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.plan import make_plan


class Net(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 5, 1), between

    def forward(self, x):
        return self.b(self.between(self, F.relu(self.a(x))))


def repeated(net, h):
    for _ in range(h.shape[1] // 4):
        h = h.sin()
    return h


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda net, h: h * h.shape[1] ** -0.5, "computes with its width: mul by 0.25 becomes mul by 0.377964"),
        (lambda net, h: h / net.b.in_channels, "computes with its width: div by 16"),
        (lambda net, h: h * h.shape[1], "computes with its width: mul by 16"),
        (lambda net, h: F.avg_pool2d(h, net.b.in_channels // 4), "computes with its width: avg_pool2d by 4"),
        (lambda net, h: h * 2 if h.shape[1] > 12 else h, "takes another way where there are fewer channels"),
        (repeated, "takes another way where there are fewer channels"),
    ],
)
def test_channels_stay_where_the_code_computes_with_their_number(between, reason):
    first = couple(Net(between).eval(), torch.randn(1, 3, 9, 9))[0]
    assert first.name == "a"
    assert reason in first.frozen


def test_equal_neurons_are_not_merged_where_the_code_computes_with_their_number():
    network = Net(lambda net, h: h * h.shape[1] ** -0.5).eval()
    with torch.no_grad():
        network.a.weight[8:], network.a.bias[8:] = network.a.weight[:8].clone(), network.a.bias[:8].clone()
    example = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(merge_neurons(network, example=example).network(example), network(example))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, h: h * 0.25,
        lambda net, h: h.unflatten(1, (h.shape[1] // 4, 4)).transpose(1, 2).flatten(1, 2).sin(),
        lambda net, h: h.unflatten(1, (4, h.shape[1] // 4)).transpose(1, 2).flatten(1, 2).sin(),
    ],
    ids=["constant", "parts of four", "four parts"],
)
def test_channels_leave_exactly_where_only_sizes_follow(between):
    network, x = Net(between).eval(), torch.randn(2, 3, 9, 9)
    first = couple(network, x[:1])[0]
    assert first.frozen == ""
    smaller = apply_plan(network, make_plan([first], {"a": [-1, *range(first.size - 1)]}))
    zeroed = copy.deepcopy(network)
    tensors = dict(zeroed.named_parameters())
    with torch.no_grad():
        for member in (*first.producers, *first.consumers):
            tensors[member.tensor].index_fill_(member.dim, member.index[0], 0)
    torch.testing.assert_close(smaller(x), zeroed(x))
