"""Merging up to scale: positive multiples merge without a trace where scales can move, and nothing else does."""

import pytest
import torch
from nets import Net, copy_channel, randomise
from torch import nn

from redlab import fold_batchnorm, load_network, merge_neurons
from redlab.channels.coupling import couple
from redlab.compression.multiples import alike

RATIOS = {1: 0.5, 2: 3.0, 3: 1e-4}  # channels that become multiples of channel 0
EXAMPLE = torch.zeros(1, 3, 8, 8)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def change(one, other, shape):
    inputs = torch.randn(3, *shape)
    with torch.no_grad():
        wanted, got = one(inputs), other(inputs)
    return float((wanted - got).norm() / wanted.norm())


def plant(network, example=None, ratios=RATIOS):
    """Multiples of channel 0 in every group that one layer makes; how many were planted."""
    count = 0
    for group in couple(network, example):
        makers = [member for member in group.producers if member.tensor.endswith("weight")]
        if not group.frozen and len(makers) == 1 and group.size > len(ratios):
            for channel, ratio in ratios.items():
                copy_channel(network, group, 0, channel, ratio)
            count += len(ratios)
    return count


def merged(network, example=None, **options):
    result = merge_neurons(network, example=example, dead=False, up_to_scale=True, **options)
    return result, int(sum(len(own) - len(set(own)) for own in result.plan["groups"].values()))


def conv(before, after, **options):
    return nn.Conv2d(before, after, 3, padding=1, **options)


def small(step):
    return Net(lambda net, x: net.two(step(net.one(x))), one=conv(3, 8), two=conv(8, 4)).eval()


@pytest.mark.parametrize(
    "name", ["digits/mlp", "digits/resnet", pytest.param("cifar10/resnet20", marks=pytest.mark.slow)]
)
def test_planted_multiples_merge_and_the_function_stays(name):
    network = fold_batchnorm(randomise(load_network(name, weights=None))).network
    planted = plant(network)
    result, count = merged(network)
    assert count == planted > 0
    assert change(network, result.network, network.redlab.input_shape) < 1e-5
    assert result.plan["options"]["up_to_scale"]
    assert "up_to_scale" not in merge_neurons(network).plan["options"]


@pytest.mark.parametrize("step", [torch.relu, lambda x: x, lambda x: nn.functional.leaky_relu(x, 0.2)])
def test_through_what_is_homogeneous(step):
    network = small(step)
    plant(network, EXAMPLE)
    result, count = merged(network, EXAMPLE)
    assert count == len(RATIOS)
    assert change(network, result.network, (3, 8, 8)) < 1e-5


@pytest.mark.parametrize("step", [nn.functional.relu6, nn.functional.gelu, lambda x: x + 1])
def test_only_identical_neurons_merge_elsewhere(step):
    network = small(step)
    plant(network, EXAMPLE, RATIOS | {4: 1.0, 5: 1 + 5e-7})
    result, count = merged(network, EXAMPLE)
    assert count == 1
    assert change(network, result.network, (3, 8, 8)) < 1e-5


def test_negative_multiples_and_other_biases_never_merge():
    network = small(torch.relu)
    plant(network, EXAMPLE, {1: -1.0, 2: -2.0})
    copy_channel(network, couple(network, EXAMPLE)[0], 0, 3, 2.0)
    with torch.no_grad():
        network.one.bias[3] += 0.01
    _, count = merged(network, EXAMPLE)
    assert count == 1  # the two negative ones are positive multiples of one another


def test_multiples_in_a_chain_with_a_depthwise_layer():
    modules = [conv(3, 6), nn.ReLU(), conv(6, 6, groups=6), nn.ReLU(), conv(6, 4)]
    network = nn.Sequential(*modules).eval()
    with torch.no_grad():
        for own, ratio in ((network[0], 4.0), (network[2], 0.3)):
            own.weight[1], own.bias[1] = ratio * own.weight[0], ratio * own.bias[0]
        network[2].weight[1] /= 4  # its input is 4 times as large
    result, count = merged(network, EXAMPLE)
    assert count == 1
    assert change(network, result.network, (3, 8, 8)) < 1e-5


def test_nothing_changes_where_nothing_is_alike():
    network = small(torch.relu)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result, count = merged(network, EXAMPLE)
    assert count == 0
    assert all(torch.equal(own, before[name]) for name, own in result.network.state_dict().items())


def test_rows_alike_are_those_within_the_tolerance():
    rows = torch.randn(200, 30).double()
    copies = rows[torch.randint(0, 200, (100,))]
    near = copies * (1 + 1e-7 * torch.randn_like(copies))
    far = copies * (1 + 1e-4 * torch.randn_like(copies))
    first = alike([torch.cat([rows, near, far]).numpy()])
    assert (first[:200] == range(200)).all()
    assert torch.equal(rows[torch.from_numpy(first[200:300])], copies)
    assert (first[300:] == range(300, 400)).all()
