"""Mean inputs without data: against closed forms, numerical integrals and what images really give."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import Net
from scipy import stats
from torch import Tensor, nn
from torchvision import models

from redlab import fold_batchnorm, load_dataset, load_network, weight_layers
from redlab.compression.moments import MeanInputs, mean_inputs
from redlab.network.zero_pad import ZeroPadShortcut
from redlab.zoo.architectures import ChannelAffine


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def normed(channels: int, inputs: int = 3) -> nn.Sequential:
    """A convolution and a batch norm that puts out means from -2 to 2 with deviations of both kinds of gamma."""
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.bias, -2, 2)
    with torch.no_grad():
        norm.weight.copy_(torch.empty(channels).uniform_(0.1, 2) * torch.randn(channels).sign())
    return nn.Sequential(nn.Conv2d(inputs, channels, 3, padding=1), norm)


def predict(network: nn.Module, *shape: int) -> MeanInputs:
    """The mean inputs of a folded copy, in float64."""
    example = torch.randn(2, *(shape or (3, 6, 6)), dtype=torch.float64)
    return mean_inputs(fold_batchnorm(network.double().eval(), example).network, example)


def only(inputs: MeanInputs, layer: str) -> Tensor:
    """The mean input of a layer that is called once."""
    ((_, given),) = inputs.calls[layer]
    mean = given.mean
    return mean


def statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    return norm.bias.detach().double(), norm.weight.detach().double().abs()


def relu_of(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(0, N(mean, std^2)), in closed form."""
    ratio = (mean / std).numpy()
    density, share = torch.from_numpy(stats.norm.pdf(ratio)), torch.from_numpy(stats.norm.cdf(ratio))
    first = mean * share + std * density
    return first, (mean**2 + std**2) * share + mean * std * density - first**2


def expected(function, mean: Tensor, std: Tensor) -> Tensor:
    """E[f(N(mean, std^2))] by a fine sum."""
    places = torch.linspace(-9, 9, 40001, dtype=torch.float64)
    shares = torch.exp(-(places**2) / 2)
    values = function(mean[:, None] + std[:, None] * places)
    return (values * shares).sum(1) / shares.sum()


def everywhere(values: Tensor, like: Tensor) -> Tensor:
    return values[None, :, None, None].expand_as(like)


