"""``redlab export`` and ``compress --export``: a file that is as right as the network, and exact about refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from redlab import evaluate, load_dataset, load_network, names
from redlab.cli import main as cli
from redlab.export import runtimes

pytest.importorskip("onnxscript")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    """In a folder of its own; how long things take is not what is tested."""
    rows = [
        ("network", "torch", "float32", 2.0, 2.0, 2.0, 0.5, 0.0, ""),
        ("network", "openvino", "float32", 1.0, 1.0, 1.0, 1.0, 0.3, ""),
    ]
    frame = pd.DataFrame(
        rows, columns=["network", "engine", "precision", "median", "q25", "q75", "speedup", "spread", "why"]
    )
    frame.attrs["busy"] = "busy machine: nothing can be concluded"
    monkeypatch.setattr(runtimes, "compare_runtimes", lambda *_: frame)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def redlab_says(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command."""
    result = CliRunner().invoke(cli.app, list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_file_in_bytes_is_written_and_compared(folder):
    code, said, complained = redlab_says("export", "digits/resnet", "--precision", "int8", "--limit", "100")
    assert (code, complained) == (0, "")
    assert f"writing {folder / 'resnet.onnx'} ..." in said
    accuracy = evaluate(folder / "resnet.onnx", load_dataset("digits", limit=100)).accuracy
    rows = dict(re.findall(r"^ *(network|float32 ONNX|resnet\.onnx) +([\d,]+ +[\d.]+ %)", said, re.M))
    assert rows["resnet.onnx"].endswith(f" {accuracy:.2f} %")
    sizes = {title: int(row.split()[0].replace(",", "")) for title, row in rows.items()}
    assert sizes["resnet.onnx"] == (folder / "resnet.onnx").stat().st_size < sizes["float32 ONNX"] / 3
    assert "speedup over the network's best float32" in said
    assert "busy machine: nothing can be concluded" in said


def test_a_compressed_network_is_written_as_a_file_too(folder, monkeypatch):
    from redlab.network import latency

    measure = latency.compare_latency
    monkeypatch.setattr(latency, "compare_latency", lambda networks, repeats: measure(networks, repeats=2))
    words = ["compress", "digits/mlp", "--recipe", "prune", "--products", "0.5", "--export", "onnx", "--out", "small"]
    code, said, complained = redlab_says(*words)
    assert complained == ""
    assert (code, "writing" in said) == (0, True)
    small = load_network(folder / "small")
    widths = [layer.out_features for layer in small.modules() if hasattr(layer, "out_features")]
    assert all(width % 16 == 0 for width in widths[:-1])  # what an engine likes
    images = load_dataset("digits", limit=50)
    own, its = evaluate(folder / "small.onnx", images), evaluate(small, images)
    assert (own.accuracy, own.loss) == pytest.approx((its.accuracy, its.loss), rel=1e-5)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--precision", "int9"], "unknown precision 'int9' (did you mean int8?)"),
        (["--bits", "4"], "--bits must be 7, 8 or auto, not 4"),
        (["--out", "net.pt"], "the path must end in .onnx"),
        (["--dataset", "nowhere"], "unknown dataset 'nowhere'"),
        (["--weights", "nowhere.pt"], "--weights: there is no file nowhere.pt"),
    ],
)
def test_wrong_usage_writes_nothing(words, complaint, folder):
    code, _, complained = redlab_says("export", "digits/mlp", *words)
    assert code == 2
    assert complaint in complained
    assert list(folder.iterdir()) == []


def test_a_missing_extra_is_named(monkeypatch, folder):
    there = names._is_installed
    monkeypatch.setattr(names, "_is_installed", lambda package: package != "onnxruntime" and there(package))
    for words in (["export", "digits/mlp"], ["compress", "digits/mlp", "--export", "int8"]):
        code, _, complained = redlab_says(*words)
        assert (code, complained) == (2, "redlab: onnxruntime is missing: pip install 'redlab[export]'\n")


def test_a_place_that_cannot_be_written_is_said(folder):
    (folder / "file").write_text("")
    code, _, complained = redlab_says("export", "digits/mlp", "--out", "file/net.onnx", "--no-time")
    assert code == 1
    assert f"could not write {folder / 'file' / 'net.onnx'}" in complained
