"""A checkpoint is judged by what is in it, and whatever else it turns out to be is named."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from redlab import inspect_checkpoint
from redlab.files.checkpoint import read_checkpoint
from redlab.files.download import fetch
from redlab.files.file_kinds import kind_of

NAMES = ["a.pth.tar", "a.ckpt", "a.SAFETENSORS", "a.bin", "a", "a.pt", "a.npy", "pytorch_model"]


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_read_by_any_name(tmp_path, form, name):
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.arange(5)}
    if form == "safetensors":
        save_file(tensors, tmp_path / name)
    else:
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=form == "zip")
    found = read_checkpoint(tmp_path / name)
    assert list(found) == list(tensors)
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert inspect_checkpoint(tmp_path / name)["tensor"].tolist() == list(tensors)


def _npy() -> bytes:
    np.save(file := io.BytesIO(), np.ones(3))
    return file.getvalue()


def _npz() -> bytes:
    np.savez(file := io.BytesIO(), a=np.ones(3))
    return file.getvalue()


def _zip() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("folder/notes.txt", "hello")
    return file.getvalue()


def _tar() -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.pt"))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
OTHERS = {
    "a Git LFS pointer": LFS,
    "GGUF": b"GGUF\x03\0\0\0" + bytes(100),
    "a numpy array": _npy(),
    "a zip of numpy arrays": _npz(),
    "a zip archive that torch.save did not write, with 'folder/notes.txt'": _zip(),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "a web page": b"\n<!DOCTYPE html><html>404</html>",
    "gzip": gzip.compress(b"x" * 100),
    "a tar archive": _tar(),
    "an ONNX model": b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(100),
    "JSON (a configuration?)": json.dumps({"hidden_size": 3}).encode(),
    "text, which begins 'Entry not found'": b"Entry not found",
    "empty": b"",
    "a pickle that torch.save did not write": pickle.dumps({"a": 1}),
    "first bytes are 00 00": bytes(100),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "model.ckpt"])
def test_what_is_no_checkpoint_is_named_by_its_content(tmp_path, what, name):
    if (what, name) == ("first bytes are 00 00", "a.safetensors"):
        what = "cannot be read, it is truncated or no checkpoint"
    (tmp_path / name).write_bytes(OTHERS.get(what, bytes(100)))
    for read in (read_checkpoint, inspect_checkpoint):
        with pytest.raises(ValueError, match=r"safetensors|again") as error:
            read(tmp_path / name)
        assert f"{tmp_path / name} " in str(error.value)
        assert what in str(error.value)
        assert "wants to run" not in str(error.value)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_named(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"a\.bin is TorchScript, which is code: .* save its state_dict"):
        read_checkpoint(tmp_path / "a.bin")


def test_a_sharded_checkpoint_is_read_by_its_index_or_folder(tmp_path):
    parts = {"a.bin": {"x": torch.ones(2)}, "b.bin": {"y": torch.zeros(3)}}
    for file, tensors in parts.items():
        torch.save(tensors, tmp_path / file)
    places = {name: file for file, tensors in parts.items() for name in tensors}
    (tmp_path / "model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    for path in (tmp_path, tmp_path / "model.bin.index.json"):
        assert list(read_checkpoint(path)) == ["x", "y"]


def test_a_download_that_is_something_else_is_named(tmp_path):
    (tmp_path / "a.pt").write_bytes(LFS)
    with pytest.raises(ValueError, match=r"SHA-256 \w+ \(is a Git LFS pointer"):
        fetch("https://example.org/a.pt", tmp_path / "a.pt", "0" * 64)


def test_a_header_of_any_length_is_one_of_safetensors(tmp_path):
    """A length of 128 begins with the byte that pickles begin with."""
    for length in range(60, 80):
        save_file({"n" * length: torch.ones(1)}, tmp_path / "a")
        assert kind_of(tmp_path / "a") == "safetensors"