FUNCTIONS = {
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(inplace=True),
    "gelu": nn.GELU(),
    "gelu by tanh": nn.GELU("tanh"),
    "tanh": nn.Tanh(),
    "elu": nn.ELU(0.7),
    "leaky": nn.LeakyReLU(0.2),
    "softplus": nn.Softplus(),
    "mish": nn.Mish(),
    "clipped": nn.Hardtanh(-0.5, 1.5),
    "prelu": nn.PReLU(24, init=-0.3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_mean_of_a_function_of_a_normal_is_its_integral(name):
    function = FUNCTIONS[name]
    network = nn.Sequential(*normed(24), function, nn.Conv2d(24, 2, 1))
    mean, std = statistics(network[1])
    got = only(predict(network), "3")
    assert got.shape == (1, 24, 6, 6)
    plain = copy.deepcopy(function).double()
    with torch.no_grad():
        wanted = expected(lambda x: plain(x[None])[0], mean, std)
    assert ((got - everywhere(wanted, got)).abs() <= 1e-3 * everywhere(std, got)).all()


def test_the_mean_of_a_rectified_normal_is_the_closed_form():
    network = nn.Sequential(*normed(200), nn.ReLU(), nn.Conv2d(200, 2, 1))
    mean, std = statistics(network[1])
    got = only(predict(network), "3")
    error = (got - everywhere(relu_of(mean, std)[0], got)).abs() / everywhere(std, got)
    assert error.max() < 1e-3


def test_without_spread_a_function_is_applied_to_the_mean():
    network = nn.Sequential(*normed(8), nn.Sigmoid(), nn.Conv2d(8, 2, 1))
    nn.init.zeros_(network[1].weight)
    got = only(predict(network), "3")
    assert torch.allclose(got, everywhere(torch.sigmoid(network[1].bias), got))


def test_images_count_as_of_mean_0_and_variance_1():
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    inputs = predict(network, 5)
    assert (only(inputs, "0") == 0).all()
    weight, bias = network[0].weight.detach(), network[0].bias.detach()
    wanted, _ = relu_of(bias, weight.square().sum(1).sqrt())
    assert torch.allclose(only(inputs, "2")[0], wanted, atol=2e-3)


def test_layers_without_a_norm_carry_mean_and_variance_on():
    network = nn.Sequential(*normed(8), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))
    mean, variance = relu_of(*statistics(network[1]))
    got = only(predict(network), "5")
    weight, bias = network[3].weight.detach()[..., 0, 0], network[3].bias.detach()
    wanted, _ = relu_of(weight @ mean + bias, (weight**2 @ variance).sqrt())
    assert torch.allclose(got, everywhere(wanted, got), atol=2e-3)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
def test_padding_is_seen_where_it_is(mode):
    first, second = normed(4), nn.Conv2d(4, 3, 3, padding=1, padding_mode=mode)
    network = nn.Sequential(*first, nn.ReLU(), second, nn.Conv2d(3, 2, 1))
    mean, _ = relu_of(*statistics(first[1]))
    got = only(predict(network), "4")
    with torch.no_grad():
        assert torch.allclose(got, second(everywhere(mean, torch.empty(1, 4, 6, 6))), atol=2e-3)
    assert torch.allclose(got[..., 0, :], got[..., 1, :]) == (mode != "zeros")


def two_branches(join, channels=6, after=None):
    """Two rectified convolutions of the image, put together, and one more: its mean input."""
    network = Net(
        lambda net, x: net.last(join(F.relu(net.a(x)), F.relu(net.b(x)))),
        a=normed(6),
        b=normed(channels),
        last=nn.LazyConv2d(2, 1),
    ).double()
    network(torch.randn(2, 3, 6, 6, dtype=torch.float64))
    got = only(predict(network), "last")
    assert torch.equal(got, got[..., :1, :1].expand_as(got))
    return got[0, :, 0, 0], *(relu_of(*statistics(branch[1])) for branch in (network.a, network.b))


def test_a_residual_add_adds_the_means():
    got, (one, _), (other, _) = two_branches(lambda a, b: a + b)
    assert torch.allclose(got, one + other, atol=2e-3)
    got, (one, _), (other, _) = two_branches(lambda a, b: torch.sub(a, b, alpha=3))
    assert torch.allclose(got, one - 3 * other, atol=6e-3)


def test_a_residual_add_adds_the_variances():
    got, (one, v), (other, w) = two_branches(lambda a, b: F.relu(a - 2 * b))
    assert torch.allclose(got, relu_of(one - 2 * other, (v + 4 * w).sqrt())[0], atol=6e-3)


def test_an_add_in_place_is_an_add():
    got, (one, _), (other, _) = two_branches(lambda a, b: a.add_(b).mul_(0.5))
    assert torch.allclose(got, (one + other) / 2, atol=2e-3)


def test_a_product_of_branches_counts_them_as_independent():
    got, (one, v), (other, w) = two_branches(lambda a, b: F.relu(a * b - 0.2))
    spread = v * w + v * other**2 + w * one**2
    assert torch.allclose(got, relu_of(one * other - 0.2, spread.sqrt())[0], atol=1e-2)


def test_a_concatenation_keeps_its_parts():
    got, (one, _), (other, _) = two_branches(lambda a, b: torch.cat([a, b], 1), channels=4)
    assert torch.allclose(got, torch.cat([one, other]), atol=2e-3)


def test_scalars_and_buffers_scale_and_shift():
    scale, shift = torch.linspace(-2, 2, 6).double(), torch.linspace(1, -1, 6).double()
    network = Net(
        lambda net, x: net.last(F.relu(net.affine(F.relu(net.a(x))) / 2 - 0.25)),
        a=normed(6),
        affine=ChannelAffine(scale.tolist(), shift.tolist()),
        last=nn.Conv2d(6, 2, 1),
    )
    got = only(predict(network), "last")
    mean, variance = relu_of(*statistics(network.a[1]))
    wanted = relu_of((mean * scale + shift) / 2 - 0.25, (variance * scale**2).sqrt() / 2)[0]
    assert torch.allclose(got, everywhere(wanted, got), atol=3e-3)


def test_chunks_and_shuffled_channels_follow_their_channels():
    def shuffled(a, b):
        both = torch.cat([a, b], 1).reshape(-1, 2, 6, 6, 6).transpose(1, 2).flatten(1, 2)
        return torch.cat(both.chunk(3, 1)[::-1], 1)

    got, (one, _), (other, _) = two_branches(shuffled)
    wanted = torch.stack([one, other], 1).flatten().reshape(3, 4).flip(0).flatten()
    assert torch.allclose(got, wanted, atol=2e-3)


@pytest.mark.parametrize(("before", "after", "stride"), [(4, 8, 2), (3, 8, 1)])
def test_a_zero_padded_shortcut_brings_zeros(before, after, stride):
    network = nn.Sequential(*normed(before), nn.ReLU(), ZeroPadShortcut(before, after, stride), nn.Conv2d(after, 2, 1))
    mean, _ = relu_of(*statistics(network[1]))
    got = only(predict(network), "4")
    assert got.shape == (1, after, 6 // stride, 6 // stride)
    place = (after - before) // 2
    assert torch.allclose(got[:, place : place + before], everywhere(mean, got[:, :before]), atol=2e-3)
    assert (got[:, :place] == 0).all()
    assert (got[:, place + before :] == 0).all()


POOLS = {
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "average": lambda x: F.avg_pool2d(x, 3, 2).mean((2, 3)),
    "mean": lambda x: x.mean((-1, -2)),
    "reshape": lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1)[:, :6],
    "maximum": lambda x: F.max_pool2d(x, 6).squeeze(-1).squeeze(-1),
    "dropout": lambda x: F.dropout(x[:, :, 1, 2], 0.5, training=False),
}


@pytest.mark.parametrize("pool", POOLS)
def test_pooling_keeps_the_means(pool):
    network = Net(lambda net, x: net.last(POOLS[pool](F.relu(net.a(x)))), a=normed(6), last=nn.Linear(6, 2))
    mean, _ = relu_of(*statistics(network.a[1]))
    assert torch.allclose(only(predict(network), "last"), mean[None], atol=2e-3)


def test_a_norm_that_stays_puts_out_what_it_learnt():
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.bias, -1, 1)
    nn.init.uniform_(norm.weight, -1, 1)
    network = nn.Sequential(*normed(6), nn.ReLU(), norm, nn.ReLU(), nn.Conv2d(6, 2, 1))
    got = only(predict(network), "5")
    assert torch.allclose(got, everywhere(relu_of(*statistics(norm))[0], got), atol=2e-3)
    plain = nn.Sequential(*normed(6), nn.ReLU(), nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.Conv2d(6, 2, 1))
    assert torch.allclose(only(predict(plain), "5"), torch.full((), (2 * np.pi) ** -0.5).double(), atol=1e-3)


