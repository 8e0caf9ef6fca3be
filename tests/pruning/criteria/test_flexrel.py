"""FlexRel: at one end magnitude, at the other relevance, between them their mixture; labels have no part in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Net
from torch import nn

from redlab.network.layers import copy_network
from redlab.pruning.channels import prune_channels
from redlab.pruning.relevance import BACKENDS, layer_relevance
from redlab.pruning.scores import score_channels, score_weights
from redlab.pruning.subject import Subject
from redlab.pruning.weights import prune_weights
from redlab.zoo.datasets import load_dataset
from redlab.zoo.saving import load_network


@pytest.fixture(scope="module")
def network():
    return load_network("digits/resnet")


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits", "train", limit=40)


def to_unit(values):
    return (values - values.min()) / (values.max() - values.min())


def order(values):
    return np.argsort(values, axis=None, kind="stable").tolist()


@pytest.mark.parametrize("folded", [False, True])
def test_without_relevance_a_layers_weights_have_the_order_of_their_magnitudes(network, dataset, folded):
    found = score_weights(network, "flexrel", dataset, delta=0, folded=folded)
    wanted = score_weights(network, "magnitude", folded=folded)
    assert found.values.keys() == wanted.values.keys()
    for name, values in wanted.values.items():
        assert order(found.values[name]) == order(values)
        np.testing.assert_allclose(found.values[name], to_unit(values), atol=1e-15)


@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_without_relevance_each_layer_loses_what_magnitude_takes(network, dataset, ratio):
    scores = [score_weights(network, "flexrel", dataset, delta=0), score_weights(network, "magnitude")]
    ours, theirs = (prune_weights(network, each, ratio, "layer").network for each in scores)
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))
    mixed = prune_weights(network, score_weights(network, "flexrel", dataset, delta=0.5), ratio, "layer").network
    assert not torch.equal(mixed.conv1.weight, theirs.conv1.weight)


def test_without_relevance_channels_of_one_layer_have_the_order_of_their_norms(network, dataset):
    found = score_channels(network, "flexrel", dataset, delta=0)
    wanted = score_channels(network, "magnitude", p=1)
    alone = [group.name for group in found.groups if sum(m.tensor.endswith("conv1.weight") for m in group.producers)]
    inner = [name for name in alone if "layer" in name]
    assert len(inner) == 3
    for name in inner:
        assert order(found.values[name]) == order(wanted.values[name])


@pytest.mark.parametrize("relevance", BACKENDS)
def test_with_relevance_alone_a_score_is_the_weights_relevance(network, dataset, relevance):
    found = score_weights(network, "flexrel", dataset, delta=1, relevance=relevance)
    subject = Subject(copy_network(network).requires_grad_(), dataset)
    wanted = layer_relevance(subject, relevance)
    for tensor, layer in subject.layers.items():
        own = to_unit(wanted[tensor].of_weights().numpy())
        np.testing.assert_allclose(found.values[layer.name], own, atol=1e-12)


@pytest.mark.parametrize("relevance", BACKENDS)
def test_between_the_ends_scores_are_their_mixture(network, dataset, relevance):
    ends = [score_weights(network, "flexrel", dataset, delta=d, relevance=relevance).values for d in (0, 1)]
    found = score_weights(network, "flexrel", dataset, delta=0.3, relevance=relevance).values
    for name, values in found.items():
        np.testing.assert_allclose(values, 0.7 * ends[0][name] + 0.3 * ends[1][name], atol=1e-12)


@pytest.mark.parametrize("delta", [0, 1])
def test_each_layers_scores_reach_from_zero_to_one(network, dataset, delta):
    for values in score_weights(network, "flexrel", dataset, delta=delta).values.values():
        assert (values.min(), values.max()) == (0, 1)


def test_the_two_kinds_of_relevance_and_epsilon_make_a_difference(network, dataset):
    options = [{}, {"relevance": "gradient"}, {"epsilon": 0.5}]
    first = [score_weights(network, "flexrel", dataset, **each).values["conv1"] for each in options]
    assert all(np.abs(first[0] - other).max() > 0.01 for other in first[1:])


@pytest.mark.slow
@pytest.mark.parametrize("relevance", BACKENDS)
def test_the_chunk_is_memory_only(network, dataset, relevance):
    for score in (score_weights, score_channels):
        found = [score(network, "flexrel", dataset, relevance=relevance, chunk=chunk).values for chunk in (7, 40)]
        for name, values in found[0].items():
            np.testing.assert_allclose(values, found[1][name], atol=1e-5)


def test_labels_have_no_part_in_it(network, dataset):
    unlabelled = [(image, -1) for image, _ in dataset]
    for score in (score_weights, score_channels):
        found, other = (score(network, "flexrel", images).values for images in (dataset, unlabelled))
        assert all(np.array_equal(values, other[name]) for name, values in found.items())
    fewer = score_weights(network, "flexrel", dataset.take(np.arange(20))).values["conv1"]
    assert not np.allclose(score_weights(network, "flexrel", dataset).values["conv1"], fewer)


def test_a_channels_score_is_the_mean_of_its_weights(network, dataset):
    weights = score_weights(network, "flexrel", dataset).values
    channels = score_channels(network, "flexrel", dataset)
    rows = {f"{name}.weight": values.reshape(len(values), -1).mean(1) for name, values in weights.items()}
    np.testing.assert_allclose(channels.values["layer1.0.conv1"], rows["layer1.0.conv1.weight"])
    # The residual stream, whose layers count alike, whatever their number of weights.
    stream = next(group for group in channels.groups if group.name == "conv1")
    own = [rows[m.tensor][m.index[:, 0]] for m in stream.producers if m.tensor in rows]
    assert len(own) == 4
    np.testing.assert_allclose(channels.values["conv1"], np.mean(own, 0))
    first = score_channels(network, "flexrel", dataset, reduction="first").values
    np.testing.assert_allclose(first["conv1"], rows["conv1.weight"])


def test_channels_of_transposed_layers_are_averaged_too():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(4 * 81, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    dataset = [(image, 0) for image in torch.randn(5, 2, 8, 8)]
    weights = score_weights(network, "flexrel", dataset, example=torch.randn(1, 2, 8, 8)).values
    channels = score_channels(network, "flexrel", dataset, example=torch.randn(1, 2, 8, 8)).values
    np.testing.assert_allclose(channels["0"], weights["0"].mean((1, 2, 3)))
    np.testing.assert_allclose(channels["2"], weights["2"].mean((0, 2, 3)))
    assert len(channels["2"]) == 4


def test_a_channel_of_several_rows_has_the_mean_of_all_of_them():
    torch.manual_seed(0)
    network = Net(lambda s, x: s.last(torch.relu(sum(s.first(x).chunk(2, 1)))), first=nn.Linear(4, 10))
    network.last = nn.Linear(5, 3)
    dataset = [(image, 0) for image in torch.randn(20, 4)]
    weights = score_weights(network, "flexrel", dataset).values["first"]
    channels = score_channels(network, "flexrel", dataset).values["first"]
    np.testing.assert_allclose(channels, weights.reshape(2, 5, 4).mean((0, 2)))


def test_a_layer_that_no_relevance_reaches_is_scored_by_magnitude():
    torch.manual_seed(0)

    def forward(self, x):
        x = self.first(x)
        return self.last(x * torch.sigmoid(self.gate(x)))

    network = Net(forward, first=nn.Linear(4, 6), gate=nn.Linear(6, 6), last=nn.Linear(6, 3), never=nn.Linear(5, 5))
    dataset = [(image, 0) for image in torch.randn(20, 4)]
    mixed, alone = (score_weights(network, "flexrel", dataset, delta=delta).values for delta in (0.8, 0))
    same = {name: np.array_equal(values, alone[name]) for name, values in mixed.items()}
    assert same == {"first": False, "gate": True, "last": False, "never": True}
    by_slope = score_weights(network, "flexrel", dataset, delta=0.8, relevance="gradient").values
    assert not np.array_equal(by_slope["gate"], alone["gate"])  # a slope passes a gate


def test_equal_magnitudes_count_as_much_as_the_greatest_and_zeros_as_the_least():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    nn.init.constant_(network[0].weight, -0.5)
    nn.init.zeros_(network[2].weight)
    scores = score_weights(network, "flexrel", [(torch.ones(4), 0)], delta=0).values
    assert (scores["0"] == 1).all()
    assert (scores["2"] == 0).all()
    assert sorted(scores["4"].flat)[::3] == [0, 1]


def test_channels_are_pruned_by_it_and_the_plan_says_how(network, dataset):
    scores = score_channels(network, "flexrel", dataset, delta=0.25, relevance="gradient")
    result = prune_channels(network, scores, products=0.7)
    assert 0.5 < result.plan["achieved"]["products"] <= 0.7
    asked = {"criterion": "flexrel", "delta": 0.25, "relevance": "gradient"}
    assert asked.items() <= result.plan["options"].items()
    assert result.network(dataset[0][0][None]).isfinite().all()


def test_the_network_is_left_as_it_was(network, dataset):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    score_weights(network, "flexrel", dataset)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


BAD = [
    *(({"delta": delta}, "delta must lie in") for delta in (-0.1, 1.1, np.nan)),
    *(({"epsilon": epsilon}, "epsilon must be positive") for epsilon in (0, -1e-6, np.nan, np.inf)),
    ({"relevance": "saliency"}, "relevance must be one of lrp, gradient, not 'saliency'"),
    ({"delta": 0, "relevance": "saliency"}, "relevance must be one of"),
    ({"chunk": 0}, "at least 1"),
    ({"detla": 0.5}, "takes no option 'detla'. Did you mean 'delta'"),
]


@pytest.mark.parametrize("score", [score_weights, score_channels])
@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options_are_refused(network, dataset, score, options, message):
    with pytest.raises(ValueError, match=message):
        score(network, "flexrel", dataset, **options)


@pytest.mark.parametrize("score", [score_weights, score_channels])
def test_images_are_needed(network, score):
    with pytest.raises(ValueError, match="flexrel needs images"):
        score(network, "flexrel")
