"""Harden: an ordinary network that computes what the sparse one does in eval mode, and a table of what it takes."""

import copy
import json
from functools import cache
from math import comb, log2

import numpy as np
import pytest
import torch
from nets import DIGITS, SMALL, difference, made, mlp
from torch import nn
from torch.nn.utils import parametrize

from redlab import harden, load_network, save_network, sparsify
from redlab.dpp.hardening import place_bits
from redlab.dpp.masks import masks_in
from redlab.dpp.sparsifying import GRANULARITIES
from redlab.network.layers import weight_layers

each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)
CASES = [(name, bits) for name in ("digits/resnet", "digits/mlp") for bits in (32, 8, 1)]
each_case = pytest.mark.parametrize(("name", "bits"), [*CASES, ("digits/mobilenet", 32)])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@cache
def hardened(name, granularity, bits):
    """A shipped network, with masks, and the result; for tests that leave them as they are."""
    network = load_network(name)
    sparse = sparsify(network.eval(), 0.4, granularity, weight_bits=bits)
    return network, sparse, harden(sparse)


def agrees(sparse, hard, images):
    """Whether ``hard`` answers as ``sparse`` does in eval mode: to the bit, or nearly so where channels left."""
    if sparse.dpp.of_channels:
        return difference(sparse.eval(), hard, images) < 1e-5
    with torch.no_grad():
        return torch.equal(sparse.eval()(images), hard(images))


@each_case
@each_granularity
def test_the_ordinary_network_computes_what_the_masked_one_does_in_eval_mode(name, granularity, bits):
    (network, sparse, result), images = hardened(name, granularity, bits), torch.randn(8, 1, 8, 8)
    assert agrees(sparse, result.network, images)
    assert difference(network, result.network, images) > 0.1


@each_granularity
@pytest.mark.parametrize("name", SMALL)
def test_so_it_does_for_groups_concatenations_and_flattened_channels(name, granularity):
    network, images = made(name)
    sparse = sparsify(network, 0.5, granularity, tiles=3, example=images[:1])
    assert agrees(sparse, harden(sparse, images[:1]).network, images)


@pytest.mark.parametrize("granularity", ["weight", "kernel"])
def test_so_it_does_for_transposed_convolutions_and_a_network_that_is_one_layer(granularity):
    layers = nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 2, 3)
    for network, images in [(nn.Sequential(*layers), torch.randn(2, 4, 5, 5)), (nn.Linear(8, 3), torch.randn(2, 8))]:
        sparse = sparsify(network.eval(), 0.5, granularity, activation_bits=32)
        assert agrees(sparse, harden(sparse).network, images)


@each_granularity
@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_masks_is_left(granularity, training):
    network = load_network("digits/resnet").train(training)
    kinds = [type(module) for module in network.modules()]
    hard = harden(sparsify(network, 0.5, granularity, weight_bits=8, activation_bits=8)).network
    assert hard.state_dict().keys() == network.state_dict().keys()
    assert [type(module) for module in hard.modules()] == kinds
    for module in hard.modules():
        assert not parametrize.is_parametrized(module)
        hooks = [*module._forward_pre_hooks, *module._forward_hooks, *module._forward_hooks_always_called]
        assert not hooks
        assert not hasattr(module, "rounded_input")
        assert module.training == training
    assert not hasattr(hard, "dpp")
    assert not masks_in(hard)


def test_parameters_stand_in_their_old_order():
    network = load_network("digits/resnet")
    assert list(harden(sparsify(network, 0.5)).network.state_dict()) == list(network.state_dict())


@each_granularity
@pytest.mark.parametrize("training", [True, False])
def test_the_masked_network_is_left_as_it_was(granularity, training):
    sparse = sparsify(load_network("digits/mlp"), 0.5, granularity, activation_bits=8).train(training)
    state, modes = copy.deepcopy(sparse.state_dict()), [module.training for module in sparse.modules()]
    before = torch.random.get_rng_state()
    harden(sparse)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in sparse.state_dict().items())
    assert [module.training for module in sparse.modules()] == modes


@each_granularity
def test_the_masked_network_learns_on_after_a_copy_of_it_was_hardened(granularity):
    sparse, images = sparsify(load_network("digits/mlp"), 0.5, granularity).eval(), torch.randn(4, 1, 8, 8)
    answers = sparse(images)
    for network in (sparse, copy.deepcopy(sparse)):
        harden(network)
    assert torch.equal(sparse(images), answers)
    sparse.train()
    assert not torch.equal(sparse(images), sparse(images))
    sparse(images).sum().backward()
    assert all(mask.logits.grad is not None for mask in masks_in(sparse))