def test_linear_layers_take_their_statistics_along_the_last_axis():
    norm = nn.BatchNorm1d(7)
    nn.init.uniform_(norm.bias, -1, 1)
    network = nn.Sequential(nn.Linear(5, 7), norm, nn.ReLU(), nn.Linear(7, 2))
    mean, _ = relu_of(*statistics(norm))
    assert torch.allclose(only(predict(network, 5), "3")[0], mean, atol=2e-3)


def test_every_call_of_a_layer_has_its_own_mean():
    network = Net(lambda net, x: net.b(F.relu(net.b(F.relu(net.a(x))))), a=normed(6), b=nn.Conv2d(6, 6, 1))
    first, second = (given.mean for _, given in predict(network).calls["b"])
    assert torch.allclose(first, everywhere(relu_of(*statistics(network.a[1]))[0], first), atol=2e-3)
    assert not torch.allclose(first, second)


# What is not known.


def test_a_layer_behind_a_layer_norm_is_unknown_and_says_so():
    network = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    inputs = predict(network, 5)
    assert list(inputs.calls) == ["0"]
    assert inputs.unknown == dict.fromkeys(["2", "4"], "layer_norm is in its way, whose mean output is not known")


UNKNOWN = {
    "softmax": lambda x: x.softmax(1),
    "group_norm": lambda x: F.group_norm(x, 2),
    "exp": lambda x: x.exp(),
    "einsum": lambda x: torch.einsum("nchw,ndhw->nchw", x, x),
    "division": lambda x: 1 + 0 * x / (2 + x.abs()),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_operations_are_named_and_a_norm_ends_the_doubt(name):
    network = Net(
        lambda net, x: net.last(F.relu(net.b(UNKNOWN[name](net.a(x))))),
        a=normed(6),
        b=normed(6, inputs=6),
        last=nn.Conv2d(6, 2, 1),
    )
    inputs = predict(network)
    assert list(inputs.calls) == ["a.0", "last"]
    reason = inputs.unknown["b.0"]
    assert reason.endswith("is in its way" if name == "division" else "is in its way, whose mean output is not known")
    assert name in reason or name == "einsum"
    mean = only(inputs, "last")
    assert torch.allclose(mean, everywhere(relu_of(*statistics(network.b[1]))[0], mean), atol=2e-3)


def test_attention_is_unknown_and_nothing_crashes():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    inputs = predict(nn.Sequential(nn.Linear(16, 16), encoder), 5, 16)
    assert list(inputs.calls) == ["0"]
    assert {"1.self_attn.out_proj", "1.linear1", "1.linear2"} == inputs.unknown.keys()
    assert all("is in its way, whose mean output is not known" in reason for reason in inputs.unknown.values())
    network = models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32).eval()
    inputs = mean_inputs(network, torch.randn(1, 3, 32, 32))
    assert list(inputs.calls) == ["conv_proj"]
    assert set(inputs.unknown.values()) == {"layer_norm is in its way, whose mean output is not known"}


