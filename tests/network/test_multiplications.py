"""What counts as a product: enumeration with a zero-padded input is the oracle, PyTorch's counter that of macs."""

import warnings
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import terms
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from redlab import load_network, prune_channels, prune_weights, score_channels, score_weights
from redlab.compression.splitting import separate_kernels, split_inputs
from redlab.compression.units import UNITS
from redlab.network.cost import measure_cost
from redlab.network.geometry import Geometry

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
MODES = ("zeros", "zeros", "reflect", "replicate", "circular")


@st.composite
def convs(draw, transposed=False):
    """A conv layer without a zero among its weights, no two of them alike, and the shape of an input."""
    dims = draw(st.integers(1, 2))

    def each(low, high):
        return draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims).map(tuple))

    kernel, dilation, stride, padding, groups = each(1, 3), each(1, 2), each(1, 3), each(0, 2), draw(st.integers(1, 2))
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": False}
    if not transposed:
        options["padding_mode"] = draw(st.sampled_from(MODES))
        if draw(st.booleans()):
            options |= {"padding": "same", "stride": 1}
    layer = getattr(nn, f"Conv{'Transpose' * transposed}{dims}d")(inputs, outputs, kernel, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, 1 + layer.weight.numel()).view_as(layer.weight))
    return layer, (1, inputs, *each(5, 7))


def some_zeros(layer, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator) < 0.6)


def enumerated(layer, shape):
    """Every output position, tap, input and output channel, on an input that is padded with zeros by hand."""
    own, weight = Geometry.of(layer), layer.weight.detach().flatten(2).numpy()
    real = np.pad(np.ones(shape[2:], bool), own.padding, constant_values=layer.padding_mode != "zeros")
    count = 0
    for corner in product(*[range(0, n * s, s) for n, s in zip(own.sizes(shape[2:]), own.stride, strict=True)]):
        for number, tap in enumerate(product(*map(range, own.kernel))):
            place = tuple(c + t * d for c, t, d in zip(corner, tap, own.dilation, strict=True))
            for o, i in product(range(own.outputs), range(own.per_group)):
                count += bool(real[place] and weight[o, i, number] != 0)
    return count


def macs(network, example):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(example)
    return counter.get_total_flops() // 2


def totals(network, example):
    cost = measure_cost(network, example).attrs
    return cost["products"], cost["macs"]


@settings(max_examples=20)
@given(convs(), st.integers(0, 99))
def test_a_product_is_a_weight_that_is_not_zero_times_an_input_that_is_there(case, seed):
    layer, shape = case
    some_zeros(layer, seed)
    wanted = enumerated(layer, shape)
    assert terms(layer, shape) == wanted
    assert totals(nn.Sequential(layer), torch.rand(shape)) == (wanted, macs(layer, torch.rand(shape)))


@settings(max_examples=15)
@given(convs(transposed=True), st.integers(0, 99))
def test_a_transposed_layer_counts_what_its_output_keeps(case, seed):
    layer, shape = case
    some_zeros(layer, seed)
    if min(layer(torch.rand(shape)).shape) > 0:
        assert totals(layer, torch.rand(shape)) == (terms(layer, shape), macs(layer, torch.rand(shape)))


@settings(max_examples=20)
@given(convs(), st.sampled_from(UNITS), st.booleans())
def test_before_is_after_where_nothing_is_shared(case, unit, signed):
    layer, shape = case
    if unit == "channel" and layer.padding_mode != "zeros":
        return  # a border that is shown twice shares its products
    table = split_inputs(nn.Sequential(layer), unit, signed, torch.rand(shape)).layers
    (row,) = table.to_dict("records")
    assert row["products_before"] == row["products_after"] == row["products_unsigned"] == enumerated(layer, shape)
    assert row["additions_before"] == row["products_before"]
    if unit != "kernel":  # there the sums of the kernels are terms as well
        assert row["additions_before"] == row["additions_after"] == row["lookups"]
    assert row["macs_before"] == row["macs_after"] == macs(layer, torch.rand(shape))


def test_nine_distinct_weights_stay_nine():
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    with torch.no_grad():
        network[0].weight.copy_(torch.arange(1.0, 10).view(1, 1, 3, 3))
    for result in (
        *(split_inputs(network, unit, example=torch.rand(1, 1, 4, 4)) for unit in UNITS),
        separate_kernels(network, example=torch.rand(1, 1, 4, 4)),
    ):
        assert result.layers[["products_before", "products_after", "macs_before"]].values.tolist() == [[100, 100, 144]]


def test_zeros_that_the_network_makes_are_values():
    inside, outside = nn.Conv2d(1, 1, 3, padding=1), nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 1, 3))
    assert totals(inside, torch.rand(1, 1, 4, 4)) == (100, 144)
    assert totals(outside, torch.rand(1, 1, 4, 4)) == (144, 144)


