"""Saved networks: bit for bit the same when opened again, and nothing else is ever opened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import nn

from redlab import fold_batchnorm, hash_network, weight_layers
from redlab.files import atomic
from redlab.network.example import example_input
from redlab.network.recipe import Recipe, input_mean_of, recipe_of
from redlab.zoo import saving as storage
from redlab.zoo.names import list_networks
from redlab.zoo.saving import FACTS, WEIGHTS, load_network, save_network, stored_bits


def folded(name: str = "digits/resnet") -> nn.Module:
    return fold_batchnorm(load_network(name)).network


def hashed(name: str = "digits/resnet") -> nn.Module:
    return hash_network(folded(name)).network


def merged(name: str = "digits/resnet") -> nn.Module:
    from redlab.compression.merging import merge_neurons

    return merge_neurons(hashed(name), alpha=0.25).network


def uniform(name: str = "digits/resnet") -> nn.Module:
    return hash_network(folded(name), rule="uniform", max_error=0.1).network


def halved(name: str = "digits/resnet") -> nn.Module:
    return hashed(name).half()


def in_bfloat16(name: str = "digits/resnet") -> nn.Module:
    return load_network(name).bfloat16()


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and _bytes(one) == _bytes(other)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet", "digits/mlp"])
@pytest.mark.parametrize("step", [load_network, folded, hashed, merged, halved, in_bfloat16])
def test_a_saved_network_comes_back_bit_for_bit(step, name, tmp_path):
    network = step(name)
    path = save_network(network, tmp_path / "net")
    opened = load_network(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net"]
    assert opened.redlab == network.redlab
    assert not any(module.training for module in opened.modules())
    states = network.state_dict(), opened.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(same_bits(states[0][key], states[1][key]) for key in states[0])
    images = example_input(network).repeat(5, 1, 1, 1)
    assert torch.equal(network(images), opened(images))
    assert {type(p) for p in opened.parameters()} == {nn.Parameter}
    assert all(p.requires_grad for p in opened.parameters())


def test_a_hashed_network_takes_about_a_fifth_and_by_a_coarser_rule_a_seventh(tmp_path):
    plain, small = save_network(folded(), tmp_path / "plain"), save_network(hashed(), tmp_path / "hashed")
    coarse = save_network(uniform(), tmp_path / "coarse")
    assert (small / WEIGHTS).stat().st_size < 0.2 * (plain / WEIGHTS).stat().st_size
    assert on_disk(small) < 0.24 * on_disk(plain)
    assert on_disk(coarse) < 0.15 * on_disk(plain)


@pytest.mark.parametrize("make", [hashed, uniform, lambda: hashed().half(), lambda: uniform().double()])
def test_stored_codes_take_3_percent_more_than_their_entropy_at_most(make, tmp_path):
    network = make()
    table = stored_bits(save_network(network, tmp_path / "net"))
    assert list(table) == ["layer", "weights", "distinct", "bits", "entropy"]
    layers = {layer.name: layer.weight.detach().numpy() for layer in weight_layers(network)}
    assert list(table["layer"]) == list(layers)
    for row in table.itertuples():
        weight = layers[row.layer]
        # Not as float16: numpy 2.4 sorts many of those wrongly on some processors (AVX-512 without its half precision).
        counts = np.unique(weight.astype(np.float64), return_counts=True)[1]
        assert (row.weights, row.distinct) == (weight.size, len(counts))
        assert row.entropy == pytest.approx(stats.entropy(counts, base=2))
        codes = row.bits * weight.size / 8 - len(counts) * weight.itemsize
        assert codes < 1.03 * row.entropy * weight.size / 8 + 64


def test_resnet56_takes_its_entropy_of_three_and_a_half_bits_a_weight(real_data, tmp_path):
    table = stored_bits(save_network(uniform("cifar10/resnet56"), tmp_path / "net"))
    bits, entropy = (np.average(table[column], weights=table["weights"]) for column in ("bits", "entropy"))
    assert 3.4 < entropy < bits < 3.6


def test_a_network_that_was_never_hashed_has_no_codes(tmp_path):
    assert stored_bits(save_network(folded(), tmp_path / "net")).empty


def test_bits_are_counted_of_sound_folders_only(saved, tmp_path):
    with pytest.raises(ValueError, match="is the name of a network"):
        stored_bits("digits/resnet")
    with pytest.raises(ValueError, match="there is no folder"):
        stored_bits(tmp_path / "nowhere")
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated or changed"):
        stored_bits(saved)


def test_results_are_saved_as_their_networks(tmp_path):
    result = hash_network(load_network("digits/mlp"))
    save_network(result, tmp_path / "net")
    assert load_network(tmp_path / "net").redlab == result.network.redlab


def test_every_bit_of_odd_values_survives(tmp_path):
    network = hashed()
    with torch.no_grad():
        network.conv1.weight[0] = -0.0
        network.conv1.weight[1] = float("nan")
        network.conv1.weight[2] = float("inf")
        network.conv1.weight[3] = 1e-42
    opened = load_network(save_network(network, tmp_path / "net"))
    assert same_bits(network.conv1.weight, opened.conv1.weight)


def test_a_network_that_left_its_codebook_is_stored_whole(tmp_path):
    network = hashed()
    with torch.no_grad():
        network.conv1.weight.normal_(generator=torch.Generator().manual_seed(0))
    tensors = load_file(save_network(network, tmp_path / "net") / WEIGHTS)
    assert "conv1.weight" in tensors
    assert "layer1.0.conv1.weight:codes" in tensors
    assert same_bits(load_network(tmp_path / "net").conv1.weight, network.conv1.weight)


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path):
    network = load_network("digits/resnet")
    block = network.layer1[0]
    block.conv2.weight = block.conv1.weight
    opened = load_network(save_network(network, tmp_path / "net"))
    assert "layer1.0.conv2.weight" not in load_file(tmp_path / "net" / WEIGHTS)
    assert opened.layer1[0].conv1.weight is opened.layer1[0].conv2.weight
    images = example_input(network)
    assert torch.equal(network(images), opened(images))


def test_views_of_one_storage_and_other_layouts_are_stored_apart(tmp_path):
    network = load_network("digits/resnet").to(memory_format=torch.channels_last)
    both = torch.zeros(2, 16)
    network.bn1.running_mean, network.bn1.running_var = both[0], both[1]
    network.linear.weight.data = network.linear.weight.data.T.contiguous().T
    opened = load_network(save_network(network, tmp_path / "net"))
    states = network.state_dict(), opened.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert opened.bn1.running_mean.untyped_storage().nbytes() == 64


@pytest.mark.parametrize("name", ["imagenet/mobilenet_v1_0.75", "torchvision/regnet_y_400mf", "torchvision/mnasnet0_5"])
def test_architectures_that_the_meta_device_cannot_hold_come_back_too(name, tmp_path):
    with torch.random.fork_rng():
        network = load_network(name, weights=None).double()
    save_network(network, tmp_path / "net")
    before = torch.random.get_rng_state()
    opened = load_network(tmp_path / "net")
    assert torch.equal(torch.random.get_rng_state(), before)
    image = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(network(image), opened(image))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: setattr(n, "redlab", Recipe("digits/mlp", (1, 8, 8))), "does not rebuild this network"),
        (lambda n: setattr(n, "redlab", Recipe("digits/alexnet", (1, 8, 8))), "unknown network 'digits/alexnet'"),
        (lambda n: setattr(n, "redlab", Recipe("digits/resnet", (1, 8, 8), ({"step": "magic"},))), "'magic'"),
        (lambda n: setattr(n, "redlab", Recipe("digits/resnet", (1, 8, 8), ({"step": "hash", "x": {1}},))), "plain"),
        (lambda n: setattr(n, "relu", nn.GELU()), "(relu): GELU"),
        (lambda n: setattr(n.conv1, "stride", (2, 2)), "stride=(2, 2)"),
        (lambda n: setattr(n, "extra", nn.Linear(2, 2)), "Unexpected key"),
        (lambda n: setattr(n.conv1, "weight", nn.Parameter(torch.zeros(16, 1, 5, 5))), "size mismatch"),
        (lambda n: n.to("meta"), "no dense tensor with values"),
        (lambda n: n.register_buffer("odd", torch.eye(3).to_sparse()), "no dense tensor"),
    ],
)
def test_a_recipe_that_does_not_rebuild_the_network_is_refused_at_once(change, message, tmp_path):
    network = load_network("digits/resnet")
    change(network)
    with pytest.raises(ValueError) as error:  # noqa: PT011  message below: some hold brackets
        save_network(network, tmp_path / "net")
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_running_in_place_or_not_makes_no_other_network(tmp_path):
    network = load_network("digits/resnet")
    network.relu.inplace = True
    assert load_network(save_network(network, tmp_path / "net")).relu.inplace is False


# Where a save may write.


def test_a_saved_network_and_an_empty_folder_are_replaced(tmp_path):
    folder = tmp_path / "a" / "net"
    save_network(load_network("digits/mlp"), folder)
    save_network(load_network("digits/resnet"), folder)
    assert load_network(folder).redlab.architecture == "digits/resnet"
    (tmp_path / "empty").mkdir()
    assert load_network(save_network(load_network("digits/mlp"), tmp_path / "empty")).redlab.steps == ()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["net"]


def test_other_folders_and_files_are_left_alone(tmp_path):
    network = load_network("digits/mlp")
    foreign, file, mixed = tmp_path / "foreign", tmp_path / "file", tmp_path / "mixed"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    file.write_text("mine")
    save_network(network, mixed)
    (mixed / "notes.txt").write_text("good one")
    for folder, message in ((foreign, "no saved network"), (file, "is a file"), (mixed, "move notes.txt")):
        with pytest.raises(ValueError, match=message):
            save_network(network, folder)
    assert (foreign / "thesis.tex").read_text() == "years of work"
    assert file.read_text() == "mine"
    assert (mixed / "notes.txt").read_text() == "good one"


def test_a_save_killed_between_its_two_moves_leaves_the_old_network(tmp_path, monkeypatch):
    folder = tmp_path / "net"
    old, new = load_network("digits/mlp"), load_network("digits/resnet")
    save_network(old, folder)
    moves, replace = [], atomic.os.replace

    def one_move_only(*paths):
        moves.append(paths)
        if len(moves) > 1:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(atomic.os, "replace", one_move_only)
    with pytest.raises(KeyboardInterrupt):
        save_network(new, folder)
    monkeypatch.undo()
    assert not folder.exists()
    assert load_network(folder).redlab == old.redlab
    save_network(new, folder)
    assert load_network(folder).redlab == new.redlab
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


_FULL = """
import resource, sys
from redlab.zoo.saving import load_network, save_network
network = load_network("digits/resnet")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_network(network, sys.argv[1])
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the limit on the size of files is Unix's")
def test_a_full_disk_leaves_the_old_network(tmp_path):
    folder = tmp_path / "net"
    save_network(load_network("digits/mlp"), folder)
    done = subprocess.run([sys.executable, "-c", _FULL, folder], capture_output=True, text=True, check=True)
    assert f"could not write {folder}, what was there is unchanged: " in done.stdout
    assert load_network(folder).redlab.architecture == "digits/mlp"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


