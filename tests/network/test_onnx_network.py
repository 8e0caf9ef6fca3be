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


def test_more_tensors_than_inputs_are_refused_and_other_keywords_are_left_out(file):
    network, path = file
    runs, ids, scale = OnnxNetwork(path), torch.tensor([[1, 2, 3]]), torch.ones(1, 4)
    with pytest.raises(ValueError, match="the file takes ids, scale; 3 tensors were given"):
        runs(ids, scale, scale)
    own = runs(ids=ids, scale=scale, attention_mask=ids)[0]  # what a tokenizer gives beside
    torch.testing.assert_close(own, network(ids, scale)[0].detach())


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_whole_numbers_come_in_any_width(file, dtype):
    network, path = file
    ids, scale = torch.tensor([[1, 2, 3]]), torch.ones(1, 4)
    torch.testing.assert_close(OnnxNetwork(path)(ids.to(dtype), scale)[1], network(ids, scale)[1].detach())


def test_kinds_of_numbers_are_not_mixed(file):
    with pytest.raises(RuntimeError, match=r"(?i)type"):
        OnnxNetwork(file[1])(torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 4))


def test_threads_are_a_whole_number(file):
    with pytest.raises(ValueError, match="threads must be a whole number of at least 1, not 0"):
        OnnxNetwork(file[1], threads=0)


def _of_one(path) -> None:
    """A file of y = x whose batch is always 1."""
    import onnx

    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "one", sides[:1], sides[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)


def test_a_file_of_one_batch_size_is_evaluated_in_batches_of_it(tmp_path, file):
    _of_one(tmp_path / "one.onnx")
    assert OnnxNetwork(tmp_path / "one.onnx").batch == 1
    assert OnnxNetwork(file[1]).batch is None
    found = evaluate(tmp_path / "one.onnx", (torch.eye(3), torch.tensor([0, 1, 0])))
    assert (found.count, found.accuracy) == (3, pytest.approx(200 / 3))


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
