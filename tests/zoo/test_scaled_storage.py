"""Saved networks whose rows are hashed up to a scale: codes and scales are stored, and the weights come back."""

from __future__ import annotations

import copy
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_net import Net
from safetensors.torch import load_file
from scaled import hashed_by_row, short, without_scales
from test_round_trips import merge, prune, split, thin
from test_storage import edit, hashed, on_disk, refused, reseal, same_bits
from torch import nn

from redlab import correct_biases, example_input, load_network, prepare, save_network, separate_kernels, split_inputs
from redlab.network.layers import weight_layers
from redlab.network.row_scales import count_codes
from redlab.zoo.saving import FACTS, WEIGHTS, stored_bits


def scaled(name: str = "digits/resnet") -> nn.Module:
    return copy.deepcopy(_scaled(name))


@cache
def _scaled(name: str) -> nn.Module:
    return hashed_by_row(prepare(load_network(name)).network)


def comes_back(network: nn.Module, folder: Path, **options) -> nn.Module:
    opened = load_network(save_network(network, folder), **options)
    states = network.state_dict(), opened.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(same_bits(states[0][key], states[1][key]) for key in states[0])
    return opened


WAYS = {
    "as hashed": scaled,
    "mobilenet": lambda: scaled("digits/mobilenet"),
    "split": lambda: split_inputs(scaled(), signed=True).network,
    "tap": lambda: split_inputs(scaled(), "tap").network,
    "separated": lambda: separate_kernels(scaled()).network,
    "up to scale": lambda: separate_kernels(scaled("digits/mobilenet"), up_to_scale=True).network,
    "in 16 bits": lambda: scaled().half(),
    "in 64 bits": lambda: scaled().double(),
    "biases corrected": lambda: correct_biases(scaled(), prepare(load_network("digits/resnet")).network).network,
    "trained since": lambda: shaken(scaled()),
}


