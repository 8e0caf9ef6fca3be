"""The chance level that stands beside what hashing makes of a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from redlab import compare_with_random, hash_network, hash_weights, load_network
from redlab.hashing import chance
from redlab.hashing.chance import Draw, random_counts
from redlab.hashing.rules import Rule


def gaussian(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network_of(*weights: torch.Tensor) -> nn.Module:
    network = nn.Sequential(*(nn.Linear(w.shape[1], w.shape[0]).to(w.dtype) for w in weights))
    for layer, weight in zip(network, weights, strict=True):
        layer.weight = nn.Parameter(weight.clone())
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"max_error": 0.05}, {"rule": "uniform", "levels": 16}, {"bandwidth": 0.01}])
def test_a_gaussian_network_is_as_redundant_as_its_twin(dtype, settings):
    frame = compare_with_random(network_of((0.05 * gaussian(200, 150)).to(dtype)), **settings)
    trained, random = frame["distinct"]
    assert random == pytest.approx(trained, rel=0.15)
    assert frame["distinct_before"].iloc[1] == pytest.approx(frame["distinct_before"].iloc[0], rel=0.02)


def test_a_layer_of_two_clusters_keeps_fewer_values_than_chance():
    weight = torch.sign(gaussian(80, 50)) + 0.01 * gaussian(80, 50, seed=1)
    frame = compare_with_random(network_of(weight))
    assert frame["drawn"].tolist() == ["trained", "random"]
    assert frame["distinct"].iloc[0] < 0.5 * frame["distinct"].iloc[1]


def test_a_layer_that_hashing_leaves_alone_counts_as_it_is():
    frame = compare_with_random(network_of(torch.ones(30, 40), gaussian(50, 30)))
    left = frame[frame["layer"] == "0"]
    assert left["skipped"].tolist() == ["all its weights are equal"] * 2
    assert left["distinct"].tolist() == [1, 1]


def test_the_printed_share_is_that_of_the_frame():
    network = load_network("digits/mlp")
    shares = compare_with_random(network).attrs["share"]
    assert f"random weights of these sizes: {shares['random']:.2%}" in str(hash_network(network)).splitlines()
    assert "random weights" in hash_network(network)._repr_html_()


def test_nothing_is_drawn_before_a_result_is_printed(monkeypatch):
    drawn = []
    monkeypatch.setattr(chance, "random_counts", lambda draw: drawn.append(draw) or (10, 1))
    result = hash_network(load_network("digits/mlp"))
    assert not drawn
    assert "random weights of these sizes: 10.00%" in str(result)
    assert len(drawn) == 3
    assert str(result)
    assert len(drawn) == 3


def test_a_network_without_hashed_layers_has_no_chance_line():
    assert "random" not in str(hash_network(nn.Sequential(nn.ReLU())))


def test_weights_beyond_the_cap_follow_a_power_of_their_number(monkeypatch):
    monkeypatch.setattr(chance, "_MOST", 1 << 14)
    size = 1 << 18
    before, after = random_counts(Draw(size, torch.float32, Rule(contrast=1e-9)))  # no other test's cache
    weights = gaussian(size)
    assert after == pytest.approx(len(hash_weights(weights).codebook), rel=0.15)
    assert before == pytest.approx(len(np.unique(weights.numpy())), rel=0.02)


def test_huge_weights_have_a_twin_at_their_own_bandwidth():
    weight = gaussian(40, 50).double()
    small, huge = (
        compare_with_random(network_of(weight * scale), bandwidth=0.02 * scale)["distinct"].tolist()
        for scale in (1.0, 1e200)
    )
    assert small == pytest.approx(huge, abs=1)