def test_a_layer_on_a_constant_is_known():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.inner, self.last = nn.Parameter(torch.randn(1, 4)), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(x + self.inner(self.token))

    network = Token()
    inputs = predict(network, 6)
    assert torch.allclose(only(inputs, "last"), network.inner(network.token).detach())
    assert torch.allclose(only(inputs, "inner"), network.token.detach())


def test_tensors_that_are_no_buffers_are_constants():
    shift = torch.linspace(-1, 1, 6)[:, None, None].double()
    network = Net(lambda net, x: net.last(net.a(x) + shift), a=normed(6), last=nn.Conv2d(6, 2, 1))
    got = only(predict(network), "last")
    assert torch.allclose(got, everywhere(network.a[1].bias.detach() + shift.flatten(), got))


def test_images_may_be_cut_into_a_batch_of_patches():
    def patches(net, x):
        y = F.relu(net.a(x.reshape(-1, 1, 3, 3)))
        return net.last(y.reshape(len(x), -1))

    network = Net(patches, a=normed(4, inputs=1), last=nn.Linear(4 * 36, 2))
    mean, _ = relu_of(*statistics(network.a[1]))
    wanted = mean[None, :, None].expand(4, 4, 9).reshape(1, -1)
    assert torch.allclose(only(predict(network, 1, 6, 6), "last"), wanted, atol=2e-3)


