"""One error budget: its root mean square is what was asked for, and most of it goes where most products are."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from redlab import fold_batchnorm, hash_network, load_network, split_inputs, weight_layers
from redlab.compression import budget
from redlab.compression.budget import share_error

NETWORKS = ["digits/resnet", "digits/mobilenet", "digits/mlp"]
each_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def folded():
    return {name: fold_batchnorm(load_network(name)).network for name in NETWORKS}


def mean_square(errors):
    return float(np.sqrt(np.mean(np.square(list(errors)))))


class Unused(nn.Module):
    """A layer that is called and one that isn't."""

    def __init__(self):
        super().__init__()
        self.called, self.unused = nn.Linear(8, 30), nn.Linear(8, 30)

    def forward(self, x):
        return self.called(x)


@pytest.mark.parametrize("max_error", [0.05, 0.15, 0.3])
@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet"])
def test_the_root_mean_square_of_the_errors_is_max_error(folded, name, max_error):
    errors = share_error(folded[name], max_error)
    assert list(errors) == [layer.name for layer in weight_layers(folded[name])]
    assert all(type(error) is float for error in errors.values())
    assert 0.97 * max_error < mean_square(error for error in errors.values() if error) <= max_error * (1 + 1e-9)


@pytest.mark.parametrize("max_error", [0.05, 0.3])
def test_the_root_mean_square_is_max_error_in_networks_of_few_layers_too(folded, max_error):
    small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for network in (folded["digits/mlp"], small, nn.Linear(30, 40)):
        assert 0.97 * max_error < mean_square(share_error(network, max_error).values()) <= max_error * (1 + 1e-9)


@each_network
@pytest.mark.parametrize("max_error", [0.01, 0.15, 1.0])
def test_the_budget_is_never_exceeded_and_no_layer_gets_nothing_or_all(folded, name, max_error):
    errors = [error for error in share_error(folded[name], max_error).values() if error]
    assert mean_square(errors) <= max_error * (1 + 1e-9)
    assert all(0.05 * max_error < error <= 4 * max_error for error in errors)


def test_layers_of_few_products_get_small_errors_and_those_of_many_large_ones(folded):
    errors = share_error(folded["digits/resnet"], 0.15)
    inner = [error for name, error in errors.items() if name not in ("conv1", "linear")]
    assert max(errors["conv1"], errors["linear"]) < 0.5 * 0.15
    assert min(inner) > 0.12


def test_of_two_layers_the_one_with_more_products_gets_the_larger_error():
    many, few = nn.Conv2d(3, 40, 3, padding=1), nn.Linear(40, 10)
    network = nn.Sequential(many, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), few)
    errors = share_error(network, 0.1, torch.randn(1, 3, 16, 16))
    assert errors["4"] < 0.05 < 0.1 < errors["0"]
    assert mean_square(errors.values()) <= 0.1 * (1 + 1e-9)


def test_what_is_called_at_more_positions_gets_a_larger_error():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 40))
    small, large = (share_error(network, 0.1, torch.randn(1, 3, side, side)) for side in (4, 64))
    assert small["0"] < large["0"]
    assert small["3"] > large["3"]


def test_a_layer_that_is_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.times, self.inner, self.last = times, nn.Linear(24, 24), nn.Linear(24, 24)

        def forward(self, x):
            for _ in range(self.times):
                x = self.inner(x)
            return self.last(x)

    once, often = Twice(1), Twice(50)
    often.load_state_dict(once.state_dict())
    once, often = (share_error(network, 0.1, torch.randn(1, 24)) for network in (once, often))
    assert often["inner"] > once["inner"]
    assert often["last"] < once["last"]


def test_depthwise_layers_get_nothing_and_grouped_ones_something():
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3),  # one input channel is no depthwise layer
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 12, 3, groups=6),
        nn.Conv2d(12, 12, 3, groups=3),
        nn.Conv2d(12, 4, 1),
    )
    errors = share_error(network, 0.1, torch.randn(1, 1, 12, 12))
    assert [bool(error) for error in errors.values()] == [True, False, False, True, True]
    table = hash_network(network, "uniform", max_error=errors).layers.set_index("layer")
    assert table.loc[["1", "2"], "skipped"].tolist() == ["its max_error is 0"] * 2
    assert set(share_error(network[1:3], 0.1, torch.randn(1, 6, 12, 12)).values()) == {0}


def test_depthwise_layers_of_a_mobilenet_are_left_alone(folded):
    errors = share_error(folded["digits/mobilenet"], 0.15)
    depthwise = [f"blocks.{k}.0.conv" for k in range(6)]
    assert [name for name, error in errors.items() if error == 0] == depthwise


