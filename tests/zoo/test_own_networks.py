"""Networks of one's own: by name in code, saved without one, and opened by code that the caller names."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from redlab import (
    example_input,
    fold_batchnorm,
    hash_network,
    load_network,
    measure_cost,
    merge_neurons,
    prune_channels,
    save_network,
    score_channels,
    split_inputs,
)
from redlab.network.recipe import Recipe, recipe_of
from redlab.zoo import making
from redlab.zoo.names import FACTS, absolute_name, architecture_of, folder_of, kind_of_name
from redlab.zoo.saving import stored_bits

SOURCE = Path(__file__).parent / "own_net.py"


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """The user's file, as ``mine.py`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(making, "_NAMED", {})
    yield Path(shutil.copy(SOURCE, tmp_path / "mine.py"))
    sys.modules.pop("mine", None)


def pruned(network: nn.Module) -> nn.Module:
    return prune_channels(network, score_channels(network, "magnitude"), ratio=0.5).network


def answer(network: nn.Module, inputs: dict) -> torch.Tensor:
    with torch.inference_mode():
        return network(**inputs)["logits"]


@pytest.mark.parametrize("name", ["make", "Net", "net"])
def test_a_function_a_class_and_an_object_are_networks(name, file):
    network = load_network(f"mine.py:{name}")
    assert type(network).__module__ == "mine"
    assert not network.training
    assert network.redlab.architecture == f"mine.py:{name}"
    assert set(network.redlab.source) == {"file", "sha256"}
    assert network.redlab.source["file"] == "mine.py"
    assert (network.redlab.example is not None) == (name == "make")


def test_an_object_is_copied_so_that_two_loads_share_no_tensor(file):
    one, other = load_network("mine.py:net"), load_network("mine.py:net", weights=None)
    assert torch.equal(one.last.weight, other.last.weight)
    with torch.no_grad():
        one.last.weight.zero_()
    assert other.last.weight.any()
    assert load_network("mine.py:net").last.weight.any()


def test_the_example_that_code_gives_is_the_example_of_the_network(file):
    network = load_network("mine.py:make")
    inputs = example_input(network)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {"image": (1, 3, 16, 16), "extra": (1, 4)}
    assert inputs["extra"].unique().tolist() == [1]
    assert measure_cost(network).attrs["products"] > 0
    assert torch.equal(example_input(copy.deepcopy(network))["image"], inputs["image"])


