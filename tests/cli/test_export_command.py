"""``redlab export`` and ``compress --export``: a file that is as right as the network, and exact about refusals."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import redlab_says

from redlab import evaluate, load_dataset, load_network, names, save_network
from redlab.cli import export as cli_export
from redlab.export import onnx, runtimes
from redlab.network import latency
from redlab.network.evaluation import agreement

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

_BUSY = "busy machine: nothing can be concluded from 1 of 4 rows (spread above 20 %)"


def _times(contestants, **_) -> pd.DataFrame:
    """As ``compare_runtimes``; how long things take is not what is tested."""
    first, second = contestants
    rows = [
        (first, "torch", "float32", 4.0, 0.5, True, ""),
        (first, "torch", "bf16", 1.0, 2.0, True, ""),
        (first, "onnxruntime", "float32", 2.0, 1.0, True, ""),
        (second, "onnxruntime", "int8", 1.0, 2.0, True, ""),
        (second, "openvino", "int8", 0.9, 2.2, False, ""),
        (first, "openvino", "float32", float("nan"), float("nan"), False, "no such operation"),
    ]
    frame = pd.DataFrame(rows, columns=["network", "engine", "precision", "median", "speedup", "conclusive", "why"])
    frame = frame.assign(speedup_q25=frame["speedup"] - 0.1, speedup_q75=frame["speedup"] + 0.1)
    frame.attrs["busy"] = _BUSY
    return frame


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    """In a folder of its own."""
    monkeypatch.setattr(runtimes, "compare_runtimes", _times)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, str]:
    """A file in bytes, and what was said."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtimes, "compare_runtimes", _times)
        patch.chdir(folder)
        code, said, complained = redlab_says("export", "digits/resnet", "--precision", "int8")
    assert (code, complained) == (0, "")
    return folder / "resnet.onnx", said


def _rows(said: str) -> dict[str, list[str]]:
    """The cells of the table by row; two spaces or more stand between them."""
    table = next(block for block in said.split("\n\n") if block.split()[0] == "bytes").splitlines()
    return {row[0]: row[1:] for row in (re.split(r"\s{2,}", line.strip()) for line in table[1:])}


def test_steps_are_counted_and_the_file_is_described(exported):
    path, said = exported
    for title in ("[1/4] loading", "[2/4] writing resnet.onnx, int8", "[3/4] comparing", "[4/4] timing"):
        assert re.search(rf"^{re.escape(title)}.*: done in [\d.]+ s$", said, re.M)
    assert "codes: 0 layers as they were hashed, 8 rounded by rows" in said
    assert f"written to {path}" in said
    assert [file.name for file in path.parent.iterdir()] == ["resnet.onnx"]


def test_the_table_holds_what_the_file_is_and_answers(exported):
    path, said = exported
    network, images = load_network("digits/resnet"), load_dataset("digits")
    rows = _rows(said)
    assert list(rows) == ["network in torch", "float32 ONNX", "resnet.onnx"]
    sizes = [int(cells[0].replace(",", "")) for cells in rows.values()]
    assert sizes[2] == path.stat().st_size < sizes[1] / 3
    found, own = evaluate(path, images), evaluate(network, images)
    assert abs(found.accuracy - own.accuracy) <= 0.3
    assert rows["resnet.onnx"][1] == f"{agreement(network, path, images):.1%}"
    for title, evaluation in {"network in torch": own, "resnet.onnx": found}.items():
        low, high = evaluation.interval
        assert rows[title][2] == f"{evaluation.accuracy:.2f} % [{low:.1f}, {high:.1f}]"
    assert "accuracy, 360 images" in said


def test_times_are_ratios_and_a_busy_machine_concludes_nothing(exported):
    _, said = exported
    rows = _rows(said)
    assert rows["network in torch"][3:] == ["0.50 [0.40, 0.60]"]
    assert rows["float32 ONNX"][3:] == ["1.00 [0.90, 1.10]", "failed"]
    assert rows["resnet.onnx"][3:] == ["2.00 [1.90, 2.10]", "unclear"]
    assert "that is 2 ms in onnxruntime" in said
    assert "float32 ONNX does not run in openvino: no such operation" in said
    assert _BUSY in said


