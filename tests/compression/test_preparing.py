"""Any network in plain layers: the same function as in float64, a reason for what stays, and a record that replays."""

import json

import pytest
import torch
import torch.nn.functional as F
from nets import Net
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from redlab import (
    Recipe,
    fold_batchnorm,
    hash_network,
    load_network,
    merge_neurons,
    prepare,
    red_plus_plus,
    save_network,
)
from redlab.compression.plain_layers import build
from redlab.compression.replay import take_step
from redlab.network.forwards import has_own_forward
from redlab.network.layers import copy_network, weight_layers

layers = pytest.importorskip("timm.layers")
hugging = pytest.importorskip("transformers.pytorch_utils")
CHANGES = "what it does changes with the size of its input, as its padding may: "


class Matrix(nn.Module):
    """A person's own linear layer."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.own = nn.Parameter(torch.randn(inputs, outputs))
        self.shift = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.own + self.shift


class Causal(nn.Module):
    """A convolution that pads on one side."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(outputs, inputs, 3, 3))

    def forward(self, x):
        return F.conv2d(F.pad(x, (2, 0, 2, 0)), self.kernel, stride=2)


class Scaled(nn.Linear):
    """A learning rate for each layer, as in StyleGAN, and a gain behind it."""

    def forward(self, x):
        return F.linear(x, self.weight * 0.3, self.bias * 0.1) * 1.4


class Bordered(nn.Conv2d):
    """Pads with ones."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), self.weight, self.bias)


class Mirrored(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 0, 1, 0), mode="reflect"), self.weight, None, groups=self.groups)


class LowRank(nn.Module):
    """A parametrization with parameters of its own."""

    def __init__(self, rows, columns):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(rows, 2)), nn.Parameter(torch.randn(2, columns))

    def forward(self, weight):
        return weight + self.a @ self.b


def masked(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.5)
    return layer


def low_rank(layer):
    parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape))
    return layer


@torch.no_grad()
def used(layer):
    """After some calls in training, so that the vectors of spectral norm have moved."""
    layer.train()
    for _ in range(3):
        layer(torch.randn(1, 4, 12, 12))
    return layer


IMAGES, ROWS, VECTORS = torch.randn(2, 4, 12, 12), torch.randn(2, 5, 4), torch.randn(3, 4)
PLAIN = {
    "weight norm, hook": (lambda: nn.utils.weight_norm(nn.Conv2d(4, 6, 3, padding=1, groups=2)), IMAGES, "Conv2d"),
    "weight norm": (
        lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular")),
        *(IMAGES, "Conv2d"),
    ),
    "weight norm, transposed": (
        lambda: nn.utils.weight_norm(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1)),
        *(IMAGES, "ConvTranspose2d"),
    ),
    "spectral norm, hook": (lambda: used(nn.utils.spectral_norm(nn.Conv2d(4, 6, 3))), IMAGES, "Conv2d"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 6)), ROWS, "Linear"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 6)), VECTORS, "Linear"),
    "low rank": (lambda: low_rank(nn.Linear(4, 6)), ROWS, "Linear"),
    "masks": (lambda: masked(nn.Linear(4, 6)), VECTORS, "Linear"),
    "StdConv2d": (lambda: layers.StdConv2d(4, 6, 3, stride=2, bias=True), IMAGES, "Conv2d"),
    "StdConv2dSame": (lambda: layers.StdConv2dSame(4, 6, 3), IMAGES, "Conv2d"),
    "ScaledStdConv2d": (lambda: layers.ScaledStdConv2d(4, 6, 3, groups=2), IMAGES, "Conv2d"),
    "ScaledStdConv2dSame": (lambda: layers.ScaledStdConv2dSame(4, 6, 3), IMAGES, "Conv2d"),
    "Conv2dSame": (lambda: layers.Conv2dSame(4, 6, 3), IMAGES, "Conv2d"),
    "timm's Linear": (lambda: layers.Linear(4, 6), ROWS, "Linear"),
    "Conv1D": (lambda: hugging.Conv1D(6, 4), ROWS, "Linear"),
    "own linear": (lambda: Matrix(4, 6), ROWS, "Linear"),
    "own conv": (lambda: Causal(4, 6), IMAGES, "ZeroPad2d, Conv2d"),
    "scaled": (lambda: Scaled(4, 6), VECTORS, "Linear"),
    "border of ones": (lambda: Bordered(4, 6, 3), IMAGES, "ConstantPad2d, Conv2d"),
    "mirror": (lambda: Mirrored(4, 6, 2, groups=2, bias=False), IMAGES, "ReflectionPad2d, Conv2d"),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@torch.no_grad()
def far(one, other, example):
    wanted, got = one(example), other(example)
    return float((wanted - got).abs().max() / wanted.abs().max())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("case", PLAIN)
def test_a_layer_with_a_forward_of_its_own_becomes_the_plain_one(case):
    make, example, classes = PLAIN[case]
    network = nn.Sequential(make(), nn.ReLU(), nn.Flatten()).eval()
    network.redlab = Recipe("mine", tuple(example.shape[1:]))
    result = prepare(network, example)
    made = result.network[0]
    assert ", ".join(type(part).__name__ for part in (made if isinstance(made, nn.Sequential) else [made])) == classes
    assert type(made).__module__.startswith("torch.nn.modules")
    (row,) = result.layers[result.layers["replaced"] != ""].to_dict("records")
    assert row["replaced"].endswith(f" -> {classes}")
    assert row["parameters_before"] == sum(p.numel() for p in network.parameters())
    assert result.layers["skipped"].tolist() == [""]
    assert far(network, result.network, example) < 1e-5
    assert result.plan["achieved"]["difference"] < 1e-5
    replays(network, result)
    again = prepare(result.network, example)
    assert again.plan["modules"] == {}
    assert again.network.redlab == result.network.redlab


def replays(network, result):
    """The recorded steps make the same modules of a fresh network, without values, and its tensors fit."""
    fresh = copy_network(network)
    for step in json.loads(json.dumps(result.network.redlab.steps)):
        fresh = take_step(fresh, step)
    assert str(fresh) == str(result.network)
    fresh.load_state_dict(result.network.state_dict(), assign=True)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("case", PLAIN)
def test_in_float64_both_agree_to_the_last_digits(case):
    make, example, _ = PLAIN[case]
    network = nn.Sequential(make(), nn.Flatten()).double().eval()
    assert far(network, prepare(network, example.double()).network, example.double()) < 1e-9


class Dynamic(nn.Module):
    """Its weight follows from the input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return F.linear(x, self.weight * x.mean())