WRONG = {
    "mine.py:needs": "mine.py:needs is called without arguments, and it needs width",
    "mine.py:number": "mine.py:number is a int: it must be a network",
    "mine.py:text": "mine.py:text returned a str: it must be a network",
    "mine.py:odd": "mine.py:odd gives an example that is none: inputs must be a tensor",
    "mine.py:make()": "'mine.py:make()' names no network: write FILE.py:NAME, as mine.py:make",
    "mine.py::make": "write FILE.py:NAME, as mine.py:make",
    "mine.py: make": "write FILE.py:NAME, as mine.py:make",
    "mine.py:fails": "mine.py:fails: ZeroDivisionError: division by zero",
    "mine.py:Nett": "has no 'Nett' (did you mean Net?)",
    "mine.py": "unknown network 'mine.py'",
    "other.py:Net": "there is no file",
    "os:system": "os:system is called without arguments, and it needs command",
    "hf/../up": "is neither a folder nor an ID",
    "timm/hf-hub:x": "takes a name of timm.list_models()",
    "timm/a/b": "takes a name of timm.list_models()",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_network_says_what_was_tried(name, file):
    more = "def needs(width): pass\nnumber = 7\ndef text(): return 'x'\ndef fails(): return 1 / 0\n"
    more += "def odd(): return make()[0], 'x'\n"
    file.write_text(file.read_text() + more)
    with pytest.raises(ValueError) as error:  # noqa: PT011  message below
        load_network(name)
    assert WRONG[name] in str(error.value)
    if "unknown" in str(error.value):
        assert "FILE.py:NAME, package.module:NAME, or a folder" in str(error.value)


@pytest.mark.parametrize("given", [5, None, nn.Linear(1, 1)], ids=str)
def test_what_is_neither_a_name_nor_a_path_is_refused_in_plain_words(given):
    with pytest.raises(ValueError, match=r"load_network takes a name or the path of a folder, not (None|an object of)"):
        load_network(given)


def test_what_the_code_says_of_images_stays(file):
    images = {"size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    more = f"from redlab import Recipe\ndef of_images():\n    net.redlab = Recipe(images={images})\n    return net\n"
    file.write_text(file.read_text() + more)
    recipe = load_network("mine.py:of_images").redlab
    assert (recipe.architecture, recipe.images, recipe.steps) == ("mine.py:of_images", images, ())


def test_a_name_of_a_module_is_a_network():
    network = load_network("torchvision.models:squeezenet1_1")
    assert network.redlab.architecture == "torchvision.models:squeezenet1_1"
    assert kind_of_name("torchvision.models:squeezenet1_1") == "module"
    with pytest.raises(ValueError, match=r"did you mean squeezenet1_1\?"):
        load_network("torchvision.models:squeezenet1_")


def test_what_a_name_is_and_where_it_holds(file):
    save_network(load_network("mine.py:make"), "saved")
    Path("weights").mkdir()
    kinds = {
        "digits/mlp": "own",
        "torchvision/resnet18": "torchvision",
        "timm/resnet18.a1_in1k": "timm",
        "hf/weights": "hf",
        "hf/owner/name": "hf",
        "mine.py:Net": "file",
        "torch.nn:ReLU": "module",
        "saved": "folder",
        "resnet18": None,
        "timm/local-dir:x": None,
        "hf/": None,
    }
    assert {name: kind_of_name(name) for name in kinds} == kinds
    here = Path.cwd()
    assert absolute_name("mine.py:Net") == f"{here}/mine.py:Net"
    assert absolute_name("saved") == f"{here}/saved"
    assert absolute_name("hf/weights") == f"hf/{here}/weights"
    for name in ("digits/mlp", "timm/resnet18", "hf/owner/name", "torch.nn:ReLU"):
        assert absolute_name(name) == name
    assert folder_of("mine.py:Net") is None
    assert architecture_of("saved") == "mine.py:make"


# Weights by path.


def test_weights_of_any_name_come_from_a_file_and_fit_exactly(file, tmp_path):
    state = {name: torch.full_like(tensor, 0.25) for name, tensor in load_network("mine.py:Net").state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, "w.pt")
    for path in ("w.safetensors", tmp_path / "w.pt"):
        network = load_network("mine.py:Net", weights=path)
        assert network.first.weight.unique().tolist() == [0.25]
    mlp = load_network("digits/mlp")
    save_file({name: t * 2 for name, t in mlp.state_dict().items()}, tmp_path / "mlp.safetensors")
    twice = load_network("digits/mlp", "mlp.safetensors")
    assert torch.equal(twice.classifier.weight, mlp.classifier.weight * 2)


def test_weights_that_do_not_fit_are_listed(file, tmp_path):
    state = load_network("mine.py:Net").state_dict()
    state["odd"], state["last.weight"] = state.pop("first.weight"), torch.zeros(5, 7)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        ValueError, match=r"w\.safetensors do not fit Net: 1 missing: first\.weight; 1 unexpected: odd; "
    ):
        load_network("mine.py:Net", weights="w.safetensors")
    with pytest.raises(ValueError, match=r"1 of another shape: last\.weight \(5, 7\) in place of \(5, 12\)"):
        load_network("mine.py:Net", weights="w.safetensors")


def test_tied_weights_may_be_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    from redlab.files.checkpoint import load_weights

    network = Tied()
    state = {name: torch.ones_like(tensor) for name, tensor in network.state_dict().items() if name != "b.weight"}
    load_weights(network, state)
    assert network.b.weight.unique().tolist() == [1]


# Saved and opened again.


@pytest.mark.parametrize("build", ["mine.py:make", "mine.py:Net", "class", "function", "object"])
def test_a_pruned_network_opens_by_the_code_that_the_caller_names(build, file):
    network = pruned(load_network("mine.py:make"))
    save_network(network, "saved")
    mine = sys.modules["mine"]
    code = {"class": mine.Net, "function": lambda: mine.Net(12), "object": mine.net}.get(build, build)
    opened = load_network("saved", build=code)
    assert opened.redlab.architecture == (code if isinstance(code, str) else None)
    assert opened.redlab.steps == network.redlab.steps
    assert opened.redlab.example == network.redlab.example
    inputs = example_input(network)
    assert torch.equal(answer(opened, inputs), answer(network, inputs))
    assert not opened.training
    again = load_network(save_network(opened, "again"), build="mine.py:Net")  # a network of no name is saved too
    assert torch.equal(answer(again, inputs), answer(network, inputs))


def test_any_network_object_is_saved_with_its_steps(tmp_path):
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())

    network, images = build().eval(), torch.rand(2, 2, 8, 8)
    plain = save_network(network, tmp_path / "plain")
    assert json.loads((plain / FACTS).read_text())["recipe"]["architecture"] is None
    assert torch.equal(load_network(plain, build=build)(images), network(images))
    smaller = prune_channels(network, score_channels(network, "magnitude", example=images), ratio=0.5, example=images)
    split = split_inputs(hash_network(fold_batchnorm(smaller.network).network, rule="uniform").network).network
    folder = save_network(split, tmp_path / "split")
    with pytest.raises(ValueError, match="names no architecture") as error:
        load_network(folder)
    assert f"load_network({str(folder)!r}, build=...)" in str(error.value)
    opened = load_network(folder, build=build)
    assert torch.equal(opened(images), split(images))
    assert opened.redlab == split.redlab
    assert stored_bits(folder, build=build)["layer"].tolist() == ["0", "3"]


