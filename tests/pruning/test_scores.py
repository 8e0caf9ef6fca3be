"""Scores: numbers all of them, on one scale where asked, as a table."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from redlab import Scores, hash_network, load_network, prune_channels, prune_weights, score_channels, score_weights
from redlab.pruning.scores import NORMS
from redlab.pruning.subject import turn


def scores(of="channels", **values):
    return Scores("mine", {}, of, {name: np.array(own, float) for name, own in values.items()})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("of", "where"), [("channels", "group"), ("weights", "layer")])
def test_a_number_that_is_none_is_refused_with_its_place(bad, of, where):
    with pytest.raises(ValueError, match=f"mine: NaN or inf among the scores of {where} 'second'"):
        scores(of, first=[1, 2], second=[1, bad])


def test_scores_are_as_many_as_there_are_numbers():
    assert len(scores(a=[1, 2, 3], b=[[1, 2], [3, 4]])) == 7
    assert len(scores()) == 0


def test_scores_of_weights_are_no_scores_of_channels():
    scores("weights").check_of("weights")
    with pytest.raises(ValueError, match="scores of weights, not of channels: score_channels makes those"):
        scores("weights").check_of("channels")


@pytest.mark.parametrize("by", NORMS)
def test_a_scale_changes_no_order_and_no_ties(by):
    values = np.random.default_rng(0).integers(0, 9, 40)
    found = scores(a=values, b=7 * values).normalised(by).values
    np.testing.assert_array_equal(np.argsort(found["a"], kind="stable"), np.argsort(values, kind="stable"))
    np.testing.assert_allclose(found["a"], found["b"], rtol=1e-15)  # what it is for: groups of other scales


def test_scales_are_what_they_say():
    own = scores(a=[-1, 1, 4])
    np.testing.assert_allclose(own.normalised().values["a"], [-0.5, 0.5, 2])
    np.testing.assert_allclose(own.normalised("max").values["a"], [-0.25, 0.25, 1])
    np.testing.assert_allclose(own.normalised("rank").values["a"], [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(scores(a=[[2, 1], [1, 0]]).normalised("rank").values["a"], [[1, 0.5], [0.75, 0.25]])
    assert own.values["a"].tolist() == [-1, 1, 4]


@pytest.mark.parametrize("by", ["mean", "max"])
def test_groups_of_zeros_stay_zero(by):
    assert scores(a=[0, 0]).normalised(by).values["a"].tolist() == [0, 0]


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="mean, max, rank, not 'sum'"):
        scores(a=[1]).normalised("sum")


def test_the_table_has_a_row_a_channel_or_a_weight():
    frame = scores(a=[5, 6], b=[7]).frame()
    wanted = pd.DataFrame({"group": ["a", "a", "b"], "channel": [0, 1, 0], "score": [5.0, 6, 7]})
    pd.testing.assert_frame_equal(frame, wanted)
    frame = scores("weights", a=[[5, 6], [7, 8]]).frame()
    assert frame["weight"].tolist() == [0, 1, 2, 3]
    assert frame.columns.tolist() == ["layer", "weight", "score"]
    assert scores().frame().empty


def test_what_goes_later_scores_more_whatever_it_costs():
    costs, last, found = [0, 0, 5, 2, 2, 7], 0.0, []
    for cost in costs:
        found.append(last := turn(cost, last))
    assert found[:2] == [0, 0]
    assert found[1:] == sorted(set(found[1:]))
    np.testing.assert_allclose(found, np.maximum.accumulate(costs), rtol=1e-9)


def test_scores_print_in_five_lines_and_show_a_table_a_row_a_group():
    network = load_network("digits/resnet")
    for made in (score_channels(network, "redundancy"), score_weights(network, "magnitude", folded=True)):
        text, lines = str(made), str(made).splitlines()
        assert len(lines) <= 5
        assert text == repr(made)
        assert lines[0].startswith(f"{made.criterion}(")
        assert f"{len(made):,} {made.of} of {len(made.values)}" in lines[0]
        every = np.concatenate([own.ravel() for own in made.values.values()])
        assert lines[1] == f"scores: {every.min():.4g} to {every.max():.4g}, median {np.median(every):.4g}"
        html = made._repr_html_()
        assert html.count("<tr") == 1 + len(made.values)
        assert all(f"<td>{name}</td>" in html for name in made.values)
    assert str(score_channels(network, "magnitude")).splitlines()[-1] == "1 without: linear (network output)"
    assert "0 channels" in str(scores())


def other_weights(network):
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    return other


def test_scores_of_another_network_of_the_same_layers_are_refused():
    network = load_network("digits/mlp")
    channels, weights = score_channels(network, "magnitude"), score_weights(network, "magnitude")
    for other in (load_network("digits/mlp", weights=None), other_weights(network), hash_network(network).network):
        with pytest.raises(ValueError, match="the scores are of another network: its layers are the same"):
            prune_channels(other, channels, 0.5)
        with pytest.raises(ValueError, match="the scores are of another network: its layers are the same"):
            prune_weights(other, weights, 0.5)
        plan = prune_channels(other, replace(channels, network=""), 0.5).plan
        assert plan["groups"] == prune_channels(network, channels, 0.5).plan["groups"]


def test_what_changes_no_weight_keeps_the_scores():
    network = load_network("digits/mlp")
    channels, weights = score_channels(network, "magnitude"), score_weights(network, "magnitude")
    copied = copy.deepcopy(network).requires_grad_(False).train()
    prune_channels(copied, channels.normalised("rank"), 0.5)
    prune_weights(copied, weights, 0.5)
