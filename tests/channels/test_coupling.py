"""Coupling: what goes together can be removed and merged without a trace, and what can't says why."""

import copy

import pytest
import torch
import torch.nn.functional as F
from coupled import Net, conv, difference, draw, free, planted, tensors_of, without, zero
from nets import randomise
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations

from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.plan import make_plan
from redlab.compression.folding import fold_batchnorm
from redlab.network.layers import TO_PREPARE, weight_layers
from redlab.network.recipe import Recipe
from redlab.network.zero_pad import ZeroPadShortcut
from redlab.zoo.architectures import CifarResNet
from redlab.zoo.networks import build, input_shape

SMALL = ["digits/mlp", "digits/mobilenet", "digits/resnet", "cifar10/resnet20"]
FAIR = [
    *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"),
    "mnasnet0_5",
]
SLOW = [
    *("densenet121", "googlenet", "efficientnet_b0", "regnet_y_400mf", "resnext50_32x4d", "convnext_tiny"),
    *("vgg11_bn", "vit_b_32", "inception_v3", "swin_t", "swin_v2_t", "maxvit_t"),
]
NAMES = [
    *SMALL,
    *("torchvision/" + name for name in FAIR),
    *(pytest.param("torchvision/" + name, marks=pytest.mark.slow) for name in SLOW),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def trained(name):
    """A network by name, with statistics, scales and heads as training might leave them, and an input for it."""
    network = randomise(build(name))
    network.redlab = Recipe(name, input_shape(name))
    size = 96 if name.startswith("torchvision/") and not is_fixed_size(name) else input_shape(name)[-1]
    return network, torch.randn(2, input_shape(name)[0], size, size)


def is_fixed_size(name):
    return any(part in name for part in ("vit", "swin", "inception"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_zeroed_channels_can_be_removed_without_a_trace(name):
    network, example = trained(name)
    groups, whole = couple(network, example), copy.deepcopy(network)
    destinations = {}
    for group in free(groups):
        gone, _ = draw(group.size)
        zero(network, group, gone)
        destinations[group.name] = without(group.size, gone)
    smaller = apply_plan(network, make_plan(groups, destinations))
    assert difference(whole, network, example) > 1e-3  # they mattered
    assert difference(network, smaller, example) < 1e-5
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_merging_planted_duplicates_keeps_the_function(name):
    network, example = trained(name)
    groups, whole = couple(network, example), copy.deepcopy(network)
    destinations = planted(network, groups)
    smaller = apply_plan(network, make_plan(groups, destinations))
    assert difference(whole, network, example) > 1e-3
    assert difference(network, smaller, example) < 1e-5
    for group in free(groups):
        width = len(set(destinations[group.name]))
        assert width < group.size
        member = group.producers[0]
        assert tensors_of(smaller)[member.tensor].shape[member.dim] < member.width


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL[1:], "torchvision/mobilenet_v2", "torchvision/regnet_y_400mf"])
def test_both_hold_after_folding_too(name):
    network, example = trained(name)
    folded = fold_batchnorm(network, example).network
    groups = couple(folded, example)
    smaller = apply_plan(folded, make_plan(groups, planted(folded, groups)))
    assert difference(folded, smaller, example) < 1e-5
    for path, module in smaller.named_modules():
        if "out_mean" in dict(module.named_buffers(recurse=False)):
            assert len(module.out_mean) == len(module.out_std) == len(module.weight), path


@pytest.mark.parametrize("name", NAMES)
def test_every_output_channel_is_in_exactly_one_group(name):
    network, example = trained(name)
    groups = couple(network, example)
    assert len({group.name for group in groups}) == len(groups)
    claimed = {}
    for group in groups:
        for member in group.producers:
            assert member.index.shape[0] == group.size
            claimed.setdefault(member.tensor, []).extend(member.index.flatten().tolist())
    for layer in weight_layers(network):
        tensor = layer.name + ("." if layer.parameter == "weight" else "_") + "weight"
        assert sorted(claimed[tensor]) == list(range(len(layer.weight))), layer.name


@torch.no_grad()
def widened(network, groups, chosen):
    """Every chosen channel twice, side by side, each copy with half of the consumers' columns."""
    wide, edits = copy.deepcopy(network), {}
    for group in groups:
        for role in ("producers", "consumers", "paddings"):
            for member in getattr(group, role):
                counts, shares = edits.setdefault(
                    (member.tensor, member.dim), ([1] * member.width, [1.0] * member.width)
                )
                for slice_ in member.index[chosen.get(group.name, [])].flatten().tolist():
                    counts[slice_], shares[slice_] = 2, 0.5 if role == "consumers" else 1.0
    for (name, dim), (counts, shares) in edits.items():
        if isinstance(module := dict(wide.named_modules()).get(name), ZeroPadShortcut):
            before = module.zeros_before
            module.zeros_before, module.zeros_after = sum(counts[:before]), sum(counts[before:])
            continue
        tensor = tensors_of(wide)[name]
        shape = [-1 if axis == dim else 1 for axis in range(tensor.ndim)]
        tensor.data = (tensor * torch.tensor(shares).view(shape)).repeat_interleave(torch.tensor(counts), dim)
    for module in wide.modules():
        if isinstance(module, _ConvNd):
            module.groups = len(module.weight) if module.groups > 1 else 1
            module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    return wide


@pytest.mark.parametrize("name", [*SMALL, "torchvision/mobilenet_v2", "torchvision/squeezenet1_1"])
def test_merging_duplicated_filters_restores_the_network(name):
    network, example = trained(name)
    groups = couple(network, example)
    chosen = {group.name: draw(group.size)[0].tolist() for group in free(groups)}
    wide = widened(network, groups, chosen)
    assert difference(network, wide, example) < 1e-5
    again = {group.name: group for group in couple(wide, example)}
    destinations = {
        group.name: [channel for channel in range(group.size) for _ in range(1 + (channel in chosen[group.name]))]
        for group in free(groups)
    }
    restored = apply_plan(wide, make_plan(list(again.values()), destinations))
    assert difference(network, restored, example) < 1e-5
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    assert {key: tensor.shape for key, tensor in restored.state_dict().items()} == shapes


def names_of(groups, role):
    return sorted(
        sorted(m.tensor.removesuffix(".weight") for m in getattr(group, role) if m.tensor.endswith("weight"))
        for group in groups
    )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn"])
def test_groups_are_those_of_torch_pruning_where_it_is_right(name):
    tp = pytest.importorskip("torch_pruning")
    network, example = trained(f"torchvision/{name}")
    path = {module: path for path, module in network.named_modules()}
    theirs = []
    for group in tp.DependencyGraph().build_dependency(network, example).get_all_groups():
        outs = {path.get(item.dep.target.module) for item in group if "out_channels" in item.dep.handler.__name__}
        theirs.append(sorted(outs & path_of_parameters(network)))
    ours = names_of(couple(network, example), "producers")
    assert ours == sorted(theirs)


def path_of_parameters(network):
    return {path for path, module in network.named_modules() if getattr(module, "weight", None) is not None}


def test_the_zero_padded_shortcut_couples_channel_i_with_i_plus_8():
    network, _ = trained("cifar10/resnet20")
    groups = {group.name: group for group in couple(network)}
    stream = {member.tensor: member.index[:, 0].tolist() for member in groups["conv1"].producers}
    assert stream["conv1.weight"] == list(range(16))
    assert stream["layer2.0.conv2.weight"] == list(range(8, 24))
    assert stream["layer3.0.conv2.weight"] == list(range(24, 40))
    second = {member.tensor: member.index[:, 0].tolist() for member in groups["layer2.0.conv2"].producers}
    assert second["layer2.0.conv2.weight"] == [*range(8), *range(24, 32)]
    assert groups["layer3.0.conv2"].size == 32


def test_torch_pruning_takes_that_shortcut_for_an_elementwise_operation():
    tp = pytest.importorskip("torch_pruning")
    network, example = trained("cifar10/resnet20")
    groups = {group.name: group for group in couple(network)}
    zero(network, groups["conv1"], torch.tensor([3]))
    ours = apply_plan(network, make_plan([*groups.values()], {"conv1": without(16, torch.tensor([3]))}))
    assert difference(network, ours, example) < 1e-5
    theirs = copy.deepcopy(network)
    graph = tp.DependencyGraph().build_dependency(theirs, example)
    try:
        graph.get_pruning_group(theirs.conv1, tp.prune_conv_out_channels, idxs=[3]).prune()
        wrong = difference(network, theirs, example)
    except RuntimeError:  # it doesn't run any more
        wrong = 1.0
    assert wrong > 0.01


def reasons(forward, **layers):
    """By layer, why its channels are frozen, "" where they are free; what is free is merged and compared."""
    network, example = Net(forward, **layers).eval(), torch.randn(2, 3, 8, 8)
    groups = couple(network, example)
    smaller = apply_plan(network, make_plan(groups, planted(network, groups)))
    assert difference(network, smaller, example) < 1e-5
    return {group.name: group.frozen for group in groups}


def two():
    return {"a": conv(3, 8), "b": conv(8, 4)}


def test_what_lies_between_two_layers_and_mixes_channels_freezes_them_with_a_reason():
    def between(function):
        return reasons(lambda net, x: net.b(function(net.a(x))), **two())["a"]

    assert between(F.relu) == ""
    assert between(lambda x: F.avg_pool2d(x, 2).sigmoid()) == ""
    assert between(lambda x: x + x.mean((2, 3), keepdim=True)) == ""
    assert between(lambda x: x.permute(0, 2, 3, 1).roll(1, 1).permute(0, 3, 1, 2)) == ""
    assert between(lambda x: F.layer_norm(x, x.shape[2:])) == ""
    assert between(lambda x: F.layer_norm(x, x.shape[1:])) == "layer_norm reduces over it"
    assert between(lambda x: F.group_norm(x, 2)) == "group_norm reduces over it, in a fixed number of groups"
    assert between(lambda x: F.group_norm(x, 1)) == "group_norm of one group reduces over it"
    assert between(lambda x: x.softmax(1)) == "softmax reduces over it"
    assert between(lambda x: x.softmax(2)) == ""
    assert between(lambda x: x.cumsum(1)) == "cumsum reduces over it"
    assert between(lambda x: x.sort(1)[0]) == "no rule for sort"
    assert between(lambda x: x.roll(1, 1)) == "roll moves it by a fixed distance"
    assert between(lambda x: x + torch.arange(8.0).view(8, 1, 1)).endswith("of fixed width")
    assert between(lambda x: x * x.mean(1, keepdim=True)) == "mean reduces over it"
    assert between(lambda x: torch.cat([x[:, :4], x[:, 4:].relu()], 1)) == "slice cuts it at a fixed place"
    assert between(lambda x: torch.cat(x.split(4, 1), 1)) == "split cuts it at a fixed place"
    assert between(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:9]) == "pad adds channels of a fixed number"
    assert between(lambda x: F.pad(x, (1, 1, 1, 1))) == ""
    assert between(lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(8))) != ""


