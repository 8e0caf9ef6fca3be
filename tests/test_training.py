"""Training: deterministic, on a copy, and the command that writes what ships."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset
from typer import BadParameter

from redlab import training
from redlab.datasets import load_dataset
from redlab.evaluation import evaluate
from redlab.storage import load_network
from redlab.training import train


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def _small(n: int = 100):
    return load_dataset("digits", "train", limit=n)


def test_training_learns_and_leaves_its_argument_and_the_generator_alone():
    network = load_network("digits/mlp", weights=None)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = torch.random.get_rng_state()
    trained = train(network, _small(400), epochs=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in trained.network.parameters())
    assert evaluate(trained.network, load_dataset("digits")).accuracy > 85
    assert trained.network.redlab == network.redlab
    assert not trained.network.training
    assert trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0]
    assert list(trained.history["epoch"]) == list(range(1, 9))


def test_the_same_seed_gives_the_same_weights():
    network = load_network("digits/mobilenet")
    runs = [train(network, _small(), 1, shift=1, seed=seed).network for seed in (0, 0, 1)]
    assert _same(runs[0], runs[1])
    assert not _same(runs[0], runs[2])


def test_frozen_parameters_stay():
    network = load_network("digits/mlp")
    for parameter in network.hidden.parameters():
        parameter.requires_grad_(False)
    trained = train(network, _small(), 1).network
    assert torch.equal(trained.hidden[0].linear.weight, network.hidden[0].linear.weight)
    assert not torch.equal(trained.classifier.weight, network.classifier.weight)


def test_a_single_left_over_image_does_not_stop_batch_norm():
    assert len(train(load_network("digits/mlp"), _small(65), 1, batch_size=64).history) == 1


def test_no_epochs_return_a_copy():
    network = load_network("digits/mlp")
    trained = train(network, _small(), 0)
    assert trained.network is not network
    assert _same(trained.network, network)
    assert trained.history.empty


def test_shifts_move_each_image_by_whole_pixels():
    images = torch.zeros(64, 1, 5, 5)
    images[:, :, 2, 2] = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moved = training._shifted(images, 1)
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(64))
    places = {tuple(place) for place in moved.nonzero()[:, 2:].tolist()}
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}
    assert torch.equal(training._shifted(images, 0), images)


def test_a_shift_brings_in_zeros_and_keeps_channels_apart():
    image = torch.arange(1.0, 19.0).reshape(1, 2, 3, 3)
    with torch.random.fork_rng():
        for seed in range(20):
            torch.manual_seed(seed)
            moved = training._shifted(image, 1)
            # The second channel holds the first plus nine, wherever a pixel is not a zero that came in.
            inside = moved[0, 0] > 0
            assert torch.equal(moved[0, 1][inside], moved[0, 0][inside] + 9)
            assert moved[0, 1][~inside].count_nonzero() == 0


def test_bad_requests_are_refused():
    network = load_network("digits/mlp")
    with pytest.raises(ValueError, match="nothing to train"):
        train(nn.Identity(), _small(), 1)
    with pytest.raises(ValueError, match="epochs >= 0"):
        train(network, _small(), -1)
    with pytest.raises(ValueError, match="0 images"):
        train(network, TensorDataset(torch.ones(0, 64), torch.ones(0, dtype=torch.long)), 1)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train(network, _small(), 3, learning_rate=1e30)


def test_the_command_writes_weights_and_a_card_without_touching_what_ships(tmp_path, capsys):
    shipped = {file.name: file.stat().st_mtime_ns for file in training._SHIPPED.glob("*")}
    threads = torch.get_num_threads()
    try:
        for out in ("a", "b"):
            training.main("mlp", seed=1, epochs=1, out=tmp_path / out)
    finally:
        torch.set_num_threads(threads)
    assert "digits/mlp: test accuracy" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["mlp.json", "mlp.safetensors"]
    assert (tmp_path / "a/mlp.safetensors").read_bytes() == (tmp_path / "b/mlp.safetensors").read_bytes()
    card = json.loads((tmp_path / "a/mlp.json").read_text())
    assert card["command"] == "python -m redlab.training digits/mlp --seed 1 --epochs 1"
    assert str(tmp_path) not in json.dumps(card)
    network = load_network("digits/mlp", weights=None)
    network.load_state_dict(load_file(tmp_path / "a/mlp.safetensors"))
    assert evaluate(network, load_dataset("digits")).accuracy == pytest.approx(card["test_accuracy"], abs=0.01)
    assert shipped == {file.name: file.stat().st_mtime_ns for file in training._SHIPPED.glob("*")}


def test_an_unknown_network_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(BadParameter, match="digits/resnet, digits/mobilenet, digits/mlp"):
        training.main("vgg", out=tmp_path)


def test_a_run_killed_while_writing_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "mlp.safetensors"
    path.write_bytes(b"old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        training._replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "mlp"])
def test_cards_tell_command_seed_and_accuracies(name):
    card = json.loads((training._SHIPPED / f"{name}.json").read_text())
    assert card["command"] == f"python -m redlab.training digits/{name} --seed 0"
    assert card["network"] == f"digits/{name}"
    assert card["seed"] == 0
    assert card["train_accuracy"] >= card["test_accuracy"] > 96