class Decides(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight) if x.detach().sum().item() > 1e9 else F.linear(x, 2 * self.weight)


class Rectified(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias).relu()


class Twofold(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight) + F.linear(x * x, self.weight)


def seen(layer):
    layer.register_forward_hook(lambda module, args, out: None)
    return layer


LEFT = {
    "its weight depends on the input": (Dynamic, VECTORS),
    "its code asks for the values of its input": (lambda: Decides(4, 6), VECTORS),
    "its forward does more than one layer does": (lambda: Rectified(4, 6), VECTORS),
    "its forward multiplies by 2 weights": (lambda: Twofold(4, 6), VECTORS),
    "it has hooks of its own: remove them first": (lambda: seen(nn.Linear(4, 6)), VECTORS),
    f"{CHANGES}prepare(network, fixed_size=True)": (lambda: layers.Conv2dSame(4, 6, 3, stride=2), IMAGES),
}


@pytest.mark.parametrize("reason", LEFT)
def test_what_is_no_plain_layer_is_left_with_the_reason(reason):
    make, example = LEFT[reason]
    network = nn.Sequential(make(), nn.Flatten()).eval()
    result = prepare(network, example)
    assert result.plan["modules"] == {}
    assert result.layers["skipped"].iloc[0].startswith(reason)
    assert far(network, result.network, example) == 0


def conv(run):
    """A convolution whose forward is ``run``, of itself and the input."""
    made = type("Own", (nn.Conv2d,), {"forward": run})(4, 6, 3, padding=1)
    return nn.Sequential(made, nn.Identity()).eval()


def _padded(own, x):
    return own._conv_forward(F.pad(x, (0, 24 - x.shape[-1])) if x.shape[-1] < 24 else x, own.weight, own.bias)


def _plainly(own, x):
    return own._conv_forward(x, own.weight, own.bias)


