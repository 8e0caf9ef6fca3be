"""One budget of noise: what is spent fits it, and goes where it saves most products; scales where they pay."""

import warnings

import numpy as np
import pytest
import torch
from nets import Net
from torch import nn

from redlab import (
    as_dense,
    default_dataset,
    evaluate,
    fold_batchnorm,
    load_dataset,
    load_network,
    prepare,
    red_plus_plus,
    weight_layers,
)
from redlab.compression.allocation import _offers, allocate
from redlab.compression.budgets import MUCH_NOISE, hash_within, total_noise
from redlab.compression.moments import mean_inputs
from redlab.compression.noise import layer_noise
from redlab.network.recipe import input_mean_of
from redlab.network.result import of_layers
from redlab.network.trial_run import record_calls

REAL = {"cifar10/resnet20": 0.032, "imagenet/mobilenet_v1_0.75": 0.095}
LONG = {"imagenet/mobilenet_v1_0.75"}
SLOW = {"cifar10/resnet56": 0.032, "imagenet/efficientnet_lite0": 0.13}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def known():
    network = fold_batchnorm(load_network("digits/resnet")).network
    return network, layer_noise(mean_inputs(network, None, input_mean_of(network)))


@pytest.mark.parametrize("scale", ["none", "row", "auto"])
@pytest.mark.parametrize("max_noise", [0.001, 0.075, 0.5])
def test_the_noise_fits_the_budget(known, scale, max_noise):
    network, noise = known
    found = allocate(network, max_noise, scale, noise)
    assert sum(found.noise.values()) <= max_noise
    assert set(found.errors) == set(found.scales) == {name for name in noise}
    assert set(found.scales.values()) <= ({"none", "row"} if scale == "auto" else {"none", scale})


def test_auto_leaves_no_more_products_than_either_scale(known):
    network, noise = known
    layers = [layer for layer in weight_layers(network) if not layer.skipped]
    calls = record_calls(network, None)

    def expected(scale):
        found, total = allocate(network, 0.075, scale, noise), 0.0
        for layer in layers:
            offer = _offers(layer, calls[layer.name], noise[layer.name], ("none", "row"), "uniform")
            wanted = (found.scales[layer.name], found.errors[layer.name])
            total += offer.products[list(zip(offer.scales, offer.errors, strict=True)).index(wanted)]
        return total

    # A step of the grid is 9 % in the error: a whole step of one layer may be left over.
    assert expected("auto") <= 1.02 * min(expected("none"), expected("row"))


def test_more_noise_leaves_fewer_products():
    network = load_network("digits/mlp")
    left = [of_layers(red_plus_plus(network, max_noise=most).layers)["products_after"].sum() for most in (0.01, 0.25)]
    assert left[0] > left[1]


def unequal():
    """Depthwise and pointwise layers whose rows differ in scale by a thousand, which the next layer makes up for."""
    scales = torch.logspace(-1.5, 1.5, 24)
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(24, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        network[0].weight.mul_(scales.view(-1, 1, 1, 1))
        network[2].weight.div_(scales.view(-1, 1, 1, 1))
        network[0].bias.zero_()
    return network


def test_rows_of_unequal_scales_get_them():
    network, example = unequal(), torch.randn(1, 3, 8, 8)
    noise = layer_noise(mean_inputs(network, example))
    found = allocate(network, 0.05, "auto", noise, example=example)
    assert found.scales["0"] == found.scales["2"] == "row"
    folded = prepare(network, example)
    options = {"example": example, "input_mean": (0.0,), "rule": "uniform", "max_error": None}
    hashed = hash_within(network, folded, scale="auto", budget="noise", max_noise=0.05, **options)
    assert hashed.plan["noise"] == total_noise(network, hashed.network, noise) < 0.06
    with pytest.warns(UserWarning, match="networks have lost accuracy"):
        one_grid = hash_within(network, folded, scale="none", budget="even", **options | {"max_error": 0.15})
    assert one_grid.plan["noise"] > MUCH_NOISE


def test_the_budget_of_products_warns_of_rows_that_it_rounds_away():
    network, example = unequal(), torch.randn(1, 3, 8, 8)
    with pytest.warns(UserWarning, match="networks have lost accuracy"):
        result = red_plus_plus(network, max_error=0.15, scale="none", example=example, input_mean=(0.0,))
    assert result.plan["noise"] > MUCH_NOISE


def test_where_noise_is_not_known_the_squared_error_of_the_rows_stands_in():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    result = red_plus_plus(layer, example=torch.randn(2, 5, 16), max_noise=0.01)
    assert 0 < result.plan["noise"] < 0.02
    assert result.plan["noise_unknown"] == result.layers["layer"].tolist()
    assert result.layers["products_after"].sum() < result.layers["products_before"].sum()


def test_the_same_network_gets_the_same_and_what_is_never_called_a_default(known):
    network, noise = known
    assert allocate(network, 0.1, "auto", noise) == allocate(network, 0.1, "auto", noise)

    network = Net(lambda own, x: own.called(x), called=nn.Linear(8, 30), unused=nn.Linear(8, 30))
    found = allocate(network, 0.1, "row", example=torch.randn(1, 8))
    assert found.errors["unused"] > 0
    assert set(found.noise) == {"called"}


def test_inputs_that_meet_more_weights_than_are_sampled_and_layers_of_zeros():
    patches = nn.Sequential(nn.Conv2d(3, 160, 16, 16), nn.Flatten(), nn.Linear(160, 4)).eval()
    patches[2].weight.data.zero_()
    found = allocate(patches, 0.05, example=torch.randn(1, 3, 16, 16))
    assert found.errors["0"] > 0
    assert found.errors["2"] == found.noise["2"] == 0


def test_errors_say_what_is_right():
    network = nn.Sequential(nn.Linear(4, 4)).eval()
    for bad in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="max_noise must be a positive number"):
            allocate(network, bad, example=torch.randn(1, 4))
    with pytest.raises(ValueError, match="scale must be one of none, row, auto"):
        red_plus_plus(network, scale="column")
    with pytest.raises(ValueError, match="budget must be one of noise, products, even"):
        red_plus_plus(network, budget="bits")
    network[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or inf"):
        red_plus_plus(network, example=torch.randn(1, 4))


def left_by_default(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of them makes much noise
        result = red_plus_plus(load_network(name))
    layers = of_layers(result.layers)
    assert result.plan["noise"] < 0.09
    return result, layers["products_after"].sum() / layers["products_before"].sum()


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in REAL])
def test_the_defaults_leave_few_products_of_real_networks(real_data, name):
    assert left_by_default(name)[1] <= REAL[name]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "points"), [("cifar10/resnet56", 0.4), ("imagenet/efficientnet_lite0", 5)])
def test_the_defaults_keep_the_accuracy_of_real_networks(real_data, name, points):
    result, left = left_by_default(name)
    assert left <= SLOW[name]
    images, network = load_dataset(default_dataset(name), limit=2000), load_network(name)
    assert evaluate(as_dense(result.network), images).accuracy >= evaluate(network, images).accuracy - points
