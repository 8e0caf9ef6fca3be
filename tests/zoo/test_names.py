"""Names that a user may say: the same as what they stand for, and refused before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from torchvision import datasets as torchvision_datasets
from torchvision import models

from redlab import load_network, save_network
from redlab.cli.completion import complete_commands, complete_datasets, complete_networks, complete_notebooks
from redlab.cli.recipes import CRITERIA, OPTIONS, steps_of
from redlab.pruning.criteria import registry as baselines
from redlab.zoo import dataset_names, datasets, networks
from redlab.zoo.dataset_names import PLACES, check_at_hand, is_here
from redlab.zoo.names import CLASSIFIERS, OWN, architecture_of, folder_of


def test_the_lists_hold_what_they_stand_for():
    assert tuple(models.list_models(module=models)) == CLASSIFIERS
    assert tuple(networks._KNOWN) == OWN
    assert [*datasets._LOADERS, "imagenet_folder"] == list(PLACES)
    assert {name: own.data for name, own in baselines.CRITERIA.items() if own.channels} == CRITERIA


def test_addresses_of_datasets_are_those_that_torchvision_fetches_from():
    assert PLACES["mnist"].source in torchvision_datasets.MNIST.mirrors
    assert PLACES["fashion_mnist"].source in torchvision_datasets.FashionMNIST.mirrors
    assert torchvision_datasets.CIFAR10.url.startswith(PLACES["cifar10"].source)


@pytest.mark.parametrize("recipe", OPTIONS)
def test_every_option_of_a_recipe_is_taken_and_no_other_recipe_s(recipe):
    values = {"alpha": 0.1, "strategy": "block", "hashing": False, "max_error": 0.1, "as_published": True}
    values |= {"criterion": "magnitude", "products": 0.5, "round_to": 2}
    for option, value in values.items():
        if option in OPTIONS[recipe]:
            assert steps_of(recipe, **{option: value})
        else:
            with pytest.raises(ValueError, match=f"{option} belongs to the recipe|--no-hash is for"):
                steps_of(recipe, **{option: value})


WRONG = [
    (["compress", "digits/resnt"], "Did you mean 'digits/resnet'"),
    (["compress", "torchvision/resnet81"], "unknown network 'torchvision/resnet81'"),
    (["compress", "digits/mlp", "--recipe", "prune", "--criterion", "tailor"], "Did you mean 'taylor'"),
    (
        ["compress", "digits/mlp", "--recipe", "prune", "--alpha", "0.1"],
        "alpha belongs to the recipes merge, red",
    ),
    (["compress", "digits/mlp", "--products", "0.5"], "products belongs to the recipe prune"),
    (["compress", "digits/mlp", "--dataset", "imagenet_folder"], "put ImageNet images there"),
    (["compress", "torchvision/resnet18", "--max-loss", "1"], "--max-loss needs images"),
    (["compress", "digits/mlp", "--max-loss", "-1"], "--max-loss must be a number of points"),
    (["compress", "torchvision/alexnet", "--recipe", "prune", "--criterion", "oracle"], "oracle needs images to score"),
    (["run", "02", "-p", "network", "digits/resnt"], "unknown network 'digits/resnt'"),
    (["compress", "digits/mlp", "--dataset", "cifar11"], "did you mean cifar10?"),
    (["run", "00", "-p", "networks", "[digits/mlp, digits/resnt]"], "unknown network 'digits/resnt'"),
    (["run", "hash_colapse"], "did you mean 02_hash_collapse?"),
    (["sweep", "wrong.yml"], "unknown network 'digits/resnt'"),
    (["help", "compres"], "did you mean compress?"),
    (["compress", "timm/hf-hub:x"], "timm/NAME takes a name of timm.list_models()"),
    (["compress", "nowhere.py:Net"], "there is no file"),
    (["compress", "no_such_package:Net"], "no module 'no_such_package' is installed"),
    (["compress", "wrong.yml:Net"], "no module 'wrong' is installed"),
    (["run", "02", "-p", "network", "hf/../x"], "'../x' is neither a folder nor an ID"),
]


def test_what_is_wrong_is_said_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "wrong.yml").write_text("notebook: 02\ngrid: {network: [digits/mlp, digits/resnt]}\n")
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom redlab.cli.main import app\n"
        f"for words in {[words for words, _ in WRONG]!r}:\n"
        "    done = CliRunner().invoke(app, words)\n"
        "    print(done.exit_code, done.stderr.strip())\n"
        "print('heavy:', sorted({'torch', 'torchvision', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    environment = {**os.environ, "REDLAB_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    *said, heavy = done.stdout.splitlines()
    assert heavy == "heavy: []", done.stderr
    for line, (words, message) in zip(said, WRONG, strict=True):
        assert line.startswith("2 redlab: "), words
        assert message in line, words
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yml"]


def test_a_dataset_is_missed_before_its_download_is_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLAB_DATA", str(tmp_path))
    check_at_hand("digits")
    monkeypatch.setattr(dataset_names, "_silent", lambda address: f"{address} is silent")
    with pytest.raises(ConnectionError, match=r"kriz/ is silent.*put the folder cifar-10-batches-py"):
        check_at_hand("cifar10")
    monkeypatch.setattr(dataset_names, "_silent", lambda address: "")
    check_at_hand("cifar10")  # to be had
    (tmp_path / "mnist" / "MNIST" / "raw").mkdir(parents=True)  # what a download that failed leaves
    assert not is_here("mnist")


def test_a_saved_network_is_known_by_its_folder_and_what_it_was_made_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_network(load_network("digits/mlp"), "mine")
    assert folder_of("mine") == folder
    assert architecture_of("mine") == architecture_of("digits/mlp") == "digits/mlp"
    (folder / "redlab.json").write_text("{")
    assert architecture_of("mine") is None
    assert complete_networks("mi") == ["mine"]
    assert complete_networks("./mi") == ["./mine"]
    assert complete_networks(f"{tmp_path}/") == [f"{tmp_path}/mine"]
    assert complete_networks("digits/m") == ["digits/mobilenet", "digits/mlp"]


def test_the_tab_key_offers_what_begins_alike():
    assert complete_notebooks("02") == ["02_hash_collapse"]
    assert complete_commands("re") == ["refresh", "report"]
    assert complete_datasets("") == list(PLACES)


def test_a_shell_completes_names():
    for words, offered in (("redlab comp", {"compress"}), ("redlab compress --recipe pr", {"prune"})):
        own = {"_REDLAB_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        code = "from redlab.cli.main import app; app(prog_name='redlab')"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)
        assert set(done.stdout.split()) == offered