def test_every_facts_of_the_recipe_come_back(file, tmp_path):
    network = load_network("mine.py:make")
    images = {"size": [16, 24], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    network.redlab = Recipe("mine.py:make", None, (), (0.0,), network.redlab.example, images, network.redlab.source)
    assert load_network(save_network(network, tmp_path / "net"), build="mine.py:make").redlab == network.redlab
    facts = json.loads((tmp_path / "net" / FACTS).read_text())
    assert (facts["format"], facts["scales"]) == (4, {})
    assert str(tmp_path) not in (tmp_path / "net" / FACTS).read_text()


def test_a_file_that_changed_is_one_warning(file, recwarn):
    save_network(load_network("mine.py:Net"), "saved")
    load_network("saved", build="mine.py:Net")
    assert not recwarn.list
    file.write_text(file.read_text() + "# another line\n")
    load_network("saved", build="mine.py:Net")
    assert [str(w.message) for w in recwarn.list] == [
        f"{Path.cwd()}/saved: mine.py has changed since: look whether it still computes the same"
    ]


def test_what_the_user_named_here_is_built_again_when_it_is_saved(file, tmp_path, monkeypatch):
    network = load_network("mine.py:Net")
    network.second.stride = (2, 2)
    monkeypatch.chdir("/")  # the name holds where it was given
    with pytest.raises(
        ValueError, match=r"the recipe does not rebuild this network: .*stride=\(2, 2\).*architecture=None"
    ):
        save_network(network, tmp_path / "saved")
    monkeypatch.setattr(making, "_NAMED", {})
    assert save_network(network, tmp_path / "saved").is_dir()


def test_build_is_for_folders_alone(file):
    with pytest.raises(ValueError, match="build is for the folder of a saved network"):
        load_network("digits/mlp", build="mine.py:Net")
    save_network(load_network("digits/mlp"), "saved")
    assert load_network("saved", build="digits/mlp").redlab == load_network("digits/mlp").redlab
    with pytest.raises(ValueError, match="do not fit"):
        load_network("saved", build="mine.py:Net")
    with pytest.raises(ValueError, match="name the code that builds one"):
        load_network("saved", build="saved")
    with pytest.raises(ValueError, match="weights of its own"):
        load_network("saved", weights="mine.py")


HOSTILE = ["evil.py:Net", "{here}/evil.py:Net", "evil:Net", "os:system", "timm/hf-hub:x", "timm/local-dir:evil", "hf/x"]
HOSTILE += ["hf/{here}/evil", "saved", "{here}/saved", "evil.py", "__import__('os')", ""]


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_folder_decides_which_code_runs(name, file, tmp_path, monkeypatch):
    name = name.format(here=tmp_path)
    (tmp_path / "evil.py").write_text(
        "import pathlib\npathlib.Path('executed').touch()\nfrom torch.nn import Linear as Net\n"
    )
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "config.json").write_text('{"model_type": "bert", "auto_map": {"AutoModel": "evil.Net"}}')
    folder = save_network(load_network("digits/mlp"), tmp_path / "saved")
    facts = json.loads((folder / FACTS).read_text())
    facts["recipe"]["architecture"] = name
    (folder / FACTS).write_text(json.dumps(facts))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    with pytest.raises(ValueError, match=str(folder)) as error:
        load_network(folder)
    if kind_of_name(name) in ("file", "module", "hf"):
        assert f"load_network({str(folder)!r}, build={name!r})" in str(error.value)
    assert not Path("executed").exists()
    assert not {"evil", "mine", "timm", "transformers"} & (set(sys.modules) - modules)