def test_the_file_runs_without_redlab(exported):
    session = onnxruntime.InferenceSession(str(exported[0]), providers=["CPUExecutionProvider"])
    images = torch.stack([image for image, _ in load_dataset("digits", limit=3)])
    (answers,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert answers.shape == (3, 10)


_CODE = "from torch import nn\n\n\ndef make():\n    return nn.Linear(4, 3)\n"


@pytest.mark.slow
def test_a_saved_folder_is_compared_on_its_example_where_no_images_are_known(folder):
    (folder / "net.py").write_text(_CODE)
    save_network(load_network("net.py:make"), "mine")
    words = ["--build", "net.py:make", "--out", "there/net.onnx", "--no-time"]
    code, said, complained = redlab_says("export", "mine", *words)
    assert (code, complained) == (0, "")
    assert "[3/3] comparing" in said
    assert "speed-up" not in said
    assert "accuracy is not measured: the images of this network are not known" in said
    rows = _rows(said)
    assert list(rows) == ["network in torch", "net.onnx"]
    assert rows["net.onnx"][1:] == ["100.0%"]
    points = (torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3)
    own, its = evaluate("there/net.onnx", points), evaluate(load_network("mine", build="net.py:make"), points)
    assert (own.accuracy, own.loss) == pytest.approx((its.accuracy, its.loss), rel=1e-5)


def test_a_folder_built_by_code_asks_for_it(folder):
    (folder / "net.py").write_text(_CODE)
    save_network(load_network("net.py:make"), "mine")
    code, said, complained = redlab_says("export", "mine")
    assert (code, said) == (2, "")
    assert re.search(r"redlab export mine --build \S*net\.py:make", complained)


@pytest.mark.parametrize(
    ("words", "precision"),
    [(["onnx"], "float32"), pytest.param(["int8", "--round-to", "1"], "int8", marks=pytest.mark.slow)],
)
def test_a_compressed_network_is_written_as_a_file_too(words, precision, folder, monkeypatch):
    measure = latency.compare_latency
    monkeypatch.setattr(latency, "compare_latency", lambda networks, repeats: measure(networks, repeats=1))
    code, said, complained = redlab_says(
        "compress", "digits/mlp", "--recipe", "prune", "--products", "0.5", "--limit", "50", "--out", "small",
        "--export", *words,
    )  # fmt: skip
    assert (code, complained) == (0, "")
    assert f"writing {folder / 'small.onnx'}, {precision}: done in" in said
    small = load_network(folder / "small")
    widths = [layer.out_features for layer in small.modules() if hasattr(layer, "out_features")]
    assert all(width % 16 == 0 for width in widths[:-1]) == (precision == "float32")  # what engines like
    images = load_dataset("digits", limit=50)
    own, its = evaluate(folder / "small.onnx", images), evaluate(small, images)
    assert own.accuracy == pytest.approx(its.accuracy, abs=4)
    assert own.loss == pytest.approx(its.loss, rel=1e-5 if precision == "float32" else 0.5)


def test_the_precisions_are_those_of_the_function():
    assert cli_export.PRECISIONS == onnx.PRECISIONS


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--precision", "int9"], "unknown precision 'int9' (did you mean int8?)"),
        (["--precision", "int8", "--bits", "4"], "--bits must be 7, 8 or auto, not 4"),
        (["--bits", "7"], "--bits is for --precision int8, not float32"),
        (["--ranges", "digits"], "--ranges is for --precision int8, not float32"),
        (["--precision", "int8", "--ranges", "nowhere"], "unknown dataset 'nowhere'"),
        (["--out", "net.pt"], "--out must name a file that ends in .onnx"),
        (["--dataset", "nowhere"], "unknown dataset 'nowhere'"),
        (["--weights", "nowhere.pt"], "--weights: there is no file nowhere.pt"),
    ],
)
def test_wrong_usage_writes_nothing(words, complaint, folder, monkeypatch):
    monkeypatch.setattr(cli_export, "_opened", None)
    code, said, complained = redlab_says("export", "digits/mlp", *words)
    assert (code, said) == (2, "")
    assert complaint in complained
    assert list(folder.iterdir()) == []


def test_a_missing_extra_is_named(monkeypatch):
    there = names._is_installed
    monkeypatch.setattr(names, "_is_installed", lambda package: package != "onnxruntime" and there(package))
    for words in (["export", "digits/mlp"], ["compress", "digits/mlp", "--export", "int8"]):
        code, said, complained = redlab_says(*words)
        assert (code, said, complained) == (2, "", "redlab: onnxruntime is missing: pip install 'redlab[export]'\n")


def test_a_file_in_the_way_is_found_before_work_begins(folder, monkeypatch):
    monkeypatch.setattr(cli_export, "_opened", None)
    (folder / "file").touch()
    code, said, complained = redlab_says("export", "digits/mlp", "--out", "file/net.onnx")
    assert (code, said) == (1, "")
    assert f"{folder / 'file'} is a file" in complained


def test_a_full_disk_leaves_the_file_that_was_there(folder, monkeypatch):
    (folder / "net.py").write_text(_CODE)
    (folder / "net.onnx").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, _, complained = redlab_says("export", "net.py:make", "--out", "net.onnx")
    assert code == 1
    assert "No space left on device" in complained
    assert (folder / "net.onnx").read_text() == "old"
    assert not [file.name for file in folder.iterdir() if file.name.startswith(".")]


def test_a_truncated_file_is_no_network(exported, folder):
    whole = exported[0].read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.onnx is no ONNX file that onnxruntime can run"):
        evaluate("cut.onnx", load_dataset("digits", limit=2))
