"""Pruning of weights: PyTorch's own masks, exactly as many as asked for, in a network as large as before."""

import copy
import json

import numpy as np
import pytest
import torch
from nets import labelled, mlp
from torch import nn
from torch.nn.utils import prune

from redlab import load_dataset, load_network, prune_weights, save_network, score_channels, score_weights, weight_layers
from redlab.network.training import train
from redlab.options import count_of
from redlab.pruning.weights import hold_zeros

RATIOS = [0, 0.1, 0.29, 0.5, 0.999, 1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def scores():
    """Of digits/resnet."""
    return score_weights(load_network("digits/resnet"), "magnitude")


def weights(network):
    return {layer.name: layer.weight for layer in weight_layers(network)}


def by_torch(network, ratio, scope):
    """The weights as torch.nn.utils.prune leaves them."""
    places = [(layer.module, "weight") for layer in weight_layers(network)]
    if scope == "global":
        count = count_of(ratio, sum(module.weight.numel() for module, _ in places))
        prune.global_unstructured(places, prune.L1Unstructured, amount=count)
    else:
        for module, name in places:
            prune.l1_unstructured(module, name, count_of(ratio, module.weight.numel()))
    return weights(network)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_pytorch_prunes_the_same_weights(ratio, scope, scores):
    ours = weights(prune_weights(load_network("digits/resnet"), scores, ratio, scope).network)
    theirs = by_torch(load_network("digits/resnet"), ratio, scope)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_of_equal_weights_exactly_the_share_goes_and_the_first_ones(ratio, scope):
    network = mlp(5, 7, 3)
    for weight in weights(network).values():
        nn.init.ones_(weight)
    result = prune_weights(network, score_weights(network, "magnitude"), ratio, scope)
    zeros = [np.flatnonzero(weight.detach() == 0).tolist() for weight in weights(result.network).values()]
    first = count_of(ratio, 56)
    wanted = [count_of(ratio, 35), count_of(ratio, 21)] if scope == "layer" else [min(first, 35), max(first - 35, 0)]
    assert zeros == [list(range(count)) for count in wanted]
    assert result.layers["zeros"].tolist() == wanted
    assert result.plan["achieved"]["ratio"] == pytest.approx(sum(wanted) / 56, abs=1e-6)


def test_the_table_tells_what_was_done():
    network = mlp(5, 7, 3)
    result = prune_weights(network, score_weights(network, "magnitude"), 0.4, "layer")
    layers = result.layers
    for (name, old), new in zip(weights(network).items(), weights(result.network).values(), strict=True):
        row = layers.set_index("layer").loc[name]
        assert row["error"] == pytest.approx(float((new - old).detach().norm() / old.detach().norm()))
        assert (row["weights"], row["parameters_before"]) == (old.numel(), old.numel())
        assert row["parameters_after"] == old.numel() - row["zeros"] == int((new != 0).sum())
        assert row["distinct"] == len(new.unique())
    assert not layers.isna().any(axis=None)
    assert str(result).startswith(
        "prune_weights(criterion='magnitude', ratio=0.4, scope='layer') reached ratio 0.392857"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_all_other_values_stay(dtype):
    network = load_network("digits/mlp").to(dtype)
    pruned = prune_weights(network, score_weights(network, "magnitude"), 0.5).network
    for name, old in network.state_dict().items():
        new = pruned.state_dict()[name]
        assert new.dtype == old.dtype
        assert torch.equal(new, old) or torch.equal(new[new != 0], old[new != 0])
    assert sum(int((weight == 0).sum()) for weight in weights(pruned).values()) == 50_432 // 2


def test_strides_do_not_matter(scores):
    network = load_network("digits/resnet")
    wanted = weights(prune_weights(network, scores, 0.3).network)
    turned = prune_weights(network.to(memory_format=torch.channels_last), scores, 0.3).network
    assert turned.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(wanted[name], weight) for name, weight in weights(turned).items())


def test_shared_weights_are_pruned_once_and_stay_shared():
    network = mlp(4, 4, 4, 2)
    network[2].weight = network[0].weight
    result = prune_weights(network, score_weights(network, "magnitude"), 0.5)
    assert result.network[2].weight is result.network[0].weight
    assert int((result.network[0].weight == 0).sum() + (result.network[4].weight == 0).sum()) == 12
    assert result.layers["skipped"].tolist() == ["", "shares its weight with 0", ""]


def test_the_network_is_left_as_it_was_and_the_new_one_learns():
    network = load_network("digits/mlp").train()
    scores = score_weights(network, "taylor", labelled(torch.randn(1, 1, 8, 8), classes=10))
    before = copy.deepcopy(network.state_dict())
    with torch.inference_mode():
        pruned = prune_weights(network, scores, 0.5).network
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert pruned.training
    pruned(torch.randn(4, 1, 8, 8)).sum().backward()
    assert pruned.classifier.weight.grad is not None


def test_a_pruned_network_is_saved_and_comes_back(tmp_path, scores):
    result = prune_weights(load_network("digits/resnet"), scores, 0.8)
    save_network(result, tmp_path / "sparse")
    images = torch.randn(4, 1, 8, 8)
    back = load_network(tmp_path / "sparse")
    assert torch.equal(back(images), result.network(images))
    assert [step["step"] for step in back.redlab.steps] == ["prune_weights"]
    assert json.loads(json.dumps(result.plan)) == result.plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, r"ratio must lie in \[0, 1\]"),
        ({"ratio": float("nan")}, "ratio must lie in"),
        ({"ratio": 0.5, "scope": "local"}, "global, layer, not 'local'"),
    ],
)
def test_requests_out_of_range_are_refused(options, message, scores):
    with pytest.raises(ValueError, match=message):
        prune_weights(load_network("digits/resnet"), scores, **options)


def test_scores_of_channels_or_of_another_network_are_refused(scores):
    network = load_network("digits/mlp")
    with pytest.raises(ValueError, match="scores of channels, not of weights: score_weights"):
        prune_weights(network, score_channels(network, "magnitude"), 0.5)
    with pytest.raises(ValueError, match="the scores are of another network: conv1 is None"):
        prune_weights(network, scores, 0.5)
    with pytest.raises(ValueError, match=r"0 is \(4, 3\), not \(5, 3\)"):
        prune_weights(mlp(3, 4), score_weights(mlp(3, 5), "random"), 0.5)


def test_a_network_without_weights_has_none_to_lose():
    result = prune_weights(nn.ReLU(), score_weights(nn.ReLU(), "random"), 0.5)
    assert "0 layers" in str(result)


def test_zeros_are_held_while_the_rest_is_trained():
    pruned = prune_weights(
        load_network("digits/mlp"), score_weights(load_network("digits/mlp"), "magnitude"), 0.8
    ).network
    hold = hold_zeros(pruned)
    zeros = {name: weight == 0 for name, weight in weights(pruned).items()}
    seen = []

    def watch(network, number):
        hold(network, number)
        seen.append(all((weight[zeros[name]] == 0).all() for name, weight in weights(network).items()))

    trained = train(pruned, load_dataset("digits", "train", limit=128), 1, on_batch=watch).network
    assert seen == [True, True]
    grown = sum(int((weight[zeros[name]] != 0).sum()) for name, weight in weights(trained).items())
    assert grown > 0, "the last minibatch has filled them"
    hold(trained)
    for name, weight in weights(trained).items():
        assert torch.equal(weight == 0, zeros[name])
        assert not torch.equal(weight, weights(pruned)[name])
