"""Whatever wrong thing an explorer is asked for, it says what was wrong and what it can be."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from redlab import (
    Result,
    browse_filters,
    browse_masks,
    compare_runs,
    explore_density,
    explore_hashing,
    explore_merging,
    explore_splitting,
    load_network,
)

EXPLORERS = (explore_density, explore_hashing, explore_merging, explore_splitting, browse_filters)
NAME = "digits/resnet"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "layer1.0.conv2",
            r"merge with those of conv1, after which the group is called\. It can be conv1, ",
        ),
        ("linear", r"its filters stay \(network output\)\. It can be conv1, "),
        ("layer1.0.conv3", r"Did you mean 'layer1\.0\.conv1'\? It can be conv1, "),
        ("layer1.0.bn1", "layer3.0.conv2$"),
        (3, "layer cannot be 3"),
    ],
)
def test_a_layer_that_no_group_is_called_after_is_refused_with_its_group(layer, message):
    with pytest.raises(ValueError, match=message):
        explore_merging("digits/resnet", layer)
    with pytest.raises(ValueError, match=message):
        explore_merging("digits/resnet").figure(layer=layer)


@pytest.mark.parametrize("explore", EXPLORERS)
@pytest.mark.parametrize(
    ("network", "kind", "message"),
    [
        (None, TypeError, "must be a name, the folder of a saved one, or an nn.Module, not None"),
        (3, TypeError, "not 3"),
        (nn.Linear, TypeError, "not the class Linear: pass an object of it"),
        (Result(nn.Linear(2, 2), pd.DataFrame()), TypeError, "not a Result: pass its .network"),
        ("digits/mlpp", ValueError, "Did you mean 'digits/mlp'"),
        (Path("nowhere"), ValueError, "unknown network 'nowhere'"),
        (nn.Sequential(nn.ReLU()), ValueError, r"no conv or linear layer to look at \(it has none\)"),
        (nn.Sequential(nn.BatchNorm2d(3)), ValueError, "no conv or linear layer to look at"),
        (nn.Sequential(nn.LazyLinear(3)), ValueError, r"to look at \(0: its weight has no shape yet"),
    ],
)
def test_what_is_no_network_to_look_at_is_refused(explore, network, kind, message):
    with pytest.raises(kind, match=message):
        explore(network)


@pytest.mark.parametrize("explore", EXPLORERS)
@pytest.mark.parametrize("bandwidth", ["silvermann", "silverman/0", 0, -1.0, float("nan"), None, [0.1], True])
def test_a_wrong_bandwidth_is_refused_when_it_is_given(explore, bandwidth):
    with pytest.raises(ValueError if isinstance(bandwidth, str | int | float) and bandwidth is not True else TypeError):
        explore(NAME, bandwidth=bandwidth)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explore_density(NAME, contrast=1.0), r"contrast must lie in \[0, 1\), not be 1"),
        (lambda: explore_density(NAME, contrast="x"), "contrast must be a number"),
        (lambda: explore_merging(NAME, alpha=float("nan")), r"alpha must lie in \[0, 1\), not be nan"),
        (lambda: explore_merging(NAME, alpha=None), "alpha must be a number"),
        (lambda: browse_filters(NAME, alpha=-0.1), r"alpha must lie in \[0, 1\)"),
        (lambda: browse_filters(NAME, linkage="ward"), "linkage must be one of complete, single"),
        (lambda: explore_merging(NAME, hashed="yes"), r"It can be False \(as trained\), True \(hashed first"),
        (lambda: explore_splitting("digits/mlp", channel=999), r"It can be 0, 1, .*, \.\.\., 255$"),
        (lambda: explore_merging(nn.Sequential(nn.Linear(4, 3))), r"may merge \(0: network output\)"),
        (lambda: compare_runs(3), "folder must be the path of one that holds runs, not 3"),
        (lambda: compare_runs(__file__).figure(), "test_explorer_errors.py is no folder"),
        (lambda: browse_masks(None), "must come from train_masks, or be logits by layer, not NoneType"),
        (lambda: browse_masks({"a": torch.zeros(3, 4)}, k=1), r"of \(epochs \+ 1, rows, n\), not \(3, 4\)"),
        (lambda: browse_masks({"a": torch.zeros(0, 3, 4)}, k=1), r"not \(0, 3, 4\)"),
        (lambda: browse_masks({"a": [[0.0]]}, k=1), "not list"),
        (lambda: browse_masks({"a": torch.zeros(1, 3, 4)}, k="1"), "k must lie in 1 ... 4 for a, not be '1'"),
        (lambda: browse_masks({"a": torch.zeros(1, 3, 4)}, k={"b": 1}), "for a, not be None"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_it_can_be(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_network_of_your_own_is_measured_on_the_images_of_its_recipe():
    explorer = explore_density(load_network("digits/mlp"), "classifier", limit=20)
    assert "of 20 test images" in explorer.measure(**explorer.values)