RECURRENT = {
    "LSTM": (nn.LSTM(3, 4), 5 * 4 * 4 * (3 + 4)),
    "GRU": (nn.GRU(3, 4), 5 * 3 * 4 * (3 + 4)),
    "RNN": (nn.RNN(3, 4), 5 * 4 * (3 + 4)),
    "both ways": (nn.LSTM(3, 4, bidirectional=True), 2 * 5 * 4 * 4 * (3 + 4)),
    "two layers": (nn.LSTM(3, 4, num_layers=2), 5 * 4 * 4 * (3 + 4 + 4 + 4)),
    "projected": (nn.LSTM(3, 4, proj_size=2), 5 * (4 * 4 * (3 + 2) + 4 * 2)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_count_every_step(name):
    layer, wanted = RECURRENT[name]
    assert totals(layer, torch.rand(1, 5, 3).transpose(0, 1).transpose(0, 1)) == (wanted, wanted)
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    lost = layer.weight_hh_l0.numel() * 5
    assert totals(layer, torch.rand(1, 5, 3)) == (wanted - lost, wanted)


class Of(nn.Module):
    """A module by a function of itself and the input."""

    def __init__(self, function, **members):
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x):
        return self.function(self, x)


def test_a_bilinear_layer_multiplies_by_each_weight():
    network = Of(lambda own, x: own.form(x[:, :3], x[:, 3:]), form=nn.Bilinear(3, 4, 5))
    assert totals(network, torch.rand(1, 7)) == (60, 60)


def test_attention_between_inputs_is_macs_alone():
    network = nn.MultiheadAttention(8, 2, batch_first=True)
    attend = Of(lambda own, x: own.inner(x, x, x)[0], inner=network)
    assert totals(attend, torch.rand(1, 5, 8)) == (4 * 5 * 64, 4 * 5 * 64 + 2 * 5 * 5 * 8)
    with torch.no_grad():
        network.in_proj_weight[:8] = 0  # the queries'
    assert totals(attend, torch.rand(1, 5, 8))[0] == 3 * 5 * 64


WEIGHTS = {
    "a view": (Of(lambda own, x: x @ own.w[1:].T, w=nn.Parameter(torch.eye(4))), 3),
    "ahead of the input": (Of(lambda own, x: (own.w @ x.T).T, w=nn.Parameter(torch.eye(4))), 4),
    "a vector": (Of(lambda own, x: x @ own.w[0], w=nn.Parameter(torch.eye(4))), 1),
    "in batches": (Of(lambda own, x: torch.bmm(x[:, None], own.w[None]), w=nn.Parameter(torch.eye(4))), 4),
    "computed": (Of(lambda own, x: F.linear(x, own.w * 2), w=nn.Parameter(torch.eye(4))), 16),
    "of two factors": (Of(lambda own, x: F.linear(x, own.w @ own.w), w=nn.Parameter(torch.eye(4))), 16),
    "normed": (parametrizations.weight_norm(nn.Linear(4, 4)), 16),
    "a buffer": (Of(lambda own, x: F.linear(x, own.w), w=nn.Buffer(torch.eye(4))), 4),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_is_found_wherever_it_comes_from(name):
    network, wanted = WEIGHTS[name]
    assert totals(network, torch.rand(1, 4))[0] == wanted


def test_what_is_multiplied_in_an_unknown_way_is_named():
    outer = Of(lambda own, x: (x[:, None] * own.w).sum(-1), w=nn.Parameter(torch.rand(5, 4)))
    network = nn.Sequential(outer, nn.Linear(5, 2))
    with pytest.warns(UserWarning, match="not all multiplications are counted.*: 0$"):
        table = measure_cost(network, torch.rand(1, 4))
    assert table["skipped"].tolist() == ["its multiplications by mul are not counted", ""]


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_packed_weights_are_named():
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.LSTM(5, 2))
    packed = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear, nn.LSTM})
    with pytest.warns(UserWarning, match="not all multiplications are counted"):
        table = measure_cost(packed, torch.rand(1, 3, 4))
    assert table["layer"].tolist() == ["0", "2"]
    assert table["skipped"].str.contains("not counted").all()


def test_embeddings_positions_and_scales_need_no_word():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.read = nn.Embedding(9, 4), nn.LayerNorm((5, 4)), nn.Linear(4, 2)
            self.cls, self.places = nn.Parameter(torch.rand(1, 1, 4)), nn.Parameter(torch.rand(1, 5, 4))
            self.scale = nn.Parameter(torch.rand(4, 1))

        def forward(self, x):
            x = torch.cat([self.cls.expand(len(x), -1, -1), self.embed(x)], 1) + self.places
            return self.read((self.norm(x).mT * self.scale).mT)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = measure_cost(Tokens(), torch.zeros(1, 4, dtype=torch.int64))
    assert not table["skipped"].any()
    assert table.attrs["products"] == 5 * 4 * 2


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_torchscript_counts_in_one_row():
    script = torch.jit.script(nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv1d(2, 1, 1)))
    assert totals(script, torch.rand(1, 1, 6)) == (2 * 16 + 12, 2 * 18 + 12)


def test_zero_weights_count_nowhere():
    network, images = load_network("digits/mlp"), torch.rand(1, 64)
    sparse = prune_weights(network, score_weights(network, "magnitude"), ratio=0.9).network
    left = sum(int(layer.weight.count_nonzero()) for layer in sparse.modules() if isinstance(layer, nn.Linear))
    assert totals(sparse, images) == (left, totals(network, images)[1])
    table = split_inputs(sparse).layers
    assert table["products_before"].sum() == table["additions_after"].sum() == left


@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet", "digits/mlp"])
def test_a_target_of_products_is_met_by_what_is_counted(name):
    network = load_network(name)
    network = prune_weights(network, score_weights(network, "magnitude"), ratio=0.7).network
    before = measure_cost(network).attrs["products"]
    result = prune_channels(network, score_channels(network, "magnitude"), products=0.5)
    share = measure_cost(result.network).attrs["products"] / before
    assert result.plan["achieved"]["products"] == pytest.approx(share, abs=1e-6)
    assert share <= 0.5
    fewer = prune_channels(network, score_channels(network, "magnitude"), products=0.5, count=_gone(result) - 1)
    assert fewer.plan["achieved"]["products"] > 0.5


def _gone(result):
    return sum(where.count(-1) for where in result.plan["groups"].values())
