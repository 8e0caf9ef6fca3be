"""The explorers say what the functions behind them say."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
import torch
from torch import nn

from redlab import (
    estimate_density,
    evaluate,
    explore_density,
    explore_hashing,
    explore_merging,
    explore_splitting,
    fold_batchnorm,
    hash_network,
    hash_weights,
    load_dataset,
    load_network,
    merge_neurons,
    split_inputs,
    weight_layers,
)
from redlab.compression.units import split_layer
from redlab.lab.explore.panel import Panel
from redlab.network.recipe import Recipe
from redlab.studies.splitting import channel_products

EXPLORERS = (explore_density, explore_hashing, explore_merging, explore_splitting)
NAME, LAYER = "digits/resnet", "layer2.0.conv1"


@pytest.fixture(scope="module")
def folded():
    return fold_batchnorm(load_network(NAME)).network


def weight_of(network, name=LAYER):
    return next(layer.weight.detach() for layer in weight_layers(network) if layer.name == name)


def words(explorer, **changes):
    return explorer.png(explorer.settle({**explorer.values, **changes}))[1]


@pytest.mark.parametrize("explore", EXPLORERS)
@pytest.mark.parametrize(
    "network",
    [
        pytest.param("digits/resnet", marks=pytest.mark.slow),
        pytest.param("digits/mobilenet", marks=pytest.mark.slow),
        "digits/mlp",
    ],
)
def test_every_layer_of_every_shipped_network_can_be_looked_at(explore, network):
    panel = Panel(explore(network, limit=20))
    for name in dict(panel.inputs["layer"].options).values():
        panel.inputs["layer"].value = name
        assert panel.values["layer"] == name
        assert "alert" not in panel.words.value


@pytest.mark.parametrize("explore", [*EXPLORERS[:-1], pytest.param(explore_splitting, marks=pytest.mark.slow)])
def test_every_slider_moves_from_end_to_end(explore):
    panel = Panel(explore(NAME, LAYER, limit=20))
    for name, slider in panel.inputs.items():
        options = dict(slider.options)
        if name in ("network", "layer"):
            continue
        pictures = set()
        for value in list(options.values())[:: max(1, len(options) // 4)]:
            slider.value = value
            pictures.add(panel.picture.value)
            assert panel.values[name] == value
            assert "alert" not in panel.words.value
        assert len(pictures) > 1 or name == "representative"


def test_density_tells_modes_and_values(folded):
    explorer = explore_density(NAME, LAYER, bandwidth="silverman/6", contrast=0.05)
    density = estimate_density(weight_of(folded), "silverman/6", 0.05)
    hashed = hash_weights(weight_of(folded), bandwidth="silverman/6", contrast=0.05)
    assert f"{len(density.modes)} modes" in explorer.figure().axes[0].get_title()
    assert f"{len(hashed.codebook)} after hashing" in words(explorer)
    assert f"h = {density.bandwidth:.3g}" in words(explorer)


def test_hashing_tells_the_error_of_its_rule(folded):
    weight = weight_of(folded)
    for rule in ("kde", "uniform", "lloyd"):
        values = hash_weights(weight, rule, "silverman/4").values
        error = float((values - weight).norm() / weight.norm())
        said = words(explore_hashing(NAME, LAYER, rule, "silverman/4"))
        assert float(re.search(r"([\d.]+)%", said)[1]) == pytest.approx(100 * error, abs=0.006)


def test_hashing_draws_every_weight():
    frame = hash_weights(torch.randn(500, generator=torch.Generator().manual_seed(0)), bandwidth=0.3).frame()
    assert frame["weights"].sum() == 500
    assert frame["value"].is_monotonic_increasing


@pytest.mark.parametrize("hashed", [False, True])
def test_merging_tells_how_many_filters_merge_neurons_leaves(folded, hashed):
    start = hash_network(folded, bandwidth="silverman/10").network if hashed else folded
    explorer = explore_merging(NAME, "layer3.0.conv1", hashed=hashed)
    for alpha in (0.0, 0.1, 0.3, 0.58):
        table = merge_neurons(start, alpha, dead=False).layers.set_index("layer")
        left = table.loc["layer3.0.conv1", "channels_after"]
        assert f"become {left}," in words(explorer, alpha=alpha)


@pytest.mark.parametrize("unit", ["channel", "tap", "kernel"])
def test_channel_products_are_those_that_a_split_layer_multiplies(folded, unit):
    network = hash_network(folded, "uniform", "silverman/4").network
    for name in split_inputs(network, unit).plan["layers"]:
        layer = network.get_submodule(name)
        frame = channel_products(layer, unit)
        tables = split_layer(layer, unit).tables
        assert frame["products"].sum() == sum(int(table.values.count_nonzero()) for table in tables)
        assert frame["weights"].sum() == layer.weight.numel()
        assert (frame["products"] <= frame["weights"]).all()


def test_channel_products_by_hand():
    layer = nn.Conv2d(2, 2, 2)
    layer.weight.data = torch.tensor([[[[1.0, 2], [0, 1]], [[3, 3], [3, 3]]], [[[1, 2], [0, 1]], [[4, 4], [0, 5]]]])
    assert channel_products(layer, "channel")["products"].tolist() == [2, 3]
    assert channel_products(layer, "tap")["products"].tolist() == [3, 7]
    assert channel_products(layer, "kernel")["products"].tolist() == [3, 7]


@pytest.mark.slow
def test_accuracy_is_that_of_the_whole_network(folded):
    images = load_dataset("digits", limit=100)
    wanted = evaluate(hash_network(folded, "uniform", "silverman/2").network, images).accuracy
    rule = {"rule": "uniform", "bandwidth": "silverman/2", "dataset": images}
    for explorer in (explore_hashing(NAME, LAYER, **rule), explore_splitting(NAME, LAYER, **rule)):
        assert f"accuracy {wanted:.2f} % of 100 test images" in explorer.measure(**explorer.values)
    merged = merge_neurons(folded, 0.3)
    explorer = explore_merging(NAME, alpha=0.3, dataset=images)
    assert f"accuracy {evaluate(merged.network, images).accuracy:.2f} %" in explorer.measure(**explorer.values)


def test_a_network_of_ones_own_is_looked_at_and_left_alone():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    network.redlab = Recipe("mine", (3, 8, 8))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for explore in EXPLORERS:
        explorer = explore(network)
        assert (explorer.values["network"], explorer.values["layer"]) == ("Sequential", "0")
        explorer.figure()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_weights_that_cannot_be_drawn_are_named_and_the_picture_stays():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        network[2].weight[0] = np.nan
    panel = Panel(explore_density(network))
    before = panel.picture.value
    panel.inputs["layer"].value = "2"
    assert "NaN" in panel.words.value
    assert (panel.picture.value, panel.inputs["layer"].value) == (before, "0")


def test_unknown_names_layers_and_bandwidths_are_refused():
    with pytest.raises(ValueError, match="unknown network 'digits/resnt'"):
        explore_density("digits/resnt")
    with pytest.raises(ValueError, match=r"Did you mean 'layer2\.0\.conv1'"):
        explore_splitting(NAME, "layer2.conv1")
    with pytest.raises(ValueError, match="bandwidth"):
        explore_hashing(NAME, bandwidth="silvermann").figure()
    with pytest.raises(ValueError, match="channel cannot be 16"):
        explore_splitting(NAME, LAYER, channel=16)


def test_merging_is_drawn_while_its_measurement_traces_the_network():
    explorer, failed = explore_merging("digits/mlp"), []

    def measure():
        try:
            explorer.measure(**explorer.values)
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=measure)
    thread.start()
    while thread.is_alive():
        explorer.png(explorer.values)
    assert failed == []


@pytest.mark.parametrize("explore", [explore_density, explore_hashing])
def test_axes_stay_while_one_slides(explore):
    explorer = explore(NAME, LAYER)
    figures = [
        explorer.figure(bandwidth=f"silverman/{width}", contrast=own) for width in (1, 8, 32) for own in (0, 0.5)
    ]
    limits = [[(*ax.get_xlim(), *ax.get_ylim()) for ax in figure.axes] for figure in figures]
    assert all(own == limits[0] for own in limits)
    peaks = [max(ax.lines[0].get_ydata().max() for ax in figure.axes[:1]) for figure in figures]
    assert max(peaks) <= limits[0][0][3]  # and nothing is cut off


def test_colours_stay_while_one_slides():
    figures = [explore_merging(NAME, alpha=alpha).figure() for alpha in (0.1, 0.3)]
    assert figures[0].axes[0].images[0].get_clim() == figures[1].axes[0].images[0].get_clim()