def shaken(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return network


@pytest.mark.parametrize("way", WAYS)
def test_a_network_of_row_scales_comes_back_bit_for_bit(way, tmp_path):
    network = WAYS[way]()
    opened = comes_back(network, tmp_path / "net")
    assert opened.redlab == network.redlab
    assert str(opened) == str(network)
    images = torch.randn(3, *example_input(network).shape[1:]).to(example_input(network))
    with torch.inference_mode():
        assert torch.equal(opened(images), network(images))


@st.composite
def networks(draw) -> nn.Module:
    network = scaled(draw(st.sampled_from(["digits/mlp", "digits/resnet"])))
    for step in draw(st.lists(st.sampled_from([merge, prune, thin]), max_size=3)):
        network = step(network, draw)
    return split(network, draw) if draw(st.booleans()) else network


@pytest.mark.slow
@settings(max_examples=6)
@given(network=networks())
def test_it_comes_back_after_any_steps(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    comes_back(network, folder / "net")
    shutil.rmtree(folder)


def test_a_layer_is_stored_in_about_its_codes_and_two_bytes_a_scale(tmp_path):
    network = scaled()
    folder, plain = save_network(network, tmp_path / "net"), without_scales(scaled())
    plain.redlab.steps[-1].pop("scaled")
    assert on_disk(folder) < 0.6 * on_disk(save_network(plain, tmp_path / "plain"))
    table, tensors = stored_bits(folder), load_file(folder / WEIGHTS)
    layers = {layer.name: layer for layer in weight_layers(network)}
    assert list(table["layer"]) == list(layers)
    for row in table.itertuples():
        layer = layers[row.layer]
        assert row.distinct == count_codes(layer)["distinct"] <= 15
        parts = [tensors[f"{row.layer}.{part}"] for part in ("weight:codes", "weight:codebook", "out_scale")]
        assert parts[2].dtype == torch.bfloat16
        assert row.bits == 8 * sum(part.nbytes for part in parts) / row.weights
        assert row.entropy < row.bits


def test_scales_of_more_digits_are_stored_whole(tmp_path):
    network = scaled()
    with torch.no_grad():
        network.conv1.weight.copy_(torch.randint(-3, 4, network.conv1.weight.shape) * torch.tensor(4097 / 4096))
        network.conv1.out_scale.fill_(4097 / 4096)
    comes_back(network, tmp_path / "net")
    assert load_file(tmp_path / "net" / WEIGHTS)["conv1.out_scale"].dtype == torch.float32


def test_rows_that_are_no_multiples_are_stored_among_the_codes(tmp_path):
    network = scaled()
    weight = network.layer1[0].conv1.weight
    with torch.no_grad():
        weight[[2, 5]] += 0.001
        weight[3] = 0
    comes_back(network, tmp_path / "net")
    facts = json.loads((tmp_path / "net" / FACTS).read_text())
    assert facts["scales"]["layer1.0.conv1.weight"] == [2, 5]
    assert facts["scales"]["conv1.weight"] == []
    assert facts["format"] == 4


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_network_with_odd_scales_is_saved_as_it_is(value, tmp_path):
    network = scaled()
    network.conv1.out_scale[3] = value
    comes_back(network, tmp_path / "net")
    assert "conv1.weight" not in json.loads((tmp_path / "net" / FACTS).read_text())["scales"]


class Odd(nn.Module):
    """A transposed convolution in groups, projections of an attention, and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 9, 3, groups=3)
        self.attend = nn.MultiheadAttention(9, 3, batch_first=True)
        self.one, self.two = nn.Linear(9, 9), nn.Linear(9, 9)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.up(x).flatten(2).transpose(1, 2)
        return self.two(self.one(self.attend(seen, seen, seen)[0]))


def test_layers_of_all_kinds_come_back_through_their_own_code(tmp_path):
    network = hashed_by_row(Odd())
    opened = comes_back(network, tmp_path / "net", build=Odd)
    assert opened.one.weight is opened.two.weight
    facts = json.loads((tmp_path / "net" / FACTS).read_text())
    assert sorted(facts["scales"]) == ["attend.in_proj_weight", "attend.out_proj.weight", "one.weight", "up.weight"]
    x = torch.randn(2, 6, 4, 4)
    assert torch.equal(opened(x), network(x))
    comes_back(hashed_by_row(Net()), tmp_path / "own", build=Net)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory) -> Path:
    return save_network(scaled(), tmp_path_factory.mktemp("scaled") / "net")


@pytest.fixture
def saved(saved_once, tmp_path) -> Path:
    return shutil.copytree(saved_once, tmp_path / "net")


CHANGES = {
    "unknown tensor": (lambda f: f["scales"].update({"conv9.weight": []}), "conv9.weight"),
    "a bias": (lambda f: f["scales"].update({"conv1.bias": []}), "conv1.bias, which is not packed"),
    "row beyond": (lambda f: f["scales"].update({"conv1.weight": [16]}), "do not fit"),
    "row before": (lambda f: f["scales"].update({"conv1.weight": [-1]}), "-1 is less than the minimum"),
    "row of text": (lambda f: f["scales"].update({"conv1.weight": ["0"]}), "save_network did not write it"),
    "rows none": (lambda f: f["scales"].update({"conv1.weight": None}), "save_network did not write it"),
    "list": (lambda f: f.update(scales=["conv1.weight"]), "save_network did not write it"),
    "not hashed": (lambda f: f["recipe"]["steps"][-1].pop("scaled"), "conv1.out_scale"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_facts_that_lie_about_scales_are_refused(saved, change):
    edit(saved, CHANGES[change][0])
    assert CHANGES[change][1] in refused(saved)


OTHERS = {
    "missing": None,
    "too few": torch.ones(15),
    "none": torch.ones(0),
    "a table": torch.ones(16, 1),
    "a number": torch.tensor(1.0),
    "NaN": short(torch.full((16,), float("nan"))),
    "inf": torch.full((16,), float("inf")),
    "zero": torch.ones(16) * (torch.arange(16) > 0),
    "negative": -torch.ones(16),
    "complex": torch.ones(16, dtype=torch.complex64) * 1j,
}


@pytest.mark.parametrize("other", OTHERS)
def test_scales_that_fit_no_weight_are_refused(saved, other):
    def change(tensors: dict) -> None:
        tensors.pop("conv1.out_scale")
        tensors.update({} if OTHERS[other] is None else {"conv1.out_scale": OTHERS[other]})

    reseal(saved, change)
    assert "do not fit" in refused(saved)


def test_a_network_without_scales_says_so(tmp_path):
    save_network(hashed(), tmp_path / "net")
    assert json.loads((tmp_path / "net" / FACTS).read_text())["scales"] == {}
    tensors = load_file(tmp_path / "net" / WEIGHTS)
    assert not [name for name in tensors if name.endswith("out_scale")]
    assert np.isfinite(stored_bits(tmp_path / "net")["bits"]).all()
