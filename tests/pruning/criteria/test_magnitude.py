"""Magnitude: the filters that PyTorch keeps, the numbers that torch-pruning gives, reductions as they are called."""

import copy

import numpy as np
import pytest
import torch
import torch_pruning as tp
from nets import grouped, made, mlp
from torch.nn.utils import prune

from redlab import fold_batchnorm, load_network, prune_channels, score_channels, score_weights, weight_layers


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def stands_alone(group):
    """Whether the group is all that one layer makes, and no other layer makes it too."""
    own = [member for member in group.producers if member.tensor.endswith("weight")]
    return len(own) == 2 and own[0].width == group.size  # the layer and its norm


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("name", ["digits/resnet", "digits/mlp"])
def test_pytorch_keeps_the_same_filters_of_layers_that_stand_alone(p, name):
    network = load_network(name)
    scores = score_channels(network, "magnitude", p=p)
    alone = {group.name for group in scores.groups if group.name in scores.values and stands_alone(group)}
    assert len(alone) >= 2
    result = prune_channels(network, scores, 0.4, scope="layer")
    for layer in weight_layers(network):
        if layer.name in alone:
            prune.ln_structured(layer.module, "weight", int(0.4 * len(layer.weight)), n=p, dim=0)
            theirs = layer.module.weight_mask.flatten(1).any(1)
            assert [new >= 0 for new in result.plan["groups"][layer.name]] == theirs.tolist()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(
    ("name", "count"), [("digits/resnet", 3), ("digits/mobilenet", 7), ("digits/mlp", 2), ("concatenated", 3)]
)
def test_torch_pruning_gives_the_same_numbers_where_it_finds_the_same_groups(p, name, count):
    """It takes the zero-padded shortcuts of digits/resnet for something else: there only what stands alone."""
    network, images = made(name)
    scores = score_channels(network, "magnitude", p=p, reduction="first", example=images[:1])
    importance = tp.importance.MagnitudeImportance(p, group_reduction="first", normalizer=None)
    graph = tp.DependencyGraph().build_dependency(copy.deepcopy(network), images[:1])
    compared = [g for g in scores.groups if g.name in scores.values and (stands_alone(g) or name != "digits/resnet")]
    for group in compared:
        layer = graph.model.get_submodule(group.name)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        theirs = importance(graph.get_pruning_group(layer, prune, list(range(group.size))))
        np.testing.assert_allclose(scores.values[group.name] ** p, theirs.numpy(), rtol=1e-5)
    assert len(compared) == count


def rows(network, names, p=1):
    return np.stack(
        [(network.get_submodule(n).weight.detach().double().abs() ** p).flatten(1).sum(1).numpy() for n in names]
    )


def test_reductions_are_over_the_layers_of_a_group_and_before_the_root():
    network, example = grouped(), torch.randn(1, 3, 8, 8)
    wanted = rows(network, ["stem.0", "block.6"], 3)  # both make the residual stream
    for reduction, reduce in {"mean": np.mean, "sum": np.sum, "max": np.max}.items():
        found = score_channels(network, "magnitude", p=3, reduction=reduction, example=example).values["stem.0"]
        np.testing.assert_allclose(found, reduce(wanted, axis=0) ** (1 / 3))
    found = score_channels(network, "magnitude", p=3, reduction="first", example=example).values["stem.0"]
    np.testing.assert_allclose(found, wanted[0] ** (1 / 3))
    one, two = (
        score_channels(network, "magnitude", p=3, example=example, **o).values for o in ({}, {"reduction": "mean"})
    )
    np.testing.assert_array_equal(one["stem.0"], two["stem.0"])


def test_a_channel_of_a_grouped_convolution_is_a_row_of_every_group():
    network, example = grouped(), torch.randn(1, 3, 8, 8)
    found = score_channels(network, "magnitude", reduction="sum", example=example)
    for name in ("block.0", "block.3"):  # what it reads and what it makes: 32 rows, in 4 groups of 8
        np.testing.assert_allclose(found.values[name], rows(network, [name]).reshape(4, 8).sum(0))


def test_folded_weights_are_those_that_the_network_computes_with():
    network = load_network("digits/resnet")
    folded = fold_batchnorm(network).network
    for score in (score_channels, score_weights):
        found, wanted = score(network, "magnitude", folded=True), score(folded, "magnitude")
        plain = score(network, "magnitude")
        assert found.values.keys() == wanted.values.keys()
        for name, values in wanted.values.items():
            np.testing.assert_allclose(found.values[name], values, rtol=1e-6)
        assert not all(np.allclose(plain.values[name], values) for name, values in wanted.values.items())


def test_scores_of_weights_are_their_absolute_values():
    network = mlp(3, 4, 2)
    scores = score_weights(network, "magnitude").values
    for layer in weight_layers(network):
        np.testing.assert_array_equal(scores[layer.name], layer.weight.detach().abs().numpy())


def test_neuron_merging_takes_what_folded_magnitude_takes_and_compensates():
    network = load_network("digits/mlp")
    merging = score_channels(network, "neuron_merging", p=2)
    folded = score_channels(network, "magnitude", p=2, folded=True)
    assert merging.frame().equals(folded.frame())
    for scores, kind in ((merging, "nearest"), (folded, "none")):
        assert prune_channels(network, scores, 0.1).plan["options"]["compensation"] == kind
