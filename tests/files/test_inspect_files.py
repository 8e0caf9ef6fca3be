"""How checkpoints are opened: every layout of tensors, several files, and files that are damaged, lie or hold code."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from redlab import inspect_checkpoint
from redlab.files.checkpoint import list_checkpoint
from redlab.files.entries import Entry


class Touches:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def list_tensors(path: str | Path) -> list[Entry]:
    return list_checkpoint(path).entries


def draw(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def about(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def rewritten(path: Path, change, compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive at ``path`` with each member changed, in the layout that Python's zipfile writes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name.partition("/")[2], content))
    return path


LAYOUTS = {
    "plain": draw(4, 5),
    "transposed": draw(6, 7).t(),
    "channels_last": draw(3, 4, 5, 6).contiguous(memory_format=torch.channels_last),
    "columns": draw(9, 20)[:, 3:11],
    "every second": draw(9, 20)[::2, ::3],
    "rows": draw(9, 20)[2:5],
    "one column": draw(50, 3)[:, 1],
    "half": draw(5, 3).half(),
    "double": draw(5, 3).double(),
    "bfloat16": draw(6, 5).bfloat16().t(),
    "float8": draw(6, 5).to(torch.float8_e4m3fn),
    "integers": torch.arange(6),
    "nothing": torch.empty(0, 3),
    "scalar": torch.tensor(1.5),
    "parameter": nn.Parameter(draw(2, 3)),
}


@pytest.mark.parametrize("form", [".pt", ".bin", "legacy .th", ".safetensors", "rewritten .pt"])
def test_tensors_of_every_layout_come_back(tmp_path, form):
    path = tmp_path / f"a{form.split()[-1]}"
    old = "legacy" in form  # which PyTorch does not open with float8 in it
    layouts = {name: tensor for name, tensor in LAYOUTS.items() if not (old and name == "float8")}
    if form == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in layouts.items()}, path)
    else:
        torch.save(layouts, path, _use_new_zipfile_serialization=not old)
    if "rewritten" in form:
        rewritten(path, lambda name, content: content)
    found = {entry.name: entry for entry in list_tensors(path)}
    assert found.keys() == layouts.keys()
    for name, tensor in layouts.items():
        read = found[name].read()
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read.float(), tensor.float()), name
        assert read.data_ptr() != found[name].read().data_ptr() or not tensor.numel()


def test_a_network_among_other_things_is_found(tmp_path):
    network = nn.DataParallel(nn.Linear(3, 2))
    optimizer = {"state": {0: {"exp_avg": draw(2, 3)}}, "lr": 0.1}
    for wrapped in ({"state_dict": network.state_dict()}, {"model": {"state_dict": network.state_dict()}}):
        torch.save({"epoch": 3, **wrapped, "optimizer": optimizer}, tmp_path / "a.pt")
        frame = inspect_checkpoint(tmp_path / "a.pt")
        assert frame["tensor"].tolist() == ["weight", "bias", "optimizer.state.0.exp_avg"]
        assert frame["skipped"].tolist() == ["", "", f"outside of the file's '{'.'.join(_keys(wrapped))}'"]


def _keys(wrapped: dict) -> list[str]:
    key, inside = next(iter(wrapped.items()))
    return [key, *_keys(inside)] if key == "model" else [key]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (draw(2, 3), ["tensor"]),
        ([draw(2, 3), {"b": draw(2)}], ["0", "1.b"]),
        ({"g": {"a": {"weight": draw(2, 3)}}, "d": {"a": draw(2)}}, ["g.a.weight", "d.a"]),
        ({"net": {"a": {"weight": draw(2, 3)}}, "ema": {"a": draw(2)}}, ["a.weight", "ema.a"]),
        ({"module.a": draw(2, 3), "b": draw(2)}, ["module.a", "b"]),
        (OrderedDict(model=draw(2, 3)), ["model"]),
        ({"model": {"note": "empty"}, "a": draw(2)}, ["a"]),
        ({3: draw(2)}, ["3"]),
    ],
)
def test_tensors_are_found_wherever_they_are_nested(tmp_path, content, names):
    torch.save(content, tmp_path / "a.pt")
    assert [entry.name for entry in list_tensors(tmp_path / "a.pt")] == names


def test_a_list_in_itself_and_lists_of_the_same_list_end(tmp_path):
    inside = [draw(2)]
    inside.append(inside)
    for _ in range(60):
        inside = [inside] * 10
    torch.save({"a": inside}, tmp_path / "a.pt")
    assert len(list_tensors(tmp_path / "a.pt")) == 1


@pytest.mark.parametrize("new", [True, False])
def test_tensors_that_share_memory_say_so(tmp_path, new):
    weight, flat = draw(4, 3), draw(10)
    tied = {"embed": weight, "head": weight, "turned": weight.t(), "first": flat[:5], "second": flat[5:], "all": flat}
    torch.save(tied, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    frame = inspect_checkpoint(tmp_path / "a.pt")
    assert frame["shares"].tolist() == ["", "embed", "embed", "", "", "first"]
    assert frame.loc[0, "entropy"] == frame.loc[1, "entropy"] > 0


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_sparse_and_quantized_tensors_have_a_row(tmp_path):
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({"s": torch.eye(3).to_sparse(), "q": quantized, "a": draw(2, 3)}, tmp_path / "a.pt")
    frame = inspect_checkpoint(tmp_path / "a.pt")
    assert frame["skipped"].tolist()[::2] == ["sparse: only dense tensors are read", ""]
    assert frame["skipped"][1] == "quantized: only dense tensors are read"


def test_a_tensor_that_was_saved_without_its_numbers_has_a_row(tmp_path):
    torch.save({"lazy": torch.empty(10**6, 10**6, device="meta"), "a": draw(2, 3)}, tmp_path / "a.pt")
    frame = inspect_checkpoint(tmp_path / "a.pt")
    assert frame["skipped"].tolist() == ["on torch's meta device: no numbers were saved", ""]
    assert frame["weights"].tolist() == [10**12, 6]


def test_types_that_torch_does_not_have_have_a_row(tmp_path):
    header = {"four": about([4, 4], 0, 8, "F4"), "a": about([2], 8, 16)}
    frame = inspect_checkpoint(safetensors(tmp_path / "a.safetensors", header, bytes(16)))
    assert frame["tensor"].tolist() == ["a", "four"]
    assert frame["skipped"].tolist() == ["", "F4: torch has no such elements"]


def test_numbers_in_names_are_in_their_order(tmp_path):
    save_file(
        {f"layers.{k}.weight": torch.ones(2) for k in (10, 2, 1)} | {"embed": torch.ones(2)}, tmp_path / "a.safetensors"
    )
    names = [entry.name for entry in list_tensors(tmp_path / "a.safetensors")]
    assert names == ["embed", "layers.1.weight", "layers.2.weight", "layers.10.weight"]


def shards(folder: Path) -> Path:
    """A checkpoint in two files, with its index."""
    folder.mkdir(exist_ok=True)
    save_file({"a": draw(4, 3)}, folder / "model-1.safetensors")
    save_file({"b": draw(2, 3), "c": draw(5)}, folder / "model-2.safetensors")
    places = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_a_sharded_checkpoint_is_one_frame(tmp_path):
    index = shards(tmp_path / "model")
    for path in (index, index.parent, str(index.parent)):
        frame = inspect_checkpoint(path)
        assert frame["tensor"].tolist() == ["a", "b", "c"]
        assert frame["file"].tolist() == ["model-1.safetensors", "model-2.safetensors", "model-2.safetensors"]


def test_what_a_shard_holds_beyond_the_index_is_listed(tmp_path):
    index = shards(tmp_path)
    save_file({"a": draw(4, 3), "extra": draw(2)}, tmp_path / "model-1.safetensors")
    assert [entry.name for entry in list_tensors(index)] == ["a", "extra", "b", "c"]


def test_an_index_of_pickles_works_alike(tmp_path):
    torch.save({"a": draw(2, 3)}, tmp_path / "pytorch_model-1.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    assert [entry.name for entry in list_tensors(tmp_path)] == ["a"]


BAD_INDICES = {
    "missing shard": ('{"weight_map": {"a": "gone.safetensors"}}', "names gone.safetensors, which is not beside it"),
    "missing tensor": ('{"weight_map": {"z": "model-1.safetensors"}}', "promises 'z' in model-1.safetensors"),
    "elsewhere": ('{"weight_map": {"a": "../model-1.safetensors"}}', "shards lie beside their index"),
    "no map": ('{"metadata": {}}', 'has no "weight_map"'),
    "empty map": ('{"weight_map": {}}', 'has no "weight_map"'),
    "odd map": ('{"weight_map": {"a": 3}}', 'has no "weight_map"'),
    "a list": ("[]", 'has no "weight_map"'),
    "truncated": ('{"weight_map": {"a"', "is truncated or no JSON"),
    "no text": (b"\xff\xfe\x00", "is truncated or no JSON"),
    "other kind": ('{"weight_map": {"a": "notes.txt"}}', "is text, which begins 'buy milk'"),
}


@pytest.mark.parametrize("case", BAD_INDICES)
def test_a_bad_index_is_named(tmp_path, case):
    content, message = BAD_INDICES[case]
    index = shards(tmp_path)
    (tmp_path / "notes.txt").write_text("buy milk")
    index.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        list_tensors(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_folder_without_an_index_lists_what_could_be_meant(tmp_path):
    with pytest.raises(ValueError, match=r"without model\.safetensors\.index\.json: name a file instead"):
        list_tensors(tmp_path)
    torch.save({"a": draw(2)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"name one of its files \(a\.pt\) instead"):
        list_tensors(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.index.json").touch()
    with pytest.raises(ValueError, match=r"of several indices: name one of its files \(one\.index\.json, two"):
        list_tensors(tmp_path)


def test_what_is_missing_or_of_another_kind_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at .*gone\.pt"):
        list_tensors(tmp_path / "gone.pt")
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ValueError, match=r"a\.onnx is empty, truncated or no checkpoint"):
        list_tensors(tmp_path / "a.onnx")


DAMAGED = "cannot be read, it is truncated or no checkpoint ("
BAD_SAFETENSORS = {
    "empty": (b"", "is empty, truncated or no checkpoint"),
    "five bytes": (b"\x00\x01\x02\x03\x04", DAMAGED),
    "a web page": (b"<html>404</html>" * 20, "is a web page or XML"),
    "long header": (struct.pack("<Q", 1000) + b"{}", DAMAGED),
    "no JSON": ({b"{oh"}, DAMAGED),
    "a list": ([], DAMAGED),
    "nothing": (struct.pack("<Q", 2) + b"{}", "holds no tensors"),
    "no names": ({}, DAMAGED),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, DAMAGED),
    "no dict": ({"a": 3}, DAMAGED),
    "negative": ({"a": about([-1], 0, 4)}, DAMAGED),
    "a true size": ({"a": about([True], 0, 4)}, DAMAGED),
    "huge claim": ({"a": about([10**9], 0, 16)}, DAMAGED),
    "absurd claim": ({"a": about([10**200, 10**300], 0, 16)}, DAMAGED),
    "small claim": ({"a": about([3], 0, 16)}, DAMAGED),
    "backwards": ({"a": about([1], 8, 4)}, DAMAGED),
    "beyond the end": ({"a": about([8], 0, 32)}, DAMAGED),
    "one over the other": ({"a": about([2], 0, 8), "b": about([3], 4, 16)}, DAMAGED),
    "a hole": ({"a": about([1], 0, 4), "b": about([1], 12, 16)}, DAMAGED),
    "more than it says": ({"a": about([1], 0, 4)}, DAMAGED),
    "unknown dtype": ({"a": about([16], 0, 16, "F3")}, DAMAGED),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_a_bad_safetensors_file_is_named_in_one_line(tmp_path, case):
    content, message = BAD_SAFETENSORS[case]
    path = tmp_path / "a.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        safetensors(path, content.pop() if isinstance(content, set) else content, bytes(16))
        content.add(b"{oh") if isinstance(content, set) else None
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        list_tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("kept", [0, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named_in_one_line(tmp_path, form, kept):
    path, tensors = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pt"), {"weight": draw(50, 50)}
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=r"download or save it again|header of") as error:
        list_tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"<html>404</html>" * 20, b"PK\x03\x04" + b"x" * 100, b"\x80\x02", b"\x00" * 500])
def test_garbage_is_named(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match="download or save it again"):
        list_tensors(tmp_path / "a.bin")


@pytest.mark.parametrize("new", [True, False])
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, new):
    path = tmp_path / "a.pt"
    torch.save({"huge": torch.zeros(1).expand(10**9)}, path, _use_new_zipfile_serialization=new)
    assert path.stat().st_size < 2000
    with pytest.raises(
        ValueError, match=r"'huge' is expanded: 1000000000 elements claim 4,000,000,000 bytes, its stor.* 4;"
    ):
        list_tensors(path)


@pytest.mark.parametrize("new", [True, False])
def test_a_shape_larger_than_its_storage_is_refused(tmp_path, new):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(100.0)}, path, _use_new_zipfile_serialization=new)

    def enlarged(content: bytes) -> bytes:  # the second 100 is the shape's, the first the storage's
        first = content.index(b"Kd")
        second = content.index(b"Kd", first + 2)
        return content[:second] + b"J\x00\x00\x00\x40" + content[second + 2 :]

    if new:
        rewritten(path, lambda name, content: enlarged(content) if name == "data.pkl" else content)
    else:
        path.write_bytes(enlarged(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.pt cannot be read.*storage.*save it again"):
        list_tensors(path)


def test_a_storage_that_claims_another_size_than_its_record_is_refused(tmp_path):
    content = {"a": torch.arange(100.0), "b": torch.ones(50)}
    for name, change in {
        "longer": lambda name, part: part.replace(b"Kd", b"M\xff\xff") if name == "data.pkl" else part,
        "shorter": lambda name, part: part.replace(b"Kd", b"K\x60") if name == "data.pkl" else part,
        "cut": lambda name, part: part[:100] if name == "data/0" else part,
    }.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=f"{name}.pt cannot be read.*size.*save it again"):
            list_tensors(rewritten(tmp_path / f"{name}.pt", change))


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pt")
    path = rewritten(tmp_path / "a.pt", lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"is compressed, which torch\.save never does"):
        list_tensors(path)


def test_the_other_order_of_bytes_is_read_by_torch(tmp_path):
    other = b"big" if sys.byteorder == "little" else b"little"
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    path = rewritten(tmp_path / "a.pt", lambda name, content: other if name == "byteorder" else content)
    (entry,) = list_tensors(path)
    assert torch.equal(
        entry.read(), torch.ones(3).view(torch.uint8).reshape(3, 4).flip(1).reshape(-1).view(torch.float32)
    )


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_code_in_a_pickle_is_named_and_never_run(tmp_path, form):
    path, trace = tmp_path / "a.pt", tmp_path / "trace"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"extra": Touches(trace)}, protocol=int(form[-1])))
    else:
        content = {"weight": torch.ones(2), "extra": Touches(trace)}
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"wants to run posix\.system: redlab never runs code.*state_dict") as error:
        list_tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_whole_modules_and_torchscript_are_refused_by_name(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"wants to run torch\.nn\.modules\.linear\.Linear"):
        list_tensors(tmp_path / "a.pt")
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "b.pt")
    with pytest.raises(ValueError, match="is TorchScript, which is code"):
        list_tensors(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [{}, [], {"epoch": 3}, "text", None])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"holds no tensors but a \w+: save a state_dict\(\) in it"):
        list_tensors(tmp_path / "a.pt")


def test_a_file_that_is_cut_while_it_is_read_is_named(tmp_path):
    save_file({"a": draw(50, 50)}, tmp_path / "a.safetensors")
    (entry,) = list_tensors(tmp_path / "a.safetensors")
    os.truncate(tmp_path / "a.safetensors", 500)
    with pytest.raises(ValueError, match=r"a\.safetensors ends within 'a': it is damaged, or was cut"):
        entry.read()


@pytest.mark.filterwarnings("error")
def test_a_number_near_the_largest_is_measured_without_a_warning(tmp_path):
    numbers = torch.cat([torch.tensor([-7.8e307], dtype=torch.float64), torch.linspace(-2, 2, 29, dtype=torch.float64)])
    save_file({"a": numbers.reshape(6, 5)}, tmp_path / "a.safetensors")
    assert inspect_checkpoint(tmp_path / "a.safetensors")["distinct_before"].tolist() == [30]


def test_a_stride_beyond_any_file_is_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(bytes(64))
    entry = Entry("w", (2,), torch.float32, tmp_path / "a.pt", stride=(2**62,))
    with pytest.raises(ValueError, match=r"a\.pt ends within 'w': it is damaged"):
        entry.read()