@each_granularity
def test_the_ordinary_network_learns_and_frozen_weights_stay_frozen(granularity):
    network = load_network("digits/mlp")
    network.classifier.weight.requires_grad_(False)
    with torch.inference_mode():
        hard = harden(sparsify(network, 0.5, granularity, example=torch.randn(1, 1, 8, 8))).network
    hard(torch.randn(4, 1, 8, 8)).sum().backward()
    assert hard.hidden[0].linear.weight.grad is not None
    assert hard.classifier.weight.grad is None
    assert not hard.classifier.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@each_granularity
def test_dtypes_stay(dtype, granularity):
    sparse = sparsify(load_network("digits/mlp").to(dtype), 0.5, granularity)
    hard, images = harden(sparse).network, torch.randn(4, 1, 8, 8, dtype=dtype)
    assert {tensor.dtype for tensor in hard.parameters()} == {dtype}
    assert hard(images).isfinite().all()
    if granularity != "filter":
        assert agrees(sparse, hard, images)


@pytest.mark.parametrize("name", DIGITS)
def test_shut_channels_leave(name):
    network = load_network(name)
    sparse = sparsify(network, 0.25, "filter")
    result = harden(sparse)
    widths = dict.fromkeys(result.layers["layer"], 0)
    for group in sparse.dpp.groups:
        mask = sparse.dpp.masks.get(group.name)
        assert mask is None or mask.k == group.size // 4
        for member in group.producers:
            if (layer := member.tensor.removesuffix(".weight")) in widths:
                widths[layer] += member.index.shape[1] * (group.size if mask is None else mask.k)
    assert dict(zip(result.layers["layer"], result.layers["channels_after"], strict=True)) == widths
    assert {layer.name: len(layer.weight) for layer in weight_layers(result.network)} == widths
    assert result.plan["achieved"]["products"] < 0.2
    assert result.plan["achieved"]["ratio"] == 0.75


@each_granularity
@pytest.mark.parametrize("name", ["digits/resnet", "digits/mlp"])
def test_the_ordinary_network_is_saved_and_comes_back(granularity, name, tmp_path):
    (_, sparse, result), images = hardened(name, granularity, 8), torch.randn(4, 1, 8, 8)
    with pytest.raises(ValueError, match=r"harden\(network\)"):
        save_network(sparse, tmp_path / "sparse")
    save_network(result, tmp_path / "hard")
    back = load_network(tmp_path / "hard")
    with torch.no_grad():
        assert torch.equal(back(images), result.network(images))
    steps = result.network.redlab.steps
    assert back.redlab.steps == steps
    assert len(steps) == 1
    assert json.loads(json.dumps(result.plan)) == result.plan


@each_case
@each_granularity
def test_the_table_has_a_row_a_layer_and_agrees_with_the_weights(name, granularity, bits):
    network, sparse, result = hardened(name, granularity, bits)
    layers = result.layers
    assert list(layers["layer"]) == [layer.name for layer in weight_layers(network)]
    assert not layers.isna().any(axis=None)
    hard = dict(zip(layers["layer"], weight_layers(result.network), strict=True))
    for row in layers.to_dict("records"):
        weight = hard[row["layer"]].weight
        left = weight.numel() if granularity == "filter" else int((weight != 0).sum())
        masked = row["layer"] in sparse.dpp.layers
        assert row["bits"] == (bits if masked else 32)
        assert row["sparsity"] == pytest.approx(1 - left / row["weights"])
        place = 0
        if granularity != "filter":
            assert row["zeros"] == row["weights"] - left
        if granularity == "filter" or not masked:
            assert (row["k"], row["n"]) == (0, 0)
        else:
            mask = sparse.dpp.masks[row["layer"]]
            assert (row["k"], row["n"]) == (mask.k, mask.logits.shape[1])
            assert bits == 8 or row["sparsity"] == pytest.approx(1 - mask.k / mask.logits.shape[1])
            place = len(mask.logits) * log2(comb(row["n"], row["k"])) / row["weights"]
        assert row["bits_per_weight"] == pytest.approx(row["bits"] * left / row["weights"] + place, rel=1e-9)
    share = layers["weights"] / layers["weights"].sum()
    assert result.plan["achieved"]["bits per weight"] == pytest.approx(
        (layers["bits_per_weight"] * share).sum(), abs=1e-3
    )


