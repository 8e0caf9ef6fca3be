"""``redlab compress``: a smaller network in a folder, the same when it is opened, and exact about what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from redlab import evaluate, load_dataset, load_network, measure_cost, save_network
from redlab.cli import compress as cli_compress
from redlab.cli import main as cli
from redlab.cli.recipes import steps_of
from redlab.compression.pipeline import take_all
from redlab.compression.tables import layer_table
from redlab.network.example import example_input
from redlab.zoo.saving import FACTS


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch, tmp_path):
    """In a folder of its own; how long things take is not what is tested."""
    from redlab.network import latency

    measure = latency.compare_latency
    monkeypatch.setattr(latency, "compare_latency", lambda networks, repeats: measure(networks, repeats=2))
    monkeypatch.chdir(tmp_path)


def test_what_is_said_to_nobody_does_not_end_the_work(tmp_path):
    code = "from redlab.cli.terminal import say\nfor _ in range(99): say('x' * 9999)\nopen('done', 'w').close()"
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command.stdout.read(1)
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait() == 0
    assert (tmp_path / "done").exists()


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


@pytest.mark.parametrize(
    "words",
    [
        ["red"],
        ["red++"],
        ["red++", "--as-published"],
        ["red++", "--max-error", "0.05"],
        ["red++", "--max-noise", "0.02", "--scale", "row"],
    ],
)
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


@pytest.mark.parametrize(
    ("words", "criterion"),
    [
        (["--products", "0.75"], "reconstruction"),
        (["--criterion", "taylor", "--limit", "60"], "taylor"),
        (["--criterion", "redundancy", "--round-to", "8"], "redundancy"),
    ],
)
def test_pruning_keeps_the_products_asked_for_and_opens_the_same(words, criterion):
    code, said, complained = redlab_says("digits/mlp", "--recipe", "prune", *words)
    assert (code, complained) == (0, "")
    opened, count = load_network("mlp-prune"), 60 if "--limit" in words else 360
    assert ("taylor scores channels on 60 train images of digits" in said) == (criterion == "taylor")
    assert f"prune channels by {criterion}: done in" in said
    left = measure_cost(opened).attrs["products"] / measure_cost(load_network("digits/mlp")).attrs["products"]
    assert 0.4 < left <= (0.75 if "--products" in words else 0.5)
    assert "1 skipped: classifier (network output)" in said
    assert "merge: network output" not in said
    accuracy = float(re.search(rf"accuracy on {count} images: [\d.]+ % -> ([\d.]+) %", said).group(1))
    assert accuracy == pytest.approx(evaluate(opened, load_dataset("digits", limit=count)).accuracy, abs=0.005)


def test_what_is_lost_is_said_and_too_much_of_it_writes_nothing(tmp_path):
    words = ("digits/mlp", "--no-hash", "--alpha", "0.6", "--limit", "100")
    code, said, _ = redlab_says(*words, "--out", "small", "--max-loss", "100")
    assert code == 0
    before, after = (
        evaluate(load_network(name), load_dataset("digits", limit=100)) for name in ("digits/mlp", "small")
    )
    lost = before.accuracy - after.accuracy
    assert lost > 1
    right = f"of 100 images {before.accuracy:.2f} % were right, {after.accuracy:.2f} % are now"
    assert f"{lost:.2f} points of accuracy were lost: {right}" in said
    for most, expected in ((f"{lost:.9g}", 0), (f"{lost - 0.5:.9g}", 1)):
        code, _, complained = redlab_says(*words, "--out", f"for-{expected}", "--max-loss", most)
        assert code == expected
        assert (tmp_path / f"for-{expected}").exists() == (expected == 0)
    assert f"{lost:.2f} points of accuracy were lost, more than --max-loss {most} allows" in complained
    assert complained.count("\n") == 1


def test_where_nothing_is_lost_nothing_is_said_of_it():
    code, said, _ = redlab_says("digits/mlp", "--no-hash", "--limit", "50", "--max-loss", "0")
    assert code == 0
    assert "points of accuracy" not in said


def test_a_criterion_without_training_images_says_what_it_sees(monkeypatch, capsys):
    from redlab.zoo import dataset_names

    monkeypatch.setattr(dataset_names, "_TEST_ONLY", ("digits",))
    images = cli_compress._seen("digits", "prune", {"criterion": "taylor"}, 20, load_network("digits/mlp"))
    assert len(images) == 20
    assert "taylor scores channels on 20 test images of digits, which has no others" in capsys.readouterr().out


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
        (["digits/mlp", "--recipe", "red++", "--no-hash"], "--no-hash is for --recipe merge"),
        (["digits/mlp", "--recipe", "red++", "--max-error", "0"], "max_error must be a positive number"),
        (["digits/mlp", "--recipe", "red++", "--max-error", "0.1", "--as-published"], "there is no max_error"),
        (["digits/mlp", "--recipe", "red++", "--max-noise", "-1"], "max_noise must be a positive number"),
        (["digits/mlp", "--recipe", "red++", "--max-noise", "0.1", "--max-error", "0.1"], "not both"),
        (["digits/mlp", "--recipe", "red++", "--scale", "column"], "scale must be one of none, row, auto"),
        (["digits/mlp", "--scale", "row"], "scale belongs to the recipes red, red++"),
        (["digits/mlp", "--recipe", "red", "--max-error", "0.1"], "max_error belongs to the recipe red++"),
        (["digits/mlpp"], "unknown network 'digits/mlpp'"),
        (["./nowhere"], "there is no folder './nowhere'"),
        (["digits/mlp", "--out", "foreign"], "no saved network and not empty"),
        (["digits/mlp", "--dataset", "cifar11"], "unknown dataset 'cifar11'"),
        (["digits/mlp", "--limit", "0"], "limit must be"),
        (["digits/mlp", "--recipe", "prune", "--products", "1.5"], "products must lie in [0, 1]"),
        (["digits/mlp", "--recipe", "prune", "--criterion", "red"], "'red' is no criterion for channels"),
        (["digits/mlp", "--recipe", "prune", "--alpha", "0.1"], "alpha belongs to the recipes merge, red, red++"),
        (["digits/mlp", "--recipe", "prune", "--no-hash"], "hashing belongs to the recipe merge"),
        (["digits/mlp", "--recipe", "red", "--products", "0.5"], "products belongs to the recipe prune"),
        (["digits/mlp", "--criterion", "taylor"], "criterion belongs to the recipe prune"),
        (["digits/mlp", "--max-loss", "nan"], "--max-loss must be a number of points of accuracy, 0 to 100"),
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
    from redlab.zoo import datasets

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
    from redlab.zoo import saving as storage

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    code, _, complained = redlab_says("digits/mlp", "--out", "small", "--limit", "10")
    assert code == 1
    assert "could not write" in complained
    assert "No space left on device" in complained
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_found_before_work_begins(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(cli_compress, "_images", None)
    code, said, complained = redlab_says("digits/mlp", "--out", "file/small")
    assert (code, said) == (1, "")
    assert f"{tmp_path / 'file'} is a file" in complained


def test_a_save_that_is_interrupted_leaves_the_network_that_was_there(tmp_path, monkeypatch):
    from redlab.files import atomic

    save_network(load_network("digits/mlp"), "small")
    before = {path.name: path.read_bytes() for path in Path("small").iterdir()}
    replace = atomic.os.replace

    def interrupted(source, target):
        if str(source).endswith(".part"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", interrupted)
    code, _, complained = redlab_says("digits/mlp", "--out", "small", "--limit", "10")
    assert (code, complained) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert {path.name: path.read_bytes() for path in Path("small").iterdir()} == before


def test_nothing_is_downloaded_just_to_measure_accuracy(tmp_path, monkeypatch):
    from redlab.zoo.dataset_names import own_dataset

    assert own_dataset("digits/mlp") == "digits"
    monkeypatch.setenv("REDLAB_DATA", str(tmp_path / "empty"))
    assert own_dataset("cifar10/resnet20") is None
    assert own_dataset("torchvision/resnet18") is None
    assert own_dataset("somebody/network") is None


def test_the_table_counts_what_is_left_after_the_last_step():
    original = load_network("digits/resnet")
    results = list(take_all(original, steps_of("merge", alpha=0.25)))
    table = layer_table(original, results).set_index("layer")
    network = results[-1].network
    assert table.loc["conv1", "distinct"] == len(network.conv1.weight.unique())
    assert table.loc["conv1", "channels_after"] == network.conv1.out_channels
    assert not table.isna().any(axis=None)
    assert {"error", "products_before", "products_after", "parameters_after", "skipped"} <= set(table)


@pytest.mark.parametrize("hashing", ["--hash", pytest.param("--no-hash", marks=pytest.mark.slow)])
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
