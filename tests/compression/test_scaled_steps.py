"""Networks hashed with ``scale="row"``: later steps do what they do without the scales, and keep these in step."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from scaled import without_scales
from test_split_layers import agree
from torch import nn

from redlab import (
    apply_plan,
    as_dense,
    fold_batchnorm,
    hash_network,
    iterative_prune,
    load_dataset,
    load_network,
    merge_neurons,
    prepare,
    prune_channels,
    prune_weights,
    save_network,
    score_channels,
    score_weights,
    split_inputs,
)
from redlab.network.layers import out_scale, weight_layers
from redlab.network.row_scales import factor_rows
from redlab.network.training import train

RULES = {
    "uniform": {"rule": "uniform", "levels": 15},
    "kde": {"rule": "kde", "bandwidth": "silverman/6"},
    "lloyd": {"rule": "lloyd", "levels": 12},
}


def hashed(name="digits/resnet", rule="uniform", dtype=torch.float32):
    return hash_network(prepare(load_network(name).to(dtype)).network, scale="row", **RULES[rule]).network


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        *((rule, torch.float32) for rule in RULES),
        ("kde", torch.float64),
        ("kde", torch.float16),
        ("kde", torch.bfloat16),
    ],
)
def test_every_row_that_hashing_scales_is_taken_apart(rule, dtype):
    network = hashed("digits/mobilenet" if rule == "uniform" else "digits/mlp", rule, dtype)
    for layer in weight_layers(network):
        used = factor_rows(layer.weight, out_scale(layer))[1]
        alive = layer.weight.flatten(1).any(1)
        assert torch.equal(out_scale(layer)[alive], torch.ones_like(used)[alive] if used is None else used[alive])
    result = split_inputs(network)
    assert (result.layers["scales"] > 0).any()
    states = network.state_dict(), as_dense(result.network).state_dict()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def same_function(one, other):
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(one(images), other(images))


def fits(network):
    """Every buffer of scales is as long as its layer has rows, and the network is split and saved as any other."""
    for layer in weight_layers(network):
        assert len(out_scale(layer)) == len(layer.weight)
    result, images = split_inputs(network), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        agree(result.network(images), network(images), 1e-5)
    states = network.state_dict(), as_dense(result.network).state_dict()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    return result


def pruned(network):
    return prune_channels(network, score_channels(network, "magnitude"), ratio=0.3)


STEPS = {
    "merge 0": partial(merge_neurons, alpha=0),
    "merge 0.1": partial(merge_neurons, alpha=0.1),
    "prune": pruned,
    "thin": lambda network: prune_weights(network, score_weights(network, "magnitude"), ratio=0.5),
}


_SLOW = [("digits/resnet", "merge 0"), ("digits/resnet", "thin"), ("digits/mobilenet", "merge 0.1")]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("digits/resnet", "merge 0.1"),
        ("digits/resnet", "prune"),
        *(pytest.param(*own, marks=pytest.mark.slow) for own in _SLOW),
    ],
)
def test_a_step_does_what_it_does_without_scales(name, step, tmp_path):
    network = hashed(name)
    found = STEPS[step](network)
    wanted = STEPS[step](without_scales(copy.deepcopy(network)))
    same_function(found.network, wanted.network)
    if "products_after" in found.layers:
        assert found.layers["products_after"].tolist() == wanted.layers["products_after"].tolist()
    fits(found.network)
    opened = load_network(save_network(found.network, tmp_path / "net"))
    states = found.network.state_dict(), opened.state_dict()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_identical_neurons_merge_to_themselves_with_their_scale():
    network = hashed("digits/mlp")
    first, second = (network.hidden[k].linear for k in (0, 1))
    with torch.no_grad():
        first.weight[5:9], first.bias[5:9], first.out_scale[5:9] = first.weight[4], first.bias[4], first.out_scale[4]
        first.out_mean[5:9], first.out_std[5:9] = first.out_mean[4], first.out_std[4]
    images, merged = torch.randn(4, 1, 8, 8), merge_neurons(network, alpha=0).network
    assert len(merged.hidden[0].linear.weight) <= len(first.weight) - 4
    assert torch.equal(merged.hidden[0].linear.weight[4], first.weight[4])
    assert merged.hidden[0].linear.out_scale[4] == first.out_scale[4]
    with torch.no_grad():
        agree(merged(images), network(images), 1e-5)
    # The rows of the consumer took the sums of columns: whatever is no multiple of its scale counts for itself.
    assert fits(merged).layers.set_index("layer").loc["hidden.0.linear", "scales"] > 0
    assert second.weight.shape[1] > merged.hidden[1].linear.weight.shape[1]


def test_rows_that_were_averaged_take_no_scale():
    network = hashed("digits/mlp")
    before = network.hidden[0].linear.out_scale
    table = fits(merge_neurons(network, alpha=0.1).network).layers.set_index("layer")
    assert 0 < table.loc["hidden.0.linear", "scales"] < len(before)


def test_a_plan_is_applied_again():
    network = hashed()
    result = pruned(network)
    again = apply_plan(network, result.plan)
    states = result.network.state_dict(), again.state_dict()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_pruning_in_rounds_goes_on():
    network = hashed("digits/mlp")
    bare = without_scales(copy.deepcopy(network))
    found, wanted = (iterative_prune(own, "magnitude", None, 0.5, 50) for own in (network, bare))
    same_function(found.network, wanted.network)


def test_training_leaves_scales_as_hints():
    network = hashed("digits/mlp")
    trained = train(network, load_dataset("digits", "train", limit=64), epochs=1).network
    assert fits(trained).layers["scales"].sum() == 0


def test_folding_after_hashing_forgets_the_scales_of_the_rows_that_it_changes():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval()
    network[1].running_var.uniform_(0.5, 2)
    with pytest.warns(UserWarning, match="not folded"):
        scaled = hash_network(network, scale="row", **RULES["uniform"]).network
    folded = fold_batchnorm(scaled, torch.randn(1, 1, 9, 9)).network
    assert [out_scale(layer) is None for layer in weight_layers(folded)] == [True, False]