# What stands between two layers in networks of others, and the width of what the second one reads.
MET = {
    "float": (lambda x: x.float(), 8),
    "to": (lambda x: x.to(torch.float64).relu().to(x.dtype), 8),
    "type_as": (lambda x: x.double().type_as(x), 8),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 2),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 32),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 4), 8),
    "normalize": (lambda x: F.normalize(x, dim=2), 8),
    "norm": (lambda x: torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True), 8),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), 16),
    "tile": (lambda x: x.tile(1, 1, 2, 1), 8),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), 16),
    "reshape_as": (lambda x: x.flatten(2).reshape_as(x), 8),
    "addcmul": (lambda x: torch.addcmul(x, x, x.mean((2, 3), keepdim=True)), 8),
    "addcdiv": (lambda x: torch.addcdiv(x, x, 1 + x.abs()), 8),
    "lerp": (lambda x: torch.lerp(x, x.sigmoid(), 0.3), 8),
    "max of two": (lambda x: torch.max(x, -x), 8),
    "max over an axis": (lambda x: x.max(2, keepdim=True)[0] + x, 8),
    "glu": (lambda x: F.glu(x, 1), 4),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), 8),
    "flip": (lambda x: x.flip(1), 8),
    "flip in space": (lambda x: x.flip((2, 3)), 8),
    "nan_to_num": (lambda x: x.nan_to_num(), 8),
    "masked_fill": (lambda x: x.masked_fill(x > 1, 0.5), 8),
    "nearest-exact": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), 8),
    "trilinear": (lambda x: F.interpolate(x[:, :, None], scale_factor=2, mode="trilinear")[:, :, 0], 8),
    "antialias": (lambda x: F.interpolate(x, size=5, mode="bilinear", antialias=True), 8),
    "index_select": (lambda x: x.index_select(3, torch.tensor([0, 2, 4])), 8),
    "std": (lambda x: x - x.std((2, 3), keepdim=True), 8),
    "cumsum": (lambda x: x.cumsum(2), 8),
    "grid_sample": (lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False), 8),
}


