"""Folding batch norms: the same function, and a reason for each one that stays."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from nets import Net, randomise
from torch import nn
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torchvision import models

from redlab.compression.folding import apply_fold, fold_batchnorm
from redlab.network.layers import TO_PREPARE
from redlab.network.recipe import Recipe
from redlab.network.result import of_layers
from redlab.network.trace import operation, trace


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def difference(one, other, example):
    with torch.no_grad():
        wanted, got = one(example.clone()), other(example.clone())
    return float((wanted - got).abs().max() / wanted.abs().max())


def fold(network, *shape, dtype=torch.float64):
    """Fold ``network`` in ``dtype``, check that the function stays, and hand back the result."""
    network, example = randomise(network).to(dtype), torch.randn(shape, dtype=dtype)
    before = copy.deepcopy(network.state_dict())
    result = fold_batchnorm(network, example)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in result.network.modules())
    assert difference(network, result.network, example) < (1e-12 if dtype == torch.float64 else 1e-5)
    if result.graph is not None:  # what a later step goes by is what it would trace itself
        assert steps_of(result.graph) == steps_of(trace(result.network, example))
    return result


def steps_of(graph):
    """Every operation with what it reads: parameters by name, the rest by its place; and each layer by its weight."""
    calls = [node for node in graph.fx.nodes if node.op in ("call_function", "output")]
    label = {node: f"#{place}" for place, node in enumerate([*graph.inputs, *calls])}
    label |= {node: name for name, node in reversed(graph.tensors.items())}
    constants = {node: f"constant {place}" for place, node in enumerate(graph.constants)}
    rows = [(operation(node), map_arg(node.args, lambda read: (label | constants)[read])) for node in calls]
    layers = {label[weight]: (layer.name, layer.module, layer.shared) for weight, layer in graph.layers.items()}
    return str(rows), layers, [node.meta["val"].shape for node in calls[:-1] if hasattr(node.meta["val"], "shape")]


def norms_left(network):
    return [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]


def reasons(result):
    left = of_layers(result.layers)[lambda rows: rows["skipped"] != ""]
    return dict(zip(left["layer"], left["skipped"], strict=True))


FOLDABLE = {
    "conv": (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), (2, 3, 9, 9)),
    "conv with bias": (nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), (2, 3, 9, 9)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding=1), nn.BatchNorm2d(6), (2, 6, 9, 9)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3, stride=2), nn.BatchNorm2d(9, eps=0.1), (2, 6, 9, 9)),
    "reflected": (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), (2, 3, 9, 9)),
    "conv1d": (nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), (2, 3, 9)),
    "conv3d": (nn.Conv3d(3, 8, 3, dilation=2), nn.BatchNorm3d(8), (2, 3, 9, 9, 9)),
    "transposed": (nn.ConvTranspose2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), (2, 3, 9, 9)),
    "transposed, grouped": (nn.ConvTranspose2d(6, 10, 3, groups=2, padding=1), nn.BatchNorm2d(10), (2, 6, 9, 9)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6), (2, 4, 9)),
    "linear": (nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), (2, 5)),
    "no affine": (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), (2, 3, 9, 9)),
    "synchronised": (nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8), (2, 3, 9, 9)),
    "one output": (nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), (2, 3, 9, 9)),
}


@pytest.mark.parametrize("case", FOLDABLE)
def test_a_norm_folds_into_the_layer_before_it(case):
    layer, norm, shape = copy.deepcopy(FOLDABLE[case])
    result = fold(nn.Sequential(layer, norm, nn.ReLU(inplace=True)), *shape)
    folded = result.network[0]
    assert isinstance(result.network[1], nn.Identity)
    assert result.plan["folded"] == {"1": "0"}
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    gamma = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight
    assert torch.equal(folded.out_mean, beta.double())
    assert torch.equal(folded.out_std, gamma.abs().double())
    assert {"0.out_mean", "0.out_std", "0.bias"} <= result.network.state_dict().keys()


@pytest.mark.parametrize("case", ["conv", "grouped", "transposed", "linear"])
def test_folding_agrees_with_torchs_own_fusion(case):
    layer, norm, shape = copy.deepcopy(FOLDABLE[case])
    result = fold(nn.Sequential(layer, norm), *shape)
    if isinstance(layer, nn.Linear):
        oracle = fuse_linear_bn_eval(layer, norm)
    else:
        oracle = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, nn.ConvTranspose2d))
    assert torch.allclose(result.network[0].weight, oracle.weight, rtol=1e-12)
    assert torch.allclose(result.network[0].bias, oracle.bias, rtol=1e-12)


AHEAD = {
    "conv": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, stride=2, bias=False), (2, 6, 9, 9)),
    "grouped": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2), (2, 6, 9, 9)),
    "depthwise": (nn.BatchNorm1d(6), nn.Conv1d(6, 12, 3, groups=6), (2, 6, 9)),
    "same, one tap": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, padding="same"), (2, 6, 9, 9)),
    "valid": (nn.BatchNorm3d(6), nn.Conv3d(6, 4, 3, padding="valid"), (2, 6, 9, 9, 9)),
    "linear": (nn.BatchNorm1d(6), nn.Linear(6, 4), (2, 6)),
}


@pytest.mark.parametrize("case", AHEAD)
def test_a_norm_folds_into_the_unpadded_layer_after_it(case):
    norm, layer, shape = copy.deepcopy(AHEAD[case])
    result = fold(nn.Sequential(norm, layer), *shape)
    assert result.plan["folded"] == {"0": "1"}
    assert result.plan["ahead"] == ["0"]
    assert not hasattr(result.network[1], "out_mean")


def test_a_layer_takes_a_norm_from_either_side_and_norms_in_a_row():
    norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    result = fold(nn.Sequential(*norms[:2], nn.Conv2d(3, 4, 3), *norms[2:]), 2, 3, 9, 9)
    assert set(result.plan["folded"]) == {"0", "1", "3", "4"}
    assert set(result.plan["ahead"]) == {"0", "1"}
    assert torch.equal(result.network[2].out_mean, norms[3].bias)


def _inplace_between(net, x):
    x = torch.sigmoid(x)
    normed = net.norm(x)
    x.mul_(3)
    return net.conv(normed) + x[:, :, 2:, 2:]


CONV, NORM = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
LEFT = {
    "its input comes from relu, not from a conv or linear layer": nn.Sequential(CONV, nn.ReLU(True), NORM, nn.ReLU()),
    "its input comes from the network's input, not from a conv or linear layer": nn.Sequential(NORM, nn.ReLU()),
    "its input comes from chunk, not from a conv or linear layer": Net(
        lambda net, x: net.norm(net.conv(x).chunk(2, 1)[0]), conv=nn.Conv2d(3, 6, 3), norm=NORM
    ),
    "it is called 2 times": Net(lambda net, x: net.norm(net.conv(net.norm(x))), norm=NORM, conv=CONV),
    "conv is called 2 times": Net(lambda net, x: net.norm(net.conv(net.conv(x))), norm=NORM, conv=CONV),
    "it is never called in eval mode": Net(lambda net, x: net.conv(x), norm=NORM, conv=CONV),
    "the output of conv also goes to add": Net(lambda net, x: (y := net.conv(x)) + net.norm(y), norm=NORM, conv=CONV),
    "the output of conv also goes to batch_norm": Net(
        lambda net, x: F.relu(net.norm(y := net.conv(x))) + F.batch_norm(y, torch.zeros(3).to(y), torch.ones(3).to(y)),
        norm=NORM,
        conv=CONV,
    ),
    "no running statistics": nn.Sequential(CONV, nn.BatchNorm2d(3, track_running_stats=False)),
    "zero padding in conv 1: not exact at the border": nn.Sequential(NORM, CONV),
    "transposed conv 1 after it: not exact at the border": nn.Sequential(NORM, nn.ConvTranspose2d(3, 4, 3)),
    "an in-place operation runs between it and conv": Net(_inplace_between, norm=NORM, conv=nn.Conv2d(3, 3, 3)),
    "its weight is also used by mean": Net(
        lambda net, x: net.norm(net.conv(x)) * net.norm.weight.mean(), norm=NORM, conv=CONV
    ),
    f"the conv2d next to it computes its weight at every call: {TO_PREPARE}": nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), NORM
    ),
}


@pytest.mark.parametrize("reason", LEFT)
def test_a_norm_that_must_stay_says_why(reason):
    result = fold(copy.deepcopy(LEFT[reason]), 2, 3, 9, 9)
    assert list(reasons(result).values()) == [reason]
    assert list(reasons(result)) == norms_left(result.network)
    assert result.plan["folded"] == {}


def test_a_linear_layer_on_sequences_keeps_its_norm():
    result = fold(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(4)), 2, 4, 5)
    assert reasons(result) == {"1": "it normalises another axis than the features of 0"}
    result = fold(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(5, 7)), 2, 4, 5)
    assert reasons(result) == {"0": "it normalises another axis than the features of 1"}


def test_layers_that_share_weight_or_bias_keep_their_norms():
    def run(net, x):
        return net.b_norm(net.b(net.a_norm(net.a(x))))

    def build():
        norms = {name: nn.BatchNorm1d(4) for name in ("a_norm", "b_norm")}
        return Net(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4), **norms)

    tied = build()
    tied.b.weight = tied.a.weight
    assert reasons(fold(tied, 2, 4)) == dict.fromkeys(["a_norm", "b_norm"], "b: shares its weight with a")
    tied = build()
    tied.b.bias = tied.a.bias
    assert "the bias of a is shared" in reasons(fold(tied, 2, 4))["a_norm"]


def test_a_layer_whose_own_forward_reads_no_bias_keeps_its_norm():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * F.conv2d(x, self.weight)  # without the bias that folding would add

    class Plain(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight)

    result = fold(nn.Sequential(Doubled(3, 3, 3, bias=False), nn.BatchNorm2d(3)), 2, 3, 9, 9)
    assert reasons(result) == {"1": "its input comes from mul, not from a conv or linear layer"}
    result = fold(nn.Sequential(Plain(3, 3, 3, bias=False), nn.BatchNorm2d(3)), 2, 3, 9, 9)
    assert "0 has a forward of its own that would not read the bias" in reasons(result)["1"]


def _less_bias(net, x):
    y = net.norm(net.conv(x))
    return y if net.conv.bias is None else y - net.conv.bias[:, None, None]


def _doubled(net, x):
    y = net.norm(net.conv(x))
    return y if net.conv.bias is None else y * 2


@pytest.mark.parametrize("run", [_less_bias, _doubled])
def test_where_the_networks_code_looks_for_a_bias_the_norm_stays(run):
    network = Net(run, conv=nn.Conv2d(3, 6, 3, bias=False), norm=nn.BatchNorm2d(6))
    network.other, network.last = nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6)
    network.run = lambda net, x: net.last(net.other(run(net, x)))
    result = fold(network, 2, 3, 9, 9)
    assert list(reasons(result)) == ["norm"]
    assert "looks for a bias of conv" in reasons(result)["norm"]
    assert result.plan["folded"] == {"last": "other"}


class Trains(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class TrainsItself(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True) * 1.0


@pytest.mark.parametrize("norm", [Trains, TrainsItself, nn.BatchNorm2d])
def test_a_norm_that_stays_in_training_mode_is_left(norm):
    def run(net, x):
        y = net.conv(x)
        return (net.norm.train() if norm is nn.BatchNorm2d else net.norm)(y)

    network = Net(run, conv=nn.Conv2d(3, 6, 3), norm=norm(6)).eval()
    result = fold_batchnorm(network, torch.randn(2, 3, 9, 9))
    assert norms_left(result.network) == ["norm"]
    assert not network.norm.running_mean.any()
    assert reasons(result)["norm"].startswith("it stays in training mode")


def test_a_hooked_norm_stays():
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    network[1].register_forward_hook(lambda module, args, out: 2 * out)
    assert norms_left(fold(network, 2, 3, 9, 9).network) == ["1"]


def test_a_norm_with_two_names_is_replaced_under_both():
    norm = nn.BatchNorm2d(3)
    result = fold(Net(lambda net, x: net.b(net.conv(x)), a=norm, conv=nn.Conv2d(3, 3, 3), b=norm), 2, 3, 9, 9)
    assert norms_left(result.network) == []


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-2), (torch.bfloat16, 1e-1), (torch.float64, 1e-12)])
def test_every_floating_dtype_is_kept(dtype, error):
    network = randomise(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))).to(dtype)
    example = torch.randn(2, 3, 9, 9, dtype=dtype)
    result = fold_batchnorm(network, example)
    assert {tensor.dtype for tensor in result.network.state_dict().values()} == {dtype}
    assert difference(network, result.network, example) < error


def test_folding_rounds_once():
    network = randomise(nn.Sequential(nn.Linear(50, 50), nn.BatchNorm1d(50)))
    exact = fold_batchnorm(copy.deepcopy(network).double(), torch.randn(2, 50)).network[0].weight
    assert torch.equal(fold_batchnorm(network, torch.randn(2, 50)).network[0].weight, exact.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["running_mean", "running_var", "weight", "bias"])
def test_nan_and_inf_are_refused_by_name(tensor, value):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        getattr(network[1], tensor)[2] = value
    with pytest.raises(ValueError, match=f"^1: NaN or inf in its {tensor}"):
        fold_batchnorm(network, torch.rand(1, 3, 9, 9))


def test_a_weight_that_overflows_its_dtype_is_refused_by_name():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).half()
    network[0].weight.data.fill_(6e4)
    network[1].running_var.fill_(1e-4)
    with pytest.raises(ValueError, match="1 folded into 0 overflows"):
        fold_batchnorm(network, torch.rand(1, 2))


def test_folding_twice_changes_nothing():
    network = models.resnet18(num_classes=10)
    network.redlab = Recipe("torchvision/resnet18", (3, 64, 64))
    once = fold(network, 2, 3, 64, 64).network
    again = fold_batchnorm(once)
    assert norms_left(once) == []
    assert again.plan["folded"] == {}
    assert again.network.redlab == once.redlab
    assert all(torch.equal(t, again.network.state_dict()[name]) for name, t in once.state_dict().items())


def test_the_recorded_step_folds_a_fresh_network_without_tracing():
    def build():
        return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())

    network = randomise(build())
    network.redlab = Recipe("some/network", (3, 9, 9))
    result = fold_batchnorm(network)
    (step,) = json.loads(json.dumps(result.network.redlab.steps))
    assert step == {"step": "fold", "folded": {"0": "1", "2": "1"}, "ahead": ["0"]}
    assert network.redlab.steps == ()
    with torch.device("meta"):
        fresh = build()
    apply_fold(fresh, step["folded"], step["ahead"])
    fresh.load_state_dict(result.network.state_dict(), assign=True)
    assert difference(network, fresh.eval(), torch.randn(2, 3, 9, 9)) < 1e-5


def test_the_table_has_a_row_per_layer_and_one_per_norm_that_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU())
    network.append(nn.Conv2d(4, 2, 1))
    result = fold(network, 2, 3, 9, 9)
    assert list(result.layers.columns) == [
        *("layer", "kind", "weights", "folded", "parameters_before", "parameters_after", "skipped")
    ]
    why = "its input comes from relu, not from a conv or linear layer"
    assert result.layers.values.tolist() == [
        ["0", "Conv2d", 108, "1", 116, 112, ""],
        ["3", "BatchNorm2d", 0, "", 8, 8, why],
        ["5", "Conv2d", 8, "", 10, 10, ""],
    ]
    assert "fold()" in str(result)


def test_folding_works_in_inference_mode():
    network = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with torch.inference_mode():
        folded = fold_batchnorm(network, torch.rand(1, 3, 9, 9)).network
    assert norms_left(folded) == []
    folded.train()(torch.rand(1, 3, 9, 9)).sum().backward()


def test_a_network_without_norms_is_not_traced():
    result = fold_batchnorm(nn.Sequential(nn.Linear(3, 4)), torch.rand(1, 99))
    assert result.plan == {"step": "fold", "options": {}, "folded": {}, "ahead": []}
    assert result.layers["parameters_after"].tolist() == [16]


def test_a_wrong_example_is_refused():
    with pytest.raises(ValueError, match="Sequential cannot be traced"):
        fold_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.rand(1, 5, 9, 9))


def build(name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = models.get_model(name, weights=None, num_classes=10, **options)
    if name.startswith("vit"):
        nn.init.normal_(network.heads.head.weight)  # zero until trained: every output would be zero
    return network


def side(name):
    """The smallest usual image that the network takes."""
    if name.startswith(("vit", "swin", "maxvit")):
        return 224
    return {"inception_v3": 96, "alexnet": 96}.get(name, 64)


# Norms that stay: 62 of DenseNet's follow a concatenation or a skip; an auxiliary head's are never called in eval mode.
ZOO = {
    "resnet18": 0,
    "mobilenet_v2": 0,
    "densenet121": 62,
    "googlenet": 2,
    "shufflenet_v2_x0_5": 0,
    "efficientnet_b0": 0,
    "regnet_y_400mf": 0,
    "vgg11_bn": 0,
    "convnext_tiny": 0,
    "inception_v3": 2,
}


LARGE = ("densenet121", "inception_v3")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in ZOO]
)
def test_real_networks_compute_the_same_folded(name):
    result = fold(build(name), 2, 3, side(name), side(name), dtype=torch.float32)
    assert len(norms_left(result.network)) == len(reasons(result)) == ZOO[name]


# More than 150 million parameters each: 197.8, 644.8, 633.5, 304.3 and 306.5 million.
LARGE = {"convnext_large", "regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(models.list_models(module=models)) - LARGE - set(ZOO)))
def test_every_torchvision_classifier_computes_the_same_folded(name):
    result = fold(build(name), 2, 3, side(name), side(name), dtype=torch.float32)
    assert list(reasons(result)) == norms_left(result.network)
