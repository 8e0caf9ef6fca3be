"""One odd thing in a checkpoint costs its tensors nothing: it is left out by name, and nothing is executed."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from redlab import inspect_checkpoint
from redlab.files.checkpoint import list_checkpoint, load_weights, read_checkpoint
from redlab.studies.inspection import summarise


class Settings(dict):
    """As many libraries have: a dict with attributes."""


class Thing:
    def __init__(self) -> None:
        self.inside = torch.ones(3)


class Colour(enum.Enum):
    RED = 1


ODD = {
    "number": (np.float64(0.3), "a numpy number"),
    "array": (np.ones(3), "a numpy array"),
    "arguments": (argparse.Namespace(lr=1), "argparse.Namespace"),
    "path": (pathlib.PurePosixPath("x"), "pathlib.PurePosixPath"),
    "time": (datetime.datetime(2020, 1, 1), "datetime.datetime"),
    "object": (Thing(), f"{__name__}.Thing"),
    "enum": (Colour.RED, f"{__name__}.Colour"),
    "function": (nn.functional.relu, "torch.nn.functional.relu"),
    "partial": (functools.partial(max, 1), "functools.partial"),
}
PLAIN = [
    Settings(a=1),
    collections.deque([1], maxlen=3),
    collections.defaultdict(list, {1: [2]}),
    collections.Counter("aab"),
    {1, 2},
    frozenset([1]),
    3j,
    b"x",
    bytearray(b"x"),
    torch.float16,
    torch.device("cpu"),
    torch.Size([1]),
    10**40,
    None,
    (1, {(2, 3): 4}),
]
STATE = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()


def saved(path: pathlib.Path, content: object, form: str = "zip", protocol: int = 2) -> pathlib.Path:
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
    return path


def assert_whole(found: dict) -> None:
    assert list(found) == list(STATE)
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_item_beside_or_among_the_weights_is_left_out_by_name(tmp_path, form, name):
    value, kind = ODD[name]
    for protocol in (2, 5):
        for content in ({"state_dict": STATE, name: value}, {**STATE, name: value}, {"net": STATE, name: value}):
            path = saved(tmp_path / "a.pt", content, form, protocol)
            with pytest.warns(UserWarning, match=rf"a\.pt: left out {name} \({kind}\); nothing in it was executed"):
                found = read_checkpoint(path)
            assert_whole(found)
            assert found.left_out == {name: kind}
    with pytest.warns(UserWarning, match=f"left out {name}"):
        frame = inspect_checkpoint(path)
    assert frame["tensor"].tolist() == list(STATE)
    assert frame.attrs["left_out"] == {name: kind}
    assert f"left out: {name} ({kind})" in summarise(frame)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_plain_items_beside_the_weights_are_no_reason_to_warn(tmp_path, form):
    for protocol in (2, 3, 4, 5):
        content = {"model": STATE, "epoch": 3} | {f"item {k}": item for k, item in enumerate(PLAIN)}
        found = read_checkpoint(saved(tmp_path / "a.pt", content, form, protocol))
        assert_whole(found)
        assert found.left_out == {}
        assert found._metadata == STATE._metadata


def test_many_odd_items_are_one_warning_with_three_names(tmp_path):
    path = saved(tmp_path / "a.pt", {**STATE, **{f"x{k}": np.float64(k) for k in range(5)}})
    with pytest.warns(UserWarning, match="left out") as caught:
        assert len(read_checkpoint(path).left_out) == 5
    assert len(caught) == 1
    assert "x0 (a numpy number), x1 (a numpy number), x2 (a numpy number) and 2 others" in str(caught[0].message)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_tensor_that_cannot_be_read_leaves_the_others(tmp_path, form):
    odd = {"expanded": torch.ones(1, 3).expand(4, 3), "sparse": torch.eye(3).to_sparse()}
    odd |= {"conjugate": torch.ones(2, dtype=torch.complex64).conj(), "huge": torch.zeros(1).expand(10**9)}
    path = saved(tmp_path / "a.pt", {**STATE, **odd}, form)
    with pytest.warns(UserWarning, match="left out expanded"):
        found = read_checkpoint(path)
    assert_whole(found)
    starts = {name: why.partition(":")[0].partition(" ")[0] for name, why in found.left_out.items()}
    assert starts == {"expanded": "expanded", "sparse": "sparse", "conjugate": "marked", "huge": "expanded"}
    frame = inspect_checkpoint(path).set_index("tensor")
    assert frame.loc[list(odd), "skipped"].to_dict() == found.left_out


def test_a_view_that_covers_all_of_its_numbers_is_no_expanded_one(tmp_path):
    tensors = {"row": torch.arange(6.0).expand(1, -1), "turned": torch.arange(6.0).reshape(2, 3).t()}
    found = read_checkpoint(saved(tmp_path / "a.pt", tensors))
    assert found.left_out == {}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_weights_in_a_dict_of_another_class_are_read(tmp_path):
    found = read_checkpoint(saved(tmp_path / "a.pt", {"config": Settings(a=1), "model": Settings(STATE)}))
    assert_whole(found)


def trained() -> tuple[nn.Module, dict]:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return network, optimizer.state_dict()


@pytest.mark.parametrize("key", ["optimizer", "optimizer_state_dict", "optim", "opt", "g_optimizer", "anything"])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "net", "backbone"])
def test_an_optimizers_tensors_are_no_weights(tmp_path, key, wrapper):
    network, state = trained()
    weights = network.state_dict()
    content = {"epoch": 1, **({wrapper: weights} if wrapper else weights), key: state}
    path = saved(tmp_path / "a.pt", content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, frame = read_checkpoint(path), inspect_checkpoint(path)
    assert list(found) == ["weight", "bias"]
    load_weights(nn.Linear(3, 2), found)
    # a step, and two moments of six weights and two biases, in four bytes each
    about = {key: f"6 tensors of {4 * (2 + 2 * 8)} bytes, no weights"}
    assert found.left_out.items() >= about.items()
    assert frame["weights"].sum() == 8
    assert (frame["skipped"] != "").tolist() == [False, False] + [True] * 6
    assert frame.attrs["beside"] == about
    said = summarise(frame)
    assert "8 weights" in said[0]
    assert f"not counted: {key} ({about[key]})" in said


def test_names_alone_tell_an_optimizers_tensors_in_safetensors(tmp_path):
    from safetensors.torch import save_file

    tensors = {"a.weight": torch.randn(2, 3), "a.weight.exp_avg": torch.ones(2, 3), "optimizer.0.x": torch.ones(2)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert list(read_checkpoint(tmp_path / "a.safetensors")) == ["a.weight"]
    assert inspect_checkpoint(tmp_path / "a.safetensors")["weights"].sum() == 6


def test_two_networks_in_a_file_are_not_guessed_between(tmp_path):
    path = saved(tmp_path / "a.pt", {"generator": STATE, "critic": dict(STATE)})
    with pytest.raises(ValueError, match=r"holds no tensors by name, but deeper, in 'generator', 'critic'"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="tensors of an optimizer alone"):
        read_checkpoint(saved(tmp_path / "b.pt", trained()[1]))


def test_a_pickled_network_beside_its_optimizer_is_refused_by_its_class(tmp_path):
    network, state = trained()
    path = saved(tmp_path / "a.pt", {"model": network, "optimizer": state})
    with pytest.raises(ValueError, match=r"wants to run torch\.nn\.modules\.linear\.Linear: redlab never runs code"):
        read_checkpoint(path)


class Calls:
    """Unpickling it would call the function."""

    def __init__(self, function, *words) -> None:
        self.made = function, words

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_what_could_only_do_harm_ends_the_reading(tmp_path, form):
    for k, function in enumerate((eval, exec, __import__, open)):
        path = saved(tmp_path / f"{k}.pt", {**STATE, "x": Calls(function, str(tmp_path / "trace"))}, form)
        with pytest.raises(ValueError, match=rf"wants to run (builtins|_?io)\.{function.__name__}"):
            read_checkpoint(path)
    assert not (tmp_path / "trace").exists()


def test_no_function_or_class_of_a_pickle_is_ever_imported_or_called(tmp_path, monkeypatch):
    """Through every opcode that calls: REDUCE, NEWOBJ, NEWOBJ_EX, INST, OBJ, BUILD."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "harmless_looking.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\ndef run(*a, **k): ...\n")
    name = b"charmless_looking\nrun\n"
    calls = [name + b")R", name + b")\x81", name + b")}\x92", b"(iharmless_looking\nrun\n", b"(" + name + b"o"]
    calls += [name + b")R}(X\x01\0\0\0aX\x01\0\0\0bub"]
    for call in calls:
        path = saved(tmp_path / "a.pt", {"w": torch.ones(2), "odd": "HERE"})
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content.replace(b"X\x04\0\0\0HERE", call))
        with pytest.warns(UserWarning, match=r"odd \(harmless_looking\.run\)"):
            found = read_checkpoint(path)
        assert torch.equal(found["w"], torch.ones(2))
        assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_what_is_read_is_what_torch_reads(tmp_path, form):
    """Of every dtype and layout, and of tensors that share their memory."""
    flat, tensors = torch.randn(24), {}
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64, torch.uint8):
        tensors[str(dtype)] = torch.randn(3, 4).to(dtype)
    if form == "zip":
        tensors |= {str(dtype): torch.arange(5).to(dtype) for dtype in (torch.uint16, torch.uint64)}
    tensors |= {"cut": flat[3:15].view(3, 4)[:, ::2], "parameter": nn.Parameter(flat[:6]), "none": torch.empty(0, 3)}
    tensors["attribute"] = torch.ones(2)
    tensors["attribute"].note = "hello"
    path = saved(tmp_path / "a.pt", tensors, form)
    found, theirs = read_checkpoint(path), torch.load(path, weights_only=True)
    assert found.left_out == {}
    for name, tensor in theirs.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor), name


