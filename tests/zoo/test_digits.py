"""The networks that ship: the command that trains them, and their cards."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer import BadParameter

from redlab.network.evaluation import evaluate
from redlab.zoo import digits
from redlab.zoo.datasets import load_dataset
from redlab.zoo.saving import load_network


def test_the_command_writes_weights_and_a_card_without_touching_what_ships(tmp_path, capsys):
    shipped = {file.name: file.stat().st_mtime_ns for file in digits._SHIPPED.glob("*")}
    threads = torch.get_num_threads()
    try:
        for out in ("a", "b"):
            digits.main("mlp", seed=1, epochs=1, out=tmp_path / out)
    finally:
        torch.set_num_threads(threads)
    assert "digits/mlp: test accuracy" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["mlp.json", "mlp.safetensors"]
    assert (tmp_path / "a/mlp.safetensors").read_bytes() == (tmp_path / "b/mlp.safetensors").read_bytes()
    card = json.loads((tmp_path / "a/mlp.json").read_text())
    assert card["command"] == "python -m redlab.zoo.digits digits/mlp --seed 1 --epochs 1"
    assert str(tmp_path) not in json.dumps(card)
    network = load_network("digits/mlp", weights=None)
    network.load_state_dict(load_file(tmp_path / "a/mlp.safetensors"))
    assert evaluate(network, load_dataset("digits")).accuracy == pytest.approx(card["test_accuracy"], abs=0.01)
    assert shipped == {file.name: file.stat().st_mtime_ns for file in digits._SHIPPED.glob("*")}


def test_an_unknown_network_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(BadParameter, match="digits/resnet, digits/mobilenet, digits/mlp"):
        digits.main("vgg", out=tmp_path)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "mlp"])
def test_cards_tell_command_seed_and_accuracies(name):
    card = json.loads((digits._SHIPPED / f"{name}.json").read_text())
    assert card["command"] == f"python -m redlab.zoo.digits digits/{name} --seed 0"
    assert card["network"] == f"digits/{name}"
    assert card["seed"] == 0
    assert card["train_accuracy"] >= card["test_accuracy"] > 96


@pytest.mark.slow
def test_the_command_on_the_cards_is_one():
    done = subprocess.run([sys.executable, "-m", "redlab.zoo.digits", "vgg"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown network" in done.stderr
