"""Layers that compute each distinct product once: the ordinary layer is the oracle, enumeration counts the products."""

import copy
import io
import warnings
from collections import Counter
from functools import partial
from itertools import product
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import terms
from torch import nn

from redlab.compression.kernel_split import KernelSplit
from redlab.compression.split_layers import ChannelSplit, TapSplit
from redlab.compression.units import UNITS, split_layer
from redlab.network.geometry import Geometry

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
MODES = ("zeros", "reflect", "replicate", "circular")
units = st.sampled_from(UNITS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def hash_weights(layer, scale):
    """Few distinct values of both signs, zeros among them, and some whole kernels that are equal or opposite."""
    with torch.no_grad():
        layer.weight.copy_(torch.round(torch.randn_like(layer.weight) * scale) / 8)
        twin = torch.randint(0, len(layer.weight), (2,))
        layer.weight[twin[0]] = layer.weight[twin[1]] * (-1) ** int(torch.randint(0, 2, ()))
    return layer


@st.composite
def linears(draw):
    """A hashed linear layer and a batch of inputs with up to two dimensions more."""
    layer = nn.Linear(draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.booleans()))
    return layer, torch.Size([*draw(st.lists(st.integers(0, 3), max_size=3)), layer.in_features])


@st.composite
def convs(draw, largest):
    """A hashed conv layer of any options, and the shape of an input: a batch, maybe empty, or one image without."""
    dims = draw(st.integers(1, largest))

    def each(low, high):
        return draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims).map(tuple))

    groups, depthwise = draw(st.integers(1, 3)), draw(st.booleans())
    inputs = groups * (1 if depthwise else draw(st.integers(1, 3)))
    kernel, dilation, mode = each(1, 4 if dims < 3 else 2), each(1, 2), draw(st.sampled_from(MODES))
    padding = draw(st.sampled_from(["same", "valid", "numbers"]))
    padding = each(0, 2) if padding == "numbers" else padding
    options = {"padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    options |= {"stride": 1 if padding == "same" else each(1, 3), "bias": draw(st.booleans())}
    layer = getattr(nn, f"Conv{dims}d")(inputs, groups * draw(st.integers(1, 3)), kernel, **options)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    sides = [(s - 1) // 2 for s in spans] if padding == "same" else [0] * dims if padding == "valid" else padding
    # "same" pads one more behind than before where it must.
    least = [max(1, s - 2 * p, p + 1 + (mode == "reflect")) for s, p in zip(spans, sides, strict=True)]
    space = [size + draw(st.integers(0, 3)) for size in least]
    return layer, torch.Size([*draw(st.sampled_from([[], [0], [1], [2], [3]])), inputs, *space])


@st.composite
def cases(draw, largest=3):
    """A hashed layer and the shape of an input that it takes."""
    layer, shape = draw(st.one_of(linears(), convs(largest), convs(largest), convs(largest)))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    return hash_weights(layer, draw(st.sampled_from([0.3, 1.0, 3.0, 1e4]))), shape


def agree(found, wanted, relative):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    if wanted.numel():
        assert float((found - wanted).abs().max()) <= relative * max(1e-3, float(wanted.abs().max()))


# What it computes


@settings(max_examples=300)
@given(cases(), units, st.booleans(), st.sampled_from([(torch.float32, 1e-4), (torch.float64, 1e-10)]))
def test_a_split_layer_computes_what_the_ordinary_one_does(case, unit, signed, precision):
    layer, shape = case[0].to(precision[0]), case[1]
    split, x = split_layer(layer, unit, signed), torch.randn(shape, dtype=precision[0])
    with torch.no_grad():
        agree(split(x), layer(x), precision[1])
        agree(split(input=x), layer(x), precision[1])
    assert split.output_shape(shape) == layer(x).shape


@given(cases(), units, st.booleans(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_the_weight_is_the_ordinary_layers_to_the_bit(case, unit, signed, dtype):
    layer = case[0].to(dtype)
    weight = split_layer(layer, unit, signed).weight
    assert weight.dtype == dtype
    assert torch.equal(weight, layer.weight)


@given(cases(), units, st.booleans(), st.booleans())
def test_dense_gives_the_ordinary_layer_back(case, unit, signed, training):
    layer = case[0].train(training)
    layer.weight.requires_grad_(training)
    layer.register_buffer("out_mean", torch.randn(3))
    layer.register_buffer("out_std", torch.rand(3))
    split = split_layer(layer, unit, signed)
    dense = split.dense()
    assert torch.equal(split.out_mean, layer.out_mean)
    assert type(dense) is type(layer)
    assert Geometry.of(dense) == Geometry.of(layer)
    assert dense.state_dict().keys() == layer.state_dict().keys()
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in layer.state_dict().items())
    assert dense.training == split.training == training
    assert {name: p.requires_grad for name, p in dense.named_parameters()} == {
        name: p.requires_grad for name, p in layer.named_parameters()
    }


@pytest.mark.slow
@settings(max_examples=200)
@given(cases(), units, st.booleans(), st.integers(1, 400))
def test_nothing_depends_on_how_much_is_computed_at_once(case, unit, signed, at_once):
    layer, shape = case[0].double(), case[1]
    split, x = split_layer(layer, unit, signed), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        wanted = split(x)
        with mock.patch("redlab.compression.split_layers._AT_ONCE", at_once):
            agree(split(x), wanted, 1e-12)


@pytest.mark.parametrize("unit", UNITS)
def test_little_at_once_means_small_tables(unit):
    layer = nn.Conv2d(4, 16, 3, padding=1)
    split, largest = split_layer(layer, unit), []
    real = F.embedding_bag

    def spy(lookup, table, **options):
        largest.append(table.numel())
        return real(lookup, table, **options)

    x = torch.randn(8, 4, 5, 5)
    with torch.no_grad(), mock.patch("redlab.compression.split_layers.F.embedding_bag", spy):
        with mock.patch("redlab.compression.split_layers._AT_ONCE", 1000):
            few = split(x)
        most = max(largest)
        assert torch.allclose(few, split(x), atol=1e-5)
    assert most <= 1000 + 49  # the row of zeros behind the others
    assert max(largest) > 10 * most


@given(st.lists(st.integers(0, 30), min_size=3, max_size=3), units)
def test_up_to_scale_computes_the_same(factors, unit):
    base = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    layer = nn.Conv2d(2, 12, 3, groups=2, padding=1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.cat([base[k % 2] * (k + 1) * (-1) ** k for k in [*factors, *range(9)]])[:, None])
    split, x = split_layer(layer, unit, up_to_scale=True), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    assert (split.scales is not None) == (unit == "kernel")
    with torch.no_grad():
        agree(split(x), layer(x), 1e-10)
        agree(split.weight, layer.weight, 1e-12)


def test_what_is_not_taken_is_refused_with_what_is():
    conv, linear = split_layer(nn.Conv2d(3, 4, 3), "tap"), split_layer(nn.Linear(5, 4), "tap")
    for shape in [(2, 4, 9, 9), (3, 9), (9,), (), (1, 1, 3, 9, 9), (9, 9, 3)]:
        with pytest.raises(ValueError, match=r"split Conv2d of 3 channels got an input of shape \("):
            conv(torch.zeros(shape))
    for shape in [(2, 4), (), (5, 2)]:
        with pytest.raises(ValueError, match=r"split Linear of 5 channels got an input of shape \("):
            linear(torch.zeros(shape))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", [(1, 3, 2, 5), (1, 3, 1, 5)])
def test_an_image_smaller_than_the_kernel_is_refused(unit, shape):
    with pytest.raises(ValueError, match="shape"):
        split_layer(nn.Conv2d(3, 4, 3), unit)(torch.zeros(shape))


# Degenerate layers


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "build", [partial(nn.Linear, 4, 3), partial(nn.Conv2d, 4, 3, 3, padding=1)], ids=["linear", "conv"]
)
class TestDegenerate:
    def check(self, layer, unit, signed):
        x = torch.randn(2, 4, *[5] * (layer.weight.ndim - 2))
        split = split_layer(layer, unit, signed)
        with torch.no_grad():
            agree(split(x), layer(x), 1e-5)
        assert torch.equal(split.weight, layer.weight)
        assert torch.equal(split.dense()(x), layer(x))
        return split, split.cost(x.shape)

    def test_a_layer_of_zeros_multiplies_nothing(self, build, unit, signed):
        layer = build()
        nn.init.zeros_(layer.weight)
        split, cost = self.check(layer, unit, signed)
        assert cost == dict.fromkeys(["products", "unsigned", "lookups", "additions"], 0)
        assert sum(map(len, split.tables)) == 0

    def test_a_negative_zero_is_a_zero(self, build, unit, signed):
        layer = build()
        nn.init.constant_(layer.weight, -0.0)
        assert layer.weight.signbit().all()
        _, cost = self.check(layer, unit, signed)
        assert not any(cost.values())

    def test_negative_zeros_make_no_kernels_of_their_own(self, build, unit, signed):
        layer = build()
        nn.init.ones_(layer.weight)
        with torch.no_grad():
            layer.weight[0].view(-1)[::2] = 0.0
            layer.weight[1:].view(2, -1)[:, ::2] = -0.0
        assert torch.equal(layer.weight[0], layer.weight[1])
        split, cost = self.check(layer, unit, signed)
        # Each input channel has one value, and one kernel.
        assert max(map(len, split.tables)) <= 4
        with torch.no_grad():
            layer.weight.abs_()
        assert split_layer(layer, unit, signed).cost((2, 4, *[5] * (layer.weight.ndim - 2))) == cost

    def test_weights_that_all_differ_share_nothing(self, build, unit, signed):
        layer = build()
        with torch.no_grad():
            layer.weight.copy_(1 + torch.arange(layer.weight.numel()).view_as(layer.weight) / 1000)
        split, cost = self.check(layer, unit, signed)
        assert sum(table.values.numel() for table in split.tables) == layer.weight.numel()
        if unit != "channel":
            assert cost["products"] == terms(layer, (2, 4, *[5] * (layer.weight.ndim - 2)))

    def test_one_value_is_one_product(self, build, unit, signed):
        layer = build()
        nn.init.constant_(layer.weight, -0.5)
        split, cost = self.check(layer, unit, signed)
        assert len(split.tables[0]) == 4
        if unit == "channel":
            assert cost["products"] == 2 * 4 * (25 if layer.weight.ndim == 4 else 1)
        else:  # the outputs share all of them
            assert cost["products"] == terms(layer, (2, 4, *[5] * (layer.weight.ndim - 2))) // len(layer.weight)


@pytest.mark.parametrize("unit", UNITS)
def test_a_layer_of_one_weight(unit):
    for layer, shape in [(nn.Linear(1, 1), (3, 1)), (nn.Conv1d(1, 1, 1, bias=False), (3, 1, 4))]:
        split, x = split_layer(layer, unit), torch.randn(shape)
        assert torch.equal(split.weight, layer.weight)
        assert torch.allclose(split(x), layer(x))
        assert split.cost(shape)["products"] == x.numel()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(64, 512), (3, 64)), (nn.Conv2d(64, 64, 3, padding=1), (1, 64, 4, 4))]
)
def test_a_large_layer_that_was_never_hashed_is_exact_too(layer, shape, unit, signed):
    layer = copy.deepcopy(layer).double()
    split, x = split_layer(layer, unit, signed), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        agree(split(x), layer(x), 1e-12)
    assert torch.equal(split.weight, layer.weight)


