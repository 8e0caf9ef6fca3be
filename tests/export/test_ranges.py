"""Ranges of activations without data, and from images."""

import pytest
import torch
from nets import Net
from odd import conv, settled, shuffled, smooth
from torch import nn
from torch.nn import functional as F

from redlab import export_onnx
from redlab.compression.moments import mean_inputs
from redlab.export.ranges import DEVIATIONS, expected_ranges, of_images
from redlab.network.recipe import change_recipe

X = torch.zeros(1, 3, 8, 8)


def ranges_of(network, example=X, **options):
    inputs = mean_inputs(network, example, norms=True)
    return expected_ranges(inputs, **options)


def last_range(network, example=X):
    found, unknown = ranges_of(network, example)
    assert not unknown
    return list(found.values())[-1]


def test_an_input_goes_8_deviations_far_or_as_images_do():
    network = nn.ReLU()
    found, _ = ranges_of(network)
    assert (-DEVIATIONS, DEVIATIONS) in found.values()
    assert list(found.values())[-1] == (0, DEVIATIONS)
    found, _ = ranges_of(network, input_range=of_images([0.5, 0.5, 0.5], [0.25, 0.5, 1], X))
    assert list(found.values())[-1] == (0, 2)


@pytest.mark.parametrize(
    ("network", "low", "high"),
    [
        (nn.ReLU6(), 0, 6),
        (nn.Sigmoid(), 0, 1),
        (nn.SiLU(), -0.279, 8),
        (nn.Hardswish(), -0.375, 8),
        (nn.LeakyReLU(0.1), -0.8, 8),
        (nn.Upsample(scale_factor=2.0, mode="bilinear"), -8, 8),
        (nn.Upsample(scale_factor=2.0), -8, 8),
        (Net(lambda self, x: F.pad(x, (1, 1, 1, 1), value=20.0)), -8, 20),
        (Net(lambda self, x: x.clamp(2, 3)), 0, 3),
        (Net(lambda self, x: x * 100 + 1), -799, 801),
        (Net(lambda self, x: torch.cat([x, 100 * x], 1)), -800, 800),
        (Net(lambda self, x: x * torch.sigmoid(x)), -8, 8),
        (Net(lambda self, x: x * (x + 3).clamp(0, 6) / 6), -8, 8),
        (Net(lambda self, x: x * x), -64, 64),
    ],
)
def test_ends_of_operations(network, low, high):
    assert last_range(network) == pytest.approx((low, high), abs=0.01)


def test_a_gated_half_lies_within_its_own_range():
    low, high = last_range(nn.GLU(1), torch.zeros(1, 4, 8, 8))
    assert -8 <= low < -3
    assert 3 < high <= 8


@pytest.mark.parametrize(
    ("norm", "like"),
    [(nn.LayerNorm(6), (2, 6)), (nn.GroupNorm(2, 6), (6, 5)), (nn.InstanceNorm1d(6, affine=True), (6, 5))],
)
def test_norms_of_their_own_statistics_put_out_weight_and_bias(norm, like):
    norm.weight.data, norm.bias.data = torch.rand(6) + 0.5, torch.randn(6)
    low, high = last_range(nn.Sequential(nn.Identity(), norm), torch.zeros(1, *like))
    assert low == pytest.approx(float((norm.bias - 8 * norm.weight).detach().min()), rel=1e-4)
    assert high == pytest.approx(float((norm.bias + 8 * norm.weight).max()), rel=1e-4)
    values = norm(3 + 5 * torch.randn(64, *like))
    assert low <= values.min()
    assert values.max() <= high


def test_they_stay_unknown_to_who_wants_the_mean_of_each_channel():
    network = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))
    assert mean_inputs(network, torch.zeros(1, 6)).unknown == {
        "1": "layer_norm is in its way, whose mean output is not known"
    }
    assert "1" in mean_inputs(network, torch.zeros(1, 6), norms=True).calls


def test_unknown_operations_say_so():
    _found, unknown = ranges_of(Net(lambda self, x: torch.sort(x, 1)[0]))
    assert any("sort" in reason for reason in unknown.values())


def test_images_of_a_recipe_set_the_range_of_the_input(tmp_path):
    """Whatever the network's code calls its input, and however long the batch is."""
    network = settled(nn.Sequential(conv(3, 8), conv(8, 4)), smooth(16))
    change_recipe(network, images={"size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]})
    export = export_onnx(network, tmp_path / "net.onnx", "int8", example=smooth(4).clamp(-2, 2))
    assert tuple(export.layers.loc[0, ["low", "high"]]) == (-2, 2)


def test_ranges_of_images_hold_all_values_of_these_images(tmp_path):
    torch.manual_seed(0)
    network = settled(nn.Sequential(conv(3, 16), shuffled()), smooth(16))
    images = smooth(24, seed=4)
    dataset = [(image, 0) for image in images]
    export = export_onnx(network, tmp_path / "net.onnx", "int8", example=images, ranges=dataset)
    first = export.layers.iloc[0]
    assert first["low"] == pytest.approx(float(images.min()))
    assert first["high"] == pytest.approx(float(images.max()))
    assert (export.layers["precision"] == "int8").all()
    assert export.difference < 0.2
