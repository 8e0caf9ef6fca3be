import copy
import math

import numpy as np
import passes_numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from redlab import (
    estimate_density,
    fold_batchnorm,
    harden,
    hash_network,
    hash_weights,
    load_dataset,
    load_network,
    prune_weights,
    score_weights,
    sparsify,
    weight_layers,
)
from redlab.hashing.density import strong_modes
from redlab.hashing.rules import RULES as NAMES
from redlab.network.evaluation import evaluate

RULES = [
    {"rule": "kde"},
    {"rule": "kde", "representative": "mean"},
    {"rule": "kde", "contrast": 0.05},
    {"rule": "kde", "bandwidth": "median_gap"},
    {"rule": "kde", "max_error": 0.1},
    {"rule": "uniform"},
    {"rule": "uniform", "levels": 16, "representative": "mean"},
    {"rule": "uniform", "max_error": 0.1},
    {"rule": "lloyd"},
    {"rule": "lloyd", "levels": 16},
    {"rule": "lloyd", "max_error": 0.1},
]
each_rule = pytest.mark.parametrize("options", RULES, ids=lambda o: " ".join(map(str, o.values())))


def error(before, after):
    return float((after.double() - before.double()).norm() / before.double().norm())


@pytest.fixture(scope="module")
def weights():
    """A trained layer of 36,864 weights."""
    layers = {layer.name: layer for layer in weight_layers(load_network("digits/resnet"))}
    return max((layer.weight.detach() for layer in layers.values()), key=torch.numel)


@each_rule
def test_every_value_is_in_the_codebook_and_codes_find_it(weights, options):
    hashed = hash_weights(weights, **options)
    assert torch.equal(hashed.codebook[hashed.codes.long()], hashed.values)
    assert torch.equal(hashed.codebook, hashed.values.unique())
    assert hashed.values.shape == weights.shape
    assert hashed.values.dtype == weights.dtype


@each_rule
def test_hashing_keeps_the_order_of_weights(weights, options):
    values = hash_weights(weights, **options).values.flatten()
    assert (values[weights.flatten().argsort()].diff() >= 0).all()


@each_rule
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept_and_values_stay_in_their_cells(weights, options, dtype):
    half = weights.to(dtype)
    hashed = hash_weights(half, **options)
    assert hashed.values.dtype == hashed.codebook.dtype == dtype
    assert torch.equal(hashed.codebook[hashed.codes.long()], hashed.values)
    assert (hashed.values.flatten()[half.flatten().argsort()].diff() >= 0).all()


def test_a_weight_and_its_value_share_a_cell(weights):
    density = estimate_density(weights)
    values = hash_weights(weights).values
    cell = np.searchsorted(density.cuts, weights.double().numpy(), side="right")
    assert np.array_equal(cell, np.searchsorted(density.cuts, values.double().numpy(), side="right"))


def test_hashing_a_hashed_layer_changes_nothing(weights):
    once = hash_weights(weights)
    twice = hash_weights(once.values)
    assert "already hashed" in twice.unchanged
    assert torch.equal(twice.values, once.values)
    assert torch.equal(twice.codebook, once.codebook)
    assert hash_weights(once.values, bandwidth="silverman", force=True).modes < once.modes


@pytest.mark.parametrize("rule", ["kde", "uniform", "lloyd"])
@pytest.mark.parametrize("bound", [0.01, 0.05, 0.3])
def test_max_error_holds_and_is_nearly_used_up(weights, rule, bound):
    reached = error(weights, hash_weights(weights, rule, max_error=bound).values)
    assert reached <= bound * (1 + 1e-5)
    assert reached >= 0.8 * bound


def test_the_mean_of_a_cell_is_never_farther_than_its_mode(weights):
    for bandwidth in ("silverman", "silverman/4", "silverman/10"):
        mode, mean = (hash_weights(weights, bandwidth=bandwidth, representative=r) for r in ("mode", "mean"))
        assert len(mode.codebook) == len(mean.codebook)
        assert error(weights, mean.values) <= error(weights, mode.values)


def test_uniform_rounds_to_multiples_of_one_step(weights):
    hashed = hash_weights(weights, "uniform", max_error=0.05)
    step = float(hashed.codebook.diff().min())
    multiples = hashed.codebook / step
    assert torch.allclose(multiples, multiples.round(), atol=1e-3)
    assert (hashed.values - weights).abs().max() <= 0.5001 * step


@pytest.mark.parametrize("rule", ["uniform", "lloyd"])
def test_levels_bound_the_number_of_values(weights, rule):
    for levels in (1, 2, 7, 64):
        assert (
            levels - 1 - (rule == "uniform") * levels // 4
            <= len(hash_weights(weights, rule, levels=levels).codebook)
            <= levels
        )


def test_without_levels_the_rules_take_as_many_values_as_the_kde_has_modes(weights):
    modes = hash_weights(weights).modes
    assert len(hash_weights(weights, "lloyd").codebook) == pytest.approx(modes, abs=2)
    assert modes * 0.9 <= len(hash_weights(weights, "uniform").codebook) <= modes


def test_lloyd_is_a_fixed_point_and_beats_uniform_at_as_many_values(weights):
    lloyd, uniform = (hash_weights(weights, rule, levels=24) for rule in ("lloyd", "uniform"))
    assert error(weights, lloyd.values) < error(weights, uniform.values)
    centres = lloyd.codebook.double()
    nearest = (weights.double().flatten()[:, None] - centres).abs().argmin(dim=1)
    assert (nearest != lloyd.codes.long().flatten()).float().mean() < 1e-3


def test_lloyd_finds_well_separated_clusters():
    clusters = torch.cat([torch.full((50,), c) + 0.001 * torch.randn(50) for c in (-1.0, 0.5, 2.0)])
    assert hash_weights(clusters, "lloyd", levels=3).codebook.round(decimals=1).tolist() == [-1.0, 0.5, 2.0]


@each_rule
def test_exact_zeros_stay_zero(weights, options):
    pruned = torch.where(weights.abs() < 0.02, 0.0, weights)
    values = hash_weights(pruned, **options).values
    assert (values[pruned == 0] == 0).all()


@each_rule
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_exact_zeros_change_nothing_for_the_others(options, data):
    size, zeros = data.draw(st.sampled_from([3, 40, 300])), data.draw(st.integers(1, 900))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    live = data.draw(st.sampled_from([1.0, -0.02])) * rng.standard_normal(size) + data.draw(st.sampled_from([0, 4]))
    live = np.round(live, data.draw(st.sampled_from([1, 9]))).astype(data.draw(st.sampled_from(["f2", "f4", "f8"])))
    live = live[live != 0] if live.any() else live + 1
    mixed = np.insert(live, rng.integers(0, len(live) + 1, zeros), rng.choice([0.0, -0.0], zeros))
    force = data.draw(st.booleans())
    plain, sparse = (hash_weights(w, force=force, **options) for w in (live, mixed))
    np.testing.assert_array_equal(sparse.values[mixed != 0], plain.values)
    assert (sparse.values[mixed == 0] == 0).all()
    np.testing.assert_array_equal(sparse.codebook, np.union1d(plain.codebook, 0))
    assert sparse.modes == plain.modes
    assert bool(sparse.unchanged) == bool(plain.unchanged)


def test_balancing_leaves_zeros_where_they_are():
    live = 3 + torch.rand(40, 20, generator=torch.Generator().manual_seed(0))  # zero lies in no cell of theirs
    sparse = torch.zeros(40, 50)
    sparse[:, 10:30] = live
    options = {"rule": "uniform", "max_error": 0.05, "rounding": "balanced"}
    assert torch.equal(hash_weights(sparse, **options).values[:, 10:30], hash_weights(live, **options).values)
    assert torch.equal(hash_weights(sparse, **options).values == 0, sparse == 0)


def pruned(network):
    return prune_weights(network, score_weights(network, "random"), 0.5).network


def sparsified(network):
    return harden(sparsify(network, 0.5), torch.randn(2, 1, 8, 8)).network


@pytest.mark.parametrize("sparse", [pruned, sparsified])
def test_a_sparse_network_hashes_as_what_is_left_of_it(sparse):
    network = sparse(load_network("digits/mlp"))
    layers = hash_network(network).layers.set_index("layer")
    for layer in weight_layers(network):
        left = layer.weight.detach()[layer.weight != 0]
        assert 0.4 * layer.weight.numel() < len(left) < 0.6 * layer.weight.numel()
        assert layers.loc[layer.name, "distinct"] == len(hash_weights(left).codebook) + 1
        assert layers.loc[layer.name, "modes"] == hash_weights(left).modes


def test_zeros_do_not_make_a_layer_look_hashed():
    few = torch.zeros(1000)
    few[:100] = torch.linspace(1, 2, 100)
    assert hash_weights(few).unchanged == hash_weights(few[:100]).unchanged == ""
    ternary = torch.tensor([-0.5, 0.0, 0.5, 0.5] * 10)
    assert hash_weights(ternary).unchanged == "already hashed: 2 distinct values and zero"
    assert hash_weights(ternary).codebook.tolist() == [-0.5, 0, 0.5]
    binary = hash_weights(torch.tensor([0.0, 0.3, 0.3]))
    assert (binary.unchanged, binary.modes) == ("all its weights are equal or zero", 1)


@each_rule
def test_constant_layers_and_single_weights_are_themselves(options):
    for same in (torch.full((4, 4), -0.25), torch.tensor([3.0]), torch.zeros(3, 3)):
        hashed = hash_weights(same, **options)
        assert torch.equal(hashed.values, same)
        assert len(hashed.codebook) == 1
        assert "equal" in hashed.unchanged


def test_a_mode_that_one_value_feeds_is_that_value():
    w = torch.tensor([0.1, 0.1, 0.1, 0.73, -0.42])
    assert hash_weights(w, bandwidth=0.01).values.tolist() == w.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"rule": "uniform", "levels": 9}, {"rule": "lloyd", "levels": 9}])
@pytest.mark.parametrize("scale", [1e30, 1e-38, 1e-43])
def test_huge_and_subnormal_weights_hash_like_ordinary_ones(options, scale, dtype):
    w = (torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    hashed = hash_weights(w, **options)
    assert torch.isfinite(hashed.values).all()
    assert torch.equal(hashed.codebook[hashed.codes.long()], hashed.values)
    assert error(w / scale, hashed.values.double() / scale) < 0.5


def test_squares_that_overflow_do_no_harm():
    w = np.random.default_rng(0).standard_normal(400)
    plain, huge = hash_weights(w), hash_weights(np.ldexp(w, 1000))
    np.testing.assert_array_equal(np.ldexp(plain.values, 1000), huge.values)


def test_one_outlier_of_1e30_leaves_the_others_apart():
    w = torch.cat([torch.tensor([1e30]), torch.linspace(-1, 1, 21)])
    assert len(hash_weights(w).codebook) > 10


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.floats(-60000, 60000, width=16), min_size=1, max_size=80),
    st.sampled_from(RULES),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_weights_hash_to_their_codebook_in_order(numbers, options, dtype):
    w = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    hashed = hash_weights(w, **options)
    assert torch.equal(hashed.codebook[hashed.codes.long()], hashed.values)
    others = w != 0  # a zero stays zero wherever the value of its cell lies
    assert (hashed.values[others][w[others].argsort(stable=True)].diff() >= 0).all()
    assert (hashed.values[~others] == 0).all()


@pytest.mark.parametrize("value", [0.5, 1e-290])
def test_a_single_number_without_axes_has_a_code_without_axes(value):
    hashed = hash_weights(torch.tensor(value, dtype=torch.float64))
    assert (hashed.values.item(), hashed.codes.shape, hashed.codes.item()) == (value, (), 0)


def test_the_last_multiple_of_a_step_is_no_more_than_the_dtype_holds():
    most = torch.finfo(torch.bfloat16).max
    w = torch.tensor([-8e37, 1e16, 0.0, most], dtype=torch.bfloat16)
    assert hash_weights(w, "uniform", max_error=0.1).values.isfinite().all()


@pytest.mark.filterwarnings("error")
def test_lloyd_starts_where_the_range_is_more_than_the_dtype_holds():
    w = torch.tensor([2e38, -3e38, -4e16, -5e16])
    assert hash_weights(w, "lloyd", levels=4).codebook[[0, -1]].tolist() == w.sort().values[[0, -1]].tolist()


DTYPES = {torch.float16: 16, torch.bfloat16: 32, torch.float32: 32, torch.float64: 64}


@st.composite
def tensors(draw) -> torch.Tensor:
    """Any numbers that a dtype holds, tiny, huge, of both zeros, many of them equal, in any shape."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    most = torch.finfo(dtype).max
    numbers = st.floats(-most, most, width=DTYPES[dtype])
    few = st.sampled_from([*draw(st.lists(numbers, min_size=1, max_size=4)), 0.0, -0.0])
    shape = draw(st.lists(st.integers(1, 5), max_size=3))
    count = math.prod(shape)
    content = draw(st.lists(draw(st.sampled_from([numbers, few])), min_size=count, max_size=count))
    return torch.tensor(content, dtype=torch.float64).to(dtype).reshape(shape)


@pytest.mark.filterwarnings("error")
@settings(max_examples=120)
@given(w=tensors(), options=st.sampled_from(RULES), force=st.booleans())
def test_tensors_of_any_shape_and_size_of_numbers_hash(w, options, force):
    before = w.clone()
    hashed = hash_weights(w, force=force, **options)
    assert torch.equal(w, before)
    assert (hashed.values.shape, hashed.values.dtype) == (w.shape, w.dtype)
    assert torch.equal(hashed.codebook[hashed.codes.long()], hashed.values)
    assert hashed.values.isfinite().all()
    assert torch.equal(hashed.codebook, hashed.values.unique())
    assert len(hashed.codebook) <= w.unique().numel()
    if hashed.unchanged:
        assert torch.equal(hashed.values, w)
    if "max_error" in options:
        scale = w.double().abs().max().clamp(min=1e-300)
        assert relative(w.double() / scale, hashed.values.double() / scale) <= 0.1 * (1 + 1e-3)


def relative(before, after):
    return error(before, after) if before.any() else float(after.norm())


@settings(max_examples=60)
@given(w=tensors(), rule=st.sampled_from(["uniform", "lloyd"]), levels=st.integers(1, 12))
def test_there_are_never_more_values_than_levels_and_zero(w, rule, levels):
    codebook = hash_weights(w, rule, levels=levels, force=True).codebook
    assert codebook.isfinite().all()
    assert len(codebook[codebook != 0]) <= levels


@settings(max_examples=40)
@given(w=tensors(), place=st.integers(0), bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_one_number_that_is_none_refuses_the_tensor(w, place, bad):
    w.view(-1)[place % w.numel()] = bad
    with pytest.raises(ValueError, match=r"NaN|infinite"):
        hash_weights(w)


@settings(max_examples=40)
@given(w=tensors(), options=st.sampled_from(RULES))
def test_the_error_that_is_reported_is_the_error_that_is_measured(w, options):
    layer = nn.Linear(w.numel(), 1, bias=False, dtype=w.dtype)
    layer.weight.data = w.reshape(1, -1).clone()
    result = hash_network(nn.Sequential(layer), **options)
    scale = w.double().abs().max().clamp(min=1e-300)
    after = result.network[0].weight.detach().reshape(w.shape)
    measured = relative(w.double() / scale, after.double() / scale)
    assert result.layers["error"].item() == pytest.approx(measured, rel=1e-9, abs=1e-12)
    assert result.layers["distinct"].item() == after.unique().numel()


def test_codes_take_the_smallest_unsigned_type():
    w = torch.randn(5000)
    assert hash_weights(w, "lloyd", levels=200).codes.dtype == torch.uint8
    assert hash_weights(w, "lloyd", levels=800).codes.dtype == torch.uint16


def test_numpy_arrays_come_back_as_numpy_arrays():
    w = np.random.default_rng(0).standard_normal((8, 9)).astype(np.float16)
    hashed = hash_weights(w)
    assert isinstance(hashed.values, np.ndarray)
    assert hashed.values.dtype == np.float16
    np.testing.assert_array_equal(hashed.codebook[hashed.codes], hashed.values)


def test_without_numba_the_values_are_the_same(weights, monkeypatch):
    compiled = [hash_weights(weights, **options).values for options in RULES]
    for module in (
        "redlab.hashing.density.passes",
        "redlab.hashing.extrema.passes",
        "redlab.hashing.cells.passes",
        "redlab.hashing.vector.passes",
    ):
        monkeypatch.setattr(module, passes_numpy)
    for options, values in zip(RULES, compiled, strict=True):
        assert (hash_weights(weights, **options).values - values).abs().max() < 1e-6 * weights.abs().max()


def test_a_layer_of_two_million_weights_takes_memory_for_a_few_copies():
    import tracemalloc

    w = np.random.default_rng(0).standard_normal(2_359_296).astype(np.float32)
    hash_weights(w[:1000])
    tracemalloc.start()
    hash_weights(w)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * w.nbytes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "kmeans"}, "kde, uniform, lloyd"),
        ({"representative": "median"}, "mode or mean"),
        ({"max_error": 0.0}, "max_error"),
        ({"max_error": -1.0}, "max_error"),
        ({"rule": "lloyd", "levels": 0}, "levels"),
        ({"rule": "kde", "levels": 4}, "levels"),
        ({"bandwidth": "wide"}, "silverman"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        hash_weights(torch.randn(10), **options)


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (torch.tensor([1.0, float("nan")]), ValueError, "NaN"),
        (torch.tensor([1.0, float("inf")]), ValueError, "infinite"),
        (torch.tensor([1, 2]), TypeError, "int64"),
        (torch.empty(0), ValueError, "empty"),
    ],
)
def test_bad_weights_are_refused(bad, kind, words):
    with pytest.raises(kind, match=words):
        hash_weights(bad)


# ---- networks


def test_hashing_a_network_leaves_the_original_and_its_biases_alone():
    network = load_network("digits/mobilenet")
    before = copy.deepcopy(network.state_dict())
    result = hash_network(network)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    hashed = {f"{layer.name}.weight" for layer in weight_layers(network)}
    for name, tensor in result.network.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in hashed)


def test_the_table_has_a_row_for_every_conv_and_linear_and_no_gaps():
    network = fold_batchnorm(load_network("digits/resnet")).network
    result = hash_network(network, bandwidth="silverman/10")
    layers = result.layers
    assert list(layers["layer"]) == [layer.name for layer in weight_layers(network)]
    assert not layers.isna().any().any()
    for row, layer in zip(layers.itertuples(), weight_layers(result.network), strict=True):
        assert row.distinct == layer.weight.unique().numel()
        assert row.weights == layer.weight.numel()
        assert result.plan["codebooks"][row.layer] == layer.weight.unique().tolist()
    assert "distinct values" in str(result)
    assert "none skipped" in str(result)


def test_a_hashed_network_records_the_step():
    result = hash_network(load_network("digits/mlp"), max_error=0.05)
    (step,) = result.network.redlab.steps
    assert step["step"] == "hash"
    assert step["options"] == {"rule": "kde", "max_error": 0.05}


def test_max_error_by_layer():
    network = load_network("digits/mlp")
    names = [layer.name for layer in weight_layers(network)]
    layers = hash_network(network, max_error={names[0]: 0.01, names[-1]: 0.2}).layers
    assert layers["error"].iloc[0] <= 0.01
    assert 0.1 < layers["error"].iloc[-1] <= 0.2
    with pytest.raises(ValueError, match=r"nosuch.*there are"):
        hash_network(network, max_error={"nosuch": 0.1})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_weight_names_its_layer(bad):
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    network[2].weight.data[0, 0] = bad
    with pytest.raises(ValueError, match="layer 2: weights hold"):
        hash_network(network)


def test_what_cannot_be_hashed_is_skipped_with_the_reason():
    tied = nn.Linear(4, 4)
    network = nn.Sequential(
        tied, nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4), nn.LazyLinear(2)
    )
    network[2].weight = tied.weight
    skipped = dict(zip(*(hash_network(network).layers[c] for c in ("layer", "skipped")), strict=True))
    assert skipped["0"] == ""
    assert "parametrized" in skipped["1"]
    assert skipped["2"] == "shares its weight with 0"
    assert "no shape yet" in skipped["3"]
    assert network[2].weight is network[0].weight


def test_weights_computed_by_hooks_are_skipped_with_the_remedy():
    network = nn.Sequential(nn.Linear(8, 8))
    prune.l1_unstructured(network[0], "weight", 0.5)
    result = hash_network(network)
    assert "prepare(network, fold=False)" in result.layers["skipped"].iloc[0]
    assert torch.equal(result.network(torch.ones(1, 8)), network(torch.ones(1, 8)))


def test_attention_projections_are_hashed():
    network = nn.TransformerEncoderLayer(32, 4, 64)
    layers = hash_network(network).layers.set_index("layer")
    assert layers.loc["self_attn.in_proj", "distinct"] < layers.loc["self_attn.in_proj", "weights"]
    assert layers.loc["self_attn.out_proj", "distinct"] < layers.loc["self_attn.out_proj", "weights"]


@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet", "digits/mlp"])
def test_shipped_networks_keep_their_accuracy(name):
    dataset = load_dataset("digits")
    network = fold_batchnorm(load_network(name)).network
    hashed = hash_network(network, bandwidth="silverman/10").network
    assert evaluate(hashed, dataset).accuracy >= evaluate(network, dataset).accuracy - 1.0


@pytest.mark.slow
def test_hashed_resnet20_keeps_half_a_point_on_all_of_cifar10(real_data):
    network = fold_batchnorm(load_network("cifar10/resnet20")).network
    result = hash_network(network, bandwidth="silverman/10")
    assert evaluate(result.network, load_dataset("cifar10")).accuracy == pytest.approx(91.73, abs=0.5)
    assert result.layers["error"].max() < 0.06


def test_rules_are_known():
    assert NAMES == ("kde", "uniform", "lloyd", "power", "residual")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_hashing_on_cuda_gives_what_the_cpu_gives():
    w = torch.randn(64, 64)
    assert torch.equal(hash_weights(w.cuda()).values.cpu(), hash_weights(w).values)


def test_a_max_error_of_zero_leaves_a_layer_alone_and_says_so():
    network = fold_batchnorm(load_network("digits/resnet")).network
    result = hash_network(network, "uniform", max_error={"conv1": 0, "linear": 0.0, "layer1.0.conv1": 0.1})
    before, after = network.state_dict(), result.network.state_dict()
    assert torch.equal(after["conv1.weight"], before["conv1.weight"])
    assert torch.equal(after["linear.weight"], before["linear.weight"])
    assert not torch.equal(after["layer1.0.conv2.weight"], before["layer1.0.conv2.weight"])  # not in it: the bandwidth
    layers = result.layers.set_index("layer")
    left = layers[layers["skipped"] != ""]
    assert list(left.index) == ["conv1", "linear"]
    assert set(left["skipped"]) == {"its max_error is 0"}
    assert (left["error"] == 0).all()
    assert layers.loc["conv1", "distinct"] == layers.loc["conv1", "distinct_before"] == 144
    assert not result.plan["codebooks"].keys() & {"conv1", "linear"}
    assert result.plan["options"]["max_error"] == {"conv1": 0, "linear": 0.0, "layer1.0.conv1": 0.1}
    assert "2 skipped: conv1, linear (its max_error is 0)" in str(result)


def test_a_max_error_of_zero_for_a_layer_that_cannot_be_hashed_keeps_the_other_reason():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    skipped = hash_network(network, max_error={"0": 0, "1": 0}).layers["skipped"].tolist()
    assert skipped == ["its max_error is 0", "shares its weight with 0"]


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_a_layers_own_max_error_must_be_a_number_of_at_least_zero(bad):
    with pytest.raises(ValueError, match="max_error must be a positive number"):
        hash_network(load_network("digits/mlp"), max_error={"classifier": bad})


def test_zero_is_one_value_whether_weights_were_zero_or_became_so(weights):
    pruned = torch.where(weights.abs() < 0.05 * weights.std(), 0.0, weights)
    hashed = hash_weights(pruned, "uniform", levels=16)
    assert torch.equal(hashed.codebook, hashed.values.unique())


@pytest.mark.parametrize("limit", [0.05, 0.2, 0.5, 0.8])
def test_modes_of_little_contrast_go_one_by_one(limit):
    draw = np.random.default_rng(0)
    for modes in [2, 3, 4, 5, 6, 7, 8] * 20:
        heights = np.empty(2 * modes - 1)
        heights[::2] = 0.05 + draw.random(modes)
        heights[1::2] = np.minimum(heights[:-2:2], heights[2::2]) * draw.random(modes - 1)
        kept, cuts = strong_modes(np.arange(len(heights), dtype=np.float64), heights, limit)
        assert sorted([*kept, *cuts]) == _left_by_contrast(heights, limit)


def _left_by_contrast(heights, limit):
    """The definition, step by step: the mode of smallest contrast goes, with the higher of its cuts."""
    left = list(range(len(heights)))
    while len(left) > 1:
        cuts = [
            max((j for j in (k - 1, k + 1) if 0 <= j < len(left)), key=lambda j: heights[left[j]])
            for k in range(0, len(left), 2)
        ]
        contrasts = [1 - heights[left[cut]] / heights[left[2 * k]] for k, cut in enumerate(cuts)]
        weakest = int(np.argmin(contrasts))
        if contrasts[weakest] > limit:
            break
        left = [place for k, place in enumerate(left) if k not in (2 * weakest, cuts[weakest])]
    return left


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_weights_are_hashed_to_numbers_of_their_own_type(dtype):
    w = torch.randn(6, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    hashed = hash_weights(w)
    assert hashed.values.dtype == hashed.codebook.dtype == dtype
    values = hashed.values.float()
    assert set(values.unique().tolist()) == set(hashed.codebook.float().tolist())
    assert 1 < len(hashed.codebook) < len(w.float().unique())
