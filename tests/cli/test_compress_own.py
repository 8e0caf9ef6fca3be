"""``redlab compress`` of a network and images in a user's own file: two inputs, a dict of logits, no list knows it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import own_network
import pytest
import torch
from commands import redlab_says
from safetensors.torch import save_file

from redlab import evaluate, load_dataset, load_network, save_network
from redlab.cli import compress as cli_compress
from redlab.cli.opening import called
from redlab.network.recipe import Recipe


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path) -> Path:
    """The user's folder, the current one; how long things take is not what is tested."""
    from redlab.network import latency

    measure = latency.compare_latency
    monkeypatch.setattr(latency, "compare_latency", lambda networks, repeats: measure(networks, repeats=2))
    monkeypatch.chdir(tmp_path)
    shutil.copy(own_network.__file__, "mine.py")
    return tmp_path


def test_a_network_in_a_file_is_compressed_measured_and_opens_the_same():
    words = ("--dataset", "mine.py:images", "--alpha", "0.3", "--limit", "50")
    code, said, complained = redlab_says("compress", "mine.py:make", *words)
    assert (code, complained) == (0, "")
    assert re.search(r"accuracy on 50 images: 100.00 % -> [\d.]+ %", said)
    assert "mine-make-merge: redlab.load_network(folder, build='mine.py:make') opens it" in said
    assert "after, round_to=16" in said
    opened = load_network("mine-make-merge", build="mine.py:make")
    images = load_dataset("mine.py:images", limit=50, network=opened)
    accuracy = float(re.search(r"-> ([\d.]+) %", said)[1])
    assert evaluate(opened, images).accuracy == pytest.approx(accuracy, abs=0.005)
    # What was saved is compressed further once its code is named, and by no other way.
    code, _, complained = redlab_says("compress", "mine-make-merge")
    assert code == 2
    assert "redlab compress mine-make-merge --build mine.py:make" in complained
    code, said, complained = redlab_says("compress", "mine-make-merge", "--build", "mine.py:make", "--no-hash")
    assert (code, complained) == (0, "")
    assert "accuracy is not measured" in said
    assert Path("mine-make-merge-merge", "redlab.json").is_file()


def test_weights_are_loaded_and_a_criterion_sees_the_training_images_of_the_file():
    network, _ = own_network.make()
    network.head.bias.data[4] = 1e6
    save_file(network.state_dict(), "trained.safetensors")
    words = ("--weights", "trained.safetensors", "--dataset", "mine.py:images", "--recipe", "prune", "--limit", "20")
    code, said, complained = redlab_says("compress", "mine.py:make", *words, "--criterion", "taylor", "--out", "small")
    assert (code, complained) == (0, "")
    assert "taylor scores channels on 20 train images of mine.py:images" in said
    assert "accuracy on 20 images: 0.00 % -> 0.00 %" in said


def test_a_folder_without_a_name_asks_for_its_code():
    network, _ = own_network.make()
    network.redlab = Recipe()
    save_network(network, "unnamed")
    code, _, complained = redlab_says("compress", "unnamed")
    assert code == 2
    assert "redlab compress unnamed --build FILE.py:NAME" in complained
    code, _, complained = redlab_says("compress", "unnamed", "--build", "mine.py:make", "--max-loss", "1")
    assert code == 2
    assert "--max-loss needs images" in complained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.py:make"], "there is no file"),
        (["mine.py:nothing"], "mine.py has no 'nothing'"),
        (["mine.py:SameConv"], "SameConv is called without arguments, and it needs"),
        (["mine.py:make", "--weights", "absent.pt"], "--weights: there is no file absent.pt"),
        (["mine.py:make", "--weights", "other.safetensors"], "other.safetensors"),
        (["mine.py:make", "--build", "mine.py:make"], "build is for the folder of a saved network"),
        (["digits/mlp", "--build", "absent.py:make"], "there is no file"),
        (["mine.py:make", "--dataset", "mine.py:nothing"], "mine.py has no 'nothing'"),
        (["digits/mlp", "--dataset", "mine.py:images"], "MLP does not take inputs of shape"),
        (["mine.py:make", "--dataset", "digits"], "TwoInputs does not take an input of"),
    ],
)
def test_what_does_not_fit_exits_with_2_and_writes_nothing(here, monkeypatch, words, message):
    save_file({"other": torch.ones(1)}, "other.safetensors")
    monkeypatch.setattr(cli_compress, "_take", None)
    code, _, complained = redlab_says("compress", *words, "--out", "small")
    assert code == 2
    assert message in complained
    assert not Path("small").exists()


@pytest.mark.parametrize(
    ("network", "folder"),
    [
        ("digits/mlp", "mlp"),
        ("nets/mine.py:make", "mine-make"),
        ("hf/sentence/all-minilm", "all-minilm"),
        ("package.nets:Net", "package.nets-Net"),
        ("timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
    ],
)
def test_the_folder_is_called_after_the_network_without_colon_or_slash(network, folder):
    assert called(network) == folder


def test_a_recipe_on_disk_never_says_which_code_runs(here):
    save_network(load_network("digits/mlp"), "small")
    facts = json.loads(Path("small", "redlab.json").read_text())
    Path("evil.py").write_text("open('ran', 'w').close()\n")
    facts["recipe"]["architecture"] = "evil.py:make"
    Path("small", "redlab.json").write_text(json.dumps(facts))
    code, _, complained = redlab_says("compress", "small", "--dataset", "digits")
    assert code == 2
    assert "--build evil.py:make" in complained
    assert not Path("ran").exists()
