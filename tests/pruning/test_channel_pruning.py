"""Pruning of channels: what is asked for goes, nobody misses what did nothing, and the result says what was done."""

import copy
import json

import pytest
import torch
from nets import SMALL, Net, copy_channel, difference, made, prune_these, silence
from torch import nn

from redlab import (
    fold_batchnorm,
    load_network,
    measure_cost,
    prune_channels,
    save_network,
    score_channels,
    score_weights,
)
from redlab.channels.apply import apply_plan
from redlab.pruning.compensation import COMPENSATIONS
from redlab.zoo.architectures import MLP
from redlab.zoo.networks import build


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def scores():
    """Of digits/mlp."""
    return score_channels(load_network("digits/mlp"), "magnitude")


@pytest.mark.parametrize("name", ["digits/resnet", "digits/mlp", *SMALL, *slow("digits/mobilenet")])
def test_channels_that_nobody_reads_go_and_the_function_stays(name):
    network, images = made(name)
    scores = score_channels(network, "magnitude", example=images[:1])
    gone = {group.name: list(range(0, group.size - 1, 3)) for group in scores.groups if not group.frozen}
    for group in scores.groups:
        if group.name in gone:
            silence(network, group, gone[group.name])
    result = prune_these(network, gone, images, scores=scores)
    assert difference(network, result.network, images) < 1e-6
    assert result.layers["products_after"].sum() < 0.8 * result.layers["products_before"].sum()


@pytest.mark.parametrize("name", ["digits/mlp", *SMALL, *slow("digits/resnet", "digits/mobilenet")])
def test_one_of_two_equal_channels_goes_into_the_other_and_the_function_stays(name):
    network, images = made(name)
    groups = [group for group in score_channels(network, "random", example=images[:1]).groups if not group.frozen]
    pairs = {group.name: range(0, group.size - 1, 4) for group in groups}
    for group in groups:
        for k in pairs[group.name]:
            copy_channel(network, group, k, k + 1)
    for criterion in ("redundancy", "srinivas_babu"):  # merge and absorb
        scores = score_channels(network, criterion, example=images[:1])
        result = prune_channels(network, scores, sum(map(len, pairs.values())) / len(scores), example=images[:1])
        assert difference(network, result.network, images) < 1e-5
        left = {name: len({*where} - {-1}) for name, where in result.plan["groups"].items()}
        assert left == {group.name: group.size - len(pairs[group.name]) for group in groups}


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("name", ["digits/mlp", *slow("digits/resnet", "digits/mobilenet")])
def test_a_pruned_network_is_saved_and_comes_back(name, compensation, tmp_path):
    network = load_network(name)
    result = prune_channels(network, score_channels(network, "srinivas_babu"), 0.3, compensation=compensation)
    save_network(result, tmp_path / "small")
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(load_network(tmp_path / "small")(images), result.network(images))
    steps = [step["step"] for step in result.network.redlab.steps]
    assert steps == (["plan"] if compensation in ("none", "merge") else ["compensate", "plan"])
    assert json.loads(json.dumps(result.plan)) == result.plan


def test_pruning_after_folding_and_again_is_replayed(tmp_path):
    network = fold_batchnorm(load_network("digits/mlp")).network
    for criterion in ("reconstruction", "redundancy"):
        network = prune_channels(network, score_channels(network, criterion), 0.1).network
    save_network(network, tmp_path / "twice")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_network(tmp_path / "twice")(images), network(images))
    assert [step["step"] for step in network.redlab.steps] == ["fold", "compensate", "plan", "plan"]


@pytest.mark.parametrize("name", ["digits/resnet", "grouped", "flat"])
def test_the_plan_alone_makes_a_network_of_the_same_widths(name):
    """But for the biases that layers without one gain when the means of their inputs are made up for."""
    network, images = made(name)
    scores = score_channels(network, "random", example=images[:1])
    result = prune_channels(network, scores, 0.4, compensation="reconstruct", example=images[:1])
    alone = apply_plan(network, json.loads(json.dumps(result.plan)))
    wanted, found = ({n: p.shape for n, p in own.named_parameters()} for own in (result.network, alone))
    gained = wanted.keys() - found.keys()
    assert all(name.endswith(".bias") for name in gained)
    assert found == {name: shape for name, shape in wanted.items() if name not in gained}
    assert bool(gained) == (name != "flat")


@pytest.mark.parametrize("name", ["grouped", "depthwise", "concatenated", *slow("digits/resnet")])
def test_the_table_and_what_was_reached_add_up(name):
    network, images = made(name)
    scores = score_channels(network, "random", example=images[:1])
    result = prune_channels(network, scores, 0.35, example=images[:1])
    layers, reached = result.layers, result.plan["achieved"]
    gone = sum(where.count(-1) for where in result.plan["groups"].values())
    assert gone == int(0.35 * len(scores))
    assert reached["ratio"] == pytest.approx(gone / len(scores), abs=1e-6)
    assert not layers.isna().any(axis=None)
    assert (layers["channels_before"] - layers["removed"] == layers["channels_after"]).all()
    for when, own in (("before", network), ("after", result.network)):
        cost = measure_cost(own, images[:1])
        assert layers[f"products_{when}"].sum() == cost.attrs["products"]
    assert reached["products"] == pytest.approx(cost.attrs["products"] / layers["products_before"].sum(), abs=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in result.network.modules())


