"""Networks in bytes: nothing is clipped that should not be, no scale is wrong, and what stays in float32 says why."""

import numpy as np
import onnx
import pytest
import torch
from nets import Net
from odd import BODIES, Gate, chain, clipped, conv, dead_rows, inside, linear, odd, scaled, settled, smooth, twice
from onnx.numpy_helper import to_array
from torch import nn

from benchmarks import zoo_export
from redlab import export_onnx, load_network
from redlab.export.eight_bits import attends
from redlab.network.trace import trace

ALWAYS_FLOAT = {"transposed": ["1.0"], "transposed in groups": ["1.0"]}  # besides what reads an unknown value


def check_values(network, images, folder):
    """Export in both precisions; no value leaves its range, and errors are a fraction of each value's spread."""
    exact = export_onnx(network, folder / "exact.onnx", example=images)
    export = export_onnx(network, folder / "net.onnx", "int8", example=images)
    values = inside(exact.path, export.path, images)
    assert values
    for name, (own, rounded, (low, high)) in values.items():
        step = (high - low) / 255
        assert np.abs(own - rounded).mean() < 0.15 * own.std() + 1e-6, name
        assert np.mean(own > high + step) < 1e-3, name
        assert low == 0 or np.mean(own < low - step) < 1e-3, name  # those that end at 0 clip
    return export


def test_a_network_of_many_kinds_of_layers_is_right_inside(tmp_path):
    torch.manual_seed(0)
    body = [
        conv(16, 16, act=nn.SiLU(), groups=4), Gate(nn.Sigmoid()), nn.MaxPool2d(2), twice(), dead_rows(),
        conv(16, 16, act=nn.ReLU6(), groups=16), clipped(-0.25, 0.5), nn.AvgPool2d(3, 1, 1), scaled(), conv(16, 16, 1),
    ]  # fmt: skip
    network = settled(chain(*body), smooth(48))
    export = check_values(network, smooth(24, seed=9), tmp_path)
    assert (export.layers["precision"] == "int8").all()
    assert export.difference < 0.2
    assert export.plan["fixed"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_odd_networks_are_right_inside(name, tmp_path):
    network, images = odd(name)
    export = check_values(network, images, tmp_path)
    assert export.difference < 0.2
    left = export.layers[export.layers["precision"] == "float32"]
    assert (left["skipped"] != "").all()
    assert {"0.0"}.isdisjoint(left["layer"])
    if name in ALWAYS_FLOAT:
        assert left["layer"].tolist() == ALWAYS_FLOAT[name]


@pytest.mark.slow
def test_layers_that_stay_in_float32_keep_their_weights_and_say_why(tmp_path):
    network = settled(Net(lambda self, x: self.b(torch.sort(self.a(x), 1)[0]), a=conv(3, 8), b=conv(8, 4)), smooth(32))
    export = export_onnx(network, tmp_path / "net.onnx", "int8", example=smooth(4))
    rows = export.layers.set_index("layer")
    assert rows.loc["a.0", "precision"] == "int8"
    assert rows.loc["b.0", "precision"] == "float32"
    assert "sort" in rows.loc["b.0", "skipped"]
    assert "1 of 2 in float32" in str(export)


@pytest.mark.slow
def test_a_dead_layer_answers_as_it_did(tmp_path):
    torch.manual_seed(0)
    network = settled(chain(conv(16, 16)), smooth(32))
    network[1][0].weight.data.zero_()
    network[1][1].reset_running_stats()
    export = export_onnx(network, tmp_path / "net.onnx", "int8", example=smooth(8))
    assert export.difference < 0.2  # of an answer that is the same for all images


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 8), conv(3, 8), nn.Linear(8, 5), linear(8, 4)

    def forward(self, x, y):
        z = self.a(x) + self.b(y)
        return self.c(z.mean((2, 3))), z, self.d(z)


@pytest.mark.slow
def test_several_inputs_and_answers(tmp_path):
    network = settled(Two(), smooth(32), smooth(32, seed=1))
    export = export_onnx(network, tmp_path / "net.onnx", "int8", example=(smooth(8, seed=2), smooth(8, seed=3)))
    assert (export.layers["precision"] == "int8").all()
    assert export.difference < 0.1


@pytest.mark.slow
def test_an_answer_that_others_read_is_handed_out_in_float32(tmp_path):
    network = settled(Net(lambda self, x: (y := self.b(self.a(x)), self.c(y)), a=conv(3, 8), b=linear(8, 8), c=conv(8, 4)), smooth(32))  # fmt: skip  # noqa: E501
    images = smooth(8)
    export = export_onnx(network, tmp_path / "net.onnx", "int8", example=images)
    model = onnx.load(export.path)
    onnx.checker.check_model(model, full_check=True)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert [makers[answer.name] for answer in model.graph.output][:1] == ["Conv"]
    assert (export.layers["precision"] == "int8").all()
    assert export.difference < 0.1


@pytest.mark.slow
def test_nothing_is_known_behind_an_input_of_unknown_mean(tmp_path):
    network = settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), smooth(2), mean=None)
    with pytest.raises(ValueError, match="a dataset of images"):
        export_onnx(network, tmp_path / "net.onnx", "int8", example=smooth(2))
    assert not list(tmp_path.iterdir())
    export = export_onnx(network, tmp_path / "net.onnx", "int8", example=smooth(8), input_range=(-4, 4))
    assert (export.layers["precision"] == "int8").all()
    assert export.difference < 0.2
    assert export.layers["low"][0] == -4
    assert export.layers["high"][0] == 4


@pytest.mark.parametrize("product", ["bij,bjk->bik", ""])
def test_two_activations_multiplied_as_matrices_are_attention(product):
    def run(self, x):
        y = self.a(x)
        return torch.einsum(product, y, y.transpose(1, 2)) if product else y @ y.transpose(1, 2)

    assert attends(trace(Net(run, a=nn.Linear(4, 4)), torch.zeros(1, 3, 4)))
    assert not attends(trace(nn.Linear(4, 4), torch.zeros(1, 3, 4)))


def test_7_bits_hold_no_larger_code(tmp_path):
    export = export_onnx(load_network("digits/mlp"), tmp_path / "net.onnx", "int8", bits=7)
    codes = [to_array(own) for own in onnx.load(export.path).graph.initializer if own.name.endswith("weight_quantized")]
    assert len(codes) == len(export.layers)
    assert max(np.abs(own).max() for own in codes) == 64
    assert export.difference < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "mobilenet_v3_small"])
def test_torchvision_networks_are_as_far_off_as_noise_makes_them(name):
    row = zoo_export.export("int8", name)
    assert row["in_float"] == 0
    assert float(row["difference"]) < max(0.2, 2 * float(row["noise"]))
    assert float(zoo_export.export("float32", name)["difference"]) < 1e-4
