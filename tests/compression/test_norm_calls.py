"""Batch norms with forwards of their own: the activation stays, the function too, and nothing else is folded."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from nets import Net
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from redlab.compression.folding import fold_batchnorm
from redlab.compression.norms import stand_in
from redlab.compression.replay import take_step
from redlab.network.layers import is_batch_norm
from redlab.network.recipe import Recipe
from redlab.network.result import of_layers
from redlab.network.trace import is_layer, trace

timm = pytest.importorskip("timm")
layers = pytest.importorskip("timm.layers")


@torch.no_grad()
def drawn(network):
    """``network`` in eval mode with all its norms drawn anew, those of buffers too; in place."""
    torch.manual_seed(0)
    for norm in filter(is_batch_norm, network.modules()):
        if norm.running_mean is not None:
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
        if norm.weight is not None:
            norm.weight.uniform_(0.7, 1.3).mul_(torch.randn_like(norm.weight).sign())
            norm.bias.normal_(0, 0.3)
    return network.eval()


@torch.no_grad()
def far(one, other, example):
    wanted, got = one(example.clone()), other(example.clone())
    return float((wanted - got).abs().max() / wanted.abs().max())


def folded(network, *shape):
    """The result in float64, checked against the network itself, and against its own record."""
    network, example = drawn(network).double(), torch.randn(shape, dtype=torch.float64)
    network.redlab = Recipe("mine", shape[1:])
    fresh = copy.deepcopy(network).to("meta")
    result = fold_batchnorm(network, example)
    assert far(network, result.network, example) < 1e-12
    for step in json.loads(json.dumps(result.network.redlab.steps)):
        fresh = take_step(fresh, step)
    assert str(fresh) == str(result.network)
    fresh.load_state_dict(result.network.state_dict(), assign=True)
    assert far(result.network, fresh, example) == 0
    return result


def norms_left(network):
    return [name for name, module in network.named_modules() if is_batch_norm(module)]


class ReluIn(nn.BatchNorm2d):
    def forward(self, x):
        return F.leaky_relu(super().forward(x), 0.3)


class Frozen(FrozenBatchNorm2d):
    """As detectron2's: one operation, and an activation in the same forward."""

    def forward(self, x):
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps)
        return F.gelu(x, approximate="tanh")


class DropAndPrelu(nn.BatchNorm2d):
    def __init__(self, width):
        super().__init__(width)
        self.act, self.unused, self.drop = nn.PReLU(width), nn.ReLU(), nn.Dropout(0.3)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


NORMS = {
    "timm": (lambda: layers.BatchNormAct2d(6), ["drop", "act"]),
    "timm, silu": (lambda: layers.BatchNormAct2d(6, act_layer=nn.SiLU), ["drop", "act"]),
    "timm, without": (lambda: layers.BatchNormAct2d(6, apply_act=False), ["drop", "act"]),
    "timm, frozen": (lambda: layers.FrozenBatchNormAct2d(6), ["drop", "act"]),
    "torchvision, frozen": (lambda: FrozenBatchNorm2d(6), []),
    "detectron2, frozen": (lambda: Frozen(6), [["GELU", {"approximate": "tanh"}]]),
    "function": (lambda: ReluIn(6), [["LeakyReLU", {"negative_slope": 0.3}]]),
    "parameters": (lambda: DropAndPrelu(6), ["drop", "act"]),
}


@pytest.mark.parametrize("case", NORMS)
def test_a_norm_folds_and_leaves_its_activation(case):
    norm, acts = NORMS[case][0](), NORMS[case][1]
    network = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), norm, nn.Conv2d(6, 2, 3))
    result = folded(network, 2, 3, 9, 9)
    assert result.plan["folded"] == {"1": "0"}
    assert result.plan.get("acts", {}) == ({"1": acts} if acts else {})
    assert torch.equal(result.network[0].out_mean, norm.bias)
    assert torch.equal(result.network[0].out_std, norm.weight.abs())
    before, after = (dict(own.named_parameters()) for own in (network, result.network))
    assert {name for name in before if "act" in name} == {name for name in after if "act" in name}


