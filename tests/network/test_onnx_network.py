"""ONNX files as networks: what they take and answer, and what is said of those that do not run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from redlab import evaluate, load_dataset
from redlab.network.evaluation import agreement, as_network

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from redlab import export_onnx  # noqa: E402
from redlab.network.onnx_network import OnnxNetwork, is_onnx  # noqa: E402


class Two(nn.Module):
    """Token ids and weights by name; two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.table(ids).mean(1) * scale
        return self.out(found), found


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    network, example = Two().eval(), {"ids": torch.tensor([[1, 2, 3]]), "scale": torch.ones(1, 4)}
    path = tmp_path_factory.mktemp("onnx") / "two.onnx"
    export_onnx(network, path, example=example)
    return network, path


def test_inputs_go_by_name_or_by_place_and_all_answers_come_back(file):
    network, path = file
    runs = OnnxNetwork(path, threads=1)
    assert [(name, dtype) for name, dtype, _ in runs.inputs] == [("ids", torch.int64), ("scale", torch.float32)]
    ids, scale = torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.rand(2, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = network(ids, scale.float())
    for answers in (runs(ids, scale), runs(scale=scale, ids=ids)):
        for own, its in zip(answers, expected, strict=True):
            torch.testing.assert_close(own, its)


def test_what_the_file_does_not_take_is_said(file):
    runs = OnnxNetwork(file[1])
    with pytest.raises(ValueError, match="the file takes ids, scale; scale is missing"):
        runs(torch.tensor([[1, 2, 3]]))
    with pytest.raises(RuntimeError, match=r"(?i)invalid|rank|dimension"):
        runs(torch.tensor([1]), torch.ones(1, 4))


def test_files_that_are_none_are_refused(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.onnx"):
        OnnxNetwork(tmp_path / "absent.onnx")
    whole = file[1].read_bytes()
    for name, content in {"empty": b"", "text": b"not a file", "cut": whole[: len(whole) // 2]}.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.onnx is no ONNX file that onnxruntime can run: "):
            evaluate(tmp_path / f"{name}.onnx", load_dataset("digits", limit=2))


def test_a_name_is_no_network(file):
    assert is_onnx("a.onnx")
    assert not is_onnx("digits/mlp")
    assert not is_onnx(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"a network or the path of an \.onnx file is needed, not 'digits/mlp'"):
        evaluate("digits/mlp", load_dataset("digits", limit=2))
    assert isinstance(as_network(file[1]), OnnxNetwork)


def test_agreement_is_the_share_of_equal_classes():
    inputs, labels = torch.eye(4), torch.zeros(4, dtype=torch.long)
    turned = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        turned.weight.copy_(torch.eye(4)[[0, 1, 3, 2]])
    assert agreement(nn.Identity(), turned, (inputs, labels)) == 0.5
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
