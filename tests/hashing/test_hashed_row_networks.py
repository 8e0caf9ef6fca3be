"""Networks hashed with one scale a row: where the scales are kept, what tables count, what a second hashing leaves."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from redlab import compare_with_random, hash_network, hash_weights, inspect_checkpoint, load_network, weight_layers
from redlab.compression.replay import take_step
from redlab.hashing.chance import Draw, random_counts
from redlab.hashing.rules import RULES, Rule
from redlab.network.layers import codes_of, out_scale

ROW = {"rule": "uniform", "max_error": 0.1, "scale": "row"}


def layers_of(network):
    return {layer.name: layer for layer in weight_layers(network)}


@pytest.fixture(scope="module")
def network():
    """Convolutions of every kind, an attention with projections of its own, and a linear layer; never called."""
    torch.manual_seed(0)
    layers = {
        "conv": nn.Conv2d(6, 8, 3),
        "grouped": nn.Conv2d(8, 12, 3, groups=4),
        "depthwise": nn.Conv2d(12, 12, 3, groups=12),
        "transposed": nn.ConvTranspose2d(12, 10, 3),
        "both": nn.ConvTranspose2d(12, 10, 3, groups=2),
        "joint": nn.MultiheadAttention(16, 4),
        "apart": nn.MultiheadAttention(16, 4, kdim=8, vdim=12),
        "linear": nn.Linear(40, 10),
    }
    return nn.ModuleDict(layers).eval()


@pytest.fixture(scope="module")
def hashed(network):
    return hash_network(network, **ROW)


def test_every_layer_keeps_the_scales_of_its_outputs_beside_its_weight(network, hashed):
    table = hashed.layers.set_index("layer")
    for name, layer in layers_of(hashed.network).items():
        scales, codes = out_scale(layer), codes_of(layer)
        assert scales.dtype == layer.weight.dtype
        assert layer.scale_name in dict(layer.module.named_buffers())
        assert codes.shape == layer.weight.shape
        assert codes.unique().tolist() == hashed.plan["codebooks"][name]
        assert codes.unique().numel() == table.loc[name, "distinct"]
        assert int((scales != 1).sum()) == table.loc[name, "scales"] == len(scales)
        before = layers_of(network)[name]
        assert out_scale(before) is None
        assert torch.equal(codes_of(before), before.weight)
    assert hashed.plan["scaled"] == list(layers_of(network))
    names = hashed.network.state_dict()
    assert {"conv.out_scale", "joint.in_proj_out_scale", "joint.out_proj.out_scale", "apart.k_proj_out_scale"} <= {
        *names
    }


def test_rows_are_outputs_also_of_transposed_layers(hashed, network):
    for name, outputs in (("transposed", 10), ("both", 10), ("grouped", 12)):
        assert len(out_scale(layers_of(hashed.network)[name])) == outputs
    before, after = (layers_of(own)["both"].weight.detach().unflatten(0, (2, 6)) for own in (network, hashed.network))
    scales = out_scale(layers_of(hashed.network)["both"])
    for output in range(10):  # outputs 0 to 4 are of the first group
        group, column = divmod(output, 5)
        own = hash_weights(before[group, :, column], "uniform", levels=99, scale="none")
        assert own.values.shape == after[group, :, column].shape
        codes = after[group, :, column] / scales[output]
        assert torch.equal(codes * scales[output], after[group, :, column])
        assert torch.isin(codes, codes_of(layers_of(hashed.network)["both"]).unique()).all()


@pytest.mark.parametrize("scale", ["none", "row"])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_hashed_with_scales_is_left_alone_whatever_is_asked(scale, rule):
    first = hash_network(load_network("digits/resnet"), rule, max_error=0.08, scale="row")
    again = hash_network(first.network, scale=scale)
    for name, own in first.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], own)
    assert again.plan["scaled"] == first.plan["scaled"]
    assert again.layers["skipped"].str.startswith("already hashed").all()
    for column in ("distinct", "scales"):
        assert again.layers[column].tolist() == first.layers[column].tolist()
    assert again.layers["distinct_before"].tolist() == first.layers["distinct"].tolist()


def test_forced_hashing_takes_new_scales_or_none(hashed):
    without = hash_network(hashed.network, "uniform", levels=9, force=True)
    assert "scaled" not in without.plan
    assert all(out_scale(layer) is None for layer in weight_layers(without.network))
    assert not any(name.endswith("out_scale") for name in without.network.state_dict())
    coarser = hash_network(hashed.network, "uniform", levels=5, scale="row", force=True)
    assert coarser.plan["scaled"] == hashed.plan["scaled"]
    assert (coarser.layers["distinct"] <= 5).all()
    assert (coarser.layers["distinct_before"] == hashed.layers["distinct"]).all()


def test_options_by_layer_name(network):
    asked = {
        "max_error": {"linear": 0.05, "depthwise": 0},
        "levels": {"conv": 7, "grouped": 9},
        "scale": {"conv": "row", "linear": "row"},
        "clip": {"conv": "mse"},
    }
    result = hash_network(network, "uniform", **asked)
    layers, table = layers_of(result.network), result.layers.set_index("layer")
    assert result.plan["scaled"] == ["conv", "linear"]
    assert result.plan["options"] == {"rule": "uniform"} | asked
    assert table.loc["conv", "distinct"] == 7
    assert table.loc["linear", "error"] <= 0.05
    assert table.loc["depthwise", "skipped"] == "its max_error is 0"
    own = hash_weights(layers_of(network)["conv"].weight, "uniform", levels=7, scale="row", clip="mse")
    assert torch.equal(layers["conv"].weight, own.values)
    assert torch.equal(out_scale(layers["conv"]), own.scales)
    for name in ("grouped", "joint.in_proj"):
        assert out_scale(layers[name]) is None
        assert table.loc[name, "scales"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": {"conv9": "row"}}, "scale names layers that do not exist: conv9; there are conv, grouped"),
        ({"levels": {"conv": 0}, "rule": "uniform"}, "layer conv: levels must be at least 1"),
        ({"clip": {"conv": "mse"}}, "layer conv: clip 'mse' belongs to"),
        ({"scale": {"conv": "auto"}}, "layer conv: unknown scale 'auto': use one of none, row"),
        ({"scale": "auto"}, "unknown scale 'auto': use one of none, row"),
    ],
)
def test_wrong_options_name_the_layer(network, options, message):
    with pytest.raises(ValueError, match=message):
        hash_network(network, **options)


def test_a_recipe_replayed_has_a_place_for_the_scales(network, hashed):
    shaped = take_step(copy.deepcopy(network), hashed.plan)
    shaped.load_state_dict(hashed.network.state_dict())
    for one, other in zip(weight_layers(shaped), weight_layers(hashed.network), strict=True):
        assert torch.equal(codes_of(one), codes_of(other))
    dropped = take_step(shaped, hash_network(hashed.network, "uniform", levels=9, force=True).plan)
    assert dropped.state_dict().keys() == network.state_dict().keys()
    with pytest.raises(ValueError, match="layers that do not exist: conv9"):
        take_step(network, {"step": "hash", "scaled": ["conv", "conv9"]})


def test_nothing_changes_without_scales(network):
    plan = hash_network(network, "uniform", levels=9).plan
    assert "scaled" not in plan
    assert plan["options"] == {"rule": "uniform", "levels": 9}
    assert take_step(copy.deepcopy(network), plan).state_dict().keys() == network.state_dict().keys()


def test_shared_weights_keep_their_scales_with_the_first_layer():
    network = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    network[1].weight = network[0].weight
    result = hash_network(network, **ROW)
    assert result.plan["scaled"] == ["0"]
    assert result.layers["scales"].tolist() == [20, 0]
    assert result.network[0].weight is result.network[1].weight


def test_short_types_keep_their_type():
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(32, 16)).to(torch.bfloat16)
    result = hash_network(network, scale="row")
    for layer in weight_layers(result.network):
        assert out_scale(layer).dtype == codes_of(layer).dtype == torch.bfloat16
        assert torch.equal(codes_of(layer).unique().float(), torch.tensor(result.plan["codebooks"][layer.name]))


def test_the_random_twin_has_scales_too():
    frame = compare_with_random(load_network("digits/mlp"), rule="uniform", max_error=0.1, scale="row")
    trained, random = (frame[frame["drawn"] == drawn]["distinct"].to_numpy() for drawn in ("trained", "random"))
    assert (abs(random / trained - 1) < 0.5).all()
    # Rows that differ in scale are like one another's twins once the scales are taken off.
    torch.manual_seed(0)
    rows = torch.randn(64, 100) * torch.logspace(-2, 2, 64)[:, None]
    for rule in (Rule("uniform", levels=15, scale="row"), Rule(bandwidth=0.1, scale="row")):
        draw = Draw.like(rows.numpy(), torch.float32, rule, 64)
        _, distinct = random_counts(draw)
        own = hash_weights(rows, rule.rule, rule.bandwidth, levels=rule.levels, scale="row")
        assert abs(distinct / len(own.codebook) - 1) < 0.15


def test_a_large_twin_is_drawn_in_rows_of_the_same_length():
    draw = Draw(1 << 22, torch.float32, Rule("uniform", levels=15, scale="row"), 1 << 12)
    small = draw.of_size(1 << 16)
    assert (small.size, small.rows) == (1 << 16, 64)
    assert Draw(3_000_000, torch.float32, draw.rule, 2).of_size(1 << 16)[::3] == (1 << 16, 1)
    assert Draw(3_000_000, torch.float32, draw.rule, 1000).of_size(1 << 16)[::3] == (63_000, 21)


def test_inspecting_a_file_counts_codes(hashed, tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in hashed.network.state_dict().items()}
    save_file(tensors, tmp_path / "scaled.safetensors")
    frame = inspect_checkpoint(tmp_path / "scaled.safetensors").set_index("tensor")
    table = hashed.layers.set_index("layer")
    for layer, tensor in (
        ("conv", "conv.weight"),
        ("grouped", "grouped.weight"),
        ("transposed", "transposed.weight"),
        ("joint.in_proj", "joint.in_proj_weight"),
        ("joint.out_proj", "joint.out_proj.weight"),
        ("linear", "linear.weight"),
    ):
        assert frame.loc[tensor, "distinct_before"] == table.loc[layer, "distinct"]
    assert frame.loc["conv.weight", "unhashed"].startswith("already hashed")
    assert frame.loc["conv.weight", "measured"] <= 6 * table.loc["conv", "distinct"]
    # Scales that fit no axis, or that nobody can divide by, belong to something else.
    for scales in (torch.ones(5), torch.zeros(8), torch.full((8,), torch.nan), torch.ones(8, dtype=torch.int32)):
        save_file({**tensors, "conv.out_scale": scales}, tmp_path / "odd.safetensors")
        odd = inspect_checkpoint(tmp_path / "odd.safetensors").set_index("tensor")
        assert odd.loc["conv.weight", "distinct_before"] == hashed.network["conv"].weight.unique().numel()
