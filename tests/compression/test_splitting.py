"""Split networks: the same function, products accounted for, and a reason for each layer that is left."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from nets import Net
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torchvision import models

from redlab import load_network
from redlab.compression.split_layers import SplitLayer
from redlab.compression.splitting import as_dense, retake, separate_kernels, split_inputs
from redlab.compression.units import UNITS
from redlab.hashing.networks import hash_network
from redlab.network.cost import by_module, measure_cost
from redlab.network.layers import TO_PREPARE, weight_layers
from redlab.network.recipe import Recipe, recipe_of
from redlab.network.result import of_layers
from redlab.zoo.torchvision_networks import build

COLUMNS = [
    *("layer", "kind", "weights", "distinct", "scales", "channels_before", "channels_after"),
    *("products_before", "products_after", "products_unsigned", "macs_before", "macs_after"),
    *("additions_before", "additions_after", "lookups"),
    *("parameters_before", "parameters_after", "skipped"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def hashed(network):
    return hash_network(network, rule="uniform", max_error=0.1).network


def hooks(module):
    return len(module._forward_pre_hooks), len(module._forward_hooks)


def snapshot(network):
    """All that a step must leave as it is."""
    return (
        {name: tensor.clone() for name, tensor in network.state_dict().items()},
        [(path, type(module), module.training, hooks(module)) for path, module in network.named_modules()],
        {name: p.requires_grad for name, p in network.named_parameters()},
        getattr(network, "redlab", None),
    )


def same(one, other):
    return one[1:] == other[1:] and all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())


def difference(network, other, images):
    with torch.no_grad():
        wanted, found = network(images), other(images)
    return float((wanted - found).abs().max() / wanted.abs().max())


def check(network, example=None, step=split_inputs, **options):
    """Take the step, with every check that holds for all networks, and hand back the result."""
    before = snapshot(network)
    result = step(network, example=example, **options)
    assert same(snapshot(network), before)
    check_table(network, result)
    check_function(network, result, example)
    check_cost(result, example)
    return result


def check_table(network, result):
    table, layers = of_layers(result.layers), list(weight_layers(network))
    assert list(table.columns) == COLUMNS
    assert table["layer"].tolist() == [layer.name for layer in layers]
    assert not table.isna().any(axis=None)
    # A layer is split, or there is a reason.
    modules = [module for module in result.network.modules() if isinstance(module, SplitLayer)]
    left = {id(layer.module) for layer in weight_layers(result.network)}
    assert len(left) == len({id(layer.module) for layer in layers}) - len(modules)
    assert (table["skipped"] == "").sum() == len(modules)
    done = table[table["skipped"] == ""]
    assert (done["products_after"] <= done["products_unsigned"]).all()
    assert (done["products_unsigned"] <= done["products_before"]).all()
    assert (done["lookups"] > 0).all()
    assert (table["macs_after"] == table["macs_before"]).all()
    assert (table["products_before"] <= table["macs_before"]).all()
    assert (table["additions_before"] == table["products_before"]).all()
    assert (table["distinct"] <= table["weights"]).all()
    rest = table[table["skipped"] != ""]
    for column in ("products_after", "products_unsigned", "additions_before", "additions_after"):
        assert (rest[column] == rest["products_before"]).all()
    assert not rest["lookups"].any()


def check_function(network, result, example):
    network, split = copy.deepcopy(network).eval(), copy.deepcopy(result.network).eval()
    shape = network.redlab.input_shape if example is None else example.shape[1:]
    images, dense = torch.randn(2, *shape), as_dense(split)
    assert difference(network, split, images) < 1e-5
    assert not any(isinstance(module, SplitLayer) for module in dense.modules())
    scaled = any(getattr(module, "scales", None) is not None for module in split.modules())
    assert difference(network, dense, images) <= (1e-5 if scaled else 0)
    assert dense.state_dict().keys() == network.state_dict().keys()
    assert (recipe_of(dense) or Recipe()).steps == (recipe_of(network) or Recipe()).steps


def check_cost(result, example):
    """``measure_cost`` counts what the table says."""
    cost = by_module(result.network, measure_cost(result.network, example))
    for row in result.layers[result.layers["skipped"] == ""].to_dict("records"):
        # A network that is one layer has no name in itself.
        own = cost.get(row["layer"]) or cost[""]
        assert own["products"] == row["products_after"]
        assert own["additions"] == row["additions_after"]
        assert own["lookups"] == row["lookups"]
        assert own["parameters"] == row["parameters_after"]


def reasons(result):
    left = of_layers(result.layers)[lambda rows: rows["skipped"] != ""]
    return dict(zip(left["layer"], left["skipped"], strict=True))


# Networks


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet", "digits/mlp"])
def test_redlabs_networks(name, unit, signed):
    network = hashed(load_network(name))
    result = check(network, unit=unit, signed=signed)
    assert reasons(result) == {}
    assert result.layers["products_after"].sum() < result.layers["products_before"].sum()
    assert result.plan == {
        "step": "split",
        "options": {"unit": unit, "signed": signed},
        "layers": result.layers["layer"].tolist(),
    }
    assert result.network.redlab.steps == (*network.redlab.steps, result.plan)
    total, cost = result.layers.sum(numeric_only=True), measure_cost(result.network).attrs
    for name in ("products", "macs", "additions"):
        assert total[f"{name}_after"] == cost[name]
        assert total[f"{name}_before"] == measure_cost(network).attrs[name]
    assert total["lookups"] == cost["lookups"]
    assert total["macs_after"] == total["macs_before"]  # sharing lowers no macs


@pytest.mark.parametrize("signed", [False, True])
def test_coarser_units_leave_fewer_products(signed):
    network = hashed(load_network("digits/resnet"))
    left = [split_inputs(network, unit, signed).layers["products_after"] for unit in UNITS]
    assert (left[0] <= left[1]).all()
    assert (left[1] <= left[2]).all()
    assert left[0].sum() < left[1].sum() < left[2].sum()


def small(name):
    return hashed(build(name).eval()), torch.randn(1, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "unit", "signed"),
    [
        ("resnet18", "tap", False),
        ("mobilenet_v2", "tap", True),
        ("shufflenet_v2_x0_5", "channel", False),
        ("squeezenet1_1", "kernel", True),
    ],
)
def test_torchvisions_networks(name, unit, signed):
    result = check(*small(name), unit=unit, signed=signed)
    assert reasons(result) == {}
    assert result.layers["products_after"].sum() < 0.65 * result.layers["products_before"].sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("signed", [False, True])
def test_torchvisions_networks_in_every_unit(name, unit, signed):
    assert reasons(check(*small(name), unit=unit, signed=signed)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_densenet(unit):
    assert reasons(check(*small("densenet121"), unit=unit)) == {}


CALLED_OTHERWISE = "its weight is used without a call of the layer"
NOT_CALLED = "never called in eval mode"
READ_BY_LINEAR = "its weight is used by linear, without a call of the layer"
READ_BY_ATTENTION = "its weight is used by multi_head_attention_forward, without a call of the layer"


@pytest.mark.slow
def test_a_large_vision_transformer():
    network = models.vit_b_16(image_size=64).eval()
    nn.init.normal_(network.heads.head.weight)  # torchvision's zeros would hide all that goes before
    left = reasons(check(hashed(network), torch.randn(1, 3, 64, 64), unit="tap"))
    assert len(left) == 24
    assert set(left.values()) == {CALLED_OTHERWISE, READ_BY_ATTENTION}


@pytest.mark.slow
def test_a_large_window_transformer():
    left = reasons(check(*small("swin_t"), unit="channel"))
    assert len(left) == 24
    assert all(name.endswith((".attn.qkv", ".attn.proj")) for name in left)


def test_a_vision_transformer_keeps_the_projections_of_its_attention():
    network = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(network.heads.head.weight)
    left = reasons(check(hashed(network), torch.randn(1, 3, 32, 32)))
    blocks = [f"encoder.layers.encoder_layer_{k}.self_attention" for k in (0, 1)]
    assert left == {f"{block}.{name}": why for block in blocks for name, why in PROJECTIONS.items()}


PROJECTIONS = {"in_proj": CALLED_OTHERWISE, "out_proj": READ_BY_ATTENTION}


def test_a_window_transformer_keeps_the_layers_that_it_reads_itself():
    network = models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3).eval()
    left = reasons(check(hashed(network), torch.randn(1, 3, 64, 64)))
    blocks = [f"features.{k}.0.attn" for k in (1, 3)]
    assert left == {f"{block}.{name}": READ_BY_LINEAR for block in blocks for name in ("qkv", "proj")}


def test_three_projections_of_one_attention_cost_once():
    network = Net(
        lambda net, x: net.attend(x, x[..., :6], x[..., :4])[0], attend=nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    )
    example = torch.randn(1, 5, 8)
    result = check(network.eval(), example)
    assert list(reasons(result)) == [f"attend.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    assert result.layers["products_before"].sum() == measure_cost(network, example).attrs["products"]


def test_an_encoder_layer_stays_exact_on_its_fast_path():
    network = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    result = check(network, torch.randn(1, 5, 8))
    assert reasons(result) == {f"self_attn.{name}": why for name, why in PROJECTIONS.items()}
    assert isinstance(result.network.linear1, SplitLayer)


@pytest.mark.slow
def test_heads_for_training_are_left():
    network = models.GoogLeNet(num_classes=4, aux_logits=True, init_weights=False).eval()
    result = check(hashed(network), torch.randn(1, 3, 64, 64), unit="tap")
    names = {f"aux{head}.{layer}" for head in (1, 2) for layer in ("conv.conv", "fc1", "fc2")}
    assert reasons(result) == dict.fromkeys(names, NOT_CALLED)


# Layers that are left, and why


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


def hooked(layer, register):
    getattr(layer, register)(lambda module, args, *out: out[0] * 2 if out else (args[0] * 2,))
    return layer


def tied():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    return network


def two(forward):
    return Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))


HOOKED = "its class or a hook gives it a forward of its own"
OWN = f"{HOOKED}: {TO_PREPARE}"
LEFT = {
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 3, 3)), {"0": "transposed convolutions are not split"}),
    "parametrized": (
        nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 1)),
        {"0": f"its weight is parametrized: {TO_PREPARE}"},
    ),
    "hook": (nn.Sequential(hooked(nn.Conv2d(4, 4, 1), "register_forward_hook")), {"0": HOOKED}),
    "hook ahead": (nn.Sequential(hooked(nn.Conv2d(4, 4, 1), "register_forward_pre_hook")), {"0": HOOKED}),
    "own forward": (nn.Sequential(Doubled(4, 4)), {"0": OWN}),
    "tied": (tied(), {"0": "shares its weight with 1.weight", "1": "shares its weight with 0"}),
    "idle": (two(lambda net, x: net.a(x)), {"b": NOT_CALLED}),
    "read": (two(lambda net, x: F.linear(net.a(x), net.b.weight)), {"b": READ_BY_LINEAR}),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("case", LEFT)
def test_a_layer_that_must_stay_says_why(case, unit):
    network, wanted = LEFT[case]
    result = check(copy.deepcopy(network).eval(), torch.randn(1, 4, 4, 4), unit=unit)
    assert reasons(result) == wanted
    assert result.plan["layers"] == [name for name in result.layers["layer"] if name not in wanted]


def test_a_subclass_that_convolves_in_its_own_way_is_left():
    assert reasons(check(nn.Sequential(Standardized(4, 4, 1)), torch.randn(1, 4, 4, 4))) == {"0": OWN}


def test_a_lazy_layer_is_left():
    network = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    result = split_inputs(network, example=torch.randn(1, 3))
    assert "lazy" in reasons(result)["0"]
    assert not result.layers.isna().any(axis=None)


def test_a_layer_with_a_parametrized_bias_can_be_split_and_put_back():
    class Twice(nn.Module):
        def forward(self, bias):
            return 2 * bias

    network = nn.Sequential(nn.Linear(3, 3))
    parametrize.register_parametrization(network[0], "bias", Twice())
    images = torch.randn(2, 3)
    result = split_inputs(network)
    assert difference(network, result.network, images) < 1e-6
    assert difference(network, as_dense(result.network), images) < 1e-6


def test_channels_of_a_grouped_transposed_layer_are_all_its_outputs():
    result = split_inputs(nn.Sequential(nn.ConvTranspose2d(6, 10, 3, groups=2)), example=torch.randn(1, 6, 4, 4))
    assert result.layers["channels_before"].tolist() == [10]


# What the step leaves and keeps


def test_the_table_of_a_small_network_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(8, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[[[1.0, 1.0], [0.0, 2.0]]], [[[1.0, -1.0], [0.0, 3.0]]]]))
        network[1:][1].weight.fill_(0.5)
    table = split_inputs(network, "tap", signed=True, example=torch.zeros(1, 1, 3, 3)).layers
    conv = ["0", "Conv2d", 8, 5, 0, 2, 2, 4 * 6, 4 * 4, 4 * 5, 4 * 8, 4 * 8, 4 * 6, 4 * 6, 4 * 6, 8, 4, ""]
    linear = ["2", "Linear", 8, 1, 0, 1, 1, 8, 8, 8, 8, 8, 8, 8, 8, 9, 9, ""]
    assert table.to_numpy().tolist() == [conv, linear]


def test_a_layer_called_twice_counts_twice_and_is_split_once():
    layer = nn.Linear(4, 4)
    result = check(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(1, 4))
    assert result.network[0] is result.network[2]
    assert result.layers[["layer", "products_before", "products_after"]].to_numpy().tolist() == [["0", 32, 32]]


def test_a_layer_with_two_names_is_one_layer_again():
    layer = nn.Linear(4, 4)
    dense = as_dense(split_inputs(nn.Sequential(layer, nn.ReLU(), layer)).network)
    assert dense[0] is dense[2]


def test_a_network_that_is_one_layer_becomes_another_module():
    network = nn.Linear(4, 3).train()
    network.redlab = Recipe("some/network", (4,))
    result = check(network)
    assert isinstance(result.network, SplitLayer)
    assert result.layers["layer"].tolist() == result.plan["layers"] == ["Linear"]
    assert type(as_dense(result.network)) is nn.Linear


def test_a_network_without_layers_is_split_into_itself():
    result = split_inputs(nn.Sequential(nn.ReLU()), example=torch.randn(1, 3))
    assert (len(result.layers), list(result.layers.columns), result.plan["layers"]) == (0, COLUMNS, [])


def test_training_flags_and_frozen_parameters_stay():
    network = load_network("digits/resnet").train()
    network.conv1.eval().requires_grad_(False)
    split = split_inputs(network).network
    for name, module in network.named_modules():
        assert split.get_submodule(name).training == module.training
    assert not any(p.requires_grad for p in split.conv1.parameters())
    dense = as_dense(split)
    assert [module.training for module in dense.modules()] == [module.training for module in network.modules()]
    assert {name: p.requires_grad for name, p in dense.named_parameters()} == {
        name: p.requires_grad for name, p in network.named_parameters()
    }


def test_buffers_that_folding_left_stay():
    network = nn.Sequential(nn.Conv2d(1, 2, 3))
    network[0].register_buffer("out_mean", torch.randn(2))
    split = split_inputs(network, example=torch.randn(1, 1, 5, 5)).network
    assert torch.equal(split[0].out_mean, network[0].out_mean)
    assert torch.equal(as_dense(split)[0].out_mean, network[0].out_mean)


def test_nothing_is_shared_with_the_network_that_was_split():
    network = hashed(load_network("digits/mlp"))
    split = split_inputs(network).network
    before, dense = snapshot(network), as_dense(split)
    with torch.no_grad():
        for p in dense.parameters():
            p.zero_()
    assert difference(network, split, torch.randn(2, 64)) < 1e-5
    with torch.no_grad():
        for p in split.parameters():
            p.zero_()
    assert same(snapshot(network), before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("step", [split_inputs, separate_kernels])
def test_what_is_split_in_inference_mode_can_be_trained(mode, step):
    network = load_network("digits/resnet")
    with mode():
        split = step(network).network
    images = torch.randn(2, 1, 8, 8)
    split(images).square().sum().backward()
    assert all(p.grad is not None for p in split.parameters())
    torch.optim.SGD(split.parameters(), 1e-3).step()
    assert difference(network, split, images) > 0


def test_what_is_made_dense_in_inference_mode_can_be_trained():
    split = split_inputs(load_network("digits/mlp")).network
    with torch.inference_mode():
        dense = as_dense(split)
    dense(torch.randn(2, 64)).sum().backward()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_a_network_keeps_its_dtype(dtype, error):
    network = hashed(nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)).to(dtype))
    result = split_inputs(network, example=torch.randn(1, 2, 5, 5))
    assert {p.dtype for p in result.network.parameters()} == {dtype}
    assert difference(network, result.network, torch.randn(2, 2, 5, 5).to(dtype)) < error
    assert difference(network, as_dense(result.network), torch.randn(2, 2, 5, 5).to(dtype)) == 0


STEPS = {
    "split": (split_inputs, {"unit": "channel", "signed": True}),
    "separate": (separate_kernels, {}),
    "scaled": (separate_kernels, {"up_to_scale": True}),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_recorded_step_is_taken_again(case):
    step, options = STEPS[case]
    network = hashed(load_network("digits/mobilenet"))
    split = step(network, **options).network
    recorded = json.loads(json.dumps(split.redlab.steps[-1]))
    again = retake(copy.deepcopy(network), recorded)
    assert str(again) == str(split)
    assert again.state_dict().keys() == split.state_dict().keys()
    assert all(torch.equal(tensor, split.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_a_split_network_has_no_layers_left_to_split():
    split = split_inputs(hashed(load_network("digits/mlp"))).network
    again = split_inputs(split)
    assert len(again.layers) == 0
    assert difference(split, again.network, torch.randn(2, 64)) == 0
    assert as_dense(again.network).redlab == as_dense(split).redlab


def test_a_summary_shows_products_and_what_is_left():
    text = str(split_inputs(tied()))
    assert text.startswith("split(unit='channel', signed=False)")
    assert "multiplications: 32 -> 32" in text
    assert "2 layers, 2 skipped: 0 (shares its weight with 1.weight); 1 (shares its weight with 0)" in text


# What is refused


@pytest.mark.parametrize("unit", ["pixel", "", None, "Channel"])
def test_an_unknown_unit_is_refused_with_the_known_ones(unit):
    with pytest.raises(ValueError, match="unit must be one of channel, tap, kernel, not"):
        split_inputs(nn.Linear(3, 3), unit)


@pytest.mark.parametrize("step", [split_inputs, separate_kernels])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_by_name(step, value):
    network = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
    with torch.no_grad():
        network[1][0].weight[1, 2] = value
    with pytest.raises(ValueError, match=r"layer 1\.0: NaN or inf"):
        step(network)


def test_a_wrong_example_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"Sequential cannot run on an input of shape \(1, 5\)"):
        split_inputs(nn.Sequential(nn.Linear(3, 3)), example=torch.randn(2, 5))


# Separated kernels


@pytest.mark.parametrize("up_to_scale", [False, True])
@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet", "digits/mlp"])
def test_separated_networks(name, up_to_scale):
    network = hashed(load_network(name))
    result = check(network, step=separate_kernels, up_to_scale=up_to_scale)
    assert reasons(result) == {}
    assert result.plan["step"] == "separate"
    assert result.plan["options"] == {"up_to_scale": up_to_scale}
    if not up_to_scale:
        wanted = split_inputs(network, "kernel").layers
        assert result.layers.equals(wanted)


def test_scaling_never_costs_products():
    network = hashed(load_network("digits/mobilenet"))
    plain, scaled = (separate_kernels(network, up_to_scale=option).layers for option in (False, True))
    assert (scaled["products_after"] <= plain["products_after"]).all()


def multiples(factors, channels=2, kernel=3):
    """A conv of one base kernel per input channel, every output its own multiple of it; and the bases."""
    layer, base = nn.Conv2d(channels, len(factors), kernel), torch.randn(channels, kernel, kernel)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(factors)[:, None, None, None] * base)
    return nn.Sequential(layer).eval(), base


def test_multiples_of_few_kernels_are_found_and_scaled():
    factors = [1.0, 2.0, -1.0, 0.5, -0.25, 4.0, 8.0, -16.0, 0.0]
    network, base = multiples(factors)
    result = check(network, torch.randn(1, 2, 6, 6), separate_kernels, up_to_scale=True)
    layer = result.network[0]
    assert torch.equal(layer.tables[0].values, base)
    assert torch.equal(layer.scales, torch.tensor(factors)[:, None].expand(9, 2))
    # Two kernels of nine taps, then a factor for each of 8 x 2 kernels that are not zero, at 16 positions.
    assert result.layers["products_after"].tolist() == [16 * (2 * 9 + 8 * 2)]
    plain = separate_kernels(network, example=torch.randn(1, 2, 6, 6)).layers
    assert plain["products_after"].tolist() == [16 * 9 * 2 * 8]


def test_scales_are_used_only_where_they_save_products():
    # Of kernels of nine taps, two that are multiples save 9 and cost 2 factors; of two taps they cost as much.
    assert separate_kernels(multiples([1.0, 2.0], 1)[0], True, torch.randn(1, 1, 6, 6)).network[0].scales is not None
    network = nn.Sequential(nn.Conv1d(1, 2, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[[1.0, 3.0]], [[2.0, 6.0]]]))
    assert separate_kernels(network, True, torch.randn(1, 1, 6)).network[0].scales is None
    # Equal kernels share their products without factors.
    assert separate_kernels(multiples([1.0, 1.0], 1)[0], True, torch.randn(1, 1, 6, 6)).network[0].scales is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_multiples_are_found(dtype):
    network, _ = multiples(torch.randn(64).tolist(), channels=4, kernel=5)
    layer = separate_kernels(network.to(dtype), True, torch.randn(1, 4, 9, 9)).network[0]
    assert layer.scales is not None
    assert len(layer.tables[0]) == 4


def test_kernels_that_are_no_multiples_are_told_apart():
    network, _ = multiples([1.0, 2.0, 4.0, -8.0], 1)
    with torch.no_grad():
        network[0].weight[1, 0, 2, 1] += 1e-3
    layer = separate_kernels(network, True, torch.randn(1, 1, 6, 6)).network[0]
    assert len(layer.tables[0]) == 2
