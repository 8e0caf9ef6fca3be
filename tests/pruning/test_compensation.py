"""Compensation: the layers that read a channel get in its place what was promised, exactly where that can be."""

import numpy as np
import pytest
import torch
from nets import DIGITS, SMALL, copy_channel, difference, made, mlp, prune_these, randomised
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from redlab import fold_batchnorm, prune_channels, score_channels
from redlab.channels.coupling import couple
from redlab.pruning.compensation import COMPENSATIONS, merge_target
from redlab.zoo.networks import build

BY_RIDGE = 0.05  # reconstruction: the ridge on the covariance keeps it from being exact


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def planted(name, source, target, scale=1.0):
    """A network in each group of which one channel is a multiple of another, images, scores, and those channels."""
    network, images = made(name)
    scores = score_channels(network, "random", example=images[:1])
    free = [group for group in scores.groups if not group.frozen]
    for group in free:
        copy_channel(network, group, source, target, scale)
    return network, images, scores, {group.name: [target] for group in free}


def test_a_merged_channel_is_the_mean_of_both_and_an_absorbed_one_is_gone():
    network, images = mlp(2, 3, 1), torch.randn(1, 2)
    with torch.no_grad():
        network[0].weight[:] = torch.tensor([[1.0, 0], [0, 5], [1, 0.5]])
        network[0].bias.zero_()
        network[2].weight[:] = torch.tensor([[2.0, 3, 4]])
    scores = score_channels(network, "redundancy", example=images)
    assert scores.heirs["0"].tolist() == [-1, 0, 0]
    merged, absorbed = (
        prune_channels(network, scores, 1 / 3, compensation=kind, example=images) for kind in ("merge", "absorb")
    )
    for result, row in ((merged, [1, 0.25]), (absorbed, [1, 0])):
        torch.testing.assert_close(result.network[0].weight, torch.tensor([row, [0, 5]]).double())
        torch.testing.assert_close(result.network[2].weight, torch.tensor([[6.0, 3]]).double())
    assert (merged.layers["merged"].tolist(), merged.layers["removed"].tolist()) == ([1, 0], [0, 0])
    assert (absorbed.layers["merged"].tolist(), absorbed.layers["removed"].tolist()) == ([0, 0], [1, 0])


def test_two_neurons_become_one_as_srinivas_and_babu_write_it():
    """z = a1 h(W1 x) + a2 h(W2 x) becomes (a1 + a2) h(W1 x), the one of least mean(a^2) ||W1 - W2||^2 having gone."""
    network, images = mlp(2, 2, 1), torch.randn(5, 2).double()
    scores = score_channels(network, "srinivas_babu", example=images)
    (one, two), (a1, a2) = torch.cat([network[0].weight, network[0].bias[:, None]], 1).detach(), network[2].weight[0]
    apart = float((one - two).square().sum())
    costs = [(a1**2).item() * apart, (a2**2).item() * apart]
    gone = int(np.argmin(costs))
    assert scores.values["0"][gone] == pytest.approx(costs[gone], rel=1e-6)
    smaller = prune_channels(network, scores, 0.5, example=images).network
    left = (images @ network[0].weight[1 - gone] + network[0].bias[1 - gone]).relu()
    torch.testing.assert_close(smaller(images)[:, 0], (a1 + a2) * left + network[2].bias)


def test_what_a_channel_leaves_falls_to_the_heir_at_the_end_of_the_line():
    heirs, kept = np.array([1, 2, -1, 0]), np.array([False, False, True, False])
    assert [merge_target(heirs, kept, channel) for channel in range(4)] == [2, 2, 2, 2]
    assert [merge_target(heirs, ~kept, channel) for channel in range(4)] == [0, 1, -1, 3]


@pytest.mark.parametrize(("name", "scale"), [("flat", 2.5), ("flat", 0.3), ("grouped", 1.0), ("concatenated", 1.0)])
def test_the_nearest_channel_stands_in_exactly_for_its_multiple(name, scale):
    network, images, scores, gone = planted(name, 2, 4, scale)
    without, nearest = (prune_these(network, gone, images, kind, scores=scores) for kind in ("none", "nearest"))
    assert difference(network, without.network, images) > 1e-3
    assert difference(network, nearest.network, images) < 1e-5


