"""Codes and steps of weights: as hashing left them, bit for bit, or the nearest by rows."""

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_array_equal
from odd import conv, settled, smooth
from onnx.numpy_helper import to_array
from torch import nn

from redlab import export_onnx, hash_network, load_network, red_plus_plus
from redlab.compression.preparing import prepare
from redlab.export.grids import Rows, read_rows, round_rows, weight_of
from redlab.network.layers import weight_layers


def only_layer(module):
    return next(weight_layers(nn.Sequential(module)))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return only_layer(nn.Conv2d(6, 4, 3))


def set_codes(layer, codes, steps):
    """Weights that are these codes times steps."""
    products = np.asarray(codes, np.float32) * np.asarray(steps, np.float32).reshape(-1, 1, 1, 1)
    layer.weight.data = torch.from_numpy(products)


def test_codes_times_steps_are_read_again(layer):
    codes = np.random.default_rng(0).integers(-100, 101, (4, 6, 3, 3))
    set_codes(layer, codes, [0.1, 3, 1e-6, 200])
    rows = read_rows(layer, 8)
    assert rows.hashed
    assert_array_equal(rows.codes * rows.steps.reshape(-1, 1, 1, 1), layer.weight.detach().numpy())


def test_too_many_values_or_codes_are_no_grid(layer):
    assert read_rows(layer, 8) is None
    set_codes(layer, np.random.default_rng(0).integers(-100, 101, (4, 6, 3, 3)), np.ones(4))
    assert read_rows(layer, 8) is not None
    assert read_rows(layer, 7) is None


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 64)])
def test_rounded_rows_are_the_nearest(layer, bits, largest):
    rows = round_rows(layer, bits)
    assert np.abs(rows.codes).max() == largest
    assert not rows.hashed
    off = (weight_of(layer, rows) - layer.weight).abs().flatten(1).amax(1).detach().numpy()
    assert (off <= 0.5001 * rows.steps).all()


@pytest.mark.parametrize(
    "module", [nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Linear(5, 3), nn.Conv1d(4, 4, 3, groups=4)]
)
def test_rows_of_other_layers_are_rounded_along_their_outputs(module):
    layer = only_layer(module)
    rows = round_rows(layer, 8)
    assert rows.codes.shape == layer.weight.shape
    assert (weight_of(layer, rows) - layer.weight).abs().max() <= 0.5001 * rows.steps.max()


@pytest.mark.parametrize("value", [0.0, 0.3, -1e30, 1e-40])
def test_equal_weights_have_one_code(layer, value):
    nn.init.constant_(layer.weight, value)
    rows = read_rows(layer, 8) or round_rows(layer, 8)
    assert len(np.unique(rows.codes)) == 1
    assert (rows.steps > 0).all()
    assert np.isfinite(rows.steps).all()
    assert np.allclose(weight_of(layer, rows).detach().numpy(), np.float32(value), rtol=1e-6, atol=1e-38)


def test_larger_steps_keep_the_nearest_codes():
    rows = Rows(np.array([[100, -50], [3, 4]], np.int8), np.array([0.01, 1], np.float32), True)
    assert rows.at_least(0.005) is rows
    larger = rows.at_least(np.array([0.02, 0.5]))
    assert_array_equal(larger.codes, [[50, -25], [3, 4]])
    assert_array_equal(larger.steps, np.array([0.02, 1], np.float32))


def stored_weights(path):
    """By layer, what the file multiplies by: its codes times their steps."""
    constants = {own.name: to_array(own) for own in onnx.load(path).graph.initializer}
    found = {}
    for name in (name for name in constants if name.endswith(".weight_quantized")):
        codes, steps = constants[name], constants[name.replace("_quantized", "_scale")]
        assert codes.dtype == np.int8
        assert not constants[name.replace("_quantized", "_zero_point")].any()
        rows = next(axis for axis in (0, 1) if codes.shape[axis] == len(steps)) if codes.ndim == 2 else 0
        found[name.removesuffix(".weight_quantized")] = codes * steps.reshape([-1 if k == rows else 1 for k in range(codes.ndim)])  # fmt: skip  # noqa: E501
    return found


def check_codes(network, path, units=0):
    """The file's weights are the network's, bit for bit, or within some units in the last place of the largest."""
    export = export_onnx(network, path, "int8")
    assert set(export.layers["codes"]) == {"hash"}
    assert (export.layers["error"] <= 1e-7 * units).all()
    stored = stored_weights(path)
    assert stored.keys() == set(export.layers["layer"])
    for layer in weight_layers(network):
        own = layer.weight.detach().numpy()
        found = stored[layer.name] if stored[layer.name].shape == own.shape else stored[layer.name].T
        assert np.abs(found - own).max() <= units * np.spacing(np.abs(own).max()), layer.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "levels"), [("digits/mlp", 15), pytest.param("digits/mobilenet", 255, marks=pytest.mark.slow)]
)
def test_a_hashed_network_keeps_its_codes(name, levels, tmp_path):
    hashed = hash_network(prepare(load_network(name)).network, rule="uniform", scale="row", levels=levels).network
    check_codes(hashed, tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet", "digits/mlp"])
def test_red_plus_plus_keeps_its_codes(name, tmp_path):
    check_codes(red_plus_plus(load_network(name)).network, tmp_path / "net.onnx", units=1)  # whose step is a float64


def test_products_of_matrices_keep_their_codes(tmp_path):
    """Linear layers of three axes lie transposed in the file."""
    torch.manual_seed(0)
    network = settled(nn.Sequential(conv(3, 8), nn.Flatten(2), nn.Linear(256, 12)), smooth(16))
    network.redlab = type(network.redlab)(input_shape=(3, 16, 16), input_mean=(0.0,))
    hashed = hash_network(prepare(network).network, rule="uniform", scale="row", levels=31).network
    check_codes(hashed, tmp_path / "net.onnx")


def test_a_layer_hashed_by_another_rule_is_rounded_by_rows(tmp_path):
    torch.manual_seed(0)
    hashed = hash_network(load_network("digits/mlp"), rule="kde").network
    export = export_onnx(hashed, tmp_path / "net.onnx", "int8")
    assert "rows" in set(export.layers["codes"])
    assert (export.layers.loc[export.layers["codes"] == "rows", "error"] > 0).all()