def test_padding_by_a_number_brings_no_variance():
    network = nn.Sequential(*normed(4), nn.ConstantPad2d(1, 2.0), nn.ReLU(), nn.Conv2d(4, 2, 1))
    got = only(predict(network), "4")
    assert torch.allclose(got[..., 0, :], torch.full((), 2.0).double(), atol=1e-6)


# Real networks.


def squeezed(name: str) -> nn.Module:
    """A network of torchvision whose batch norms have learnt something."""
    network = models.get_model(name, weights=None, num_classes=10).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_small"])
def test_networks_that_squeeze_and_excite_are_known_throughout(name):
    example = torch.randn(1, 3, 64, 64)
    network = fold_batchnorm(squeezed(name), example).network
    inputs = mean_inputs(network, example)
    assert inputs.unknown == {}
    assert list(inputs.calls) == [layer.name for layer in weight_layers(network)]
    means = [given.mean for calls in inputs.calls.values() for _, given in calls]
    assert all(mean.isfinite().all() and len(mean) == 1 for mean in means)
    assert sum(float(mean.abs().max()) > 0 for mean in means) == len(means) - 1  # all but the images


ZOO = ["densenet121", "googlenet", "shufflenet_v2_x0_5", "inception_v3", "swin_t", "convnext_tiny", "regnet_y_400mf"]
ZOO += ["mnasnet0_5", "squeezenet1_1", "vgg11_bn", "resnet18", "vit_b_16", "maxvit_t", "efficientnet_v2_s"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ZOO, "swin_v2_t"])
def test_every_kind_of_network_runs_through(name):
    side = 224 if name.startswith(("vit", "maxvit")) else 96
    example = torch.randn(1, 3, side, side)
    network = fold_batchnorm(squeezed(name), example).network
    inputs = mean_inputs(network, example)
    assert inputs.calls
    assert all(given.mean.isfinite().all() for calls in inputs.calls.values() for _, given in calls)


def measured(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """(channels,) what each layer really gets on average."""
    found: dict[str, Tensor] = {}
    for layer in weight_layers(network):
        layer.module.register_forward_pre_hook(lambda _, args, name=layer.name: found.update({name: args[0]}))
    with torch.no_grad():
        network(images)
    return {name: per_channel(x) for name, x in found.items()}


def per_channel(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1).mean(1)


def far_off(network: nn.Module, images: Tensor) -> dict[str, float]:
    """By layer, but for the first: ||predicted - measured|| / ||measured|| over the mean inputs of the channels."""
    predicted = {name: per_channel(given.mean) for name, ((_, given),) in mean_inputs(network).calls.items()}
    found = measured(network, images)
    errors = {name: float((predicted[name] - found[name]).norm() / found[name].norm()) for name in found}
    return dict(list(errors.items())[1:])


@pytest.mark.parametrize(("name", "bound"), [("digits/resnet", 0.2), ("digits/mobilenet", 0.2), ("digits/mlp", 0.5)])
def test_the_means_are_near_those_of_the_training_images(name, bound):
    network = fold_batchnorm(load_network(name)).network
    images = torch.stack([image for image, _ in load_dataset("digits", "train")])
    errors = far_off(network, images)
    assert len(errors) == len(list(weight_layers(network))) - 1
    assert max(errors.values()) < bound


@pytest.mark.slow
def test_the_means_are_near_those_of_cifar10(real_data):
    network = fold_batchnorm(load_network("cifar10/resnet20")).network
    images = torch.stack([image for image, _ in load_dataset("cifar10", limit=500)])
    errors = far_off(network, images)
    assert np.mean(list(errors.values())) < 0.2
    assert max(errors.values()) < 0.35
    found = measured(network, images)
    predicted = {name: per_channel(given.mean) for name, ((_, given),) in mean_inputs(network).calls.items()}
    together = [np.corrcoef(predicted[name], found[name])[0, 1] for name in errors]
    assert np.mean(together) > 0.9
