"""Which scales can be moved: rescaling what may be rescaled changes nothing, and what would change is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import Net
from torch import nn

from redlab import fold_batchnorm, load_network
from redlab.channels.scales import scalable_groups
from redlab.compression.rescaling import few_bits, rescale_channels
from redlab.network.layers import weight_layers

EXAMPLE = torch.zeros(1, 3, 8, 8)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def moved(network, example=EXAMPLE):
    """The relative change of the output, in float64, when every scale that may move does."""
    network = copy.deepcopy(network).double().eval()
    example = example.double()
    free = [group for group in scalable_groups(network, example) if not group.frozen]
    factors = {group.name: few_bits(torch.rand(group.size).exp2() * 4) for group in free}
    scaled = rescale_channels(network, factors, example)
    inputs = torch.randn(4, *example.shape[1:]).double()
    with torch.no_grad():
        wanted, got = network(inputs), scaled(inputs)
    return float((wanted - got).norm() / wanted.norm()), [group.name for group in free]


def conv(before, after, **options):
    return nn.Conv2d(before, after, 3, padding=1, **options)


def between(step, **modules):
    """Two layers with ``step`` between them."""
    run = lambda net, x: net.two(step(net, net.one(x)))  # noqa: E731
    return Net(run, one=conv(3, 8), two=conv(8, 4), **modules)


FREE = {
    "nothing": between(lambda net, x: x),
    "relu": between(lambda net, x: x.relu()),
    "leaky": between(lambda net, x: F.leaky_relu(x, 0.1)),
    "prelu": between(lambda net, x: net.act(x), act=nn.PReLU(8, 0.2)),
    "clamp at 0": between(lambda net, x: x.clamp(min=0)),
    "maximum pool": between(lambda net, x: F.max_pool2d(x.relu(), 2)),
    "average pool": between(lambda net, x: F.adaptive_avg_pool2d(x, 3)),
    "upsample": between(lambda net, x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "padding": between(lambda net, x: F.pad(x, (1, 2, 0, 1))),
    "reflection": between(lambda net, x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "dropout": between(lambda net, x: F.dropout(x, 0.5, net.training)),
    "a number": between(lambda net, x: -3 * x / 2),
    "shuffle": between(lambda net, x: x.view(-1, 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)),
    "gate": between(lambda net, x: x * net.gate(x.mean((2, 3), keepdim=True)).sigmoid(), gate=nn.Conv2d(8, 8, 1)),
    "depthwise": between(lambda net, x: net.deep(x).relu(), deep=conv(8, 8, groups=8)),
    "grouped": between(lambda net, x: net.deep(x).relu(), deep=conv(8, 8, groups=4)),
    "transposed": between(lambda net, x: net.up(x).relu(), up=nn.ConvTranspose2d(8, 8, 2, stride=2)),
    "grouped transposed": between(lambda net, x: net.up(x), up=nn.ConvTranspose2d(8, 8, 2, groups=2)),
    "residual": between(lambda net, x: x + net.inner(x.relu()), inner=conv(8, 8)),
    "depthwise residual": between(lambda net, x: x + net.inner(x), inner=conv(8, 8, groups=8)),
    "split": between(lambda net, x: torch.cat([part.relu() for part in x.chunk(2, 1)][::-1], 1)),
    "zero channels": between(lambda net, x: F.pad(x[:, :4], (0, 0, 0, 0, 2, 2))),
    "in place": between(lambda net, x: F.relu_(x[:, ::2]).repeat(1, 2, 1, 1)),
}
FIXED = {
    "relu6": (lambda net, x: F.relu6(x), "relu6"),
    "gelu": (lambda net, x: F.gelu(x), "gelu"),
    "silu": (lambda net, x: F.silu(x), "silu"),
    "softmax": (lambda net, x: x.softmax(1), "softmax"),
    "softplus": (lambda net, x: F.softplus(x), "softplus"),
    "layer norm": (lambda net, x: F.layer_norm(x, x.shape[1:]), "layer_norm"),
    "a number added": (lambda net, x: x + 1, "add"),
    "clamp": (lambda net, x: x.clamp(-1, 1), "clamp"),
    "clamp elsewhere": (lambda net, x: x.clamp(min=0.1), "clamp"),
    "square": (lambda net, x: x * x, "mul"),
    "inverse": (lambda net, x: 1 / (1 + x.abs()), "add"),
    "ones around": (lambda net, x: F.pad(x, (1, 1, 1, 1), value=1.0), "pad"),
    "rounding": (lambda net, x: torch.div(x, 2.0, rounding_mode="floor"), "div"),
    "a constant met": (lambda net, x: x + torch.ones(8, 1, 1).to(x), "constant"),
    "product in place": (lambda net, x: torch.ones(8, 1, 1).to(x).expand(x.shape).clone().mul_(x), "mul"),
    "comparison": (lambda net, x: x * (x > 1).to(x), "gt"),
}


@pytest.mark.parametrize("name", FREE)
def test_scales_move_through_what_is_homogeneous(name):
    change, free = moved(FREE[name])
    assert "one" in " ".join(free)
    assert change < 1e-12


@pytest.mark.parametrize("name", FIXED)
def test_scales_stay_where_something_else_reads_them(name):
    step, why = FIXED[name]
    groups = scalable_groups(between(step).eval(), EXAMPLE)
    assert why in next(group.frozen for group in groups if group.name == "one")


def test_input_and_output_keep_their_scale():
    network = Net(lambda net, x: net.one(x) + x, one=conv(3, 3))
    (group,) = scalable_groups(network, EXAMPLE)
    assert group.frozen == "network input"
    assert {group.frozen for group in scalable_groups(between(lambda net, x: x), EXAMPLE)} == {"", "network output"}


def test_what_is_added_is_scaled_alike():
    (stream, last) = scalable_groups(FREE["residual"], EXAMPLE)
    assert list(stream.rows) == ["one", "inner"]
    assert list(stream.columns) == ["inner", "two"]
    assert stream.size == 8
    assert not stream.frozen
    assert last.name == "two"


def test_a_gelu_inside_a_block_leaves_the_stream_free():
    network = between(lambda net, x: x + net.out(F.gelu(net.inner(x))), inner=conv(8, 16), out=conv(16, 8))
    reasons = {group.name: group.frozen for group in scalable_groups(network, EXAMPLE)}
    assert reasons["one"] == ""
    assert "gelu" in reasons["inner"]
    assert moved(network)[0] < 1e-12
    network = between(lambda net, x: F.gelu(x + net.inner(x)), inner=conv(8, 8))
    assert moved(network)[1] == []


def test_concatenation_scales_each_part_for_itself():
    def run(net, x):
        return net.two(torch.cat([net.one(x), x, F.relu6(net.other(x))], 1))

    network = Net(run, one=conv(3, 4), other=conv(3, 5), two=conv(12, 2))
    groups = {group.name: group for group in scalable_groups(network, EXAMPLE)}
    assert not groups["one"].frozen
    assert "relu6" in groups["other"].frozen
    assert moved(network)[0] < 1e-12
    assert groups["one"].columns["two"].tolist() == [0, 1, 2, 3, *[-1] * 8]


def test_shared_weights_stay_and_so_does_what_they_read():
    network = Net(
        lambda net, x: net.last(net.two(net.two(net.one(x)))), one=conv(3, 4), two=conv(4, 4), last=conv(4, 2)
    )
    assert all("called 2 times" in group.frozen for group in scalable_groups(network, EXAMPLE)[:1])
    assert moved(network)[1] == []


def test_norms_must_be_folded_first():
    network = Net(lambda net, x: net.two(net.norm(net.one(x))), one=conv(3, 4), norm=nn.BatchNorm2d(4), two=conv(4, 2))
    network = network.eval()
    assert "batch_norm" in scalable_groups(network, EXAMPLE)[0].frozen
    folded = fold_batchnorm(network, EXAMPLE).network
    assert moved(folded)[1] == ["one"]


def test_a_linear_layer_reads_a_channel_by_all_its_pixels():
    network = Net(lambda net, x: net.two(net.one(x).relu().flatten(1)), one=conv(3, 4), two=nn.Linear(4 * 64, 5))
    group = scalable_groups(network, EXAMPLE)[0]
    assert group.columns["two"].tolist() == [channel for channel in range(4) for _ in range(64)]
    assert moved(network)[0] < 1e-12


SLOW = ["torchvision/mobilenet_v2", "torchvision/shufflenet_v2_x0_5", "torchvision/squeezenet1_1"]


@pytest.mark.parametrize(
    "name",
    [
        *("digits/mlp", "digits/resnet", "digits/mobilenet"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_known_networks_stay_what_they_are(name):
    network = fold_batchnorm(load_network(name, weights=None)).network
    shape = network.redlab.input_shape
    change, free = moved(network, torch.zeros(1, *(shape if len(shape) < 3 else (shape[0], *[min(64, shape[1])] * 2))))
    assert change < 1e-10
    assert (len(free) > 0) == (name != "digits/mobilenet")


@pytest.mark.slow
def test_only_linear_bottlenecks_move_where_relu6_stands():
    network = fold_batchnorm(load_network("torchvision/mobilenet_v2", weights=None)).network
    free = {name for group in scalable_groups(network) if not group.frozen for name in group.rows}
    assert len(free) == 17
    assert not any("relu6" in name for name in free)
    linear = {name for name in free if network.get_submodule(name).kernel_size == (1, 1)}
    assert linear == free


def test_factors_are_checked():
    network = FREE["relu"].eval()
    with pytest.raises(ValueError, match="group must be one of"):
        rescale_channels(network, {"three": torch.ones(8)}, EXAMPLE)
    with pytest.raises(ValueError, match="'two' can't be moved: network output"):
        rescale_channels(network, {"two": torch.ones(4)}, EXAMPLE)
    for wrong in (torch.ones(7), torch.zeros(8), -torch.ones(8), torch.full((8,), torch.nan)):
        with pytest.raises(ValueError, match="takes 8 finite factors"):
            rescale_channels(network, {"one": wrong}, EXAMPLE)


def test_powers_of_two_change_no_bit_and_the_network_is_left_alone():
    network = fold_batchnorm(load_network("digits/resnet")).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    group = scalable_groups(network)[0]
    factors = {group.name: 2.0 ** torch.randint(-3, 4, (group.size,))}
    scaled, images = rescale_channels(network, factors), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(scaled(images), network(images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    layer = next(iter(weight_layers(scaled))).module
    assert torch.equal(layer.out_std * factors[group.name], before["conv1.out_std"])