def test_the_nearest_channel_is_scaled_as_batch_norm_scales():
    network, images, scores, gone = planted("digits/mlp", 1, 0)
    with torch.no_grad():
        for block in network.hidden:
            block.linear.weight[0] *= -3
            block.bn.running_mean[0] *= -3
            block.bn.running_var[0] = 9 * (block.bn.running_var[0] + block.bn.eps) - block.bn.eps
            block.bn.weight[0] *= -2  # twice the channel, by way of three times its negative
            block.bn.bias[0] *= 2
    assert difference(network, prune_these(network, gone, images, "nearest", scores=scores).network, images) < 1e-5


def test_channels_of_opposite_directions_stand_in_for_nobody():
    network, images = mlp(3, 2, 4), torch.randn(4, 3)
    with torch.no_grad():
        network[0].weight[1] = -network[0].weight[0]
        network[0].bias[1] = -network[0].bias[0]
    result = prune_these(network, {"0": [1]}, images, "nearest")
    assert torch.equal(result.network[2].weight, network[2].weight[:, :1])


@torch.no_grad()
def settled(network, images):
    """The batch norms know what they get of ``images``."""
    for norm in [module for module in network.modules() if isinstance(module, _BatchNorm)]:
        norm.momentum = 1.0
    network.train()(images)
    return network.eval()


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in DIGITS)])
def test_reconstruction_does_better_than_nothing_on_what_batch_norm_saw(name):
    network, images = made(name, 256)
    network = settled(randomised(build(name)) if name in DIGITS else network, images)
    errors = {"none": 0.0, "reconstruct": 0.0}
    for seed in range(3):
        scores = score_channels(network, "random", seed=seed, example=images[:1])
        for kind in errors:
            smaller = prune_channels(network, scores, 0.3, compensation=kind, example=images[:1]).network
            errors[kind] += difference(network, smaller, images) ** 2
    assert errors["reconstruct"] < 0.8 * errors["none"]


@pytest.mark.parametrize("name", ["depthwise", "grouped", "flat"])
def test_reconstruction_finds_a_duplicate_as_far_as_the_ridge_lets_it(name):
    network, images, scores, gone = planted(name, 2, 4)
    kinds = [prune_these(network, gone, images, kind, scores=scores).network for kind in ("none", "reconstruct")]
    lost, found = (difference(network, smaller, images) for smaller in kinds)
    assert found < BY_RIDGE * lost


@pytest.mark.parametrize("name", ["grouped", "flat"])
def test_readers_do_the_work_of_what_goes_wherever_they_read_it(name):
    """In every group of a grouped convolution, and in a linear layer that reads each channel at 16 places."""
    network, images = made(name)
    scores = score_channels(network, "random", example=images[:1])
    group = next(
        g for g in scores.groups if not g.frozen and any(m.index.shape[1] > 1 for m in g.producers + g.consumers)
    )
    copy_channel(network, group, 0, 1)
    heirs, errors = {group.name: np.r_[-1, 0, np.full(group.size - 2, -1)]}, {}
    for kind in COMPENSATIONS:
        smaller = prune_these(network, {group.name: [1]}, images, kind, heirs, scores).network
        errors[kind] = difference(network, smaller, images)
    assert errors["reconstruct"] < BY_RIDGE * errors["none"]
    assert max(errors[kind] for kind in ("merge", "absorb", "nearest")) < 1e-6 < errors["none"]


@pytest.mark.parametrize("kind", ["absorb", "nearest", "reconstruct"])
def test_what_is_known_of_the_folded_network_alone_is_not_done_to_another(kind):
    """A norm behind a ReLU goes into the layer behind it, which then reads other numbers."""
    layers = [nn.Linear(20, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)]
    network, images = randomised(nn.Sequential(*layers)), torch.randn(4, 20)
    copy_channel(network, couple(network, images)[0], 0, 1)
    with torch.no_grad():
        network[2].weight[1] *= 3  # the same channel, and another scale for the layer that reads it
    heirs, gone = {"0": np.r_[-1, 0, np.full(6, -1)]}, {"0": [1]}
    lost = difference(network, prune_these(network, gone, images).network, images)
    result = prune_these(network, gone, images, kind, heirs)
    assert result.plan["achieved"]["not compensated"] == {"0": "fold_batchnorm first: 2 folds into the layer after it"}
    assert difference(network, result.network, images) == lost
    folded = prune_these(fold_batchnorm(network, images).network, gone, images, kind, heirs)
    assert "not compensated" not in folded.plan["achieved"]
    assert difference(network, folded.network, images) < (BY_RIDGE * lost if kind == "reconstruct" else 1e-6)