def test_layers_that_are_never_called_get_max_error_itself():
    errors = share_error(Unused(), 0.07, torch.randn(1, 8))
    assert errors["unused"] == 0.07
    assert 0 < errors["called"] <= 0.07 * (1 + 1e-9)
    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    errors = share_error(attention, 0.07, torch.randn(1, 5, 16))
    assert errors["self_attn.in_proj"] == errors["self_attn.out_proj"] == 0.07


def test_layers_that_steps_must_leave_alone_are_not_named():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    network[1].weight = network[0].weight
    assert list(share_error(network, 0.1)) == ["0", "2"]
    hash_network(network, "uniform", max_error=share_error(network, 0.1))
    assert share_error(nn.Sequential(nn.ReLU()), 0.1, torch.randn(1, 4)) == {}


@pytest.mark.parametrize("zeros", [0, 0.6])
@pytest.mark.parametrize("max_error", [0.1, 0.5])
def test_the_products_expected_are_those_that_splitting_leaves_of_random_weights(max_error, zeros):
    (layer,) = weight_layers(nn.Sequential(nn.Conv2d(200, 32, 3, bias=False)))
    nn.init.normal_(layer.weight)
    layer.weight.data[torch.rand(layer.weight.shape) < zeros] = 0
    expected = budget._expected_products(layer, [torch.Size([1, 200, 7, 7])], max_error)
    weight = layer.weight.detach().double()
    steps = budget._FACTORS * max_error * float((12 * weight[weight != 0].square().mean()).sqrt())
    for step, products in zip(steps.tolist(), expected.tolist(), strict=True):
        rounded = (weight / step).round()
        error = float((rounded * step - weight).norm() / weight.norm())
        assert step > weight.std() or error == pytest.approx(step / steps[0] * budget._FACTORS[0] * max_error, rel=0.03)
        distinct = [len(set(rounded[:, channel].unique().tolist()) - {0}) for channel in range(200)]
        assert products == pytest.approx(49 * sum(distinct), rel=0.03)


@each_network
@pytest.mark.parametrize("max_error", [0.05, 0.15])
def test_it_leaves_fewer_products_than_the_same_error_everywhere(folded, name, max_error):
    shared = share_error(folded[name], max_error)
    even = {layer: max_error if error else 0 for layer, error in shared.items()}
    left = [
        split_inputs(hash_network(folded[name], "uniform", max_error=errors).network).layers["products_after"].sum()
        for errors in (shared, even)
    ]
    assert left[0] < 0.96 * left[1]


def test_only_the_shape_of_a_layers_distribution_counts(folded):
    plain = share_error(folded["digits/mlp"], 0.1)
    other = copy.deepcopy(folded["digits/mlp"])
    with torch.no_grad():
        for scale, layer in zip((1024, 2**-9, -1), weight_layers(other), strict=True):
            order = torch.randperm(layer.weight.numel())
            layer.weight.copy_(scale * layer.weight.flatten()[order].view_as(layer.weight))
    assert share_error(other, 0.1) == plain


@each_network
def test_it_is_the_same_every_time_and_leaves_the_network_alone(folded, name):
    network = copy.deepcopy(folded[name]).train()
    before = copy.deepcopy(network.state_dict())
    random = torch.random.get_rng_state()
    assert share_error(network, 0.1) == share_error(network, 0.1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_get_nearly_the_same(folded, dtype):
    plain = share_error(folded["digits/mlp"], 0.1)
    other = share_error(copy.deepcopy(folded["digits/mlp"]).to(dtype), 0.1)
    assert other == pytest.approx(plain, rel=0.12)  # one step of the grid of errors


def test_layers_of_zeros_or_of_one_value_do_no_harm():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.zeros_(network[0].weight)
    nn.init.constant_(network[1].weight, -0.3)
    errors = share_error(network, 0.1)
    assert all(0 < error < 0.4 for error in errors.values())
    assert mean_square(errors.values()) <= 0.1 * (1 + 1e-9)
    assert hash_network(network, "uniform", max_error=errors).layers["error"].tolist()[:2] == [0, 0]


@pytest.mark.parametrize("bad", [0, 0.0, -0.1, float("nan"), float("inf")])
def test_the_error_must_be_a_positive_number(bad):
    with pytest.raises(ValueError, match=r"max_error must be a positive number \(0\.05 is 5 %\), not"):
        share_error(nn.Linear(4, 4), bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_weight_names_its_layer(bad):
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    network[2].weight.data[1, 1] = bad
    with pytest.raises(ValueError, match="layer 2: NaN or inf among its weights"):
        share_error(network, 0.1)


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="Sequential cannot run on an input of shape"):
        share_error(nn.Sequential(nn.Linear(4, 4)), 0.1, torch.randn(1, 5))
