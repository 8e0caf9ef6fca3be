"""Carrying out plans: smaller tensors, the same attributes as a network built small, and nothing half done."""

import copy
import json
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import SMALL, difference, made, silence, tensor_of
from torch import nn

from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.plan import make_plan
from redlab.network.recipe import Recipe
from redlab.network.zero_pad import ZeroPadShortcut
from redlab.zoo.architectures import CifarResNet, MobileNetV1
from redlab.zoo.networks import build


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def halved(network, example):
    """The plan that drops every second channel of every free group."""
    groups = couple(network, example)
    going = {g.name: [i // 2 if i % 2 == 0 else -1 for i in range(g.size)] for g in groups if not g.frozen}
    return make_plan(groups, going)


def attributes(network):
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, ZeroPadShortcut)
    return [repr(module) for module in network.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize(
    ("network", "small"),
    [
        (CifarResNet((2, 1, 2)), CifarResNet((2, 1, 2), widths=(8, 16, 32))),
        (MobileNetV1((8, 1), [(16, 1), (32, 2)]), MobileNetV1((4, 1), [(8, 1), (16, 2)])),
    ],
)
def test_a_halved_network_looks_like_one_built_half_as_wide(network, small):
    example = torch.randn(1, 3, 8, 8)
    got = apply_plan(network, halved(network, example))
    assert attributes(got) == attributes(small)
    assert {k: v.shape for k, v in got.state_dict().items()} == {k: v.shape for k, v in small.state_dict().items()}
    assert got(example).shape == small(example).shape
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in got.modules())


def test_the_network_passed_in_stays_and_the_new_one_trains():
    network, example = CifarResNet((1, 1, 1)).train(), torch.randn(2, 3, 8, 8)
    network(example).sum().backward()
    before = copy.deepcopy(network.state_dict())
    got = apply_plan(network, halved(network, example))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.conv1.weight.grad is not None
    assert got.training
    got(example).sum().backward()
    assert all(p.grad.shape == p.shape for p in got.parameters())


def test_under_inference_mode_too():
    network, example = CifarResNet((1, 1, 1)), torch.randn(2, 3, 8, 8)
    plan = halved(network, example)
    with torch.inference_mode():
        got = apply_plan(network, plan)
    got(example).sum().backward()


def test_plans_join_the_recipe_and_follow_one_another():
    network, example = build("digits/resnet"), torch.randn(1, 1, 8, 8)
    network.redlab = Recipe("digits/resnet", (1, 8, 8))
    first = apply_plan(network, plan := halved(network, example))
    second = apply_plan(first, halved(first, example))
    assert network.redlab.steps == ()
    assert first.redlab.steps == (plan,)
    assert len(second.redlab.steps) == 2
    assert second.conv1.out_channels == 4
    replayed = build("digits/resnet")
    for step in second.redlab.steps:
        replayed = apply_plan(replayed, json.loads(json.dumps(step)))
    replayed.load_state_dict(second.state_dict())
    assert torch.equal(replayed(example), second(example))


def test_merging_takes_the_mean_of_rows_and_the_sum_of_columns():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    groups = couple(network, torch.randn(1, 2))
    got = apply_plan(network, make_plan(groups, {"0": [0, 1, 0]}))
    one, two = network[0], network[2]
    torch.testing.assert_close(got[0].weight, torch.stack([(one.weight[0] + one.weight[2]) / 2, one.weight[1]]))
    torch.testing.assert_close(got[0].bias, torch.stack([(one.bias[0] + one.bias[2]) / 2, one.bias[1]]))
    torch.testing.assert_close(got[2].weight, torch.stack([two.weight[:, 0] + two.weight[:, 2], two.weight[:, 1]], 1))
    assert torch.equal(got[2].bias, two.bias)
    assert (got[0].out_features, got[2].in_features) == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_mean_of_equal_rows_is_that_row_to_the_last_bit(dtype):
    network = nn.Sequential(nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 2)).to(dtype)
    with torch.no_grad():
        network[0].weight[:] = network[0].weight[0]
        network[0].bias[:] = network[0].bias[0]
    groups = couple(network, torch.randn(1, 7))
    got = apply_plan(network, make_plan(groups, {"0": [0, 0, 0]}))
    assert torch.equal(got[0].weight, network[0].weight[:1])
    assert got[2].weight.dtype == dtype


def test_a_plan_for_another_network_is_refused_and_names_what_does_not_fit():
    plan = halved(CifarResNet((1, 1, 1)), torch.randn(1, 3, 8, 8))
    for other, what in (
        (CifarResNet((1, 1, 1), widths=(16, 24, 64)), "slices along dim"),
        (build("digits/mlp"), "conv1"),
        (nn.Sequential(), "conv1"),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=f"for another network.*{what}"):
            apply_plan(other, plan)
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_plan_that_contradicts_itself_is_refused():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    groups = couple(network, torch.randn(1, 2))
    plan = make_plan(groups, {"0": [0, 1, 0], "2": [0, 1, -1]})
    plan["members"]["2"] = plan["members"]["0"]
    with pytest.raises(ValueError, match="claim the same slice"):
        apply_plan(network, plan)
    with pytest.raises(ValueError, match="not a plan"):
        apply_plan(network, {"step": "fold"})


def test_an_empty_plan_changes_nothing():
    network = CifarResNet((1, 1, 1))
    got = apply_plan(network, make_plan([], {}))
    assert all(torch.equal(tensor, got.state_dict()[name]) for name, tensor in network.state_dict().items())


@cache
def coupled(name):
    """A network in float64, images for it, and its groups that may change."""
    torch.manual_seed(0)
    network, images = made(name)
    return network.double(), images.double(), [g for g in couple(network, images[:1].double()) if not g.frozen]


@st.composite
def plans(draw):
    """A network, and a plan for some of its groups: each channel goes, or into one of a few new ones."""
    name = draw(st.sampled_from(["digits/mlp", "digits/resnet", *SMALL]))
    choice, going = draw(st.randoms(use_true_random=False)), {}
    for group in coupled(name)[2]:
        if draw(st.booleans()):
            drawn = [choice.randint(-1, draw(st.integers(0, group.size))) for _ in range(group.size)]
            drawn[choice.randrange(group.size)] = group.size  # one stays, whatever else
            new = sorted({index for index in drawn if index >= 0})
            going[group.name] = [new.index(index) if index >= 0 else -1 for index in drawn]
    return name, make_plan(coupled(name)[2], going)


@torch.no_grad()
def masked(network, groups, plan):
    """A copy as wide as before: merged channels have the mean of what makes them, and nobody reads those that go."""
    wide = copy.deepcopy(network)
    for group in groups:
        going = torch.tensor(plan["groups"].get(group.name, range(group.size)))
        silence(wide, group, (going < 0).nonzero().flatten())
        for new in set(going[going >= 0].tolist()):
            rows = (going == new).nonzero().flatten()
            for member in group.producers:
                slices = tensor_of(wide, member.tensor).movedim(member.dim, 0)
                slices[member.index[rows]] = slices[member.index[rows]].mean(0)
    return wide


@settings(max_examples=40, deadline=None)
@given(plans())
def test_any_plan_makes_what_masks_would_and_survives_json(drawn):
    name, plan = drawn
    network, images, groups = coupled(name)
    smaller = apply_plan(network, plan)
    assert difference(masked(network, groups, plan), smaller, images) < 1e-9
    again = apply_plan(network, json.loads(json.dumps(plan))).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in smaller.state_dict().items())