def test_where_whole_kernels_go_their_places_cost_as_many_bits_as_rows_need():
    layers = harden(sparsify(load_network("digits/resnet"), 0.5, "kernel")).layers.set_index("layer")
    row = layers.loc["layer1.0.conv1"]  # 16 units read 16 kernels of 9 weights each
    assert (row["k"], row["n"], row["weights"], row["zeros"]) == (8, 16, 16 * 16 * 9, 16 * 8 * 9)
    assert row["bits_per_weight"] == pytest.approx(32 / 2 + 16 * log2(comb(16, 8)) / row["weights"])


@pytest.mark.parametrize(("n", "k"), [(1, 1), (10, 0), (10, 10), (10, 3), (64, 13), (1000, 500)])
def test_places_take_the_logarithm_of_the_number_of_subsets(n, k):
    assert place_bits(n, k) == pytest.approx(log2(comb(n, k)), abs=1e-9)


def test_layers_without_masks_are_in_the_table_and_stay():
    network = mlp(6, 5, 5, 3)
    network[2].weight = nn.Parameter(torch.randn(5, 5, dtype=torch.float64))
    result = harden(sparsify(network, {"0": 2}))
    assert result.layers["skipped"].tolist() == ["", "it was asked to stay whole", "it was asked to stay whole"]
    assert result.layers["sparsity"].tolist() == [pytest.approx(2 / 3), 0, 0]
    assert result.layers["bits"].tolist() == [64, 64, 64]
    assert result.layers["bits_per_weight"].tolist() == [pytest.approx(64 / 3 + log2(15) / 6), 64, 64]
    assert torch.equal(result.network[2].weight, network[2].weight)


def test_layers_without_a_shape_yet_are_in_the_table_with_the_reason():
    network = nn.Sequential(nn.Linear(4, 5), nn.LazyLinear(3))
    layers = harden(sparsify(network, 2)).layers
    assert layers["skipped"].tolist() == ["", "its weight has no shape yet (lazy): run the network once"]


@pytest.mark.parametrize("keep", [np.float32(0.5), np.int64(5), {"classifier": np.int64(5)}])
def test_the_plan_is_plain_data_though_numpy_said_what_to_keep(keep):
    plan = harden(sparsify(load_network("digits/mlp"), keep)).plan
    assert json.loads(json.dumps(plan)) == plan


def test_tied_weights_stay_tied():
    network = mlp(4, 4, 4, 3)
    network[2].weight = network[0].weight
    sparse = sparsify(network, 0.5)
    hard = harden(sparse).network
    assert hard[0].weight is hard[2].weight
    assert agrees(sparse, hard, torch.randn(5, 4, dtype=torch.float64))


def test_the_result_says_what_was_asked_for_and_reached():
    result = harden(sparsify(load_network("digits/mlp"), 0.25, seed=3))
    assert result.plan["options"]["keep"] == 0.25
    assert result.plan["options"]["seed"] == 3
    assert result.plan["achieved"]["sparsity"] == 0.75
    assert "sparsity 0.75" in str(result)


def test_a_network_without_masks_is_refused():
    hard = harden(sparsify(load_network("digits/mlp"), 0.5)).network
    for network in (nn.Linear(3, 4), load_network("digits/mlp"), hard):
        with pytest.raises(ValueError, match="has no masks: make it with sparsify"):
            harden(network)


def test_channels_are_hardened_on_the_example_that_they_were_masked_with():
    """What is guessed of this network is an image of 28 x 28, which it doesn't take."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)).eval()
    images = torch.randn(2, 1, 8, 8)
    sparse = sparsify(network, 0.5, "filter", example=images)
    for own in (sparse, copy.deepcopy(sparse)):
        result = harden(own)
        assert result.layers["channels_after"].tolist() == [3, 3]
        assert torch.allclose(result.network(images), sparse(images), atol=1e-6)
    assert harden(sparse, images[:1]).plan["achieved"] == result.plan["achieved"]


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_logits_that_are_no_numbers_are_refused_by_name(value):
    sparse = sparsify(load_network("digits/mlp"), 0.25)
    with torch.no_grad():
        sparse.dpp.masks["hidden.1.linear"].logits[0, 0] = value
    with pytest.raises(FloatingPointError, match=r"the mask of hidden\.1\.linear are NaN or inf"):
        harden(sparse)
    for training in (True, False):
        with pytest.raises(FloatingPointError, match="the logits of a mask are NaN or inf"):
            sparse.train(training)(torch.zeros(2, 1, 8, 8))