def test_the_result_says_what_was_asked_reached_and_skipped():
    network = load_network("digits/mlp")
    result = prune_channels(network, score_channels(network, "magnitude", p=2), 0.1)
    first, *others = str(result).splitlines()
    assert first.startswith("plan(criterion='magnitude', p=2, ratio=0.1, products=None, scope='global', round_to=1")
    assert first.endswith(f"reached ratio 0.098958, products {result.plan['achieved']['products']}")
    assert others[0] == "channels: 394 -> 356 (90.355% left)"
    assert others[-1] == "3 layers, 1 skipped: classifier (network output)"
    assert others[3].startswith("operations (multiplications + additions): ")
    assert others[4].startswith("conv and linear weights: ")
    assert len(others) == 6


def test_products_outside_of_the_layers_count_in_what_is_reached():
    def forward(net, x):
        return net.two(net.one(net.mix(x.flatten(0, 2))[0][None]).relu())

    parts = {"mix": nn.LSTM(8, 8), "one": nn.Linear(8, 16), "two": nn.Linear(16, 8)}
    network, images = Net(forward, **parts), torch.randn(1, 1, 32, 8)
    scores = score_channels(network, "random", example=images)
    result = prune_channels(network, scores, products=0.7, example=images)
    whole, left = (measure_cost(own, images).attrs["products"] for own in (network, result.network))
    assert whole > result.layers["products_before"].sum()
    assert left <= 0.7 * whole < left + 2 * 8 * 32  # a channel fewer, and it is missed
    assert result.plan["achieved"]["products"] == pytest.approx(left / whole, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"pass ratio .*, or products .* and/or count"),
        ({"ratio": 0.1, "products": 0.5}, r"pass ratio .*, or products .* and/or count"),
        ({"ratio": 1.1}, r"ratio must lie in \[0, 1\]"),
        ({"ratio": -0.1}, "ratio must lie in"),
        ({"ratio": float("nan")}, "ratio must lie in"),
        ({"products": 2}, r"products must lie in \[0, 1\]"),
        ({"ratio": 0.1, "scope": "local"}, "global, layer"),
        ({"ratio": 0.1, "round_to": 0}, "round_to"),
        ({"ratio": 0.1, "compensation": "mean"}, "none, merge, absorb, nearest, reconstruct, not 'mean'"),
        ({"ratio": 0.1, "compensation": "absorb"}, "magnitude names no merge targets, and 'absorb' needs them"),
    ],
)
def test_requests_out_of_range_are_refused(options, message, scores):
    with pytest.raises(ValueError, match=message):
        prune_channels(load_network("digits/mlp"), scores, **options)


@pytest.mark.parametrize("ratio", [0, 0.3])
@pytest.mark.parametrize("compensation", ["none", "reconstruct"])
def test_scores_of_another_network_are_refused(ratio, compensation, scores):
    images = torch.randn(1, 1, 8, 8)
    for other, what in (
        (load_network("digits/resnet"), "hidden.0.linear.weight is not there"),
        (build("digits/mlp").hidden, "hidden.0.linear.weight is not there"),
        (MLP(64, (256, 100), 10), "hidden.1.linear.weight has the shape"),
    ):
        with pytest.raises(ValueError, match=f"the scores are of another network: here {what}"):
            prune_channels(other, scores, ratio, compensation=compensation, example=images)


def test_scores_of_weights_are_refused():
    network = load_network("digits/mlp")
    with pytest.raises(ValueError, match="scores of weights, not of channels"):
        prune_channels(network, score_weights(network, "magnitude"), 0.1)


@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_the_network_is_left_as_it_was_and_the_new_one_learns(compensation):
    network = load_network("digits/mlp").train()
    network.hidden[0].linear.weight.requires_grad_(False)
    scores = score_channels(network, "srinivas_babu")
    before = copy.deepcopy(network.state_dict())
    with torch.inference_mode():
        smaller = prune_channels(network, scores, 0.2, compensation=compensation).network
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert smaller.training
    assert not smaller.hidden[0].linear.weight.requires_grad
    smaller(torch.randn(4, 1, 8, 8)).sum().backward()
    assert smaller.classifier.weight.grad is not None


def test_nothing_changes_where_nothing_goes():
    network, images = made("digits/mlp")
    scores = score_channels(network, "srinivas_babu")
    for compensation in COMPENSATIONS:
        result = prune_channels(network, scores, 0, compensation=compensation)
        assert torch.equal(result.network(images), network(images))
        assert result.plan["groups"] == {}


def test_dtypes_stay():
    network = load_network("digits/mlp").double()
    smaller = prune_channels(network, score_channels(network, "reconstruction"), 0.3).network
    assert {tensor.dtype for tensor in smaller.parameters()} == {torch.float64}