class Twice(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + x


class Odd(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).cumsum(1)


class PerImage(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 1.5


class Lends(nn.BatchNorm2d):
    """Keeps what it normalised for somebody else."""

    def forward(self, x):
        self.kept = super().forward(x)
        return self.kept.relu()


def test_a_norm_whose_inner_values_are_used_elsewhere_stays():
    network = Net(lambda net, x: net.norm(net.conv(x)) + net.norm.kept, conv=nn.Conv2d(3, 6, 3), norm=Lends(6))
    assert norms_left(folded(network, 2, 3, 9, 9).network) == ["norm"]


class Many(nn.BatchNorm2d):
    """Does more with large batches."""

    def forward(self, x):
        return super().forward(x) if len(x) < 3 else super().forward(x) * 2


class Wide(nn.BatchNorm2d):
    """Does more with wide images."""

    def forward(self, x):
        return super().forward(x) * 2 if x.shape[-1] > 12 else super().forward(x)


@pytest.mark.parametrize("norm", [Many, Wide])
def test_a_norm_that_changes_with_the_size_of_its_input_stays(norm):
    result = folded(nn.Sequential(nn.Conv2d(3, 6, 3), norm(6)), 2, 3, 9, 9)
    assert norms_left(result.network) == ["1"]


OWN = "its class or a hook gives it a forward of its own"
STAY = {
    f"{OWN}, which is not a batch norm and an activation": PerImage,
    f"{OWN}, with add in it": Twice,
    f"{OWN}, with cumsum in it": Odd,
}


@pytest.mark.parametrize("reason", STAY)
def test_a_norm_that_does_something_else_stays(reason):
    result = folded(nn.Sequential(nn.Conv2d(3, 6, 3), STAY[reason](6)), 2, 3, 9, 9)
    left = of_layers(result.layers)[lambda rows: rows["skipped"] != ""]
    assert norms_left(result.network) == ["1"]
    assert left["skipped"].tolist() in ([reason], [f"{OWN}, which is not a batch norm and an activation"])


def test_a_norm_of_its_own_under_two_names_leaves_its_activation_under_both():
    norm = ReluIn(4)
    network = Net(lambda net, x: net.b(net.conv(x)), a=norm, conv=nn.Conv2d(3, 4, 3), b=norm)
    result = folded(network, 2, 3, 9, 9)
    assert norms_left(result.network) == []
    assert result.network.a is result.network.b


def test_conv_norm_and_activation_in_one_forward_are_folded():
    class Conv2d(nn.Conv2d):
        """As detectron2's."""

        def __init__(self, *args, norm=None, activation=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.norm, self.activation = norm, activation

        def forward(self, x):
            x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            x = x if self.norm is None else self.norm(x)
            return x if self.activation is None else self.activation(x)

    parts = [Conv2d(3, 6, 3, bias=False, norm=nn.BatchNorm2d(6), activation=F.relu)]
    parts += [Conv2d(6, 4, 3, groups=2, bias=False, norm=FrozenBatchNorm2d(4)), Conv2d(4, 4, 1)]
    result = folded(nn.Sequential(*parts), 2, 3, 9, 9)
    assert result.plan["folded"] == {"0.norm": "0", "1.norm": "1"}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d, layers.BatchNormAct2d])
def test_a_layer_and_a_norm_called_twice_are_folded_together(norm):
    network = Net(lambda net, x: net.norm(net.conv(net.norm(net.conv(x)))), conv=nn.Conv2d(3, 3, 3), norm=norm(3))
    assert norms_left(folded(network, 2, 3, 9, 9).network) == []


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: net.norm(net.conv(x)) + net.conv(x),
        lambda net, x: net.norm(net.conv(x)) + net.norm(x),
        lambda net, x: net.norm(net.conv(x)) + net.norm(net.other(x)),
        lambda net, x: net.norm(y := net.conv(x)) + net.norm(net.conv(y)),
    ],
)
def test_where_one_call_does_not_allow_it_the_norm_stays(run):
    network = Net(run, conv=nn.Conv2d(3, 3, 1), other=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3))
    assert norms_left(folded(network, 2, 3, 9, 9).network) == ["norm"]


def test_a_norm_behind_a_flattened_linear_layer_is_folded():
    def run(net, x):
        y = net.linear(x)
        return net.norm(y.flatten(0, 1)).reshape_as(y)

    network = Net(run, linear=nn.Linear(5, 4, bias=False), norm=nn.BatchNorm1d(4))
    assert norms_left(folded(network, 2, 3, 5).network) == []
    crossed = Net(lambda net, x: net.norm(net.linear(x).reshape(6, 4)), linear=nn.Linear(4, 2), norm=nn.BatchNorm1d(4))
    assert norms_left(folded(crossed, 4, 3, 4).network) == ["norm"]


def test_a_backbone_of_frozen_norms_is_folded():
    result = folded(resnet18(norm_layer=FrozenBatchNorm2d), 1, 3, 64, 64)
    assert norms_left(result.network) == []


def test_a_record_that_names_no_activation_is_refused():
    with pytest.raises(ValueError, match="Linear is no activation"):
        stand_in(nn.BatchNorm2d(3), [["Linear", {"in_features": 3, "out_features": 3}]])


def check_timm(name):
    """Outputs as before, and no norm that alone reads a conv or linear output is left."""
    network = drawn(timm.create_model(name, num_classes=7))
    size = network.pretrained_cfg["input_size"][-1] if network.pretrained_cfg.get("fixed_input_size") else 64
    example = torch.randn(1, 3, size, size)
    result = fold_batchnorm(network, example)
    assert far(network, result.network, example) < 1e-4
    graph = trace(result.network, example)
    for norm in [name for name, module in result.network.named_modules() if isinstance(module, _BatchNorm)]:
        for call in graph.users(f"{norm}.running_mean"):
            assert not (is_layer(call.args[0]) and len(call.args[0].users) == 1), norm


@pytest.mark.parametrize("name", ["test_efficientnet", "test_byobnet"])
def test_timms_norms_are_folded(name):
    check_timm(name)


FAMILIES = [
    "test_resnet",
    "resnet10t",
    "tf_efficientnet_b0",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "regnetx_002",
    "cspresnet50",
    "dla46_c",
    "selecsls42",
    "hardcorenas_a",
    "levit_128s",
    "ghostnet_050",
    "repvgg_a0",
    "lcnet_050",
    "mnasnet_small",
    "rexnet_100",
    "repvit_m0_9",
    "starnet_s1",
    "mobilevit_xxs",
    "efficientformerv2_s0",
    "edgenext_xx_small",
    "hgnetv2_b0",
    "res2net50_26w_4s",
    "skresnet18",
    "resnetv2_50",
    "fastvit_t8",
    "visformer_tiny",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_timms_norms_are_folded_in_every_family(name):
    check_timm(name)