MORE = "its forward does more than one layer does"
BATCH = "what it does changes with the size of its batch"
# By what the example doesn't show: the forward, the reason, and the height and width of the example.
UNSEEN = {
    "a bound before": (lambda own, x: _plainly(own, x.clamp(-20, 20)), MORE, (12, 12)),
    "a bound behind": (lambda own, x: _plainly(own, x).clamp(-60, 60), MORE, (12, 12)),
    "hardtanh": (lambda own, x: _plainly(own, F.hardtanh(x, -8, 8)), MORE, (12, 12)),
    "a bound to the scale": (lambda own, x: _plainly(own, x / x.abs().amax().clamp_min(100)), MORE, (12, 12)),
    "a choice by values": (lambda own, x: _plainly(own, torch.where(x.abs() > 50, x / 255, x)), MORE, (12, 12)),
    "inf": (lambda own, x: _plainly(own, x).nan_to_num(), f"{MORE}: nan_to_num", (12, 12)),
    "far zeros": (lambda own, x: (_plainly(own, x) + 1e6).relu() - 1e6, f"{MORE}", (12, 12)),
    "a factor of the batch": (lambda own, x: _plainly(own, x) / len(x), BATCH, (12, 12)),
    "a mean over the batch": (lambda own, x: _plainly(own, x - x.mean(0) if len(x) > 1 else x), BATCH, (12, 12)),
    "a smaller image": (_padded, CHANGES, (32, 32)),
    "a larger image": (lambda own, x: _plainly(own, x) * (1 + (x.shape[-1] > 40)), CHANGES, (32, 32)),
    "another dtype": (lambda own, x: _plainly(own, x.float()), "it casts its input to another dtype", (12, 12)),
    "a bias for others": (
        lambda own, x: own._conv_forward(x, own.weight, None),
        "its forward does not use its",
        (9, 9),
    ),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_what_the_example_does_not_show_is_tried(case):
    run, reason, size = UNSEEN[case]
    result = prepare(conv(run), torch.randn(1, 4, *size))
    assert result.plan["modules"] == {}
    assert result.layers["skipped"].iloc[0].startswith(reason)


class Trains(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


def test_the_network_passed_in_keeps_its_statistics():
    network = nn.Sequential(conv(lambda own, x: _plainly(own, x) * 2), Trains(6))
    before = copy_network(network).state_dict()
    result = prepare(network, torch.randn(2, 4, 9, 9))
    assert result.plan["modules"]
    for own in (network, result.network):
        assert torch.equal(own[1].running_mean, before["1.running_mean"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.filterwarnings("error::UserWarning")
def test_roundings_of_half_precision_are_not_reported(dtype):
    network = nn.Sequential(layers.StdConv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3)).to(dtype).eval()
    assert prepare(network, IMAGES.to(dtype)).plan["achieved"]["difference"] > 1e-4


@pytest.mark.parametrize("kind", ["Conv2dSame", "StdConv2dSame", "ScaledStdConv2dSame"])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(12, 3, 2), (13, 3, 2), (14, 5, 3), (12, 2, 4), (12, 1, 2)])
def test_padding_that_changes_with_the_image_is_seen(kind, size, kernel, stride):
    network = nn.Sequential(getattr(layers, kind)(4, 6, kernel, stride=stride)).eval()
    example = torch.randn(1, 4, size, size)
    result = prepare(network, example)
    if result.plan["modules"]:
        assert all(
            far(network, result.network, torch.randn(1, 4, other, other)) < 1e-5 for other in range(size, size + 9)
        )
    fixed = prepare(network, example, fixed_size=True)
    assert fixed.plan["modules"]
    assert far(network, fixed.network, example) < 1e-5


class Table(nn.Module):
    """An embedding of one's own, and what comes after."""

    def __init__(self):
        super().__init__()
        self.rows, self.place = nn.Parameter(torch.randn(9, 4)), nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        return self.rows[x]


def test_own_modules_that_are_no_layers_are_not_reported():
    tokens = torch.randint(0, 9, (2, 5))
    network = nn.Sequential(Table(), Matrix(4, 3)).eval()
    result = prepare(network, tokens)
    assert list(result.plan["modules"]) == ["1"]
    assert set(result.layers["skipped"]) == {"", "of Table, no conv or linear layer"}


def test_a_module_under_two_names_is_replaced_under_both_and_called_twice():
    own = Matrix(4, 4)
    network = Net(lambda net, x: net.b(net.a(x).relu()), a=own, b=own)
    result = prepare(network, VECTORS)
    assert result.network.a is result.network.b
    assert type(result.network.a) is nn.Linear
    assert far(network, result.network, VECTORS) < 1e-5


def test_tied_parameters_stay_tied():
    network = Net(lambda net, x: net.b(net.a(x)), a=Matrix(4, 4), b=Matrix(4, 4))
    network.b.own = network.a.own
    result = prepare(network, VECTORS)
    assert result.plan["modules"] == {}
    assert result.layers["skipped"].str.contains("a.own and b.own are one tensor").any()


def test_where_the_networks_code_wants_the_module_itself_it_stays():
    network = Net(lambda net, x: net.b(net.a(x)) + net.a.own.sum(), a=Matrix(4, 4), b=Matrix(4, 4))
    result = prepare(network, VECTORS)
    assert list(result.plan["modules"]) == ["b"]
    assert result.layers["skipped"].str.contains("the network does not run with it replaced").any()
    assert far(network, result.network, VECTORS) < 1e-5


def test_a_network_that_is_itself_such_a_layer():
    network = Matrix(4, 6)
    network.redlab = Recipe("mine", (4,))
    result = prepare(network)
    assert type(result.network) is nn.Linear
    assert result.layers["replaced"].tolist() == ["Matrix -> Linear"]
    assert [step["step"] for step in result.network.redlab.steps] == ["prepare"]


def test_folding_comes_after_it_or_not_at_all():
    network = nn.Sequential(layers.StdConv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).eval()
    result = prepare(network, IMAGES)
    assert (result.layers["folded"].tolist(), result.plan["fold"]["folded"]) == (["1"], {"1": "0"})
    assert result.layers["replaced"].tolist() == ["StdConv2d -> Conv2d"]
    left = prepare(network, IMAGES, fold=False)
    assert type(left.network[1]) is nn.BatchNorm2d
    assert [step["step"] for step in left.network.redlab.steps] == ["prepare"]


def test_a_plain_network_is_only_folded():
    network = load_network("digits/resnet")
    result, folded = prepare(network), fold_batchnorm(network)
    assert result.plan["modules"] == {}
    assert result.network.redlab == folded.network.redlab
    assert result.layers.drop(columns="replaced").equals(folded.layers)
    assert "reached difference" in str(result).splitlines()[0]


def test_a_large_difference_is_reported():
    class Coarse(nn.Linear):
        """In float64 it is a layer; in float32 it rounds."""

        def forward(self, x):
            return F.linear(x, self.weight) if x.dtype == torch.float64 else F.linear(x, self.weight).round()

    with pytest.warns(UserWarning, match="outputs differ by"):
        prepare(nn.Sequential(Coarse(4, 6, bias=False), nn.Identity()), VECTORS)


def test_red_plus_plus_begins_with_it_and_its_table_names_the_plain_layers():
    network = nn.Sequential(Causal(4, 6), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), Matrix(216, 5)).eval()
    result = red_plus_plus(network, example=IMAGES, input_mean=0.0)
    assert result.layers["layer"].tolist() == ["0.1", "4"]
    assert (result.layers["products_after"] < result.layers["products_before"]).all()
    assert result.layers["parameters_before"].sum() == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    "step", [hash_network, lambda network: merge_neurons(network, example=torch.zeros(1, 4, 9, 9))]
)
def test_steps_on_unfolded_norms_say_so(step):
    network = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)).eval()
    with pytest.warns(UserWarning, match=r"1 batch norm is not folded: 1\. Take this step on prepare"):
        result = step(network)
    assert "1 batch norm is not folded" in str(result)
    assert "not folded" not in str(step(prepare(network, torch.zeros(1, 4, 9, 9)).network))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_networks_with_weights_from_hooks_can_be_copied():
    network = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), masked(nn.Linear(6, 2)))
    network(VECTORS).sum().backward()
    hashed = hash_network(network)
    assert hashed.layers["skipped"].str.contains("prepare").all()
    assert far(network, hashed.network, VECTORS) == 0


