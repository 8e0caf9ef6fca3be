"""Redundancy: the heights of the dendrogram that RED cuts, and who takes over from whom."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import copy_channel, made, mlp
from torch import nn

from redlab import fold_batchnorm, load_network, merge_neurons, prune_channels, score_channels
from redlab.compression.similarity import LINKAGES, dendrogram
from redlab.pruning.criteria.redundancy import joining_heights


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def line(*places):
    """A network whose neurons are points on a line."""
    network = mlp(1, len(places), 2)
    with torch.no_grad():
        network[0].weight[:, 0] = torch.tensor(places)
        network[0].bias.zero_()
    return network


def scores_of(network, **options):
    return score_channels(network, "redundancy", example=torch.randn(1, 1), relative=False, **options)


@pytest.mark.parametrize(("linkage", "heights"), [("complete", [10, 1, 2.5, 0, 0.5]), ("single", [7.5, 1, 1, 0, 0.5])])
def test_a_channel_scores_the_height_at_which_it_joins_an_earlier_one(linkage, heights):
    scores = scores_of(line(1, 10, 0, 2.5, 10, 2), linkage=linkage)
    assert scores.heirs["0"].tolist() == [-1, 0, 0, 0, 1, 3]
    np.testing.assert_allclose(scores.values["0"][1:], heights, atol=1e-7)
    assert scores.values["0"][0] > max(heights)


def test_all_but_one_of_identical_channels_score_nothing():
    network, images = made("grouped")
    groups = [group for group in score_channels(network, "random", example=images[:1]).groups if not group.frozen]
    for group in groups:
        for twin in (3, 6, 7):
            copy_channel(network, group, 2, twin)
    scores = score_channels(network, "redundancy", example=images[:1])
    for group in groups:
        assert np.flatnonzero(scores.values[group.name] == 0).tolist() == [3, 6, 7]
        assert scores.heirs[group.name][[3, 6, 7]].tolist() == [2, 2, 2]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=25), st.sampled_from(LINKAGES))
def test_no_heir_scores_less_and_all_lines_end_at_the_first_channel(points, linkage):
    heights, heirs = joining_heights(dendrogram(np.array(points, np.float32), linkage))
    for channel in range(1, len(points)):
        assert heirs[channel] < channel
        assert heights[heirs[channel]] >= heights[channel]
    assert heirs[0] == -1
    assert (heights[0] > heights[1:]).all()


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("name", ["digits/mlp", "digits/resnet"])
def test_pruning_by_redundancy_is_merging_neurons(name, linkage):
    network = fold_batchnorm(load_network(name)).network
    scores = score_channels(network, "redundancy", linkage=linkage)
    for share in (0.1, 0.5):
        pruned = prune_channels(network, scores, share, scope="layer")
        merged = merge_neurons(network, share, linkage=linkage, dead=False)
        assert pruned.plan["groups"] == {n: w for n, w in merged.plan["groups"].items() if n in pruned.plan["groups"]}
        for name_, tensor in merged.network.state_dict().items():
            torch.testing.assert_close(pruned.network.state_dict()[name_], tensor)


def test_relative_heights_do_not_depend_on_the_scale_of_a_group():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    before = score_channels(network, "redundancy", example=torch.randn(1, 4)).values
    with torch.no_grad():
        network[0].weight *= 100
        network[0].bias *= 100
    after = score_channels(network, "redundancy", example=torch.randn(1, 4)).values
    for name in ("0", "2"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-5)
    absolute = score_channels(network, "redundancy", relative=False, example=torch.randn(1, 4)).values
    assert absolute["0"].min() > 10 * absolute["2"].max()
