"""Networks and images that a user names: their paths hold wherever the kernel works; what is wrong is said first."""

from __future__ import annotations

import shutil
from pathlib import Path

import own_network
import pytest
from commands import redlab_says
from safetensors.torch import save_file
from tiny import write_notebook

from redlab import load_network, save_network
from redlab.lab import runs
from redlab.lab.parameters import typed_parameters
from redlab.lab.runs import run_notebook
from redlab.lab.sweeps import read_spec

DEFAULTS = 'network = "digits/mlp"\nbuild = None\nweights = None\ndataset = None'
USES = """
import pandas as pd, redlab as rl
loaded = rl.load_network(network, weights or "default", build)
images = rl.load_dataset(dataset, limit=10, network=loaded)
rl.record(pd.DataFrame([{"network": rl.short_name(network), "accuracy": rl.evaluate(loaded, images).accuracy}]))
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A user's folder, the current one: code, weights, a saved network, images and a package."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copy(own_network.__file__, folder / "mine.py")
    (folder / "photos" / "cat").mkdir(parents=True)
    network, _ = own_network.make()
    save_file(network.state_dict(), folder / "trained.safetensors")
    save_network(load_network("digits/mlp"), folder / "small")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write_notebook(tmp_path / "notebooks" / "01_uses.ipynb", DEFAULTS, USES.strip())


# What is said -> the same from any folder; {} is the caller's.
FORMS = {
    "network": [
        ("mine.py:make", "{}/mine.py:make"),
        ("./mine.py:TwoInputs", "{}/mine.py:TwoInputs"),
        ("small", "{}/small"),
        ("torchvision.models:resnet18", "torchvision.models:resnet18"),
        ("timm/resnet18", "timm/resnet18"),
        ("hf/photos", "hf/{}/photos"),
    ],
    "build": [("mine.py:make", "{}/mine.py:make"), ("timm/resnet18", "timm/resnet18")],
    "weights": [("trained.safetensors", "{}/trained.safetensors")],
    "dataset": [("mine.py:images", "{}/mine.py:images"), ("folder:photos", "folder:{}/photos"), ("digits", "digits")],
}


@pytest.mark.parametrize(("name", "said", "meant"), [(name, *form) for name in FORMS for form in FORMS[name]])
def test_paths_are_the_callers_in_a_shell_in_python_and_in_a_sweep(here, notebook, monkeypatch, name, said, meant):
    wanted, seen = {name: meant.format(here)} if meant != "digits/mlp" else {}, []
    monkeypatch.setattr(runs, "execute", lambda path, work, changed, *_: seen.append(changed))
    run_notebook(notebook, {name: said}, notebooks=notebook.parent)
    spec = {"notebook": str(notebook), "points": [{name: said}]}
    assert [typed_parameters(notebook, [f"{name}={said}"]), *seen, *read_spec(spec).points] == [wanted] * 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("network=absent.py:make", "there is no file {}/absent.py"),
        ("network=mine.py", "mine.py:NAME"),
        ("network=nowhere.net:Net", "no module 'nowhere'"),
        ("network=digits/mlpp", "Did you mean 'digits/mlp'"),
        ("build=absent.py:make", "there is no file {}/absent.py"),
        ("dataset=digitss", "did you mean digits"),
        ("dataset=folder:absent", "folder:absent: there is no such folder"),
        ("dataset=absent.py:images", "there is no file {}/absent.py"),
        ("weights=absent.safetensors", "there is no file of weights 'absent.safetensors'"),
    ],
)
def test_what_is_not_there_is_said_before_anything_runs(here, notebook, monkeypatch, word, message):
    with pytest.raises(ValueError, match=r".*") as caught:
        typed_parameters(notebook, [word])
    assert message.format(here) in str(caught.value)
    name, value = word.split("=")
    with pytest.raises(ValueError, match=r".*"):
        read_spec({"notebook": str(notebook), "points": [{name: value}]})


def test_a_kernel_elsewhere_opens_the_file_of_the_caller(here, notebook, monkeypatch, tmp_path):
    monkeypatch.setattr("redlab.paths.PACKAGE", tmp_path / "redlab")
    words = ("network", "mine.py:make", "-p", "dataset", "mine.py:images", "-p", "weights", "trained.safetensors")
    code, _, complained = redlab_says("run", str(notebook), "-p", *words, "--out", "done")
    assert (code, complained) == (0, "")
    again = {"network": "mine.py:make", "dataset": "mine.py:images", "weights": "trained.safetensors"}
    found = run_notebook(notebook, again, "done", notebooks=notebook.parent)
    assert found.cached
    assert found.results.to_dict("records") == [{"network": "mine.py:make", "accuracy": 100.0}]
