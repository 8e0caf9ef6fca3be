"""Guarantees: no measured error exceeds its bound, and what has no bound says so."""

import copy

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import Net
from torch import nn

from redlab.compression.folding import fold_batchnorm
from redlab.compression.guarantees import error_bound, evidence
from redlab.compression.lipschitz import SLOPES, factors, operator_norm
from redlab.hashing.networks import hash_network
from redlab.network.trace import trace
from redlab.studies.plots.hashing import plot_bound
from redlab.zoo.datasets import load_dataset
from redlab.zoo.saving import load_network

NAMES = ("digits/resnet", "digits/mobilenet", "digits/mlp")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", limit=32)


@pytest.fixture(scope="module")
def folded():
    return {name: fold_batchnorm(load_network(name)).network for name in NAMES}


def images(*shape, count=6):
    return [(torch.randn(shape), 0) for _ in range(count)]


def moved(network, share=0.05):
    """A copy whose weights and biases of conv and linear layers have moved."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                for tensor in module.parameters():
                    tensor.add_(share * tensor.std() * torch.randn_like(tensor))
    return network


def assert_bounded(found):
    bound, measured, _ = found.norms.transpose(2, 0, 1)
    assert np.isfinite(found.norms).all()
    assert (measured > 0).any()
    assert (bound >= measured * (1 - 1e-5)).all()
    return found


@pytest.mark.parametrize("max_error", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_no_image_errs_by_more_than_the_bound_after_any_layer(name, max_error, folded, digits):
    hashed = hash_network(folded[name], rule="uniform", max_error=max_error)
    found = assert_bounded(evidence(folded[name], hashed, digits))
    assert found.norms.shape == (32, 1 + len(hashed.layers), 3)
    assert [call.layer for call in found.calls] == hashed.layers["layer"].tolist()


def test_every_kind_of_operation_keeps_the_bound():
    def run(net, x):
        x = F.silu(net.reflect(x))
        x = F.max_pool2d(F.gelu(net.grouped(x)), 3, 2, 1)
        left, right = F.hardswish(net.dilated(x)).chunk(2, 1)
        x = torch.cat([net.up(F.avg_pool2d(left, 2)), F.elu_(right)], 1)
        x = F.leaky_relu(net.norm(net.strided(x)) + 0.5 * x[:, :, ::2, ::2], 1.5, inplace=True)
        x = F.dropout(F.pad(x, (1, 0, 2, 1), mode="circular"), training=net.training)
        x = F.adaptive_avg_pool2d(x / 2 - net.norm.weight.view(-1, 1, 1), (2, 3))
        return net.head(x.view(x.size(0), -1))

    network = Net(
        run,
        reflect=nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        grouped=nn.Conv2d(8, 12, 3, groups=4, padding="same"),
        dilated=nn.Conv2d(12, 8, 3, dilation=2, padding=2),
        up=nn.ConvTranspose2d(4, 4, 2, 2, groups=2),
        strided=nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
        norm=nn.BatchNorm2d(8),
        head=nn.Linear(48, 5),
    ).eval()
    nn.init.uniform_(network.norm.running_var, 0.2, 2)
    nn.init.normal_(network.norm.weight)
    for share in (1e-3, 0.1, 1.0):
        assert_bounded(evidence(network, moved(network, share), images(3, 16, 16), batch_size=4))


def test_the_bound_of_two_linear_layers_worked_out_by_hand():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False))
    other = copy.deepcopy(network)
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        network[0].bias.zero_()
        network[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -3.0]]))
        other[0].weight.copy_(torch.tensor([[2.5, 0.0], [0.0, 1.0]]))  # ||W~|| = 2.5, ||W~ - W|| = 0.5
        other[0].bias.copy_(torch.tensor([0.0, 0.25]))
        other[2].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, -3.0]]))  # ||W~ - W|| = 1
    # x = (3, 4): ||x|| = 5, h = W x = (6, 4), so d1 = 0.5 * 5 + 0.25 = 2.75, and h~ = (7.5, 4.25).
    # W~ W~^T = ((1, 1), (1, 10)): ||W~||^2 = (11 + sqrt(85)) / 2. d2 = ||W~|| 2.75 + 1 * ||(6, 4)||.
    # y = (6, -12), y~ = (7.5, 7.5 - 12.75) = (7.5, -5.25): the difference is (1.5, 6.75).
    norm = np.sqrt((11 + np.sqrt(85)) / 2)
    d2, error = 2.75 * norm + np.sqrt(52), np.sqrt(1.5**2 + 6.75**2)
    frame = error_bound(network, other, [(torch.tensor([3.0, 4.0]), 0)])
    assert frame["layer"].tolist() == ["0", "2", "output"]
    assert frame["kind"].tolist() == ["Linear", "Linear", ""]
    np.testing.assert_allclose(frame["norm"], [2.5, norm, np.nan])
    np.testing.assert_allclose(frame["weight_error"], [0.5, 1, np.nan])
    size = np.array([np.sqrt(52), np.sqrt(180), np.sqrt(180)])
    np.testing.assert_allclose(frame["bound"], [2.75, d2, d2] / size)
    np.testing.assert_allclose(frame["measured"], [np.sqrt(1.5**2 + 0.25**2), error, error] / size)
    np.testing.assert_allclose(frame["log10_ratio"], np.log10(frame["bound"] / frame["measured"]))
    wanted = {"images": 1, "bound": d2, "measured": error, "log10_ratio": np.log10(d2 / error), "same": 1.0}
    # The margin of 18 is less than twice the bound: the class could have changed, and doesn't.
    assert frame.attrs == pytest.approx(wanted | {"certain": 0.0})


def test_a_residual_sum_adds_the_bounds_of_its_branches():
    network = Net(lambda net, x: x + net.b(y := net.a(x)) + 2 * y, a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    found = evidence(network, moved(network), images(3))
    a, b, output = found.norms[:, :, 0].T
    np.testing.assert_allclose(output, b + 2 * a)


def test_sums_and_differences_scale_their_second_term():
    def run(net, x):
        y = net.a(x)
        return torch.cat([torch.sub(net.b(x), y, alpha=3), torch.rsub(y, 1, alpha=-2), 0.5 + y[:, :1]], 1)

    network = Net(run, a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    found = assert_bounded(evidence(network, moved(network), images(3)))
    a, b, output = found.norms[:, :, 0].T
    np.testing.assert_allclose(output, np.sqrt((b + 3 * a) ** 2 + (2 * a) ** 2 + a**2))


def test_a_bias_counts_at_every_output_position():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    other = copy.deepcopy(network)
    other[0].bias.data += torch.tensor([0.3, -0.4])
    found = evidence(network, other, images(1, 6, 5))
    np.testing.assert_allclose(found.norms[:, 0, 0], 0.5 * np.sqrt(4 * 3), rtol=1e-6)
    np.testing.assert_allclose(found.norms[:, 0, 0], found.norms[:, 0, 1])  # reached


@pytest.mark.parametrize("name", NAMES)
def test_without_a_difference_the_bound_is_zero_and_every_margin_is_certain(name, folded, digits):
    frame = error_bound(folded[name], folded[name], digits)
    assert (frame[["bound", "measured", "log10_ratio"]] == 0).all(axis=None)
    assert frame.attrs["certain"] == frame.attrs["same"] == 1
    tied = nn.Linear(4, 3)
    nn.init.zeros_(tied.weight), nn.init.zeros_(tied.bias)
    assert error_bound(tied, tied, images(4)).attrs["certain"] == 0  # no margin


def test_a_small_difference_is_certain_to_keep_predictions_where_margins_allow_it(folded, digits):
    other = moved(folded["digits/mlp"], 1e-3)
    found = evidence(folded["digits/mlp"], other, digits)
    certain = found.margin > 2 * found.norms[:, -1, 0]
    assert 0 < certain.mean() <= found.same[certain].mean() == 1
    assert error_bound(folded["digits/mlp"], other, digits).attrs["certain"] == certain.mean()


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_errors_are_those_of_the_networks_themselves(name, folded, digits):
    hashed = hash_network(folded[name], rule="uniform", max_error=0.1)
    batch = torch.stack([image for image, _ in digits])
    with torch.no_grad():
        before, after = folded[name](batch), hashed.network(batch)
    found = evidence(folded[name], hashed, digits, batch_size=5)
    np.testing.assert_allclose(found.norms[:, -1, 1], (after - before).norm(dim=1), rtol=1e-4)
    np.testing.assert_allclose(found.norms[:, -1, 2], before.norm(dim=1), rtol=1e-5)
    assert (found.same == (after.argmax(1) == before.argmax(1)).numpy()).all()


def test_the_size_of_batches_changes_nothing_and_networks_are_left_alone(digits):
    network = fold_batchnorm(load_network("digits/resnet")).network.train()
    other = moved(network)
    before = copy.deepcopy((network.state_dict(), other.state_dict()))
    one, all_at_once = (evidence(network, other, digits, batch_size) for batch_size in (1, 64))
    np.testing.assert_allclose(one.norms, all_at_once.norms, rtol=1e-9)
    for net, state in zip((network, other), before, strict=True):
        assert net.training
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


CONVS = {
    "plain": dict(stride=1, padding=1),
    "strided": dict(stride=2, padding=1),
    "wider than its taps": dict(stride=(3, 4), padding=0),
    "dilated": dict(dilation=(2, 1), stride=2, padding=2),
    "grouped": dict(groups=2, padding=1),
    "depthwise": dict(groups=4),
}


def dense_norm(function, *shape):
    """The operator norm of a linear function, from its matrix: one unit vector after the other."""
    units = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    return float(torch.linalg.matrix_norm(function(units).flatten(1), ord=2))


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_norm_of_a_convolution_is_at_least_that_of_its_matrix(case, transposed):
    options = CONVS[case]
    for taps in (1, 3):
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        conv = kind(4, 6 if options.get("groups") != 4 else 8, taps, **options, bias=False).double()
        conv.weight.data[0] *= 5  # one group far above the others
        bound = operator_norm(conv.weight, conv.stride, conv.dilation, conv.groups)
        with torch.no_grad():
            true = dense_norm(conv, 4, 7, 8)
        assert true * (1 - 1e-12) <= bound <= 3.5 * true


def test_the_norm_of_the_reshaped_matrix_is_no_bound_for_a_convolution():
    weight = torch.ones(1, 1, 3, 3, dtype=torch.float64)  # as a matrix a row of nine ones: norm 3
    true = dense_norm(lambda x: F.conv2d(x, weight, padding=1), 1, 12, 12)
    assert torch.linalg.matrix_norm(weight.flatten(1), ord=2) == pytest.approx(3)
    assert 8 < true < operator_norm(weight) == pytest.approx(9)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (1, 1)])
def test_the_norm_of_a_linear_layer_is_its_largest_singular_value(shape):
    weight = torch.randn(shape)
    assert operator_norm(weight) == pytest.approx(float(torch.linalg.svdvals(weight.double())[0]))
    assert operator_norm(torch.zeros(shape)) == 0


def test_patches_that_do_not_overlap_make_the_norm_exact():
    conv = nn.Conv2d(3, 5, 4, stride=4, bias=False).double()
    with torch.no_grad():
        assert operator_norm(conv.weight, 4) == pytest.approx(dense_norm(conv, 3, 8, 8))


def factor(function, *shape):
    """The product of the factors of all that ``function`` does to one image."""
    graph = trace(Net(lambda net, x: function(x)), torch.rand(1, *shape, dtype=torch.float64))
    nodes = [node for node in graph.fx.nodes if node.op == "call_function" and node.users]
    return np.prod([factors(node, {})[0][1] for node in nodes])


LINEAR = {
    "overlapping pool": lambda x: F.avg_pool2d(x, (3, 2), (1, 2), (1, 1)),
    "pool that ends early": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "pool that ends late": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, (3, 1)),
    "global pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean over space": lambda x: x.mean((2, 3)),
    "sum over a row": lambda x: x.sum(-1, keepdim=True),
    "reflected": lambda x: F.pad(x, (3, 1, 2, 2), mode="reflect"),
    "replicated": lambda x: F.pad(x, (3, 1, 0, 2), mode="replicate"),
    "wrapped": lambda x: F.pad(x, (7, 1, 2, 5), mode="circular"),
    "zeros": lambda x: F.pad(x, (3, 1, -1, 2)),
    "expanded": lambda x: x.unsqueeze(0).expand(3, -1, -1, -1, -1).transpose(0, 1),
    "moved about": lambda x: x.permute(0, 3, 1, 2).flip(1).reshape(len(x), -1),
    "scaled": lambda x: (x * -3 / 2).neg(),
}


@pytest.mark.parametrize("name", LINEAR)
def test_factors_of_linear_operations_are_their_norms(name):
    assert factor(LINEAR[name], 2, 6, 7) == pytest.approx(dense_norm(LINEAR[name], 2, 6, 7))


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: F.max_pool2d(x, 3, 2, 1), 2),
        (lambda x: F.max_pool2d(x, 2), 1),
        (lambda x: F.max_pool2d(x, 3, 1, 1), 3),
        (lambda x: F.max_pool2d(x, 2, 2, dilation=2), 2),
    ],
)
def test_max_pools_stretch_by_the_root_of_the_overlap_of_their_windows(function, wanted):
    assert factor(function, 1, 9, 9) == pytest.approx(wanted)
    # One value that is in as many windows as possible, above all others, reaches the factor.
    low, high = torch.zeros(2, 81, 1, 9, 9, dtype=torch.float64)
    high.view(81, 81).fill_diagonal_(1)
    assert float((function(high) - function(low)).flatten(1).norm(dim=1).max()) == pytest.approx(wanted)


CURVES = {
    name: getattr(F, name) for name in ("relu", "relu6", "gelu", "silu", "hardswish", "hardsigmoid", "selu", "mish")
}
CURVES |= {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "hardtanh": F.hardtanh, "elu": F.elu, "abs": torch.abs}
CURVES |= {"leaky": lambda x: F.leaky_relu(x, -1.5), "steep": lambda x: F.elu(x, 2.5)}
CURVES |= {"tanh gelu": lambda x: F.gelu(x, approximate="tanh"), "clamp": lambda x: x.clamp(-1, 2)}


@pytest.mark.parametrize("name", CURVES)
def test_slopes_of_activations_are_tight_upper_bounds(name):
    grid = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    values = CURVES[name](grid)
    steepest = float((values.diff() / grid.diff()).abs().max())
    bound = factor(CURVES[name], 3)
    assert steepest - 1e-9 <= bound <= 1.001 * steepest
    assert SLOPES.get(name, bound) == bound


REFUSED = {
    "scaled_dot_product_attention in attention": (
        Net(lambda net, x: net.attention(x, x, x, need_weights=False)[0], attention=nn.MultiheadAttention(4, 2)),
        (5, 4),
    ),
    "layer_norm in 1": (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), (4,)),
    "group_norm in 1": (nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4)), (2, 3, 3)),
    "batch_norm in 1": (nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)), (2, 3, 3)),
    "softmax in 0": (nn.Sequential(nn.Softmax(-1), nn.Linear(4, 4)), (4,)),
    "mul in the network itself: products": (Net(lambda net, x: x * net.gate(x).sigmoid(), gate=nn.Linear(4, 4)), (4,)),
    "mul in the network itself: p": (Net(lambda net, x: (y := net.fc(x)) * y, fc=nn.Linear(4, 4)), (4,)),
    "div in": (Net(lambda net, x: x / net.fc(x), fc=nn.Linear(4, 4)), (4,)),
    "reciprocal in": (Net(lambda net, x: 1 / net.fc(x), fc=nn.Linear(4, 4)), (4,)),
    "matmul in": (Net(lambda net, x: net.fc(x) @ x.mT, fc=nn.Linear(4, 4)), (3, 4)),
    "linear in the network itself: its weight": (
        Net(lambda net, x: F.linear(x, net.fc(x)[0]), fc=nn.Linear(4, 4)),
        (4, 4),
    ),
    "dropout in": (Net(lambda net, x: F.dropout(net.fc(x)), fc=nn.Linear(4, 4)), (4,)),
    "to in the network itself: it turns": (Net(lambda net, x: net.fc(x).float(), fc=nn.Linear(4, 4)), (4,)),
    "exp in": (Net(lambda net, x: net.fc(x).exp(), fc=nn.Linear(4, 4)), (4,)),
    "lift_fresh_copy in": (Net(lambda net, x: net.fc(x) * torch.tensor(2.0), fc=nn.Linear(4, 4)), (4,)),
    "mul in the network itself: it overwrites what": (
        Net(lambda net, x: (y := net.fc(x)).view(4).mul_(2) + y, fc=nn.Linear(4, 4)),
        (4,),
    ),
    "add in the network itself: it overwrites a constant": (
        Net(lambda net, x: torch.zeros(1, 4, dtype=torch.float64).add_(net.fc(x)), fc=nn.Linear(4, 4)),
        (4,),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_bound_names_the_operation_and_the_module(message):
    network, shape = REFUSED[message]
    with pytest.raises(NotImplementedError, match=f"no error bound for {message}"):
        error_bound(network.eval(), network, images(*shape))


def test_operations_in_place_do_not_change_the_bound():
    def build(inplace):
        torch.manual_seed(0)
        parts = [
            nn.Conv2d(1, 4, 3),
            nn.ReLU(inplace),
            nn.Conv2d(4, 4, 3),
            nn.Hardswish(inplace),
            nn.Dropout(0.5, inplace),
        ]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, 3)).eval()

    def run(inplace):
        network = build(inplace)
        torch.manual_seed(1)
        return evidence(network, moved(network), images(1, 8, 8)).norms

    np.testing.assert_allclose(run(True), run(False), rtol=1e-12)


def test_a_corrected_bias_may_be_new():
    network = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    other = moved(network)
    other[0].bias = nn.Parameter(torch.tensor([0.1, 0.0, 0.0]))
    found = assert_bounded(evidence(network, other, images(4)))
    assert found.calls[0].bias_error == pytest.approx(0.1)
    assert network[0].bias is None


def test_a_layer_called_twice_has_two_rows():
    network = Net(lambda net, x: net.fc(net.fc(x).relu()), fc=nn.Linear(4, 4))
    found = assert_bounded(evidence(network, moved(network), images(4)))
    assert [call.layer for call in found.calls] == ["fc", "fc (call 2)"]


def test_a_weight_that_is_computed_at_every_call_is_bounded_too():
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))
    found = assert_bounded(evidence(network, moved(network), images(4)))
    assert [call.layer for call in found.calls] == ["0", "2"]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8), (64,)])
def test_images_of_another_shape_are_refused(shape, folded):
    with pytest.raises(ValueError, match="cannot be traced on an input of shape"):
        error_bound(folded["digits/resnet"], folded["digits/resnet"], images(*shape))
    with pytest.raises(ValueError, match=r"image 0 has shape .*, and the network takes \(1, 8, 8\)"):
        error_bound(folded["digits/resnet"], folded["digits/resnet"], images(*shape), example=torch.rand(2, 1, 8, 8))


def test_networks_that_differ_in_more_than_their_layers_are_refused(folded, digits):
    network = load_network("digits/resnet")
    with pytest.raises(ValueError, match=r"bn1.* is missing in the second network"):
        error_bound(network, folded["digits/resnet"], digits)
    with pytest.raises(ValueError, match=r"conv1.bias is missing .*: were the batch norms"):
        error_bound(folded["digits/resnet"], network, digits)
    with pytest.raises(ValueError, match="is missing in the second network"):
        error_bound(folded["digits/resnet"], folded["digits/mlp"], digits)
    with pytest.raises(ValueError, match=r"0.weight has two shapes: \(5, 3\) and \(4, 3\)"):
        error_bound(nn.Sequential(nn.Linear(3, 5)), nn.Sequential(nn.Linear(3, 4)), images(3))
    other = copy.deepcopy(network)
    other.bn1.running_var += 1
    with pytest.raises(ValueError, match=r"bn1.*running_var.* differs between the networks"):
        error_bound(network, other, digits)
    relu, silu = (nn.Sequential(nn.Linear(3, 5), activation) for activation in (nn.ReLU(), nn.SiLU()))
    silu.load_state_dict(relu.state_dict())
    with pytest.raises(ValueError, match="differ in more than weights and biases"):
        error_bound(relu, silu, images(3))


def test_arguments_that_make_no_sense_are_refused():
    network = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="there must be images"):
        error_bound(network, network, [])
    with pytest.raises(ValueError, match="batch_size of at least 1"):
        error_bound(network, network, images(3), batch_size=0)
    with pytest.raises(ValueError, match="two or more classes"):
        error_bound(nn.Linear(3, 1), nn.Linear(3, 1), images(3))
    with pytest.raises(ValueError, match="two or more classes"):
        error_bound(nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), images(1, 3, 3))
    two = Net(lambda net, x: (net.fc(x), x), fc=nn.Linear(3, 2))
    with pytest.raises(ValueError, match="one tensor, not 2"):
        error_bound(two, two, images(3))
    broken = moved(network)
    broken.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or inf in weight"):
        error_bound(network, broken, images(3))


@pytest.fixture(scope="module")
def frame(folded, digits):
    return error_bound(folded["digits/resnet"], hash_network(folded["digits/resnet"]), digits)


def test_the_picture_shows_both_series_and_says_how_vacuous_the_bound_is(frame):
    before = dict(mpl.rcParams)
    _, ax = plt.subplots()
    assert plot_bound(frame, ax) is ax
    assert [text.get_text() for text in ax.get_yticklabels()] == frame["layer"].tolist()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["bound", "measured"]
    bound, measured = ax.get_lines()
    np.testing.assert_allclose(bound.get_xdata(), frame["bound"])
    np.testing.assert_allclose(measured.get_xdata(), frame["measured"])
    assert bound.get_marker() != measured.get_marker()
    assert bound.get_color() != measured.get_color()
    assert f"10^{frame.attrs['log10_ratio']:.1f} times" in ax.get_title()
    assert f"{frame.attrs['certain']:.1%} of 32 predictions are certain" in ax.get_title()
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.get_xscale() == "log"
    assert dict(mpl.rcParams) == before


def test_the_picture_of_no_error_says_so(folded, digits):
    ax = plot_bound(error_bound(folded["digits/mlp"], folded["digits/mlp"], digits))
    ax.figure.canvas.draw()
    assert ax.get_title().startswith("No error at the output")
