"""Files of weights: checked, fetched, and opened without running code."""

from __future__ import annotations

import hashlib
import os
import pickle
import urllib.error
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from redlab.files.checkpoint import load_weights, read_checkpoint
from redlab.files.download import fetch, network_timeout

URL = "https://example.org/weights.pt"


class Touches:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _no_network(*_, **__):
    raise AssertionError("the network was asked")


def test_a_file_with_the_right_hash_is_used_without_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", _no_network)
    path = tmp_path / "a.pt"
    path.write_bytes(b"weights")
    for digits in (8, 64):
        assert fetch(URL, path, _sha256(b"weights")[:digits]) == path
    assert fetch(URL, path, _sha256(b"weights").upper()) == path


def test_a_file_with_another_hash_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", _no_network)
    path = tmp_path / "a.pt"
    path.write_bytes(b"wrong")
    with pytest.raises(ValueError, match="delete it to download it again") as error:
        fetch(URL, path, _sha256(b"right"))
    for part in (str(path), URL, _sha256(b"right"), _sha256(b"wrong")):
        assert part in str(error.value)
    assert path.read_bytes() == b"wrong"


def test_a_missing_file_is_downloaded_with_its_parents(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    path = tmp_path / "deep" / "down" / "a.pt"
    assert fetch(source.as_uri(), path, _sha256(b"weights")[:8]) == path
    assert path.read_bytes() == b"weights"
    assert [file.name for file in path.parent.iterdir()] == ["a.pt"]


def test_a_download_with_another_hash_leaves_nothing(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not the right file"):
        fetch(source.as_uri(), tmp_path / "out" / "a.pt", _sha256(b"weights"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "failure", [urllib.error.URLError("no route"), TimeoutError("timed out"), ConnectionResetError("reset")]
)
def test_a_failed_download_says_what_to_put_where(tmp_path, monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    path = tmp_path / "a.pt"
    with pytest.raises(ConnectionError, match="place the file by hand") as error:
        fetch(URL, path, "12345678", "a network")
    for part in (str(path), URL, "12345678", "a network"):
        assert part in str(error.value)


def test_a_file_without_an_address_is_asked_for_by_hand(tmp_path):
    with pytest.raises(FileNotFoundError, match="no public address"):
        fetch(None, tmp_path / "a.pt", "12345678")


def test_the_network_timeout_is_put_back():
    import socket

    before = socket.getdefaulttimeout()
    with network_timeout(3):
        assert socket.getdefaulttimeout() == 3
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".th"])
def test_tensors_come_back_as_they_were_saved(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.arange(5), "half": torch.ones(2, dtype=torch.bfloat16)}
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    found = read_checkpoint(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_state_dict_and_module_prefix_are_taken_off(tmp_path):
    state = nn.DataParallel(nn.BatchNorm1d(3)).state_dict()
    torch.save({"best": 0.9, "state_dict": state}, tmp_path / "a.th")
    found = read_checkpoint(tmp_path / "a.th")
    assert list(found) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert found._metadata[""]["version"] == 2
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "b.pt")
    assert list(read_checkpoint(tmp_path / "b.pt")) == ["module.a", "b"]


def test_a_missing_or_empty_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        read_checkpoint(tmp_path / "none.pt")
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.onnx is empty, truncated or no checkpoint"):
        read_checkpoint(tmp_path / "a.onnx")


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("kept", [0, 0.3, 0.9])
def test_a_truncated_file_is_named(tmp_path, form, kept):
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pt")
    tensors = {"weight": torch.randn(50, 50)}
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match="truncated") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_garbage_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\x00\x01garbage" * 20)
    with pytest.raises(ValueError, match="truncated or no"):
        read_checkpoint(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 0", "pickle 2", "pickle 4", "pickle 5"])
def test_code_in_a_pickle_is_named_and_never_run(tmp_path, form):
    path, trace = tmp_path / "a.pt", tmp_path / "trace"
    content = {"weight": torch.ones(2), "extra": Touches(trace)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"extra": Touches(trace)}, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"posix\.system.*never runs code") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert not trace.exists()


def test_a_whole_pickled_module_is_refused_by_its_class(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*never runs code"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)], {"a": 1}, {0: torch.ones(2)}, {}, {"a": {"b": 1}}])
def test_anything_but_tensors_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds no tensors"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("part", [b"PK\x01\x02", b"PK\x03\x04"])
def test_an_archive_with_damaged_contents_is_named(tmp_path, part):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content.replace(part, b"XXXX"))
    with pytest.raises(ValueError, match=r"a\.pt .*is truncated or no checkpoint"):
        read_checkpoint(tmp_path / "a.pt")


def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="sparse"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"huge": torch.zeros(1).expand(10**9)}, path)
    assert path.stat().st_size < 2000
    with pytest.raises(
        ValueError, match="'huge' is expanded: 1000000000 elements claim 4,000,000,000 bytes, its storage holds 4"
    ):
        read_checkpoint(path)


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"(?s)the tensors of a\.pt do not fit Linear.*weight"):
        load_weights(nn.Linear(2, 3), OrderedDict(weight=torch.ones(4, 4)), "a.pt")
