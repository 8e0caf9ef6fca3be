"""``redlab compress``: a smaller network in a folder, the same when it is opened, and exact about what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from redlab import cli, cli_compress, compress, evaluate, load_dataset, load_network, save_network
from redlab.networks import example_input
from redlab.pipeline import layer_table
from redlab.storage import FACTS


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch, tmp_path):
    """In a folder of its own; how long things take is not what is tested."""
    from redlab import latency

    measure = latency.compare_latency
    monkeypatch.setattr(latency, "compare_latency", lambda networks, repeats: measure(networks, repeats=2))
    monkeypatch.chdir(tmp_path)


def redlab_says(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command."""
    result = CliRunner().invoke(cli.app, ["compress", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_compressing_the_digits_network_writes_what_it_evaluated(tmp_path):
    code, said, complained = redlab_says("digits/resnet", "--recipe", "merge", "--alpha", "0.25", "--out", "small")
    assert (code, complained) == (0, "")
    for title in ("[1/3] fold batch norms: done in", "[2/3] hash weights: done in", "[3/3] merge neurons: done in"):
        assert title in said
    assert "channels: " in said
    assert "layer1.0.conv1" in said
    assert f"saved to {tmp_path / 'small'}" in said
    assert re.search(r"on disk: 3\d\d,\d{3} bytes of tensors -> [\d,]+ bytes \(\d\d\.\d%\)", said)
    assert all(row in said for row in ("before", "after", "after, round_to=16"))
    opened, images = load_network("small"), load_dataset("digits")
    accuracies = re.search(r"accuracy on 360 images: ([\d.]+) % -> ([\d.]+) %", said).groups()
    assert float(accuracies[0]) == pytest.approx(evaluate(load_network("digits/resnet"), images).accuracy, abs=0.005)
    assert float(accuracies[1]) == pytest.approx(evaluate(opened, images).accuracy, abs=0.005)
    assert [step["step"] for step in opened.redlab.steps] == ["fold", "hash", "plan"]
    assert opened.conv1.out_channels < 16


def test_a_saved_network_is_compressed_further_without_hashing():
    save_network(load_network("digits/mlp"), "mine")
    code, said, _ = redlab_says("mine", "--no-hash", "--alpha", "0.5", "--limit", "20")
    assert code == 0
    assert "[2/2] merge neurons" in said
    assert "accuracy on 20 images" in said
    assert [step["step"] for step in load_network("./mine-merge").redlab.steps] == ["fold", "plan"]


@pytest.mark.parametrize("words", [["red"], ["red++"], ["red++", "--as-published"], ["red++", "--max-error", "0.05"]])
def test_the_recipes_of_the_papers_write_split_networks(words):
    code, said, complained = redlab_says("digits/mlp", "--recipe", *words, "--out", "small")
    assert (code, complained) == (0, "")
    opened, images = load_network("small"), load_dataset("digits")
    last = "separate kernels" if words == ["red"] else "split inputs"
    assert re.search(rf"\[(\d)/\1\] {last}: done in", said)
    assert all(title in said for title in ("products_after", "lookups", "after, split", "not faster than before"))
    accuracy = float(re.search(r"accuracy on 360 images: [\d.]+ % -> ([\d.]+) %", said).group(1))
    assert accuracy == pytest.approx(evaluate(opened, images).accuracy, abs=0.005)
    assert accuracy > 97
    assert opened.redlab.steps[-1]["step"] == ("separate" if words == ["red"] else "split")


def test_round_to_reaches_the_network():
    code, said, _ = redlab_says("digits/mlp", "--alpha", "0.3", "--round-to", "16", "--out", "small", "--limit", "10")
    assert code == 0
    assert "after, round_to=16" not in said
    widths = [m.out_features for m in load_network("small").modules() if isinstance(m, nn.Linear)]
    assert widths[-1] == 10
    assert all(width % 16 == 0 for width in widths[:-1])
    assert widths[0] < 256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits/mlp", "--recipe", "blue"], "unknown recipe 'blue'; known: merge, red, red++"),
        (["digits/mlp", "--alpha", "1.5"], "alpha must lie in [0, 1)"),
        (["digits/mlp", "--alpha", "nan"], "alpha must lie in [0, 1)"),
        (["digits/mlp", "--strategy", "zigzag"], "strategy must be one of constant, ascending, descending, block"),
        (["digits/mlp", "--round-to", "0"], "round_to must be a whole number of at least 1"),
        (["digits/mlp", "--recipe", "red++", "--no-hash"], "--no-hash goes with --recipe merge"),
        (["digits/mlp", "--recipe", "red++", "--max-error", "0"], "max_error must be a positive number"),
        (["digits/mlp", "--recipe", "red++", "--max-error", "0.1", "--as-published"], "there is no max_error"),
        (["digits/mlp", "--recipe", "red", "--max-error", "0.1"], "max_error belongs to the recipe red++"),
        (["digits/mlpp"], "unknown network 'digits/mlpp'"),
        (["./nowhere"], "there is no folder './nowhere'"),
        (["digits/mlp", "--out", "foreign"], "no saved network and not empty"),
        (["digits/mlp", "--dataset", "cifar11"], "unknown dataset 'cifar11'"),
        (["digits/mlp", "--limit", "0"], "limit must be"),
        (["--recipe", "merge"], "NETWORK"),
    ],
)
def test_wrong_usage_exits_with_2_and_writes_nothing(words, message, tmp_path, monkeypatch):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    monkeypatch.setattr(cli_compress, "_take", None)
    code, _, complained = redlab_says(*words)
    assert code == 2
    assert message in complained
    assert [path.name for path in tmp_path.rglob("*")] == ["foreign", "thesis.tex"]