def test_a_prepared_network_is_saved_and_opened(tmp_path):
    network = nn.Sequential(layers.StdConv2d(4, 6, 3), layers.BatchNormAct2d(6), Causal(6, 3)).eval()

    def make():
        return nn.Sequential(layers.StdConv2d(4, 6, 3), layers.BatchNormAct2d(6), Causal(6, 3))

    result = prepare(network, IMAGES)
    opened = load_network(save_network(result, tmp_path / "saved"), build=make)
    assert far(result.network, opened, IMAGES) == 0
    assert not any(map(has_own_forward, (layer.module for layer in weight_layers(opened))))


LINEAR = {"class": "Linear", "options": {"in_features": 3, "out_features": 2}}


@pytest.mark.parametrize(
    "spec",
    [
        {"class": "Embedding"},
        LINEAR | {"pad": {"class": "Dropout"}},
        LINEAR | {"options": {"device": "cpu"}},
        {"class": "Linear"},
    ],
)
def test_a_record_of_other_classes_is_refused(spec):
    with pytest.raises(ValueError, match="no plain layer"):
        build(spec, torch.zeros(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("nf_resnet26", "dm_nfnet_f0", "resnetv2_50x1_bit", "tf_efficientnet_b0", "tf_mobilenetv3_small_100"),
        *("eca_nfnet_l0", "efficientnet_cc_b0_4e", "mixnet_s", "test_vit", "test_convnext", "test_nfnet"),
    ],
)
@pytest.mark.parametrize("fixed_size", [False, True])
def test_timms_networks_stay_as_they_are(name, fixed_size):
    timm = pytest.importorskip("timm")
    network = timm.create_model(name).eval()
    size = network.pretrained_cfg["input_size"][-1] if network.pretrained_cfg.get("fixed_input_size") else 64
    example = torch.randn(1, 3, size, size)
    result = prepare(network, example, fixed_size=fixed_size)
    assert far(network, result.network, example) < 1e-4
    assert not prepare(result.network, example, fixed_size=fixed_size).plan["modules"]
    for other in () if fixed_size else (size + 5, size + 32):
        example = torch.randn(1, 3, other, other)
        if not network.pretrained_cfg.get("fixed_input_size"):
            assert far(network, result.network, example) < 1e-4