@pytest.mark.parametrize(
    "change",
    [
        {"example": {"tensor": [10**9, 10**3], "dtype": "float32"}},
        {"example": {"tensor": [1], "dtype": "complex64"}},
        {"example": {"tensor": [1], "dtype": "int64"}},
        {"example": {"tensor": [1], "dtype": "int64", "low": 0.5, "high": 7}},
        {"example": {"tensor": [1], "dtype": "uint8", "low": 0, "high": 10**9}},
        {"example": {"tensor": [1], "dtype": "int64", "low": 9, "high": 1}},
        {"example": {"value": 3}},
        {"example": {"tuple": []}},
        {"example": {"dict": {"x": {"call": "os.system"}}}},
        {"images": {"size": 10**9, "mean": [0], "std": [1]}},
        {"images": {"size": 8}},
        {"source": {"file": 7, "sha256": ""}},
    ],
    ids=str,
)
def test_facts_that_describe_no_input_are_refused(change, tmp_path):
    folder = save_network(load_network("digits/mlp"), tmp_path / "saved")
    facts = json.loads((folder / FACTS).read_text())
    facts["recipe"] |= change
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=str(folder)):
        load_network(folder)


# Pickles.


def test_a_recipe_pickles_as_a_dict_and_copies_as_itself():
    recipe = Recipe("digits/mlp", (1, 8, 8), ({"step": "hash", "x": [1]},), example={"value": 1})
    plain = pickle.loads(pickle.dumps(recipe))
    assert type(plain) is dict
    assert b"redlab" not in pickle.dumps(recipe)
    network = nn.Linear(2, 2)
    network.redlab = plain
    assert recipe_of(network) == recipe
    copied = copy.deepcopy(recipe)
    assert copied == recipe
    assert type(copied) is Recipe
    assert copied.steps[0] is not recipe.steps[0]
    assert copy.copy(recipe) == recipe
    network.redlab = {"architecture": "x", "odd": 1}
    with pytest.raises(ValueError, match=r"network\.redlab must be a Recipe or a dict of architecture"):
        recipe_of(network)