def test_images_that_do_not_fit_the_network_are_wrong_usage(tmp_path, monkeypatch):
    save_network(load_network("digits/resnet"), "mine")
    monkeypatch.setattr(compress, "load_dataset", None)
    from redlab import datasets

    wrong = [(torch.zeros(3, 32, 32), 0)] * 4
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: wrong)
    code, _, complained = redlab_says("mine", "--dataset", "digits")
    assert code == 2
    assert "expected input" in complained
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_step_that_fails_exits_with_1_and_writes_nothing(tmp_path):
    network = load_network("digits/mlp")
    with torch.no_grad():
        network.hidden[0].linear.weight[0, 0] = float("nan")
    save_network(network, "broken")
    code, _, complained = redlab_says("broken", "--out", "small")
    assert code == 1
    assert "hidden.0.linear" in complained
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_full_disk_exits_with_1(monkeypatch, tmp_path):
    from redlab import storage

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    code, _, complained = redlab_says("digits/mlp", "--out", "small", "--limit", "10")
    assert code == 1
    assert "could not save the network" in complained
    assert "No space left on device" in complained
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded_just_to_measure_accuracy(tmp_path, monkeypatch):
    from redlab.recipe import Recipe

    monkeypatch.setenv("REDLAB_DATA", str(tmp_path / "empty"))
    network = load_network("digits/mlp")
    network.redlab = Recipe("cifar10/resnet20", (3, 32, 32))
    assert compress.dataset_of(network) is None
    network.redlab = Recipe("torchvision/resnet18", (3, 224, 224))
    assert compress.dataset_of(network) is None
    del network.redlab
    assert compress.dataset_of(network) is None
    assert len(compress.dataset_of(load_network("digits/mlp"), limit=7)) == 7


def test_the_table_counts_what_is_left_after_the_last_step():
    original = load_network("digits/resnet")
    results = [r for _, r, _ in compress.take_steps(original, compress.steps_of("merge", 0.25))]
    table = layer_table(original, results).set_index("layer")
    network = results[-1].network
    assert table.loc["conv1", "distinct"] == len(network.conv1.weight.unique())
    assert table.loc["conv1", "channels_after"] == network.conv1.out_channels
    assert not table.isna().any(axis=None)
    assert {"error", "products_before", "products_after", "parameters_after", "skipped"} <= set(table)


@pytest.mark.parametrize("hashing", ["--hash", "--no-hash"])
def test_the_real_resnet20_is_compressed_and_opens_the_same(real_data: Path, hashing, tmp_path):
    code, said, _ = redlab_says("cifar10/resnet20", "--recipe", "merge", hashing, "--limit", "500", "--out", "small")
    assert code == 0
    opened = load_network("small")
    accuracy = re.search(r"accuracy on 500 images: [\d.]+ % -> ([\d.]+) %", said).group(1)
    images = load_dataset("cifar10", limit=500)
    assert float(accuracy) == pytest.approx(evaluate(opened, images).accuracy, abs=0.005)
    # Eight dead filters are a block's own; the other two lie in the residual stream.
    before, after = (int(n) for n in re.search(r"channels: (\d+) -> (\d+)", said).groups())
    assert before - after == 8
    assert opened(example_input(opened)).shape == (1, 10)
    assert (tmp_path / "small" / FACTS).stat().st_size < 100_000