@pytest.mark.parametrize("name", MET)
def test_operations_of_other_networks_have_rules(name):
    between, width = MET[name]
    layers = {"a": conv(3, 8), "b": conv(width, 4)}
    assert reasons(lambda net, x: net.b(between(net.a(x))), **layers)["a"] == ""


def test_a_group_norm_of_one_channel_a_group_loses_channels_as_an_instance_norm_does():
    layers = {"a": conv(3, 8), "norm": nn.GroupNorm(8, 8), "b": conv(8, 4)}
    assert reasons(lambda net, x: net.b(net.norm(net.a(x))), **layers) == {"a": "", "b": "network output"}
    network = Net(lambda net, x: net.b(net.norm(net.a(x))), **layers).eval()
    example = torch.randn(2, 3, 8, 8)
    groups = couple(network, example)
    gone = torch.tensor([1, 5])
    zero(network, groups[0], gone)
    smaller = apply_plan(network, make_plan(groups, {"a": without(8, gone)}))
    assert difference(network, smaller, example) < 1e-5
    assert (smaller.norm.num_groups, smaller.norm.num_channels) == (6, 6)


def test_sizes_written_into_the_code_freeze_what_they_fix():
    layers = {"a": conv(3, 8), "b": conv(8, 4), "c": nn.Linear(256, 6), "d": nn.Linear(6, 2)}
    found = reasons(lambda net, x: net.d(net.c(net.b(net.a(x)).relu().view(-1, 256)).relu()), **layers)
    assert found["b"].startswith("its width is fixed in the network's code")
    assert found["a"] == found["c"] == ""
    assert reasons(lambda net, x: net.d(net.c(net.b(net.a(x)).relu().flatten(1)).relu()), **layers)["b"] == ""


