"""Networks of timm by name: those of timm.list_models() alone, and what is said without weights."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from redlab import example_input, load_network, save_network

timm = pytest.importorskip("timm")
NAME = "timm/test_resnet"  # half a million parameters


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        return load_network(NAME, weights=None)


def test_a_network_of_timm_is_timms_own_with_its_form_of_images(network):
    facts = timm.models.get_pretrained_cfg("test_resnet")
    assert type(network) is type(timm.create_model("test_resnet"))
    assert network.redlab.input_shape == facts.input_size == (3, 160, 160)
    assert network.redlab.images == {"size": 160, "mean": list(facts.mean), "std": list(facts.std)}
    assert not network.training
    assert example_input(network).shape == (1, 3, 160, 160)


def test_a_folder_of_timms_network_opens_by_itself(network, tmp_path):
    opened = load_network(save_network(network, tmp_path / "net"))
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(opened(image), network(image))
    assert opened.redlab == network.redlab


def test_tags_are_taken_and_unknown_ones_list_the_known():
    with torch.random.fork_rng():
        tagged = load_network("timm/test_resnet.r160_in1k", weights=None)
    assert tagged.redlab.architecture == "timm/test_resnet.r160_in1k"
    with pytest.raises(ValueError, match=r"Invalid pretrained tag \(nope\).*Known: test_resnet\.r160_in1k"):
        load_network("timm/test_resnet.nope", weights=None)


@pytest.mark.parametrize(
    "name", ["resnet1", "hf-hub:timm/resnet18", "hf_hub:x", "local-dir:/tmp", "a/b", "", "resnet18.a.b"]
)
def test_other_names_are_refused_before_timm_builds_anything(name, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ValueError, match="unknown network 'timm/"):
        load_network(f"timm/{name}", weights=None)


def test_a_folder_that_names_no_network_of_timm_is_refused(network, tmp_path):
    folder = save_network(network, tmp_path / "net")
    for name in ("timm/resnet1", "timm/test_resnet.nope"):
        facts = json.loads((folder / "redlab.json").read_text())
        facts["recipe"]["architecture"] = name
        (folder / "redlab.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=f"{folder}/redlab.json: .*{name}"):
            load_network(folder)


def test_weights_that_cannot_be_fetched_say_how_to_give_them(network, tmp_path, monkeypatch):
    def fail(name, pretrained=False):
        if pretrained:
            raise OSError("no route to host")
        return network

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        ConnectionError, match=r"no route to host\)\. Fetch model\.safetensors of timm/test_resnet\.r160_in1k"
    ):
        load_network(NAME)
    monkeypatch.undo()
    save_file({name: torch.full_like(t, 3) for name, t in network.state_dict().items()}, tmp_path / "w.safetensors")
    by_hand = load_network(NAME, weights=tmp_path / "w.safetensors")
    assert by_hand.fc.weight.unique().tolist() == [3]


def test_a_network_that_was_never_trained_is_not_given_random_weights_silently():
    untrained = (name for name in timm.list_models() if not timm.models.get_pretrained_cfg(name).has_weights)
    with pytest.raises(ValueError, match=r"timm has no weights of .*weights=None for random ones"):
        load_network(f"timm/{next(untrained)}")


@pytest.mark.parametrize(("package", "name"), [("timm", "timm/resnet18"), ("transformers", "hf/owner/name")])
def test_a_package_that_is_missing_is_named_with_its_extra(package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    extra = name.partition("/")[0]
    with pytest.raises(ModuleNotFoundError, match=rf"{package} is missing: pip install 'redlab\[{extra}\]'"):
        load_network(name)
