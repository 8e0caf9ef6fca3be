"""Splitting layers whose rows are hashed up to a scale: the codes share products, and each scale is one more."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled import scale_rows, without_scales
from test_split_layers import agree, convs, enumerate_costs, linears
from torch import nn

from redlab import as_dense, load_network, measure_cost, separate_kernels, split_inputs
from redlab.compression.units import UNITS, split_layer
from redlab.network.example import remember_example
from redlab.network.layers import Layer
from redlab.network.row_scales import count_codes, factor_rows
from redlab.studies.splitting import channel_products, distinct_products, unit_map

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
UNITS_AND_SIGNS = list(product(UNITS, [False, True]))


@st.composite
def cases(draw, dtype=torch.float32):
    """A layer of scaled codes, some of its rows all zero, unscaled or changed since, and the shape of an input."""
    layer, shape = draw(st.one_of(linears(), convs(2), convs(2)))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    nn.init.normal_(layer.weight)
    scale_rows(layer.to(dtype), draw(st.sampled_from([1, 2, 7])))
    with torch.no_grad():
        kinds = torch.randint(0, 6, (len(layer.weight),))
        layer.weight[kinds == 0] = 0
        layer.weight[kinds == 1] /= layer.out_scale[kinds == 1].view(-1, *[1] * (layer.weight.ndim - 1))
        layer.out_scale[kinds == 1] = 1
        layer.weight[kinds == 2] += 0.1 * torch.randn_like(layer.weight[kinds == 2])
    return layer, shape


def codes_by_hand(layer):
    """A layer of the short codes that a row's scale gives back to the bit, and the rows that it has to be spent on."""
    codes, spent = copy.deepcopy(layer), 0
    with torch.no_grad():
        for row, scale in zip(codes.weight, layer.out_scale, strict=True):
            own = row / scale
            short = not (own.view(torch.int32) & 255).any()  # its last 8 bits are left for the scale
            if row.any() and scale != 1 and short and torch.equal(own * scale, row):
                row.copy_(own)
                spent += 1
    return without_scales(codes), spent


@settings(max_examples=40)
@given(cases(), st.sampled_from(UNITS_AND_SIGNS))
def test_a_layer_with_row_scales_computes_the_same_and_gives_its_weight_back(case, way):
    layer, shape = case
    split, x = split_layer(layer, *way), torch.randn(shape)
    with torch.no_grad():
        agree(split(x), layer(x), 1e-5 if x.numel() else 0)
    assert torch.equal(split.weight, layer.weight)
    dense = split.dense()
    assert torch.equal(dense.weight, layer.weight)
    assert torch.equal(dense.out_scale, layer.out_scale)
    assert dense.state_dict().keys() == layer.state_dict().keys()


@settings(max_examples=40)
@given(cases(), st.sampled_from(UNITS_AND_SIGNS))
def test_costs_are_those_of_listing_every_product_of_codes_and_every_scale(case, way):
    layer, shape = case
    codes, spent = codes_by_hand(layer)
    dims = layer.weight.ndim - 2
    split, space = split_layer(layer, *way), tuple(shape[len(shape) - dims :])
    images = torch.Size(shape[: len(shape) - dims - 1]).numel()
    positions = torch.Size(split.geometry.sizes(space)).numel()
    plain, coded = (enumerate_costs(own, space, *way) for own in (without_scales(copy.deepcopy(layer)), codes))
    coded |= {name: coded[name] + spent * positions for name in ("products", "unsigned")}
    found = split.cost(shape)
    assert found in [{name: images * count for name, count in own.items()} for own in (plain, coded)]
    if way[0] != "kernel":  # no padding hides a kernel's taps in the count by which it chooses
        shared = split.geometry.outputs > split.geometry.groups
        assert found == {name: images * count for name, count in (coded if shared else plain).items()}


def test_costs_of_a_small_layer_by_hand():
    layer = nn.Linear(2, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 6.0], [5.0, 10.0], [0.0, 0.0], [1.0, -2.0]]))
    layer.register_buffer("out_scale", torch.tensor([3.0, 5.0, 7.0, 1.0]))
    # The codes 1 and 2, 1 and 2, 1 and -2: of input 0 one product, of input 1 the 2 and the -2; two scales.
    want = {False: (5, 5), True: (4, 5)}
    for (unit, signed), images in product(UNITS_AND_SIGNS, [1, 3]):
        cost = split_layer(layer, unit, signed).cost((images, 2))
        assert (cost["products"], cost["unsigned"]) == tuple(images * n for n in want[signed])
        assert cost["lookups"] == cost["additions"] == images * 6
    assert count_codes(Layer("0", "Linear", layer, "weight")) == {"distinct": 4, "scales": 2}


@pytest.mark.parametrize("unit", UNITS)
def test_filters_of_one_channel_each_need_no_scales(unit):
    layer = scale_rows(nn.Conv2d(6, 6, 3, padding=1, groups=6))
    plain = without_scales(copy.deepcopy(layer))
    shape = (1, 6, 8, 8)
    assert split_layer(layer, unit).cost(shape) == split_layer(plain, unit).cost(shape)