def test_chunks_and_channel_shuffles_couple_what_must_leave_together():
    def halves(net, x):
        one, other = net.a(x).relu().chunk(2, 1)
        return net.b(torch.cat([other, one], 1))

    def shuffle(net, x):
        x = net.a(x)
        n, c, h, w = x.shape
        return net.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    for forward in (halves, shuffle):
        assert reasons(forward, **two())["a"] == ""
        (group, _) = couple(Net(forward, **two()), torch.randn(1, 3, 8, 8))
        assert group.producers[0].index.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_chunks_of_unequal_size_freeze():
    layers = {"a": conv(3, 8), "b": conv(3, 4)}
    assert reasons(lambda net, x: net.b(net.a(x).chunk(3, 1)[0]), **layers)["a"] == "chunk cuts it into unequal parts"


def test_sums_products_and_gates_couple():
    layers = {"a": conv(3, 8), "b": conv(3, 8), "c": conv(8, 4), "gate": nn.Conv2d(8, 8, 1)}

    def gated(net, x):
        both = net.a(x) + net.b(x)
        return net.c(both * net.gate(both.mean((2, 3), keepdim=True)).sigmoid())

    assert reasons(gated, **layers) == {"a": "", "c": "network output"}
    group = couple(Net(gated, **layers), torch.randn(1, 3, 8, 8))[0]
    assert {member.tensor for member in group.producers if "weight" in member.tensor} == {
        "a.weight",
        "b.weight",
        "gate.weight",
    }


def test_a_map_over_space_stays_one_channel():
    layers = {"a": conv(3, 8), "map": conv(3, 1), "b": conv(8, 4)}
    found = reasons(lambda net, x: net.b(net.a(x) * net.map(x).sigmoid()), **layers)
    assert found["a"] == ""
    assert found["map"] == "mul spreads it over the channels of another tensor"


@pytest.mark.parametrize(("groups", "middle", "expected"), [(2, 8, 4), (4, 8, 2), (8, 8, 8), (8, 16, 8), (4, 16, 2)])
def test_grouped_convolutions_stay_in_step(groups, middle, expected):
    layers = {"a": conv(3, 8), "b": conv(8, middle, groups=groups), "c": conv(middle, 4)}

    def forward(net, x):
        return net.c(net.b(net.a(x).relu()).relu())

    assert set(reasons(forward, **layers).values()) == {"", "network output"}
    assert couple(Net(forward, **layers), torch.randn(1, 3, 8, 8))[0].size == expected


def test_transposed_convolutions_couple_and_grouped_ones_say_that_they_do_not():
    for groups, reason in ((1, ""), (2, "grouped transposed convolution")):
        layers = {"a": conv(3, 8), "up": nn.ConvTranspose2d(8, 6, 2, 2, groups=groups), "b": conv(6, 4)}
        found = reasons(lambda net, x: net.b(net.up(net.a(x)).relu()), **layers)
        assert found == {"a": reason, "up": reason, "b": "network output"}


