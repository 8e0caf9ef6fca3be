"""The file of a network: what it computes, at any batch, and what is left when it cannot be written."""

import errno
import os

import onnx
import pytest
import torch
from nets import Net
from odd import chain, conv, settled, smooth
from onnx.numpy_helper import to_array
from torch import nn

from redlab import export_onnx, load_network
from redlab.network.evaluating import evaluating
from redlab.network.onnx_network import OnnxNetwork


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-5), ("int8", 0.2)])
def test_a_file_takes_batches_of_any_size(precision, most, tmp_path):
    network = settled(chain(conv(16, 16, groups=4)), smooth(16))
    export = export_onnx(network, tmp_path / "net.onnx", precision, example=smooth(1))
    assert export.plan["fixed"] == ""
    own = OnnxNetwork(export.path)
    for batch in (1, 3, 32):
        images = smooth(batch, seed=batch)
        with evaluating(network):
            wanted = network(images)
        assert (own(images) - wanted).abs().max() <= most * wanted.abs().max()


def test_parameters_keep_their_names_and_values(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    export = export_onnx(network, tmp_path / "net.onnx", example=smooth(2))
    stored = {own.name: to_array(own) for own in onnx.load(export.path).graph.initializer}
    assert stored.keys() >= dict(network.named_parameters()).keys()
    assert all((stored[name] == own.detach().numpy()).all() for name, own in network.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_other_types_are_written_as_float32_and_stay_as_they_are(dtype, tmp_path):
    network = settled(nn.Sequential(conv(3, 8), conv(8, 4)), smooth(8)).to(dtype)
    export = export_onnx(network, tmp_path / "net.onnx", example=smooth(2))
    assert export.difference < 1e-5
    assert {own.dtype for own in network.parameters()} == {dtype}


@pytest.mark.slow
def test_recurrent_layers_stay_in_float32(tmp_path):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rows, self.last = conv(3, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 4)

        def forward(self, x):
            return self.last(self.rows(self.first(x).mean(3).transpose(1, 2))[0][:, -1])

    export = export_onnx(settled(Recurrent(), smooth(16)), tmp_path / "net.onnx", "int8", example=smooth(4))
    rows = export.layers.set_index("layer")
    assert rows.loc["first.0", "precision"] == "int8"
    assert "lstm" in rows.loc["last", "skipped"]
    assert export.difference < 0.1


def test_nan_is_refused_and_the_file_stays(tmp_path):
    network = load_network("digits/mlp")
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    next(network.parameters()).data.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        export_onnx(network, path, "int8")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), pytest.param(KeyboardInterrupt(), marks=pytest.mark.slow)],
)
def test_a_full_disk_or_a_killed_run_leaves_the_old_file_alone(error, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")

    def stop(*_):
        raise error

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        export_onnx(nn.Sequential(nn.Linear(3, 2)), path, example=torch.zeros(2, 3))
    assert "No space" in str(raised.value) or not isinstance(error, OSError)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_code_that_fixes_the_batch_is_written_for_that_batch_and_says_so(tmp_path):
    network = Net(lambda self, x: torch.stack([self.a(row) for row in x.unbind(0)]), a=nn.Conv2d(3, 4, 3))
    export = export_onnx(network, tmp_path / "net.onnx", example=smooth(2))
    assert export.plan["fixed"]
    assert "one size only" in str(export)


def test_a_file_that_answers_otherwise_is_refused_unless_rounding_explains_it(tmp_path, monkeypatch):
    network, path = load_network("digits/mlp"), tmp_path / "net.onnx"
    monkeypatch.setattr("redlab.export.onnx.compare", lambda *_: (3e-4, 1.0))
    with pytest.raises(ValueError, match=r"by 0\.0003 of the largest output, where rounding to float32 explains \d"):
        export_onnx(network, path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("redlab.export.onnx.rounding", lambda *_: 1e-4)
    assert export_onnx(network, path).difference == 3e-4


def test_rounding_is_what_float32_adds_to_exact_answers():
    from redlab.export.comparing import rounding
    from redlab.network.example import Inputs

    huge = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        huge.weight.copy_(torch.tensor([[1e8, -1e8]]))
    assert rounding(nn.Identity(), Inputs.of(torch.ones(1, 2))) == 0
    close = torch.tensor([[1.0, 1.0 + 2**-23]])  # 1e8 (1 + 2^-23) is no float32
    assert rounding(huge, Inputs.of(close)) > 0.01


def test_the_data_of_a_file_that_was_replaced_goes_too(tmp_path):
    (tmp_path / "net.onnx.data").write_bytes(b"of a larger network")
    export = export_onnx(load_network("digits/mlp"), tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert export.bytes == export.path.stat().st_size
