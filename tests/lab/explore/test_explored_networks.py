"""Explorers of a network of one's own: in a file, or an object without a recipe, with two inputs and a dict."""

from __future__ import annotations

import re

import own_network
import pytest
from torch import nn

from redlab import (
    browse_filters,
    explore_density,
    explore_hashing,
    explore_merging,
    explore_splitting,
    hash_network,
    load_network,
    prepare,
    save_network,
)

FILE = own_network.__file__
EXPLORERS = [explore_density, explore_hashing, explore_merging, explore_splitting]


@pytest.mark.parametrize("explore", [*EXPLORERS, browse_filters])
def test_an_object_needs_its_inputs_and_no_recipe(explore):
    network, example = own_network.make()
    found = explore(network, example=example)
    image, words = found.png(found.values)
    assert image.startswith(b"\x89PNG")
    assert words
    assert found.values["network"] == "TwoInputs"
    assert not hasattr(network, "redlab")


def test_inputs_by_name_are_an_example_too():
    network, (image, measured) = own_network.make()
    found = explore_merging(network, example={"measured": measured, "image": image}, dataset=own_network.images())
    assert "of 200 test images; before 100.00 %" in found.measure(**found.values)


@pytest.mark.parametrize("explore", EXPLORERS)
def test_a_file_is_explored_under_its_short_name_on_its_own_images(explore):
    found = explore(f"{FILE}:make", dataset=f"{FILE}:images", limit=20)
    assert found.values["network"] == "own_network.py:make"
    assert "own_network.py:make" in found.choices[0].options({})
    assert re.search(r"accuracy [\d.]+ % of 20 test images; before 100.00 %", found.measure(**found.values))


def test_images_that_are_given_show_what_an_object_takes():
    network, _ = own_network.make()
    found = explore_merging(network, dataset=own_network.images())
    assert "of 200 test images; before 100.00 %" in found.measure(**found.values)


def test_a_saved_folder_is_explored_with_what_makes_its_architecture(tmp_path):
    folder = save_network(hash_network(prepare(load_network(f"{FILE}:make")).network), tmp_path / "mine")
    found = explore_density(folder, build=f"{FILE}:make")
    assert found.values["network"] == "mine"
    with pytest.raises(ValueError, match="build"):
        explore_density(folder)


def test_weights_are_of_a_network_that_is_named():
    with pytest.raises(ValueError, match="build and weights are for a network that is given by its name"):
        explore_density(nn.Linear(3, 2), weights="mine.safetensors")
