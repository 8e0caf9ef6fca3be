"""States: whole or not there, for the same call only, and nothing in them is executed."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from redlab.files.atomic import replace_file
from redlab.files.state import assign, read_state, tensors_of, write_state
from redlab.network.recipe import fingerprint


def test_what_was_written_comes_back(tmp_path):
    file = tmp_path / "a/b.pt"
    assert read_state(file, {}) is None
    call = {"rate": np.float64(0.1), "sizes": (1, 2), "count": np.int64(3), "nothing": None}
    write_state(file, call, {"tensor": torch.arange(3.0), "rows": [[1, 2.5]]})
    state = read_state(file, call)
    assert torch.equal(state["tensor"], torch.arange(3.0))
    assert state["rows"] == [[1, 2.5]]


class _Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickle", "other"])
def test_a_damaged_or_foreign_file_is_refused_and_not_executed(damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "state.pt"
    write_state(file, {}, {"tensor": torch.ones(1000)})
    whole = file.read_bytes()
    harm = pickle.dumps(_Harm(), protocol=2)
    file.write_bytes({"truncated": whole[:2000], "text": b"hello", "pickle": harm}.get(damage, b""))
    if damage == "other":
        torch.save({"state_dict": {}}, file)
    with pytest.raises(ValueError, match=r"state\.pt is damaged or no state of ours.*: delete it, or name"):
        read_state(file, {})
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_call_of_tensors_is_the_state_of_another_call(tmp_path):
    torch.save({"call": {"rate": torch.ones(3)}, "state": {}}, tmp_path / "s.pt")
    with pytest.raises(ValueError, match=r"s\.pt is the state of another call: rate is .*tensor.* and 0\.1 here"):
        read_state(tmp_path / "s.pt", {"rate": 0.1})


def test_an_odd_protocol_is_an_error_and_no_warning_besides(tmp_path, recwarn):
    (tmp_path / "s.pt").write_bytes(b"\x80\xff}.")
    with pytest.raises(ValueError, match="is damaged or no state of ours"):
        read_state(tmp_path / "s.pt", {})
    assert not list(recwarn)


def test_a_folder_in_its_place_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="directory"):
        read_state(tmp_path, {})


def test_another_call_is_refused_with_what_differs(tmp_path):
    write_state(tmp_path / "s.pt", {"a": 1, "b": 2, "old": 0}, {})
    with pytest.raises(ValueError, match="another call: b is 2 there and 3 here, old is 0 there and None here"):
        read_state(tmp_path / "s.pt", {"a": 1, "b": 3})


def test_a_run_killed_while_writing_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "mlp.safetensors"
    path.write_bytes(b"old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_assigning_is_in_place_and_brings_buffers_too():
    with torch.random.fork_rng():
        one, two = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    one[1].running_mean += 1
    weight = two[0].weight
    assign(two, tensors_of(one))
    assert two[0].weight is weight
    assert weight.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_the_fingerprint_tells_values_names_dtypes_and_what_is_trained_apart():
    def network(value=0.0):
        layer = nn.Linear(2, 2)
        nn.init.constant_(layer.weight, value)
        nn.init.zeros_(layer.bias)
        return nn.Sequential(layer)

    with torch.random.fork_rng():
        frozen = network().requires_grad_(False)
        others = [network(1.0), network().double(), network().bfloat16(), nn.Sequential(nn.ReLU(), *network()), frozen]
        assert fingerprint(network()) == fingerprint(network())
        assert len({fingerprint(other) for other in [network(), *others]}) == 6