ODD = {
    "architecture": 7,
    "input_shape": (1, -8),
    "steps": [{"kind": "hash"}],
    "input_mean": "0.3",
    "example": {},
    "images": [224],
    "source": "mine.py",
}


@pytest.mark.parametrize("field", ODD)
def test_an_odd_field_of_a_pickle_is_named(field):
    network = nn.Linear(2, 2)
    network.redlab = {field: ODD[field]}
    with pytest.raises(ValueError, match=rf"network\.redlab: '{field}' must be"):
        recipe_of(network)


def test_a_description_of_no_known_kind_or_dtype_is_refused():
    for odd, message in (({"call": 1}, "is described by one of"), ({"tensor": [1], "dtype": "save"}, "the dtype of")):
        network = nn.Linear(2, 2)
        network.redlab = {"example": {"dict": {"x": odd}}}
        with pytest.raises(ValueError, match=message):
            example_input(network)


def test_a_network_that_was_pickled_goes_on_and_is_saved(file, tmp_path):
    network = pickle.loads(pickle.dumps(pruned(load_network("mine.py:make"))))
    assert type(network.redlab) is dict
    merged = merge_neurons(network, alpha=0.2).network
    assert [step["step"] for step in recipe_of(merged).steps] == ["plan", "plan"]
    opened = load_network(save_network(merged, tmp_path / "net"), build="mine.py:make")
    inputs = example_input(merged)
    assert torch.equal(answer(opened, inputs), answer(merged, inputs))


_OPEN = """
import sys
sys.modules["redlab"] = None  # what imports it fails
import torch
for name in sys.argv[1:]:
    if name == "page":
        inputs, outputs = torch.load("page.pt")
        exec(open("page.py").read())
    else:
        network, inputs, outputs = torch.load(f"{name}.pt", weights_only=False)
        assert type(network.redlab) is dict
    with torch.inference_mode():
        found = network(**inputs)
    # where a tensor begins in memory decides how sums are rounded
    torch.testing.assert_close(found["logits"] if isinstance(found, dict) else found, outputs)
print("opened", len(sys.argv) - 1)
"""


def asked(network: nn.Module) -> tuple[dict, torch.Tensor]:
    """An example of a network's inputs by name, and its answer."""
    given = example_input(network)
    inputs = given if isinstance(given, dict) else {"x": given}
    with torch.inference_mode():
        found = network(**inputs)
    return inputs, found["logits"] if isinstance(found, dict) else found


def open_without_redlab(made: dict[str, nn.Module], folder: Path, *more: str) -> None:
    """Pickle the networks and open them in a process that cannot import redlab."""
    for name, network in made.items():
        torch.save((network, *asked(network)), folder / f"{name}.pt")
    command = [sys.executable, "-c", _OPEN, *made, *more]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout == f"opened {len(made) + len(more)}\n", done.stderr


def test_pickles_and_the_folder_of_a_pruned_network_open_without_redlab(file, tmp_path):
    """The folder by the script of the page, in five lines beside its imports."""
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    (script,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "load_file" in code]
    assert len(script.partition("\n\n")[2].splitlines()) <= 5
    (tmp_path / "page.py").write_text(script)
    network = load_network("mine.py:make")
    small = pruned(network)
    save_network(small, "smaller")
    torch.save(asked(small), "page.pt")
    made = {"plain": network, "pruned": small, "folded": fold_batchnorm(small).network}
    open_without_redlab(made | {"hashed": hash_network(small).network}, tmp_path, "page")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_resnet", "timm/test_efficientnet"])
def test_pickled_networks_of_torchvision_and_timm_open_without_redlab(name, tmp_path):
    pytest.importorskip("timm")
    with torch.random.fork_rng():
        network = load_network(name, weights=None)
    small = pruned(network)
    open_without_redlab({"plain": network, "pruned": small, "folded": fold_batchnorm(small).network}, tmp_path)