# As a module


@given(cases(), units, st.booleans())
def test_gradients_are_those_of_the_ordinary_layer(case, unit, signed):
    layer, shape = case[0].double(), case[1]
    split, x = split_layer(layer, unit, signed), torch.randn(shape, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = layer(theirs)
    pull = torch.randn_like(out)
    out.backward(pull)
    bias = None if layer.bias is None else layer.bias.grad.clone()
    layer.zero_grad()  # the two share their bias
    assume(out.numel() and layer.weight.any())
    split(ours).backward(pull)
    agree(ours.grad, theirs.grad, 1e-10)
    if bias is not None:
        agree(split.bias.grad, bias, 1e-10)


@pytest.mark.parametrize("unit", UNITS)
def test_the_gradient_of_an_empty_batch_is_empty(unit):
    x = torch.zeros(0, 3, 5, requires_grad=True)
    split_layer(nn.Conv1d(3, 4, 3), unit)(x).sum().backward()
    assert x.grad.shape == x.shape


@given(cases(), units, st.booleans())
def test_the_gradient_of_a_shared_value_is_the_sum_over_the_weights_that_share_it(case, unit, signed):
    layer, shape = case[0].double(), case[1]
    x = torch.randn(shape, dtype=torch.float64)
    assume(x.numel() and layer.weight.any())
    split = split_layer(layer, unit, signed)
    pull = torch.randn_like(layer(x))
    (wanted,) = torch.autograd.grad(layer(x), layer.weight, pull)
    values = [table.values for table in split.tables]
    # What the weight's own gradient sums to, by the chain rule of reading it from the tables.
    summed = torch.autograd.grad(split.weight, values, wanted)
    # A tap whose weights are all zero has an empty table, which nothing reads.
    found = torch.autograd.grad(split(x), values, pull, allow_unused=True, materialize_grads=True)
    for own, other in zip(found, summed, strict=True):
        agree(own, other, 1e-9)


@pytest.mark.parametrize("unit", UNITS)
def test_gradients_of_shared_values_by_hand(unit):
    layer = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [1.0, -2.0], [3.0, 0.0]]))
    split = split_layer(layer, unit, signed=True)
    x = torch.tensor([[5.0, 7.0]])
    (split(x) * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    (table,) = split.tables
    # Of input 0: the 1 of outputs 0 and 1, the 3 of output 2; of input 1: the 2, which output 1 subtracts.
    assert table.values.tolist() == [1, 3, 2]
    assert table.channels.tolist() == [0, 0, 1]
    assert table.values.grad.tolist() == [5 * (1 + 10), 5 * 100, 7 * (1 - 10)]


@pytest.mark.parametrize("unit", UNITS)
def test_a_frozen_layer_stays_frozen(unit):
    layer = nn.Conv2d(2, 8, 3).requires_grad_(False)
    split = split_layer(layer, unit)
    assert not any(p.requires_grad for p in split.parameters())
    assert not any(p.requires_grad for p in split.dense().parameters())


def scaled_layer(dtype=torch.float32):
    """A conv whose kernels are multiples of two, by powers of two: exact in every dtype."""
    layer = nn.Conv2d(1, 32, 3).to(dtype)
    base = torch.randn(2, 3, 3).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([base[k % 2] * 2.0 ** (k % 5) * (-1) ** (k // 16) for k in range(32)])[:, None])
    return layer


def test_frozen_scales_stay_frozen():
    split = split_layer(scaled_layer().requires_grad_(False), "kernel", up_to_scale=True)
    assert split.scales is not None
    assert not split.scales.requires_grad


def variants(layer):
    """The layer split in every way."""
    for unit, signed in product(UNITS, [False, True]):
        yield split_layer(layer, unit, signed)
    yield split_layer(layer, "kernel", up_to_scale=True)


LAYERS = {
    "linear": (lambda: hash_weights(nn.Linear(6, 8), 1.0), (3, 6)),
    "conv": (lambda: hash_weights(nn.Conv2d(4, 8, 3, 2, 1, groups=2), 1.0), (3, 4, 7, 7)),
    "scaled": (scaled_layer, (3, 1, 7, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_is_independent_and_takes_the_originals_state(name):
    build, shape = LAYERS[name]
    x = torch.randn(shape)
    for split in variants(build()):
        wanted, twin = split(x), copy.deepcopy(split)
        assert torch.equal(twin(x), wanted)
        with torch.no_grad():
            for p in twin.parameters():
                p.add_(1)
        assert not torch.allclose(twin(x), wanted)
        assert torch.equal(split(x), wanted)
        twin.load_state_dict(split.state_dict(), strict=True)
        assert torch.equal(twin(x), wanted)


@pytest.mark.parametrize("name", LAYERS)
def test_the_state_goes_through_a_file(name):
    build, shape = LAYERS[name]
    x = torch.randn(shape)
    for split in variants(build()):
        file = io.BytesIO()
        torch.save(split.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        assert {"lookup", "tables.0.values", "tables.0.channels", "bias"} <= state.keys()
        twin = copy.deepcopy(split)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        twin.load_state_dict(state, strict=True)
        assert torch.equal(twin(x), split(x))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-2), (torch.bfloat16, 1e-1), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_split_layer_is_converted_like_any_other(name, dtype, error):
    build, shape = LAYERS[name]
    x, layer = torch.randn(shape).to(dtype), build()
    wanted = copy.deepcopy(layer).to(dtype)(x)
    for split in variants(layer):
        converted = copy.deepcopy(split).to(dtype)
        assert {p.dtype for p in converted.parameters()} == {dtype}
        assert converted.lookup.dtype == converted.tables[0].channels.dtype == torch.int32
        with torch.no_grad():
            agree(converted(x), wanted, error)
        assert converted.dense().weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("unit", UNITS)
def test_a_layer_in_16_bits_is_split_in_16_bits(dtype, unit):
    layer = hash_weights(nn.Conv1d(4, 8, 3, padding=1), 2.0).to(dtype)
    split, x = split_layer(layer, unit, signed=True), torch.randn(2, 4, 9).to(dtype)
    assert {p.dtype for p in split.parameters()} == {dtype}
    with torch.no_grad():
        agree(split(x), layer(x), 1e-2 if dtype == torch.float16 else 1e-1)


def test_one_tap_makes_the_units_one():
    layer = hash_weights(nn.Conv2d(4, 8, 1, stride=2), 1.0)
    splits = [split_layer(layer, unit) for unit in UNITS]
    assert {type(split) for split in splits} == {TapSplit}
    assert [split.unit for split in splits] == list(UNITS)
    assert len({tuple(split.cost((1, 4, 5, 5)).items()) for split in splits}) == 1
    kinds = {unit: type(split_layer(nn.Conv2d(4, 8, 3), unit)) for unit in UNITS}
    assert kinds == {"channel": ChannelSplit, "tap": TapSplit, "kernel": KernelSplit}


def test_a_split_layer_says_what_it_is():
    layer = hash_weights(nn.Conv2d(4, 8, 3, padding=1), 1.0)
    text = repr(split_layer(layer, "channel", signed=True))
    distinct = sum(len(layer.weight[:, i].abs().unique()) - bool((layer.weight[:, i] == 0).any()) for i in range(4))
    assert "ChannelSplit" in text
    assert "Conv2d, 4, 8, kernel_size=(3, 3)" in text
    assert f"unit='channel', signed=True, distinct={distinct}" in text
    assert "scaled" in repr(split_layer(scaled_layer(), "kernel", up_to_scale=True))


# What it counts


def enumerate_costs(layer, space, unit, signed):
    """METHODS' counts, by listing every multiplication of the ordinary layer on one image."""
    own = Geometry.of(layer)
    weight = layer.weight.detach().reshape(own.outputs, own.per_group, -1).numpy()
    taps = list(product(*map(range, own.kernel)))
    # Which input position lies at each place of the padded image, 0 where it is a zero of the padding.
    places = torch.arange(1.0, 1 + np.prod(space, dtype=int)).reshape(1, 1, *space)
    if own.padded:
        sides = [side for pair in own.padding[::-1] for side in pair]
        places = F.pad(places, sides, "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    places = places[0, 0].long().numpy()
    spans = [d * (k - 1) + 1 for d, k in zip(own.dilation, own.kernel, strict=True)]
    ranges = [range(0, size - span + 1, s) for size, span, s in zip(places.shape, spans, own.stride, strict=True)]
    seen, unsigned, counts = set(), set(), Counter()
    for corner, o, i in product(product(*ranges), range(own.outputs), range(own.per_group)):
        channel = o // (own.outputs // own.groups) * own.per_group + i
        kernel = tuple((weight[o, i] + 0.0).tolist())
        shared, terms = max(kernel, tuple(-value + 0.0 for value in kernel)) if signed else kernel, 0
        for number, tap in enumerate(taps):
            value = kernel[number]
            place = int(places[tuple(c + t * d for c, t, d in zip(corner, tap, own.dilation, strict=True))])
            if value == 0 or place == 0:
                continue
            terms += 1
            where = {"channel": (channel, place), "tap": (channel, corner, number)}.get(unit)
            if unit == "kernel":
                seen.add((channel, corner, number, shared))
                unsigned.add((channel, corner, number, kernel))
            else:
                seen.add((*where, abs(value) if signed else value))
                unsigned.add((*where, value))
        # A term of the output's sum for each weight, or for each kernel, that meets an input.
        counts["lookups"] += min(terms, 1) if unit == "kernel" else terms
    counts["additions"] = counts["lookups"] + (len(seen) if unit == "kernel" and len(taps) > 1 else 0)
    return {"products": len(seen), "unsigned": len(unsigned)} | counts


@settings(max_examples=300)
@given(cases(largest=2), units, st.booleans())
def test_costs_are_those_of_listing_every_multiplication(case, unit, signed):
    layer, shape = case
    dims = layer.weight.ndim - 2
    space = tuple(shape[len(shape) - dims :])
    images = int(np.prod(shape[: len(shape) - dims - 1], dtype=int))
    wanted = enumerate_costs(layer, space, unit, signed)
    assert split_layer(layer, unit, signed).cost(shape) == {name: images * count for name, count in wanted.items()}


@settings(max_examples=15)
@given(convs(largest=3), units, st.booleans())
def test_costs_in_three_dimensions(case, unit, signed):
    layer, shape = hash_weights(case[0], 1.0), case[1]
    assume(layer.weight.ndim == 5 and layer.weight.numel() < 100)
    assert split_layer(layer, unit, signed).cost(shape[-4:]) == enumerate_costs(layer, shape[-3:], unit, signed)


def test_a_padded_single_tap_multiplies_no_zeros_of_the_padding():
    layer = nn.Conv2d(1, 1, 1, padding=1)
    assert split_layer(layer, "channel").cost((1, 1, 3, 3))["products"] == 9


@given(cases(), st.booleans())
def test_coarser_units_share_less_and_signs_share_more(case, signed):
    layer, shape = case
    dense = terms(layer, shape)
    costs = {unit: split_layer(layer, unit, signed).cost(shape) for unit in UNITS}
    assert costs["channel"]["products"] <= costs["tap"]["products"] <= costs["kernel"]["products"] <= dense
    for unit, cost in costs.items():
        assert cost["products"] <= cost["unsigned"] <= dense
        assert cost["lookups"] <= cost["additions"]
        plain = split_layer(layer, unit).cost(shape)
        assert cost["unsigned"] == plain["products"] == plain["unsigned"]
        if unit != "kernel":
            # Whatever is shared, as many terms are summed as the ordinary layer multiplies.
            assert cost["lookups"] == cost["additions"] == dense


def test_costs_of_a_small_layer_by_hand():
    layer = nn.Conv1d(1, 2, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0, 2.0, 1.0]], [[-1.0, 2.0, 0.0]]]))
    ways = product(UNITS, [False, True])
    cost = {(unit, signed): split_layer(layer, unit, signed).cost((1, 1, 4)) for unit, signed in ways}
    # By tap {1, -1}, {2}, {1}, at three, four and three outputs. A pixel meets 1, -1 and 2; only x3
    # never meets the first tap, which alone holds -1. (Tap 0 of an output sees the pixel before it.)
    assert cost["tap", False] == {"products": 13, "unsigned": 13, "lookups": 17, "additions": 17}
    assert cost["tap", True] == {"products": 10, "unsigned": 13, "lookups": 17, "additions": 17}
    assert cost["channel", False] == {"products": 11, "unsigned": 11, "lookups": 17, "additions": 17}
    assert cost["channel", True] == {"products": 8, "unsigned": 11, "lookups": 17, "additions": 17}
    assert cost["kernel", False] == {"products": 17, "unsigned": 17, "lookups": 8, "additions": 25}


def test_costs_of_scaled_kernels():
    split = split_layer(scaled_layer(), "kernel", up_to_scale=True)
    # Two kernels of nine taps, then 32 factors, at 5 x 5 outputs.
    wanted = {"products": (18 + 32) * 25, "unsigned": (18 + 32) * 25, "lookups": 32 * 25, "additions": (18 + 32) * 25}
    assert split.cost((1, 1, 7, 7)) == wanted


@pytest.mark.parametrize("unit", UNITS)
def test_a_nan_stays_one_and_nobody_warns(unit):
    layer = nn.Conv2d(2, 3, 3)
    with torch.no_grad():
        layer.weight.view(torch.int32)[0, 0, 0, 0] = 0x7F800001  # a signalling one, which arithmetic warns of
    with warnings.catch_warnings(action="error"):
        split = split_layer(layer, unit)
    answer = split(torch.ones(1, 2, 3, 3)).flatten()
    assert answer.isnan().tolist() == [True, False, False]
