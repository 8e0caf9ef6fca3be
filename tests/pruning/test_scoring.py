"""Scoring: what is asked is checked, what is scored is left as it was, whatever the caller's mode."""

import copy

import numpy as np
import pytest
import torch
from nets import flat, grouped, labelled, mlp
from torch import nn
from torch.nn.utils import parametrizations, prune

from redlab import load_dataset, load_network, score_channels, score_weights
from redlab.channels.coupling import couple
from redlab.pruning.criteria.registry import CRITERIA

each_criterion = pytest.mark.parametrize("criterion", CRITERIA)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits", limit=20)


def scorers(criterion):
    """The functions that can ask it."""
    both = {"channels": score_channels, "weights": score_weights}
    return [score for of, score in both.items() if getattr(CRITERIA[criterion], of)]


def state(network):
    """All that could have been changed, as plain data."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}.items()
    values = {name: (t.tolist(), t.requires_grad, None if t.grad is None else t.grad.tolist()) for name, t in tensors}
    modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
    return values, modules, network.redlab


def in_any_mode():
    """A network as a caller may hand it over: training in part, with gradients, and with some switched off."""
    network = load_network("digits/mlp").train()
    network.hidden[0].eval()
    network(torch.randn(4, 1, 8, 8)).sum().backward()
    network.classifier.weight.requires_grad_(False)
    return network


@each_criterion
def test_the_network_and_the_random_state_are_left_as_they_were(criterion, dataset):
    network = in_any_mode()
    before, draws = state(network), torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    for score in scorers(criterion):
        score(network, criterion, dataset)
    assert state(network) == before
    assert torch.equal(draws, torch.get_rng_state())
    np.testing.assert_array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002


@each_criterion
def test_the_callers_mode_and_the_networks_change_no_score(criterion, dataset):
    network = in_any_mode()
    for score in scorers(criterion):
        wanted = score(copy.deepcopy(network).requires_grad_().eval(), criterion, dataset).values
        for mode in (torch.inference_mode, torch.no_grad):
            with mode():
                found = score(network, criterion, dataset).values
            assert found.keys() == wanted.keys()
            assert all(np.allclose(found[name], values, rtol=1e-6, atol=0) for name, values in wanted.items())


@each_criterion
def test_every_group_has_scores_or_a_reason(criterion):
    network, example = grouped(), torch.randn(1, 3, 8, 8)
    scores = score_channels(network, criterion, labelled(example), example=example)
    groups = {group.name: group for group in couple(network, example)}
    assert scores.values.keys() | scores.skipped.keys() == groups.keys()
    assert not scores.values.keys() & scores.skipped.keys()
    assert scores.skipped["head"] == "network output"
    assert all(values.shape == (groups[name].size,) for name, values in scores.values.items())
    assert len(scores.values) == 3


@pytest.mark.parametrize("criterion", [name for name, own in CRITERIA.items() if own.weights])
def test_every_layer_has_scores_or_a_reason(criterion):
    network = mlp(4, 5, 5, 3).float()
    network[2] = parametrizations.weight_norm(network[2])
    scores = score_weights(network, criterion, labelled(torch.randn(1, 4), classes=3))
    assert {name: values.shape for name, values in scores.values.items()} == {"0": (5, 4), "4": (3, 5)}
    assert scores.skipped.keys() == {"2"}
    assert "parametrized" in scores.skipped["2"]


@pytest.mark.parametrize("criterion", [name for name, own in CRITERIA.items() if not own.data])
def test_what_needs_no_data_looks_at_none(criterion):
    network = load_network("digits/mlp")
    for score in scorers(criterion):
        wanted, found = score(network, criterion), score(network, criterion, object())
        assert all(np.array_equal(found.values[name], values) for name, values in wanted.values.items())


@pytest.mark.parametrize("criterion", [name for name, own in CRITERIA.items() if own.data])
@pytest.mark.parametrize("nothing", [None, []])
def test_what_needs_data_says_so(criterion, nothing):
    with pytest.raises(ValueError, match=f"{criterion} needs images"):
        score_channels(load_network("digits/mlp"), criterion, nothing)


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        ("magnitud", {}, "'magnitud' is no criterion for channels. Did you mean 'magnitude'?.* Known: random"),
        ("magnitude", {"q": 2}, "magnitude takes no option 'q'.* It takes p, folded, reduction"),
        ("magnitude", {"reductions": "sum"}, "Did you mean 'reduction'?"),
        ("magnitude", {"subject": 1}, "no option 'subject'"),
        ("magnitude", {"p": 0}, "p must be positive"),
        ("magnitude", {"p": float("inf")}, "p must be positive and finite"),
        ("magnitude", {"reduction": "median"}, "mean, sum, max, first, not 'median'"),
        ("redundancy", {"linkage": "ward"}, "complete, single"),
        ("taylor", {"form": "weights"}, "gate, joint, independent"),
        ("taylor", {"order": 3}, "1, 2, not 3"),
        ("taylor", {"skip_fix": "sum"}, "producers, mean, official, none"),
        ("taylor", {"form": "joint", "order": 2}, "second order"),
        ("taylor", {"skip_fix": "none", "order": 2}, "second order"),
        ("taylor", {"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ("taylor", {"batch_size": 2.5, "form": "joint"}, "batch_size must be a whole number"),
        ("taylor", {"chunk": 0}, "whole number of at least 1"),
        ("taylor", {"probes": 1}, "probes must be a whole number of at least 2"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused(criterion, options, message, dataset):
    with pytest.raises(ValueError, match=message):
        score_channels(load_network("digits/mlp"), criterion, dataset, **options)


def test_a_criterion_of_channels_alone_says_what_scores_weights():
    with pytest.raises(ValueError, match=r"'redundancy' does not score weights.* Known: random, magnitude"):
        score_weights(load_network("digits/mlp"), "redundancy")
    with pytest.raises(ValueError, match="no option 'p'"):
        score_weights(load_network("digits/mlp"), "magnitude", p=2)


@pytest.mark.parametrize("score", [score_channels, score_weights])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_with_its_layer(score, bad):
    network = load_network("digits/mlp")
    network.classifier.weight.data[3, 4] = bad
    with pytest.raises(ValueError, match="layer classifier: NaN or inf among its weights"):
        score(network, "random")


def test_lazy_layers_have_no_weights_to_score_and_cannot_be_traced():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LazyLinear(2))
    scores = score_weights(network, "magnitude")
    assert scores.values.keys() == {"0"}
    assert "lazy" in scores.skipped["2"]
    with pytest.raises(ValueError, match="cannot be traced"):
        score_channels(network, "magnitude", example=torch.randn(1, 3))


def test_weights_that_hooks_compute_are_skipped_and_prepare_is_named():
    network = mlp(3, 4, 2)
    prune.l1_unstructured(network[0], "weight", 0.5)
    scores = score_weights(network, "magnitude")
    assert scores.values.keys() == {"2"}
    assert "prepare(network, fold=False)" in scores.skipped["0"]


def test_shared_weights_are_scored_once():
    network = mlp(4, 4, 4, 2)
    network[2].weight = network[0].weight
    scores = score_weights(network, "magnitude")
    assert (scores.values.keys(), scores.skipped) == ({"0", "4"}, {"2": "shares its weight with 0"})
    channels = score_channels(network, "magnitude", example=torch.randn(1, 4))
    assert not channels.values
    assert "shares its weight" in channels.skipped["0"]


def test_whole_numbers_among_the_parameters_are_no_hindrance():
    network = flat()
    network.register_parameter("steps", nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False))
    assert (
        len(score_channels(network, "taylor", labelled(torch.randn(1, 3, 4, 4)), example=torch.randn(1, 3, 4, 4))) == 14
    )


def test_scores_keep_what_they_were_asked_for():
    scores = score_channels(load_network("digits/mlp"), "magnitude", p=2, folded=True)
    assert (scores.criterion, scores.options, scores.of) == ("magnitude", {"p": 2, "folded": True}, "channels")


@pytest.mark.parametrize("score", [score_channels, score_weights])
def test_chance_is_the_seeds_alone(score):
    network = load_network("digits/mlp")
    one, same, other = (score(network, "random", seed=seed).frame()["score"] for seed in (1, 1, 2))
    assert one.equals(same)
    assert not one.equals(other)
    assert one.between(0, 1).all()
    assert one.mean() == pytest.approx(0.5, abs=0.1)