@pytest.mark.parametrize("way", UNITS_AND_SIGNS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_other_dtypes_give_their_weight_back(way, dtype, error):
    layer = nn.Conv2d(4, 16, 3, padding=1).to(dtype)
    scale_rows(layer)
    x = torch.randn(2, 4, 7, 7).to(dtype)
    split = split_layer(layer, *way)
    assert {p.dtype for p in split.parameters()} == {dtype}
    assert torch.equal(split.weight, layer.weight)
    with torch.no_grad():
        agree(split(x), layer(x), error)


@pytest.mark.parametrize("way", UNITS_AND_SIGNS)
def test_gradients_reach_codes_and_scales(way):
    layer = scale_rows(nn.Conv1d(3, 32, 2, bias=False), levels=1).double()
    split, x = split_layer(layer, *way), torch.randn(2, 3, 9, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    pull = torch.randn_like(layer(x))
    layer(theirs).backward(pull)
    split(ours).backward(pull)
    agree(ours.grad, theirs.grad, 1e-10)
    # d loss / d s_o = sum over its weights of the weight's own gradient times its code.
    wanted = (layer.weight.grad * layer.weight).flatten(1).sum(1) / split.row_scales
    agree(split.row_scales.grad, wanted.detach(), 1e-9)


def test_a_scale_that_cannot_be_used_is_none():
    rows = torch.randn(4, 5)
    rows[3] = 0
    for value in (0.0, -1.0, float("nan"), float("inf"), 1e-45, 3e38):
        codes, scales = factor_rows(rows, torch.full((4,), value))
        assert scales is None
        assert torch.equal(codes, rows)
    for wrong in (None, torch.ones(3), torch.ones(4, 1), torch.tensor(2.0)):
        assert factor_rows(rows, wrong)[1] is None


def scaled(name):
    return scale_rows(load_network(name))


@pytest.mark.parametrize(
    ("name", "way"), [*(("digits/resnet", (unit, True)) for unit in UNITS), ("digits/mobilenet", ("channel", False))]
)
def test_networks_of_row_scales(name, way):
    network = scaled(name)
    result, images = split_inputs(network, *way), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        agree(result.network(images), network(images), 1e-5)
    dense = as_dense(result.network)
    states = network.state_dict(), dense.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    table, cost = result.layers, measure_cost(result.network).attrs
    assert table["products_after"].sum() == cost["products"]
    assert table["additions_after"].sum() == cost["additions"]
    plain = split_inputs(without_scales(network), *way).layers
    assert (table["lookups"] == plain["lookups"]).all()
    assert (table["distinct"] <= 15).all()
    assert table["scales"].sum() > 0 == plain["scales"].sum()
    if way[0] != "kernel":
        assert table["products_after"].sum() < plain["products_after"].sum()
        assert (table["additions_after"] == plain["additions_after"]).all()


@pytest.mark.parametrize(("name", "up_to_scale"), [("digits/resnet", False), ("digits/mobilenet", True)])
def test_separation_of_row_scales_is_the_cheapest_of_its_ways(name, up_to_scale):
    network = scale_rows(load_network(name), levels=1)
    result, images = separate_kernels(network, up_to_scale), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        agree(result.network(images), network(images), 1e-5)
    if not up_to_scale:
        states = network.state_dict(), as_dense(result.network).state_dict()
        assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    others = [separate_kernels(without_scales(copy.deepcopy(network)), up_to_scale), separate_kernels(network)]
    for other in others:
        assert (result.layers["products_after"] <= other.layers["products_after"]).all()
    assert result.layers["products_after"].sum() < others[0].layers["products_after"].sum()


def test_factors_of_kernels_take_in_the_scales_of_their_rows():
    base = torch.tensor([[1.0, 2.0, -1.0], [2.0, 1.0, 3.0]])
    factors, scales = torch.tensor([1.0, 2.0, 3.0, -5.0]), torch.tensor([3.0, 5.0, 7.0, 11.0])
    layer = nn.Conv1d(2, 4, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(scales[:, None, None] * factors[:, None, None] * base)
    layer.register_buffer("out_scale", scales)
    split = split_layer(layer, "kernel", up_to_scale=True)
    assert split.row_scales is None
    assert torch.equal(split.scales, (scales * factors)[:, None].expand(4, 2))
    assert torch.equal(split.weight, layer.weight)
    # Six weights of two kernels, then eight factors, at each of eight positions: no scale is counted beside them.
    assert split.cost((1, 2, 10))["products"] == 8 * (6 + 8)
    # With equal codes instead, scales are cheaper than factors.
    with torch.no_grad():
        layer.weight.copy_(scales[:, None, None] * base)
    split = split_layer(layer, "kernel", up_to_scale=True)
    assert split.scales is None
    assert split.cost((1, 2, 10))["products"] == 8 * (6 + 4)


@pytest.mark.parametrize("unit", UNITS)
def test_studies_of_splitting_count_codes(unit):
    layer = scale_rows(nn.Conv2d(3, 16, 3), levels=2)
    codes = without_scales(copy.deepcopy(layer))
    codes.weight.data /= layer.out_scale.view(-1, 1, 1, 1)
    if unit != "kernel":
        assert channel_products(layer, unit).equals(channel_products(codes, unit))
    counted = channel_products(layer, unit)
    drawn = [unit_map(Layer("0", "Conv2d", layer, "weight"), channel, (unit,)) for channel in range(3)]
    assert [int(frame["multiplies"].sum()) for frame in drawn] == counted["products"].tolist()
    assert counted.attrs["scales"] == (16 if unit != "kernel" else split_layer(layer, unit).scaled_rows)
    network = nn.Sequential(layer)
    remember_example(network, torch.randn(1, 3, 5, 5))
    measured = distinct_products(network).set_index("unit").loc[unit, "measured"]
    size = 9 if unit == "tap" else 1
    used = counted["products"].sum() if unit != "kernel" else sum(map(len, split_layer(layer, unit).tables))
    assert measured * 3 * size == pytest.approx(used)