def test_damage_is_no_odd_item(tmp_path):
    """A tensor that reaches beyond its storage is a sign of damage, for which the whole file is refused."""
    path = saved(tmp_path / "a.pt", {"a": torch.arange(100.0), "b": torch.ones(2)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member.replace(b"K\0Kd\x85", b"K\x01Kd\x85"))
    with pytest.raises(ValueError, match=r"'a' ends 404 bytes into a storage of 400"):
        list_checkpoint(path)


def test_nesting_without_end_is_refused_soon(tmp_path):
    deep = pickle.dumps({"a": 1}, protocol=2).replace(b"K\x01", b"]" * 20_000 + b"a" * 19_999)
    path = saved(tmp_path / "a.pt", {"a": torch.ones(2)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, deep if name.endswith("data.pkl") else member)
    with pytest.raises(ValueError, match="nested more than 1000 deep"):
        read_checkpoint(path)


def test_a_key_of_tuples_nested_without_end_is_never_hashed(tmp_path):
    """Python's own hash of it ends the process."""
    path = saved(tmp_path / "a.pt", {"w": torch.ones(2), "HERE": 1})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"X\x04\0\0\0HERE", b")" + b"\x85" * 300_000))
    with pytest.warns(UserWarning, match=r"left out tuple 1 \(int\)"):
        assert torch.equal(read_checkpoint(path)["w"], torch.ones(2))
