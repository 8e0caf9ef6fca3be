"""One scale a row: W[o] = s_o C[o], exact to the last bit, whatever the rule, the type and the weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redlab import hash_weights
from redlab.hashing.row_scales import precision_of
from redlab.hashing.vector import as_vector

RULES = [{"rule": "kde"}, {"rule": "uniform"}, {"rule": "uniform", "clip": "mse"}, {"rule": "lloyd"}]
SIZES = [{}, {"max_error": 0.08}, {"levels": 15}]
OPTIONS = [own | size for own in RULES for size in SIZES if not (own["rule"] == "kde" and "levels" in size)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
each_rule = pytest.mark.parametrize("options", OPTIONS, ids=lambda own: "-".join(map(str, own.values())))


@pytest.fixture(scope="module")
def weights():
    """(24, 6, 3, 3) rows whose scales differ by four orders of magnitude."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(24, 6, 3, 3, dtype=torch.float64, generator=draw)
    return rows * torch.logspace(-3, 1, 24, dtype=torch.float64)[:, None, None, None]


def numbers(tensor):
    return torch.as_tensor(tensor).double()


def products(hashed):
    """codebook[codes] * scales, computed in the weights' own type."""
    codebook, scales = torch.as_tensor(hashed.codebook), torch.as_tensor(hashed.scales)
    taken = codebook.float() if codebook.dtype.itemsize == 1 else codebook  # torch multiplies no float8
    taken = taken[torch.as_tensor(hashed.codes).long()].reshape(len(scales), -1) * scales.to(taken.dtype)[:, None]
    return taken.to(codebook.dtype).reshape(hashed.values.shape)


def check(weights, hashed):
    values = torch.as_tensor(hashed.values)
    assert values.shape == weights.shape
    assert values.dtype == torch.as_tensor(hashed.codebook).dtype == torch.as_tensor(hashed.scales).dtype
    assert torch.equal(numbers(products(hashed)), numbers(values))
    assert len(hashed.scales) == (len(weights) if weights.ndim > 1 else 1)
    assert torch.isfinite(numbers(values)).all()
    rows = numbers(values).reshape(len(hashed.scales), -1)
    assert set(numbers(hashed.codes).unique().tolist()) == set(range(len(hashed.codebook)))
    zero = (numbers(weights).reshape(rows.shape) == 0).all(1)
    assert (numbers(hashed.scales)[zero] == 1).all()
    assert (rows[numbers(weights).reshape(rows.shape) == 0] == 0).all()


def error(before, after):
    before, after = numbers(before), numbers(after)
    scale = before.abs().max()
    return float(((after - before) / scale).norm() / (before / scale).norm())