# What is not opened.


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return save_network(hashed(), tmp_path_factory.mktemp("saved") / "net")


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    """One with every kind of step."""
    return save_network(merged(), tmp_path_factory.mktemp("planned") / "net")


@pytest.fixture
def saved(original, tmp_path) -> Path:
    """A saved network to damage."""
    return shutil.copytree(original, tmp_path / "net")


def edit(folder: Path, change) -> None:
    facts = json.loads((folder / FACTS).read_text())
    change(facts)
    (folder / FACTS).write_text(json.dumps(facts))


def reseal(folder: Path, change) -> None:
    """Change the tensors as somebody who also corrects the checksum would."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    edit(folder, lambda facts: facts.update(sha256=storage.sha256_of(folder / WEIGHTS)))


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match=str(folder)) as error:
        load_network(folder)
    return str(error.value)


def test_a_truncated_or_changed_file_is_refused(saved):
    weights = saved / WEIGHTS
    whole = weights.read_bytes()
    for broken in (b"", whole[:7], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"\0"):
        weights.write_bytes(broken)
        assert "truncated or changed" in refused(saved)
    weights.unlink()
    assert "is missing" in refused(saved)
    weights.mkdir()
    assert "is missing" in refused(saved)
    text = (saved / FACTS).read_bytes()
    for broken in (b"", text[: len(text) // 2], b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b'{"format": "1"}'):
        (saved / FACTS).write_bytes(broken)
        refused(saved)


def _images(mean: list, std: list) -> dict:
    return {"size": 8, "mean": mean, "std": std}


EDITS = {
    "newer": (lambda f: f.update(format=5), "upgrade redlab"),
    "older": (lambda f: f.update(format=0), "(format: 0 is less than the minimum of 1)"),
    "true": (lambda f: f.update(format=True), "(format: True is not of type 'integer')"),
    "other json": (lambda f: f.clear(), "save_network did not write it"),
    "no recipe": (lambda f: f.pop("recipe"), "('recipe' is a required property)"),
    "no hash": (lambda f: f.update(sha256=None), "(sha256: None is not of type 'string')"),
    "dtype": (lambda f: f.update(dtype="os.system"), "(dtype: 'os.system' is not one of ['float16'"),
    "unknown architecture": (lambda f: f["recipe"].update(architecture="digits/alexnet"), "unknown network"),
    "path": (lambda f: f["recipe"].update(architecture="../../etc/passwd"), "unknown network"),
    "other architecture": (lambda f: f["recipe"].update(architecture="digits/mlp"), "does not fit digits/mlp"),
    "no architecture": (lambda f: f["recipe"].update(architecture=7), "(recipe.architecture: 7 is not of type"),
    "huge": (lambda f: f["recipe"].update(input_shape=[10**6] * 6), "'input_shape' holds more than 100,000,000 values"),
    "negative": (lambda f: f["recipe"].update(input_shape=[1, -8, 8]), "(recipe.input_shape[1]: -8 is less than"),
    "empty shape": (lambda f: f["recipe"].update(input_shape=[]), "(recipe.input_shape: [] "),
    "no std": (
        lambda f: f["recipe"].update(images=_images([0.5], [0])),
        "'std' of the recipe's 'images' must be above",
    ),
    "odd std": (lambda f: f["recipe"].update(images=_images([0.5], [1, 1])), "must have as many numbers"),
    "many steps": (lambda f: f["recipe"].update(steps=[{"step": "plan"}] * 1001), "'steps' are 1,001, more than 1,000"),
    "fraction": (lambda f: f["recipe"].update(input_shape=[1.0, 8, 8]), "(recipe.input_shape[0]: 1.0 is not of type"),
    "mean of text": (lambda f: f["recipe"].update(input_mean="0.3"), "(recipe.input_mean: '0.3' is not of type"),
    "mean of truth": (lambda f: f["recipe"].update(input_mean=[True]), "(recipe.input_mean[0]: True is not of type"),
    "too many means": (lambda f: f["recipe"].update(input_mean=[0.3, 0.3]), "'input_mean' must be"),
    "no finite mean": (lambda f: f["recipe"].update(input_mean=[float("inf")]), "Infinity is no number of JSON"),
    "a huge mean": (lambda f: f["recipe"].update(input_mean=[10**400]), "(recipe.input_mean[0]: 1000"),
    "steps": (lambda f: f["recipe"].update(steps="fold"), "(recipe.steps: 'fold' is not of type 'array')"),
    "unknown step": (
        lambda f: f["recipe"]["steps"].append({"step": "eval"}),
        "'eval'; known steps: ",
    ),
    "step of lists": (lambda f: f["recipe"]["steps"].append({"step": []}), "(recipe.steps[2].step: [] is not of type"),
    "no step": (lambda f: f["recipe"]["steps"].append("fold"), "(recipe.steps[2]: 'fold' is not of type"),
    "folded twice": (lambda f: f["recipe"]["steps"].append(f["recipe"]["steps"][0]), "step 3 of its recipe, 'fold'"),
    "not folded": (lambda f: f["recipe"]["steps"].pop(0), "do not fit"),
    "odd fold": (lambda f: f["recipe"]["steps"][0].update(folded={"bn1": "__class__"}), "step 1 of its recipe"),
    "fold without": (lambda f: f["recipe"]["steps"][0].pop("folded"), "step 1 of its recipe"),
    "not packed": (lambda f: f.update(packed=[]), "do not fit"),
    "packed twice": (lambda f: f.update(packed=f["packed"] * 2), "is missing"),
    "packed list": (lambda f: f.update(packed=[[]]), "(packed[0]: [] is not of type 'string')"),
    "tied to nothing": (lambda f: f.update(tied={"conv1.weight": "nothing"}), "is missing"),
    "tied in a wrong shape": (lambda f: f.update(tied={"conv1.weight": "linear.weight"}), "do not fit"),
    "tied elsewhere": (lambda f: f.update(tied={"forward": "conv1.weight"}), "do not fit"),
    "tied list": (lambda f: f.update(tied={"conv1.weight": []}), "(tied['conv1.weight']: [] is not of type"),
}


@pytest.mark.parametrize("change", EDITS)
def test_other_facts_are_refused_with_what_would_be_right(saved, change):
    edit(saved, EDITS[change][0])
    assert EDITS[change][1] in refused(saved)


def test_a_name_of_a_large_network_is_refused_before_it_takes_memory(saved, monkeypatch):
    from redlab.zoo import manifest

    class Large(nn.Linear):
        def __init__(self) -> None:
            super().__init__(10**5, 10**7)  # 4 TB
            self.register_buffer("constant", torch.ones(1), persistent=False)

    built = []

    def made(name: str) -> nn.Module:
        built.append(str(torch.empty(0).device))
        return Large()

    monkeypatch.setattr(manifest, "made", made)
    edit(saved, lambda facts: facts["recipe"].update(steps=[]))
    assert "do not fit Large" in refused(saved)
    edit(saved, lambda facts: facts.update(packed=["weight"], tied={}))
    reseal(saved, _as_weight)
    assert "would unpack to 1,000,000,000,000 numbers" in refused(saved)
    assert set(built) == {"meta"}


def _as_weight(tensors: dict[str, torch.Tensor]) -> None:
    codes, codebook = tensors["conv1.weight:codes"], tensors["conv1.weight:codebook"]
    tensors.clear()
    tensors |= {"weight:codes": codes, "weight:codebook": codebook, "bias": torch.zeros(3)}


def _first_member(facts: dict) -> dict:
    return next(iter(facts["recipe"]["steps"][2]["members"].values()))[0]


PLANS = {
    "huge": lambda member: member.update(width=10**11, index={"arange": [0, 10**9, 1, 10**9]}),
    "huge stride": lambda member: member.update(index={"arange": [0, 10**30, 1, 1]}),
    "other tensor": lambda member: member.update(tensors=[["conv1.nothing", 0]]),
    "a method": lambda member: member.update(tensors=[["conv1.forward", 0]]),
    "rows of text": lambda member: member.update(index={"rows": ["__import__('os')"]}),
    "role": lambda member: member.update(role="padding"),
    "no width": lambda member: member.pop("width"),
    "width of text": lambda member: member.update(width="16"),
}


@pytest.mark.parametrize("change", PLANS)
def test_plans_that_do_not_fit_are_refused(planned, tmp_path, change):
    folder = shutil.copytree(planned, tmp_path / "net")
    edit(folder, lambda facts: PLANS[change](_first_member(facts)))
    assert "step 3 of its recipe, 'plan', does not fit digits/resnet" in refused(folder)


@pytest.mark.parametrize("key", ["conv1.weight:codes", "conv1.weight:codebook", "conv1.bias"])
def test_other_tensors_under_a_right_checksum_are_refused(saved, key):
    whole = shutil.copytree(saved, saved.with_name("whole"))
    others = [None, torch.zeros(3), torch.zeros(16, 1, 5, 5), torch.full((16, 1, 3, 3), 200, dtype=torch.uint8)]
    for other in (*others, torch.zeros(3, dtype=torch.int64), torch.zeros(0), torch.tensor(1, dtype=torch.uint8)):
        shutil.rmtree(saved)
        shutil.copytree(whole, saved)
        reseal(saved, lambda tensors, other=other: tensors.pop(key) if other is None else tensors.update({key: other}))
        assert "do not fit" in refused(saved)


def _bomb(codes: torch.Tensor) -> torch.Tensor:
    packer = zlib.compressobj(wbits=-15)
    content = b"\1" + packer.compress(bytes(10**7)) + packer.flush()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


STREAMS = {
    "bomb": (_bomb, "expands beyond the 144 codes expected"),
    "truncated": (lambda codes: codes[:-1], "ends before the 144 codes expected"),
    "empty": (lambda codes: codes[:0], "truncated or damaged"),
    "garbage": (lambda codes: torch.cat([codes, codes[:7]]), "7 bytes follow"),
    "noise": (lambda codes: torch.full_like(codes, 255) - 254 * (torch.arange(len(codes)) == 0), "is damaged"),
}


@pytest.mark.parametrize("change", STREAMS)
def test_streams_that_lie_are_refused_with_the_tensor_and_the_folder(saved, change):
    key = "conv1.weight:codes"
    reseal(saved, lambda tensors: tensors.update({key: STREAMS[change][0](tensors[key]).to(torch.uint8)}))
    message = refused(saved)
    assert "of conv1.weight cannot be read" in message
    assert STREAMS[change][1] in message


def test_codes_beyond_the_codebook_are_refused(saved):
    key = "layer1.0.conv1.weight:codebook"
    reseal(saved, lambda tensors: tensors.update({key: tensors[key][:-1].clone()}))
    assert "of layer1.0.conv1.weight cannot be read: it holds a code beyond its codebook" in refused(saved)


def test_folders_of_format_1_with_codes_as_they_are_still_open(saved):
    network = load_network(saved)

    def unpack_codes(tensors):
        for key in [key for key in tensors if key.endswith(":codes")]:
            bits = network.get_parameter(key.removesuffix(":codes")).detach().view(torch.int32)
            tensors[key] = bits.unique(return_inverse=True)[1].to(torch.uint8)

    reseal(saved, unpack_codes)
    edit(saved, lambda facts: facts.update(format=1))
    states = network.state_dict(), load_network(saved).state_dict()
    assert all(same_bits(states[0][key], states[1][key]) for key in states[0])


def test_folders_that_say_nothing_of_the_mean_input_open_and_have_that_of_their_architecture(saved):
    assert load_network(saved).redlab.input_mean == load_network("digits/resnet").redlab.input_mean
    edit(saved, lambda facts: facts["recipe"].pop("input_mean"))
    opened = load_network(saved)
    assert opened.redlab.input_mean == load_network("digits/resnet").redlab.input_mean


def test_a_mean_input_of_ones_own_is_kept(tmp_path):
    network = load_network("digits/mlp")
    network.redlab = Recipe("digits/mlp", (1, 8, 8), input_mean=(-0.25,))
    assert input_mean_of(load_network(save_network(network, tmp_path / "net"))) == (-0.25,)


def test_a_header_that_declares_more_than_the_file_holds_is_refused(saved):
    header = json.dumps({"conv1.bias": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    for content in (len(header).to_bytes(8, "little") + header, (2**62).to_bytes(8, "little") + header):
        (saved / WEIGHTS).write_bytes(content)
        edit(saved, lambda facts: facts.update(sha256=storage.sha256_of(saved / WEIGHTS)))
        assert "is truncated" in refused(saved)


def test_weights_that_are_a_pickle_are_never_executed(saved):
    marker = saved.parent / "executed"

    class Evil:
        def __reduce__(self):
            return marker.touch, ()

    torch.save(Evil(), saved / WEIGHTS)
    edit(saved, lambda facts: facts.update(sha256=storage.sha256_of(saved / WEIGHTS)))
    assert "cannot be read" in refused(saved)
    assert not marker.exists()


def open_or_refuse(folder: Path) -> None:
    try:
        network = load_network(folder)
    except ValueError as error:
        network, message = None, str(error)
    assert str(folder) in message if network is None else recipe_of(network) is not None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _places(content, path=()):
    """The path of every value inside, a few of a long list."""
    yield path
    items = (
        content.items() if isinstance(content, dict) else enumerate(content[:3]) if isinstance(content, list) else ()
    )
    for key, value in items:
        yield from _places(value, (*path, key))


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_facts_open_or_are_refused(planned, tmp_path, data):
    folder = tmp_path / "fuzzed"
    shutil.copytree(planned, folder, dirs_exist_ok=True)
    facts = json.loads((folder / FACTS).read_text())
    place = data.draw(st.sampled_from([path for path in _places(facts) if path]))
    parent = facts
    for key in place[:-1]:
        parent = parent[key]
    if isinstance(parent, dict) and data.draw(st.booleans()):
        parent[data.draw(st.text(max_size=8))] = parent.pop(place[-1])
    else:
        parent[place[-1]] = data.draw(_JSON)
    (folder / FACTS).write_text(json.dumps(facts))
    open_or_refuse(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10**6), noise=st.binary(max_size=12))
def test_overwritten_bytes_of_the_facts_open_or_are_refused(planned, tmp_path, cut, noise):
    folder = tmp_path / "fuzzed"
    shutil.copytree(planned, folder, dirs_exist_ok=True)
    text = (folder / FACTS).read_bytes()
    cut %= len(text)
    (folder / FACTS).write_bytes(text[:cut] + noise + text[cut + len(noise) :])
    open_or_refuse(folder)


# Names and paths.


def test_names_and_folders_are_told_apart(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("net", "./net", str(saved), saved, Path("net")):
        assert len(load_network(path).redlab.steps) == 2
    shutil.copytree(saved, tmp_path / "digits" / "mlp")
    assert load_network("digits/mlp").redlab.architecture == "digits/mlp"
    assert load_network("./digits/mlp").redlab.architecture == "digits/resnet"
    with pytest.raises(ValueError, match="weights of its own"):
        load_network("net", weights=None)


def test_what_is_neither_a_name_nor_a_folder_says_both(tmp_path):
    with pytest.raises(ValueError, match=r"unknown network.*there is no folder '.*nowhere'"):
        load_network(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no saved network \(no redlab\.json\).*unknown network"):
        load_network(tmp_path)
    for name in ("resnet51", "a" * 5000, "\0"):
        with pytest.raises(ValueError, match=f"unknown network {name!r}".replace("\\", ".")):
            load_network(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_networks())
def test_every_network_comes_back(name, tmp_path):
    with torch.random.fork_rng():
        network = load_network(name, weights=None)
    opened = load_network(save_network(network, tmp_path / "net"))
    shutil.rmtree(tmp_path / "net")  # pytest would keep gigabytes
    states = network.state_dict(), opened.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    loose = [t for module in opened.modules() for t in vars(module).values() if isinstance(t, torch.Tensor)]
    assert not any(tensor.is_meta for tensor in [*opened.parameters(), *opened.buffers(), *loose])


# Split networks, which are saved as ordinary ones.


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    """What ``red_plus_plus`` makes: every layer split, biases corrected."""
    from redlab import red_plus_plus

    return save_network(red_plus_plus(load_network("digits/resnet")), tmp_path_factory.mktemp("split") / "net")


def test_a_split_network_is_stored_as_an_ordinary_one(split):
    names = load_file(split / WEIGHTS)
    assert not [name for name in names if "lookup" in name or "tables" in name]
    assert "layer1.0.conv1.weight:codes" in names
    assert sorted(stored_bits(split)["layer"]) == sorted(layer.name for layer in weight_layers(hashed()))


@pytest.mark.parametrize("unit", ["channel", "tap", "kernel"])
@pytest.mark.parametrize("make", [hashed, merged, halved])
def test_a_split_network_comes_back_split_bit_for_bit(make, unit, tmp_path):
    from redlab import split_inputs
    from redlab.compression.split_layers import SplitLayer

    network = split_inputs(make(), unit=unit, signed=unit == "tap").network
    opened = load_network(save_network(network, tmp_path / "net"))
    assert opened.redlab == network.redlab
    assert str(opened) == str(network)
    assert sum(isinstance(module, SplitLayer) for module in opened.modules()) == 8
    states = network.state_dict(), opened.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(same_bits(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("up_to_scale", [False, True])
def test_a_separated_network_comes_back_separated(up_to_scale, tmp_path):
    from redlab import separate_kernels

    network = separate_kernels(uniform(), up_to_scale=up_to_scale).network
    opened = load_network(save_network(network, tmp_path / "net"))
    assert str(opened) == str(network)
    states = network.state_dict(), opened.state_dict()
    assert list(states[0]) == list(states[1])
    images = example_input(network)
    assert torch.equal(network(images), opened(images))


def _separate(layers: list[str]) -> dict:
    return {"step": "separate", "options": {"up_to_scale": False}, "layers": layers}


def _split_step(change):
    return lambda steps: change(steps[-1])


SPLITS = {
    "unknown layer": (_split_step(lambda s: s["layers"].append("nosuch")), "'nosuch'"),
    "no layer": (_split_step(lambda s: s["layers"].append("relu")), "'relu'"),
    "a letter": (_split_step(lambda s: s.update(layers="conv1")), "KeyError"),
    "layers of lists": (_split_step(lambda s: s.update(layers=[[]])), "TypeError"),
    "layers of numbers": (_split_step(lambda s: s.update(layers=[1, 2])), "KeyError"),
    "layers none": (_split_step(lambda s: s.update(layers=None)), "TypeError"),
    "no layers": (_split_step(lambda s: s.pop("layers")), "KeyError: 'layers'"),
    "no options": (_split_step(lambda s: s.pop("options")), "KeyError: 'options'"),
    "options of lists": (_split_step(lambda s: s.update(options=[])), "TypeError"),
    "no unit": (_split_step(lambda s: s["options"].pop("unit")), "KeyError: 'unit'"),
    "no sign": (_split_step(lambda s: s["options"].pop("signed")), "KeyError: 'signed'"),
    "sign of text": (_split_step(lambda s: s["options"].update(signed="yes")), "step 'split'"),
    "another step's options": (_split_step(lambda s: s.update(step="separate")), "KeyError: 'up_to_scale'"),
    "twice": (lambda steps: steps.append(dict(steps[-1], layers=["conv1"], options={})), "KeyError: 'conv1'"),
    "separated before": (lambda steps: steps.insert(0, _separate(["conv1"])), "KeyError: 'conv1'"),
}


@pytest.mark.parametrize("change", SPLITS)
def test_split_steps_that_do_not_fit_are_refused_with_the_file(split, tmp_path, change):
    folder = shutil.copytree(split, tmp_path / "net")
    edit(folder, lambda facts: SPLITS[change][0](facts["recipe"]["steps"]))
    message = refused(folder)
    assert message.startswith(str(folder))
    assert "does not fit" in message or "do not fit" in message
    assert SPLITS[change][1] in message


@pytest.mark.parametrize(
    "options",
    [{"unit": "bogus"}, {"unit": 7}, {"unit": []}, {"signed": 7}, {"signed": -3}, {"signed": 10**30}],
    ids=str,
)
def test_options_of_a_split_that_nobody_could_ask_for_are_refused(split, tmp_path, options):
    folder = shutil.copytree(split, tmp_path / "net")
    edit(folder, lambda facts: facts["recipe"]["steps"][-1]["options"].update(options))
    assert "step 'split' of its recipe does not fit" in refused(folder)


GAINED = {
    "unknown layer": ["nosuch"],
    "no layer": ["relu1"],
    "a layer that has one": ["linear"],
    "twice": ["conv1", "conv1"],
    "a method": ["forward"],
    "number": 7,
    "text": "conv1",
}


@pytest.mark.parametrize("gained", GAINED)
def test_biases_that_no_layer_can_gain_are_refused(split, tmp_path, gained):
    folder = shutil.copytree(split, tmp_path / "net")
    edit(folder, lambda facts: facts["recipe"]["steps"][2].update(gained=GAINED[gained]))
    assert "step 3 of its recipe, 'correct_biases', does not fit digits/resnet" in refused(folder)
    edit(folder, lambda facts: facts["recipe"]["steps"][2].pop("gained"))
    assert "KeyError: 'gained'" in refused(folder)


def test_weights_of_a_split_network_that_were_changed_are_refused_as_any_others(split, tmp_path):
    folder = shutil.copytree(split, tmp_path / "net")
    reseal(folder, lambda tensors: tensors.pop("linear.bias"))
    assert "do not fit" in refused(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_steps_of_a_split_network_open_or_are_refused(split, tmp_path, data):
    folder = tmp_path / "fuzzed"
    shutil.copytree(split, folder, dirs_exist_ok=True)
    facts = json.loads((folder / FACTS).read_text())
    step = data.draw(st.sampled_from([facts["recipe"]["steps"][k] for k in (2, 4)]))
    place = data.draw(st.sampled_from([path for path in _places(step) if path]))
    parent = step
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = data.draw(_JSON)
    (folder / FACTS).write_text(json.dumps(facts))
    open_or_refuse(folder)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_a_saved_network_is_as_readable_as_any_other_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = save_network(load_network("digits/mlp"), tmp_path / "net")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask
