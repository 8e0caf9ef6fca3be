"""Balanced rounding: the errors of each kernel and of each row cancel, and no weight moves farther than next door."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from redlab import fold_batchnorm, hash_network, hash_weights, load_dataset, load_network, weight_layers
from redlab.hashing import balancing

# Without max_error both roundings have the same cells.
CELLS = [
    {"rule": "kde"},
    {"rule": "kde", "representative": "mean"},
    {"rule": "kde", "bandwidth": "silverman/2"},
    {"rule": "uniform", "levels": 16},
    {"rule": "uniform", "levels": 5, "representative": "mean"},
    {"rule": "lloyd", "levels": 16},
]
BOUNDS = [{"rule": rule, "max_error": 0.1} for rule in ("kde", "uniform", "lloyd")]
named = {"ids": lambda options: " ".join(map(str, options.values()))}
each_rule = pytest.mark.parametrize("options", CELLS, **named)
every_option = pytest.mark.parametrize("options", CELLS + BOUNDS, **named)


@pytest.fixture(scope="module")
def weights():
    """A trained conv layer, folded: 64 rows of 32 kernels of 3x3, in float64."""
    network = fold_batchnorm(load_network("digits/resnet")).network
    return network.layer3[0].conv1.weight.detach().double()


def both(weights, options, **more):
    """Hashed by nearest and by balanced rounding."""
    return tuple(hash_weights(weights, **options, **more, rounding=kind) for kind in ("nearest", "balanced"))


def next_doors(weights, nearest):
    """What each weight may become: the value of its own cell, and that of the next used cell on its other side.

    NaN where there is no such cell; exact zeros stay. The cells are told from the values that nearest rounding gave.
    """
    own = nearest.values
    used = own[weights != 0].unique()
    place = torch.searchsorted(used, own) + torch.where(weights > own, 1, -1)
    inside = (place >= 0) & (place < len(used)) & (weights != 0)
    other = (
        torch.where(inside, used[place.clamp(0, max(len(used) - 1, 0))], torch.nan) if len(used) else own * torch.nan
    )
    return own, other, used


def check_moves(weights, nearest, balanced):
    own, other, _ = next_doors(weights, nearest)
    assert ((balanced.values == own) | (balanced.values == other)).all()
    assert (balanced.values[weights == 0] == 0).all()
    assert torch.equal(balanced.codebook[balanced.codes.long()], balanced.values)
    assert set(balanced.codebook.tolist()) == set(balanced.values.unique().tolist())
    assert balanced.values.shape == weights.shape
    assert balanced.values.dtype == balanced.codebook.dtype == weights.dtype


def check_rows(weights, nearest, balanced):
    """No row is off by more than half the widest gap, or by what no cell is left to take up."""
    own, other, used = next_doors(weights, nearest)
    rows = len(weights) if weights.ndim > 1 else 1
    stuck = torch.where(other.isnan(), (own - weights).abs(), 0.0).reshape(rows, -1).sum(1)
    gap = float(used.diff().max()) if len(used) > 1 else 0.0
    off = (balanced.values - weights).reshape(rows, -1).sum(1).abs()
    scale = float(weights.abs().max()) * weights.numel()
    assert (off <= torch.maximum(stuck, torch.tensor(gap / 2)) + 1e-12 * scale).all()


def error(before, after):
    return float((after.double() - before.double()).norm() / before.double().norm())


@each_rule
def test_each_weight_takes_the_value_of_its_cell_or_of_the_next_used_one_on_its_other_side(weights, options):
    nearest, balanced = both(weights, options)
    check_moves(weights, nearest, balanced)
    moved = (nearest.values != balanced.values).double().mean()
    assert 0.02 < moved < 0.5


@each_rule
def test_the_errors_of_each_row_cancel_to_half_a_gap(weights, options):
    nearest, balanced = both(weights, options)
    check_rows(weights, nearest, balanced)
    before, after = ((hashed.values - weights).flatten(1).sum(1).abs() for hashed in (nearest, balanced))
    assert after.mean() < 0.2 * before.mean()
    assert after.max() < before.max()


@each_rule
def test_the_errors_of_most_kernels_cancel_too(weights, options):
    nearest, balanced = both(weights, options)
    before, after = ((hashed.values - weights).sum((2, 3)).abs() for hashed in (nearest, balanced))
    assert after.mean() < 0.5 * before.mean()
    gap = float(nearest.codebook.diff().max())
    assert (after <= gap / 2 + 1e-12).double().mean() > 0.95  # the pass over the rows comes last, and moves a few more


@each_rule
def test_rows_that_are_one_kernel_each_are_never_worse_than_nearest_beyond_half_a_gap(weights, options):
    kernels = weights.flatten(0, 1).flatten(1)
    nearest, balanced = both(kernels, options)
    check_rows(kernels, nearest, balanced)
    before, after = ((hashed.values - kernels).sum(1).abs() for hashed in (nearest, balanced))
    assert (after <= torch.clamp(before, min=float(nearest.codebook.diff().max()) / 2) + 1e-12).all()
    assert after.mean() < 0.5 * before.mean()


def test_a_row_without_kernels_and_a_kernel_of_one_weight_are_balanced_alike(weights):
    plain, kernels = weights.flatten(1), weights.flatten(1)[..., None, None]
    one, other = (hash_weights(w, "uniform", levels=16, rounding="balanced").values for w in (plain, kernels))
    assert torch.equal(one, other[..., 0, 0])


@each_rule
def test_a_vector_is_one_row(weights, options):
    vector = weights.flatten()[:3000]
    nearest, balanced = both(vector, options)
    check_moves(vector, nearest, balanced)
    check_rows(vector, nearest, balanced)
    assert torch.equal(balanced.values, hash_weights(vector[None], **options, rounding="balanced").values[0])


@pytest.mark.parametrize("shape", [(2000, 1), (2000, 1, 1, 1)])
def test_rows_of_one_weight_have_nothing_to_balance(weights, shape):
    rows = weights.flatten()[:2000].reshape(shape)
    nearest, balanced = both(rows, {"rule": "uniform", "levels": 16})
    assert torch.equal(nearest.values, balanced.values)


def balance(weights, centres=(-1.0, 0.0, 1.0), used=None):
    """The values after balancing rows whose weights first take the nearest of the centres; 0 has no cell."""
    weights, centres = np.array(weights), np.array(centres)
    codes = np.abs(weights[..., None] - centres).argmin(-1)
    codes[weights == 0] = len(centres)
    used = np.ones(len(centres), bool) if used is None else np.array(used)
    new = balancing.balance(weights.ravel(), codes.ravel(), centres, used, weights.shape)
    return np.append(centres, 0.0)[new].reshape(weights.shape).tolist()


def test_hand_made_rows_cancel():
    # The errors of the first row are -0.4 each: one moves, and -0.2 is left. Those of the others are below half a gap.
    assert balance([[0.4, 0.4, 0.4], [0.1, 0.1, -0.1], [0.25, 0.2, -1.0]]) == [[1, 0, 0], [0, 0, 0], [0, 0, -1]]
    assert balance([[0.4, 0.4, 0.4, 0.4], [-0.4, -0.4, -0.4, -0.4]]) == [[1, 1, 0, 0], [-1, -1, 0, 0]]
    assert balance([0.4, 0.4, 0.4]) == [1, 0, 0]  # a vector is a row


def test_the_weights_nearest_to_their_other_sides_move_first():
    assert balance([[0.2, 0.45, 0.3]]) == [[0, 1, 0]]
    assert balance([[0.2, -0.45, 0.3, 0.25]]) == [[0, 0, 0, 0]]  # -0.3 is left: less than half a gap
    assert balance([[0.2, -0.45, 0.3, 0.35, 0.4]]) == [[0, 0, 0, 0, 1]]


def test_kernels_come_before_rows():
    assert balance([[[0.3, 0.3], [-0.3, -0.3]]]) == [[[1, 0], [-1, 0]]]
    assert balance([[0.3, 0.3, -0.3, -0.3]]) == [[0, 0, 0, 0]]  # without kernels the row cancels as it is
    # -0.2 is left of each of two kernels, and they add up to less than half a gap; those of four do not.
    assert balance([[[0.2], [0.2]]]) == [[[0], [0]]]
    assert np.sum(balance([[[0.2], [0.2], [0.2], [0.2]]])) == 1


def test_weights_move_to_used_cells_only():
    row, centres = [[1.4, 1.3, 1.45]], (0.0, 1.0, 2.0, 3.0)
    assert balance(row, centres) == [[1, 1, 2]]
    # A move to 3 takes 2 off the sum of 1.15, of which it leaves less.
    assert balance(row, centres, [True, True, False, True]) == [[1, 1, 3]]
    assert balance(row, centres, [True, True, False, False]) == [[1, 1, 1]]
    assert balance([[1.4, 1.3]], centres, [True, True, False, True]) == [[1, 1]]


def test_exact_zeros_and_exact_values_never_move():
    assert balance([[0.0, 0.4, 0.4, 0.0], [1.0, -0.3, -0.3, 1.0]]) == [[0, 1, 0, 0], [1, -1, 0, 1]]


@every_option
def test_exact_zeros_stay_zero_and_do_not_count(weights, options):
    pruned = torch.where(weights.abs() < 0.3 * weights.std(), 0.0, weights)
    nearest, balanced = both(pruned, options)
    assert (balanced.values[pruned == 0] == 0).all()
    if "max_error" not in options:
        check_moves(pruned, nearest, balanced)
        check_rows(pruned, nearest, balanced)


@pytest.mark.parametrize("rule", ["kde", "uniform", "lloyd", "power"])
@pytest.mark.parametrize("bound", [0.02, 0.1, 0.3])
def test_max_error_holds_and_is_nearly_used_up(weights, rule, bound):
    hashed = hash_weights(weights, rule, max_error=bound, rounding="balanced")
    assert 0.8 * bound <= error(weights, hashed.values) <= bound * (1 + 1e-9)
    # Moving weights costs accuracy, but hardly any values.
    assert len(hashed.codebook) <= 1.1 * len(hash_weights(weights, rule, max_error=bound).codebook) + 1


@every_option
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-6)])
def test_other_dtypes_are_kept_and_balanced(weights, options, dtype, slack):
    w = weights.to(dtype)
    nearest, balanced = both(w, options)
    assert balanced.values.dtype == dtype
    assert torch.equal(balanced.codebook[balanced.codes.long()], balanced.values)
    if "max_error" in options:
        assert error(w, balanced.values) <= options["max_error"] * (1 + slack)
    elif torch.equal(nearest.codebook, balanced.codebook):  # a value may be rounded to the other side of a weight
        assert (nearest.codes.int() - balanced.codes.int()).abs().max() == 1
    before, after = ((h.values.double() - w.double()).flatten(1).sum(1).abs() for h in (nearest, balanced))
    assert after.mean() < 0.25 * before.mean()


@every_option
def test_numpy_arrays_give_what_tensors_give(weights, options):
    array = hash_weights(weights.numpy(), **options, rounding="balanced")
    assert isinstance(array.values, np.ndarray)
    np.testing.assert_array_equal(array.values, hash_weights(weights, **options, rounding="balanced").values.numpy())


@every_option
def test_constant_and_already_hashed_weights_are_left_alone(options):
    for same in (torch.full((4, 4, 3, 3), -0.25), torch.tensor([3.0]), torch.zeros(3, 3)):
        hashed = hash_weights(same, **options, rounding="balanced")
        assert torch.equal(hashed.values, same)
        assert "equal" in hashed.unchanged
    few = torch.tensor([-1.0, -0.5, 0.5, 2.0]).repeat(40).reshape(10, 16)
    hashed = hash_weights(few, **options, rounding="balanced")
    assert torch.equal(hashed.values, few)
    assert "already hashed" in hashed.unchanged


def test_few_distinct_weights_that_must_be_hashed_are_balanced():
    few = torch.tensor([-1.0, -0.6, 0.6, 1.0, 0.25], dtype=torch.float64).repeat(40).reshape(8, 25)
    nearest, balanced = both(few, {"rule": "uniform", "levels": 3}, force=True)
    check_moves(few, nearest, balanced)
    check_rows(few, nearest, balanced)
    assert (balanced.values - few).sum(1).abs().max() < (nearest.values - few).sum(1).abs().max()


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["normal", "heavy", "few", "zeros", "positive"]),
    options=st.sampled_from([*CELLS, {"rule": "uniform", "levels": 2}, {"rule": "lloyd", "levels": 3}]),
)
def test_weights_of_any_shape_are_balanced(shape, seed, kind, options):
    draw = np.random.default_rng(seed)
    w = draw.standard_normal(shape)
    w = {"heavy": w**3, "few": np.rint(2 * w), "zeros": w * (draw.random(shape) < 0.5), "positive": abs(w)}.get(kind, w)
    w = torch.from_numpy(np.asarray(w))
    nearest, balanced = both(w, options, force=True)
    if balanced.unchanged:
        assert torch.equal(balanced.values, w)
        return
    check_moves(w, nearest, balanced)
    check_rows(w, nearest, balanced)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(40, 1000), (64, 32, 3, 3), (300, 1), (300, 1, 3, 3), (1, 700), (5000,), (9, 129, 2), (7, 40, 1, 1)]
)
@pytest.mark.parametrize("kind", ["normal", "grid", "zeros", "skewed", "gaps", "one cell", "equal values"])
def test_the_flips_are_those_of_a_full_sort(shape, dtype, kind):
    draw = np.random.default_rng(0)
    centres = np.sort(draw.standard_normal(12)) if kind == "gaps" else np.arange(-6, 6) * 0.3
    if kind == "equal values":
        centres = np.repeat(centres[::2], 2)
    w = draw.standard_normal(shape).ravel().astype(dtype)
    if kind == "grid":
        w = np.rint(w * 20).astype(dtype) / dtype(20)  # ties
    codes = np.abs(w[:, None] - centres).argmin(1).astype(np.uint8)
    if kind == "skewed":
        w = w - dtype(0.14)  # nearly all errors have one sign: more flips than are kept by insertion
    used = draw.random(12) < 0.6 if kind == "gaps" else np.full(12, kind != "one cell")
    used |= np.bincount(codes, minlength=12) > 0 if kind != "one cell" else np.arange(12) == 3
    if kind == "zeros":
        dead = draw.random(w.size) < 0.7
        w, codes = np.where(dead, dtype(0), w), np.where(dead, np.uint8(12), codes)
    found = balancing.balance(w, codes, centres, used, shape)
    np.testing.assert_array_equal(found, balance_by_sorting(w, codes, centres, used, shape))
    assert found.dtype == codes.dtype


def balance_by_sorting(weights, codes, centres, used, shape):
    """Every kernel, then every row: flips in the order of a stable sort, while they take less than twice the rest."""
    rows = shape[0] if len(shape) > 1 else 1
    new = codes.copy().reshape(rows, -1)
    weights = weights.astype(np.float64).reshape(rows, -1)
    kernel = int(np.prod(shape[2:]))
    for size in (kernel, weights.shape[1]) if kernel > 1 else (weights.shape[1],):
        for w, own in zip(weights.reshape(-1, size), new.reshape(-1, size), strict=True):
            flip_by_sorting(w, own, centres, np.flatnonzero(used))
    return new.ravel()


def flip_by_sorting(w, own, centres, used):
    error = np.where(own < len(centres), np.append(centres, 0)[own] - w, 0.0)
    total, flips = error.sum(), []
    for j in np.flatnonzero(error * total > 0):
        beyond = used[used < own[j]][-1:] if total > 0 else used[used > own[j]][:1]
        gaps = np.abs(centres[beyond] - centres[own[j]])
        flips += [(gap - 2 * abs(error[j]), j, cell, gap) for gap, cell in zip(gaps, beyond, strict=True)]
    taken = 0.0
    for _, j, cell, gap in sorted(flips):
        taken += gap
        if taken - gap / 2 >= abs(total):
            break
        own[j] = cell


@pytest.mark.parametrize("size", [1, 7, 8, 9, 127, 128, 129, 136, 1000, 4608, 20_001])
def test_errors_are_added_as_numpy_adds(size):
    errors = np.random.default_rng(size).standard_normal(size + 3)
    assert balancing._sum(errors, 3, size + 3) == errors[3:].sum()


@each_rule
def test_the_number_of_threads_changes_nothing(weights, options, monkeypatch):
    whole = hash_weights(weights, **options, rounding="balanced").values
    monkeypatch.setattr(balancing, "_PART", 1000)
    for threads in (2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        assert torch.equal(hash_weights(weights, **options, rounding="balanced").values, whole)


@every_option
def test_nearest_is_the_default_bit_for_bit(weights, options):
    plain, named = hash_weights(weights, **options), hash_weights(weights, **options, rounding="nearest")
    assert torch.equal(plain.values, named.values)
    assert torch.equal(plain.codebook, named.codebook)
    assert not torch.equal(plain.values, hash_weights(weights, **options, rounding="balanced").values)


def test_an_unknown_rounding_is_refused():
    for call in (
        lambda: hash_weights(torch.randn(10), rounding="stochastic"),
        lambda: hash_network(nn.Linear(4, 4), rounding="stochastic"),
    ):
        with pytest.raises(ValueError, match="unknown rounding 'stochastic': use one of nearest, balanced"):
            call()


def test_balancing_warns_of_nothing(weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hash_weights(weights, "uniform", levels=16, rounding="balanced")


def test_weights_whose_squares_overflow_are_balanced_as_ordinary_ones(weights):
    plain, huge = (hash_weights(w, "uniform", levels=16, rounding="balanced") for w in (weights, weights * 2.0**900))
    assert torch.equal(plain.values * 2.0**900, huge.values)


# ---- networks


def row_errors(network, hashed, name, axes):
    layers = [{layer.name: layer.weight.detach().double() for layer in weight_layers(n)} for n in (network, hashed)]
    return (layers[1][name] - layers[0][name]).sum(axes).abs()


def test_networks_record_the_rounding():
    result = hash_network(load_network("digits/mlp"), "uniform", max_error=0.1, rounding="balanced")
    (step,) = result.network.redlab.steps
    assert step["options"] == {"rule": "uniform", "max_error": 0.1, "rounding": "balanced"}
    assert (result.layers["error"] <= 0.1 + 1e-6).all()
    for row, layer in zip(result.layers.itertuples(), weight_layers(result.network), strict=True):
        assert row.distinct == layer.weight.unique().numel()
        assert result.plan["codebooks"][row.layer] == layer.weight.unique().tolist()
    nearest = hash_network(load_network("digits/mlp"), "uniform", max_error=0.1)
    assert "rounding" not in nearest.plan["options"]


def test_a_transposed_convolution_is_balanced_along_its_output_channels():
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(12, 5, 3), nn.Conv2d(5, 4, 3)).double()
    nearest, balanced = (
        hash_network(network, "uniform", levels=9, rounding=kind).network for kind in ("nearest", "balanced")
    )
    gap = float(nearest[0].weight.detach().unique().diff().max())
    assert row_errors(network, balanced, "0", (0, 2, 3)).max() <= gap / 2 + 1e-12
    assert row_errors(network, nearest, "0", (0, 2, 3)).max() > gap
    assert balanced[0].weight.shape == network[0].weight.shape
    assert balanced[0].weight.is_contiguous()


def test_a_grouped_transposed_convolution_is_balanced_along_its_output_channels():
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(12, 10, 3, groups=2)).double()
    hashed = hash_network(network, "uniform", levels=9, rounding="balanced").network
    before, after = network[0].weight.detach(), hashed[0].weight.detach()
    assert (after - before).unflatten(0, (2, 6)).sum((1, 3, 4)).abs().max() <= float(after.unique().diff().max()) / 2


def test_at_the_same_error_the_outputs_of_a_network_change_by_less():
    network = fold_batchnorm(load_network("digits/resnet")).network
    images = torch.stack([image for image, _ in load_dataset("digits", limit=100)])
    with torch.no_grad():
        logits = network(images)
        moved = [
            hash_network(network, "uniform", max_error=0.2, rounding=kind).network(images) - logits
            for kind in ("nearest", "balanced")
        ]
    assert moved[1].abs().mean() < 0.7 * moved[0].abs().mean()