@each_rule
@pytest.mark.parametrize("representative", ["mode", "mean"])
@pytest.mark.parametrize("rounding", ["nearest", "balanced"])
@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_codes_times_scales_are_the_values_bit_for_bit(weights, options, representative, rounding, dtype):
    w = weights.to(dtype)
    hashed = hash_weights(w, **options, representative=representative, rounding=rounding, scale="row")
    check(w, hashed)
    assert not hashed.unchanged
    assert len(hashed.codebook) < 120
    # What is left after dividing is a code again, in the type itself: nothing is lost by forgetting the codes.
    codes = hashed.values / hashed.scales[:, None, None, None]
    assert torch.equal(codes.unique(), hashed.codebook)
    if "max_error" in options:
        slack = {torch.float64: 1e-9, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        assert error(w, hashed.values) <= options["max_error"] * (1 + slack)


@each_rule
@pytest.mark.parametrize("dtype", DTYPES[4:])
def test_eight_bits_are_exact_too(weights, options, dtype):
    w = weights[8:].to(dtype)
    check(w, hash_weights(w, **options, scale="row", force=True))


@pytest.mark.parametrize("options", RULES[1:], ids=lambda own: "-".join(own.values()))
def test_small_rows_keep_more_than_on_one_grid_for_all(weights, options):
    own, one = (hash_weights(weights, **options, levels=31, scale=scale) for scale in ("row", "none"))
    lost = [(h.values - weights).flatten(1).norm(dim=1) / weights.flatten(1).norm(dim=1) for h in (own, one)]
    assert len(own.codebook) <= 31
    assert error(weights, own.values) <= error(weights, one.values)
    assert lost[0].max() < 0.2 < 0.9 < lost[1].max()


@pytest.mark.parametrize("bound", [0.3, 0.03, 0.003])
@pytest.mark.parametrize("rounding", ["nearest", "balanced"])
@pytest.mark.parametrize("options", RULES, ids=lambda own: "-".join(own.values()))
def test_max_error_is_that_of_the_weights_and_nearly_used_up(weights, options, rounding, bound):
    hashed = hash_weights(weights, **options, max_error=bound, rounding=rounding, scale="row")
    assert 0.7 * bound < error(weights, hashed.values) <= bound * (1 + 1e-9)
    assert float(hashed.scales.max() / hashed.scales.min()) > 1e3


@pytest.mark.parametrize("options", RULES[1:], ids=lambda own: "-".join(own.values()))
def test_one_value_less_would_break_the_bound(weights, options):
    if options["rule"] == "lloyd":
        return
    hashed = hash_weights(weights, **options, max_error=0.05, scale="row")
    most = round(float(hashed.codebook.max() / hashed.step))
    assert len(hashed.codebook) == 2 * most + 1
    fewer = hash_weights(weights, **options, levels=2 * most - 1, scale="row")
    assert error(weights, hashed.values) <= 0.05 < error(weights, fewer.values)


@pytest.mark.parametrize("options", RULES, ids=lambda own: "-".join(own.values()))
def test_a_bound_finer_than_codes_can_be_is_kept_without_scales(weights, options):
    w = weights[:, 0].float()
    hashed = hash_weights(w, **options, max_error=1e-5, scale="row")
    assert (hashed.scales == 1).all()
    assert error(w, hashed.values) <= 1e-5 * (1 + 1e-3)
    check(w, hashed)


@each_rule
def test_a_row_times_a_power_of_two_has_another_scale_and_the_same_codes(weights, options):
    options = {name: value for name, value in options.items() if name != "max_error"}  # it weighs rows by their scales
    times = 2.0 ** torch.randint(-20, 20, (24,), generator=torch.Generator().manual_seed(1)).double()
    if options["rule"] == "lloyd":
        return  # of its two starts it takes the one with the smaller error, which weighs rows by their scales, too
    own, other = (hash_weights(w, **options, scale="row") for w in (weights, weights * times[:, None, None, None]))
    assert torch.equal(own.codes, other.codes)
    assert torch.equal(own.codebook, other.codebook)
    assert torch.equal(own.scales * times, other.scales)


@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize("levels", [3, 7, 15, 63])
def test_a_clip_by_squares_never_errs_more_than_by_the_largest_weight(weights, dtype, levels):
    w = (weights**3).to(dtype)  # long tails
    largest, squares = (hash_weights(w, "uniform", levels=levels, clip=clip, scale="row") for clip in ("max", "mse"))
    assert len(squares.codebook) <= levels
    lost = [(numbers(h.values) - numbers(w)).flatten(1).norm(dim=1) for h in (squares, largest)]
    assert (lost[0] <= lost[1] * (1 + 1e-9)).all()
    assert dtype.itemsize < 4 or lost[0].norm() < 0.99 * lost[1].norm()  # powers of two are far apart


@pytest.mark.parametrize("levels", [3, 7, 15])
def test_one_step_a_layer_by_squares_errs_less_than_most_steps_near_it(weights, levels):
    w, most = weights.flatten()[-500:], (levels - 1) // 2
    hashed = hash_weights(w, "uniform", levels=levels, clip="mse")
    assert hashed.scales is None
    assert len(hashed.codebook) <= levels
    steps = hashed.step * torch.linspace(0.5, 2, 200, dtype=torch.float64)[:, None]
    tried = (((w / steps).round().clamp(-most, most) * steps) - w).norm(dim=1) / w.norm()
    assert error(w, hashed.values) <= 1.01 * float(tried.min())


@pytest.mark.parametrize("levels", [3, 5, 15])
def test_the_step_by_squares_is_the_best_of_many(levels):
    row, most = np.random.default_rng(0).standard_normal(200) ** 3, (levels - 1) // 2
    hashed = hash_weights(row, "uniform", levels=levels, clip="mse", scale="row")
    steps = np.geomspace(0.01, 1, 4000) * np.abs(row).max() / most
    tried = np.clip(np.rint(row[:, None] / steps), -most, most) * steps
    best = np.sqrt(np.square(tried - row[:, None]).sum(0).min())
    assert np.linalg.norm(hashed.values - row) <= 1.01 * best


def test_uniform_codes_are_whole_steps_and_the_largest_weight_takes_the_last(weights):
    hashed = hash_weights(weights, "uniform", levels=15, scale="row")
    assert hashed.step == 0.125
    assert hashed.codebook.tolist() == [k / 8 for k in range(-7, 8)]
    tops = (hashed.values / hashed.scales[:, None, None, None]).abs().flatten(1).max(1).values
    assert (tops == 7 / 8).all()
    assert hash_weights(weights, "uniform", levels=2, scale="row").codebook.tolist() == [-1, 0, 1]
    plain = hash_weights(weights, "uniform", levels=15)
    assert torch.allclose(plain.codebook / plain.step, (plain.codebook / plain.step).round())
    assert hash_weights(weights, "uniform", levels=15, representative="mean").step is None
    assert hash_weights(weights, "lloyd", levels=15, scale="row").step is None
    assert plain.scales is None


def test_other_scales_are_root_mean_squares_of_eight_bits(weights):
    for rule in ("kde", "lloyd"):
        scales = hash_weights(weights, rule, scale="row").scales
        assert torch.allclose(scales, weights.flatten(1).square().mean(1).sqrt(), rtol=1 / 256)
        mantissa = torch.frexp(scales).mantissa * 256
        assert torch.equal(mantissa, mantissa.round())
    for dtype in DTYPES[2:4]:
        assert (torch.frexp(hash_weights(weights.to(dtype), scale="row").scales.float()).mantissa == 0.5).all()


def test_zeros_change_neither_scales_nor_codes(weights):
    for options in ({"rule": "kde"}, {"rule": "uniform", "levels": 15}):
        whole = hash_weights(weights, **options, scale="row")
        padded = torch.zeros(26, 6, 3, 6, dtype=torch.float64)
        padded[1:25, ..., ::2] = weights
        hashed = hash_weights(padded, **options, scale="row")
        check(padded, hashed)
        assert torch.equal(hashed.values[1:25, ..., ::2], whole.values)
        assert torch.equal(hashed.scales[1:25], whole.scales)
        assert hashed.scales[[0, 25]].tolist() == [1, 1]


@pytest.mark.parametrize("options", RULES, ids=lambda own: "-".join(own.values()))
@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_rows_at_the_ends_of_the_range_stay_exact_and_finite(options, dtype):
    most, least = torch.finfo(dtype).max / 8, torch.finfo(dtype).smallest_normal
    most = min(most, 1e80)  # float64 beyond its squares loses smaller rows, as it does without scales
    rows = torch.randn(6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(-4, 4)
    rows *= torch.tensor([most / 4, 1e3, 1.0, 1e-3, least, least / 8], dtype=torch.float64)[:, None]
    w = rows.to(dtype)
    hashed = hash_weights(w, **options, scale="row")
    check(w, hashed)
    lost = (numbers(hashed.values) - numbers(w)) / numbers(w).abs().amax(1, keepdim=True)
    assert lost[:4].abs().max() < 0.3


def test_float64_beyond_its_squares_is_hashed_as_the_rest(weights):
    for exponent in (900, -700):
        for options in (
            {"rule": "kde"},
            {"rule": "uniform", "clip": "mse", "levels": 15},
            {"rule": "kde", "bandwidth": 0.1},
        ):
            plain, far = (hash_weights(w, **options, scale="row") for w in (weights, weights * 2.0**exponent))
            assert torch.equal(plain.codebook, far.codebook)
            assert torch.equal(plain.scales * 2.0**exponent, far.scales)
            check(weights * 2.0**exponent, far)


@each_rule
@pytest.mark.parametrize("shape", [(), (1,), (300,), (1, 300), (300, 1), (4, 1, 3, 3)])
def test_one_row_and_rows_of_one_weight(options, shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    hashed = hash_weights(w, **options, scale="row")
    check(w, hashed)
    assert hashed.scales.shape == (shape[0] if len(shape) > 1 else 1,)


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["normal", "heavy", "few", "zeros", "positive", "equal"]),
    options=st.sampled_from(OPTIONS),
    more=st.fixed_dictionaries(
        {"representative": st.sampled_from(["mode", "mean"]), "rounding": st.sampled_from(["nearest", "balanced"])}
    ),
    dtype=st.sampled_from(DTYPES[:4]),
)
def test_weights_of_any_shape_are_exact(shape, seed, kind, options, more, dtype):
    draw = np.random.default_rng(seed)
    w = draw.standard_normal(shape) * 10.0 ** draw.integers(-2, 3, (shape[0], *[1] * (len(shape) - 1)))
    changed = {"heavy": w**3, "few": np.rint(2 * w), "zeros": w * (draw.random(shape) < 0.5), "positive": abs(w)}
    w = changed.get(
        kind,
        w if kind == "normal" else np.ones(shape) * w.reshape(len(w), -1)[:, :1].reshape(-1, *[1] * (len(shape) - 1)),
    )
    w = torch.from_numpy(w).to(dtype)
    check(w, hash_weights(w, **options, **more, scale="row", force=True))


@pytest.mark.parametrize("options", RULES, ids=lambda own: "-".join(own.values()))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_arrays_give_what_tensors_give(weights, options, dtype):
    w = weights.numpy().astype(dtype)
    array, tensor = hash_weights(w, **options, scale="row"), hash_weights(torch.from_numpy(w), **options, scale="row")
    assert array.values.dtype == array.scales.dtype == array.codebook.dtype == dtype
    for one, other in ((array.values, tensor.values), (array.scales, tensor.scales), (array.codes, tensor.codes)):
        np.testing.assert_array_equal(one, other.numpy())


def test_what_is_left_alone_has_scales_of_one(weights):
    few = torch.tensor([-1.0, -0.5, 0.5, 2.0]).repeat(40).reshape(10, 16)
    for same in (few, torch.full((4, 9), 0.5), torch.zeros(4, 9)):
        hashed = hash_weights(same, scale="row")
        assert hashed.unchanged
        assert torch.equal(hashed.values, same)
        assert torch.equal(hashed.scales, torch.ones(len(same)))
        check(same, hashed)
    assert not hash_weights(few, scale="row", force=True).unchanged


def test_sums_of_two_products_of_a_row_are_exact(weights):
    hashed = hash_weights(weights.float(), scale="row")
    first, last = hashed.values.flatten(1), hashed.values.flatten(1).flip(1)
    assert torch.equal((first + last).double(), first.double() + last.double())


def test_wrong_options_are_refused(weights):
    with pytest.raises(ValueError, match="unknown scale 'auto': use one of none, row"):
        hash_weights(weights, scale="auto")
    with pytest.raises(ValueError, match="unknown clip 'least': use one of max, mse"):
        hash_weights(weights, "uniform", clip="least")
    with pytest.raises(ValueError, match="clip 'mse' belongs to"):
        hash_weights(weights, clip="mse")
    with pytest.raises(ValueError, match="1 NaN"):
        hash_weights(torch.where(weights == weights.max(), torch.nan, weights), scale="row")


def test_the_passes_give_what_numpy_gives():
    draw = np.random.default_rng(0)
    w = (draw.standard_normal((7, 50)) * 10.0 ** draw.integers(-3, 3, (7, 1))).astype(np.float32)
    vector = as_vector(w)
    codes = vector.by_size()
    rounded = precision_of(np.dtype(np.float32)).round(np.sqrt(np.square(w, dtype=np.float64).mean(1)))
    np.testing.assert_array_equal(codes.rows.scales, rounded)
    np.testing.assert_array_equal(codes.weights, (w / rounded.astype(np.float32)[:, None]).ravel())
    assert codes.energy == pytest.approx(vector.energy)
    cells = draw.integers(0, 5, w.size).astype(np.uint8)
    count, total = codes.rows.sums(codes.weights, cells, 5)
    factors = np.repeat(rounded**2, 50)
    np.testing.assert_allclose(count, np.bincount(cells, factors))
    np.testing.assert_allclose(total, np.bincount(cells, factors * codes.weights))
