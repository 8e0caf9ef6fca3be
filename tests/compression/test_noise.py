"""Noise of weight errors: as much as random errors make, at the end of the block, without data."""

import copy

import pytest
import torch
from nets import Net
from torch import nn

from redlab import fold_batchnorm, load_network, weight_layers
from redlab.compression.moments import mean_inputs
from redlab.compression.noise import layer_noise
from redlab.network.recipe import input_mean_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def noise_of(network, *shape):
    return layer_noise(mean_inputs(network, torch.randn(1, *shape)))


def predicted(network, noise, name, size):
    weight = dict(network.named_modules())[name].weight
    return float(noise[name].rows(torch.full_like(weight, size**2)).sum())


@torch.no_grad()
def measured(network, name, size, inputs, draws=200):
    """What normal errors of that size add, as a share of the signal's variance; means over images taken off."""
    wanted, total = network(inputs), 0.0
    for _ in range(draws):
        other = copy.deepcopy(network)
        weight = dict(other.named_modules())[name].weight
        weight += size * torch.randn_like(weight)
        total += float((other(inputs) - wanted).var(0).mean())
    return total / draws / float(wanted.var(0).mean())


@pytest.mark.parametrize("name", ["0", "1"])
def test_in_a_chain_of_linear_layers_it_is_what_random_errors_make(name):
    network = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 8)).eval()
    nn.init.orthogonal_(network[0].weight.data.T)  # so that the channels between are independent
    noise = noise_of(network, 20)
    assert measured(network, name, 0.01, torch.randn(400, 20)) == pytest.approx(
        predicted(network, noise, name, 0.01), rel=0.25
    )


@pytest.mark.parametrize("name", ["0", "1"])
def test_in_a_chain_of_convs_it_is_what_random_errors_make(name):
    network = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Conv2d(16, 6, 3)).eval()
    nn.init.orthogonal_(network[0].weight.data.view(16, 4))  # so that its inputs keep their variance
    found = predicted(network, noise_of(network, 4, 6, 6), name, 0.01)
    assert measured(network, name, 0.01, torch.randn(300, 4, 6, 6), draws=100) == pytest.approx(found, rel=0.25)


def test_behind_a_relu_it_is_of_the_right_size():
    norm = nn.BatchNorm2d(24, momentum=1.0)
    network = nn.Sequential(nn.Conv2d(3, 24, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 10))
    inputs = torch.randn(300, 3, 6, 6)
    network.train()(inputs)
    folded = fold_batchnorm(network.eval(), inputs[:1]).network
    found = predicted(folded, noise_of(folded, 3, 6, 6), "0", 0.02)
    assert found / 2 < measured(folded, "0", 0.02, inputs, draws=30) < 2 * found


class Block(nn.Module):
    """A branch beside a stream whose variance is a hundred times its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.stem.weight.data = 10 * torch.eye(16)
        self.branch.weight.data = 0.1 * torch.eye(16)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(x))


def test_a_branch_is_compared_with_the_stream_that_it_joins():
    network = Block().eval()
    noise = noise_of(network, 16)
    squares = torch.eye(16) * 0.01**2
    alone = 16 * 100 * 0.01**2  # inputs of variance 100, against branch outputs of variance 1 each
    joined = float(noise["branch"].rows(squares).sum())
    assert joined == pytest.approx(alone / 16 / 101, rel=0.02)


def test_it_is_linear_in_the_squares_and_the_rows_add_up():
    network = fold_batchnorm(load_network("digits/resnet")).network
    noise = layer_noise(mean_inputs(network, None, input_mean_of(network)))
    assert set(noise) == {layer.name for layer in weight_layers(network)}
    for layer in weight_layers(network):
        squares = torch.rand_like(layer.weight)
        rows = noise[layer.name].rows(squares)
        assert rows.shape == (len(layer.weight),)
        assert (rows >= 0).all()
        torch.testing.assert_close(noise[layer.name].rows(3 * squares), 3 * rows)
        first = torch.zeros_like(squares)
        first[0] = squares[0]
        torch.testing.assert_close(noise[layer.name].rows(first).sum(), rows[0])


def test_scales_that_move_through_a_relu_change_nothing():
    network = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    other, scales = copy.deepcopy(network), torch.logspace(-2, 2, 12)
    other[0].weight.data *= scales[:, None]
    other[0].bias.data *= scales
    other[2].weight.data /= scales
    for name in ("0", "2", "4"):
        own, moved = (dict(one.named_modules())[name].weight.detach() for one in (network, other))
        made = [float(noise_of(one, 6)[name].rows(w.square()).sum()) for one, w in ((network, own), (other, moved))]
        assert made[0] == pytest.approx(made[1], rel=1e-3)


def test_what_reaches_an_unknown_operation_is_left_out():
    forward = lambda own, x: own.last(torch.sort(own.first(x)).values)  # noqa: E731
    assert "first" not in noise_of(Net(forward, first=nn.Linear(8, 8), last=nn.Linear(8, 3)).eval(), 8)


def test_two_outputs_share_the_layers_before():
    def forward(own, x):
        x = own.stem(x)
        return {"a": own.a(x), "b": own.b(x)}

    two = Net(forward, stem=nn.Linear(8, 8), a=nn.Linear(8, 3), b=nn.Linear(8, 5))
    noise = noise_of(two.eval(), 8)
    assert set(noise) == {"stem", "a", "b"}
    assert all((own.gain > 0).all() for own in noise.values())


def test_each_call_of_a_layer_adds_its_noise():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Linear(8, 8)
            nn.init.orthogonal_(self.own.weight)

        def forward(self, x):
            return self.own(self.own(x))

    network = Twice().eval()
    once = predicted(nn.Sequential(network.own), noise_of(nn.Sequential(network.own), 8), "0", 0.01)
    noise = noise_of(network, 8)
    assert len(noise["own"].calls) == 2
    assert predicted(network, noise, "own", 0.01) == pytest.approx(2 * once, rel=1e-3)


def test_it_is_the_same_in_float64():
    network = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    double, example = copy.deepcopy(network).double(), torch.randn(1, 8)
    noise, other = (layer_noise(mean_inputs(one, x)) for one, x in ((network, example), (double, example.double())))
    for name in ("0", "2"):
        assert other[name].gain.dtype == torch.float64
        torch.testing.assert_close(noise[name].gain.double(), other[name].gain, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_types_are_left_out_for_their_gains_would_vanish(dtype):
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval().to(dtype)
    assert layer_noise(mean_inputs(network, torch.randn(1, 8, dtype=dtype))) == {}


def test_a_layer_of_which_one_call_is_not_followed_is_left_out():
    def forward(own, x):
        x = own.often(x)
        return own.last(x.relu()) + own.last(torch.sort(own.often(x.relu())).values)

    network = Net(forward, often=nn.Linear(8, 8), last=nn.Linear(8, 3))
    assert "often" not in noise_of(network.eval(), 8)