def test_numbers_of_a_channel_follow_it():
    layers = {"a": conv(3, 8), "norm": nn.BatchNorm2d(8), "prelu": nn.PReLU(8), "b": conv(8, 4)}

    def forward(net, x):
        return net.b(net.prelu(net.norm(net.a(x))) * net.scale)

    network = Net(forward, **layers, scale=nn.Parameter(torch.randn(8, 1, 1)))
    group = couple(randomise(network), torch.randn(1, 3, 8, 8))[0]
    assert {member.tensor for member in group.producers} >= {"norm.running_var", "prelu.weight", "scale", "a.bias"}
    assert reasons(forward, **layers, scale=nn.Parameter(torch.randn(8, 1, 1)))["a"] == ""


class Reads(nn.Module):
    """Layers that run and whose weights no conv or linear operation reads under their own names."""

    def __init__(self):
        super().__init__()
        self.embed, self.tied = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
        self.tied.weight = self.embed.weight
        self.turned, self.scaled, self.aside, self.idle = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        x = self.embed(torch.arange(8, device=x.device)) + x
        x = x @ self.turned.weight.T
        x = nn.functional.linear(x, self.scaled.weight * 2)
        self.aside(x)
        return self.tied(x)


def test_never_called_is_said_of_what_a_trial_run_does_not_use_and_of_nothing_else():
    found = {group.name: group.frozen for group in couple(Reads(), torch.rand(1, 8, 8))}
    assert found["idle"] == "never called in eval mode"
    assert found["tied"] == "shares its weight with embed.weight"
    assert found["embed"] == "tied shares its weight with embed.weight"
    assert found["turned"] == "its weight is passed to numpy_T, not straight to a conv or linear layer: " + TO_PREPARE
    assert found["scaled"] == "its weight is passed to mul, not straight to a conv or linear layer: " + TO_PREPARE
    assert found["aside"] == ""


def test_layers_that_may_not_be_rewritten_say_why():
    assert reasons(lambda net, x: net.b(net.a(net.a(x))), a=conv(3, 3), b=conv(3, 4))["a"] == "a is called 2 times"
    layers = {"a": parametrizations.orthogonal(conv(3, 8)), "b": conv(8, 4), "c": conv(4, 4), "unused": conv(4, 4)}
    network = Net(lambda net, x: net.c(net.b(net.a(x))), **layers).eval()
    groups = couple(network, torch.randn(1, 3, 8, 8))
    found = {group.name: group.frozen for group in groups}
    assert "parametrized" in found["a"]
    assert found["b"] == ""
    assert found["unused"] == "never called in eval mode"
    tied = Net(lambda net, x: net.c(net.b(net.a(x))), a=conv(4, 4), b=conv(4, 4), c=conv(4, 4))
    tied.b.weight = tied.a.weight
    found = {group.name: group.frozen for group in couple(tied, torch.randn(1, 4, 8, 8))}
    assert all(found.values())


def test_dead_filters_need_a_relu_right_behind_every_producer():
    def relu(forward, **layers):
        return couple(Net(forward, **layers), torch.randn(1, 3, 8, 8))[0].relu

    norm = {"a": conv(3, 8), "norm": nn.BatchNorm2d(8), "b": conv(8, 4)}
    assert relu(lambda net, x: net.b(net.norm(net.a(x)).relu()), **norm)
    assert relu(lambda net, x: net.b(F.relu6(net.norm(net.a(x)), inplace=True)), **norm)
    assert relu(lambda net, x: net.b(F.max_pool2d(net.a(x).relu_(), 2)), **two())
    assert not relu(lambda net, x: net.b(net.norm(net.a(x))), **norm)
    assert not relu(lambda net, x: net.b(net.norm(net.a(x).relu())), **norm)
    assert not relu(lambda net, x: net.b(net.a(x).relu() + 1), **two())
    assert not relu(lambda net, x: net.b(net.a(x).relu().sigmoid()), **two())
    assert not relu(lambda net, x: net.b(net.a(x).tanh()), **two())
    twice = {"a": conv(3, 8), "c": conv(3, 8), "b": conv(8, 4)}
    assert not relu(lambda net, x: net.b((net.a(x) + net.c(x)).relu()), **twice)
    assert relu(lambda net, x: net.b(net.a(x).relu() + net.c(x).relu()), **twice)


def test_coupling_leaves_the_network_as_it_was():
    network = CifarResNet((1, 1, 1)).train()
    before = copy.deepcopy(network.state_dict())
    couple(network, torch.randn(1, 3, 8, 8))
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
