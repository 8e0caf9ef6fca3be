from dataclasses import replace
from itertools import pairwise

import numpy as np
import passes_numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import gaussian_kde

from redlab import estimate_density, load_network, weight_layers
from redlab.hashing import extrema, passes
from redlab.hashing.density import resolve_bandwidth, strong_modes
from redlab.hashing.vector import as_vector


def exact_turns(weights, h):
    """Maxima and minima of the exact density, from the sign of its derivative, by bisection."""
    ordered = np.sort(weights.astype(np.float64))

    def derivative(points):
        out = np.empty(len(points))
        for k in range(0, len(points), 256):
            part = points[k : k + 256]
            first, last = np.searchsorted(ordered, [part.min() - 9 * h, part.max() + 9 * h])
            z = (ordered[None, first:last] - part[:, None]) / h
            out[k : k + 256] = (z * np.exp(-0.5 * z * z)).sum(axis=1)
        return out

    grid = np.linspace(ordered[0] - h, ordered[-1] + h, int((ordered[-1] - ordered[0]) / h * 24) + 64)
    rising = derivative(grid) > 0
    turn = np.flatnonzero(rising[1:] != rising[:-1])
    low, high, side = grid[turn], grid[turn + 1], rising[turn]
    for _ in range(20):
        middle = 0.5 * (low + high)
        same = (derivative(middle) > 0) == side
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return 0.5 * (low + high)


@pytest.fixture(scope="module", params=["digits/resnet", "digits/mobilenet", "digits/mlp"])
def layers(request):
    return [layer.weight.detach() for layer in weight_layers(load_network(request.param)) if layer.weight.numel() > 500]


@pytest.mark.parametrize("bandwidth", ["silverman", "silverman/8", "scott", 0.01])
def test_density_agrees_with_scipy_at_the_same_bandwidth(layers, bandwidth):
    for weights in layers:
        w = weights.numpy().ravel().astype(np.float64)
        density = estimate_density(weights, bandwidth)
        oracle = gaussian_kde(w, bw_method=density.bandwidth / w.std(ddof=1))
        some = density.grid[:: max(1, len(density.grid) // 200)]
        np.testing.assert_allclose(
            np.interp(some, density.grid, density.values), oracle(some), atol=1e-5 * density.values.max()
        )


def test_density_integrates_to_one(layers):
    for weights in layers:
        density = estimate_density(weights)
        assert np.trapezoid(density.values, density.grid) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("bandwidth", ["silverman/4", "silverman/10"])
def test_modes_and_cuts_are_those_of_the_exact_density(layers, bandwidth):
    for weights in layers:
        if weights.numel() > 10_000:
            continue  # the exact sum takes seconds there; benchmarks/hashing.py does it for 25.5 M weights
        density = estimate_density(weights, bandwidth)
        turns = exact_turns(weights.numpy().ravel(), density.bandwidth)
        assert abs(len(density.modes) - len(turns[::2])) <= 1
        w = weights.numpy().ravel()
        mine, exact = (
            modes[np.searchsorted(cuts, w)]
            for modes, cuts in [(density.modes, density.cuts), (turns[::2], turns[1::2])]
        )
        assert (np.abs(mine - exact) > 0.5 * density.bandwidth).mean() <= 1e-3


@pytest.mark.slow
def test_one_weight_in_ten_thousand_at_most_leaves_its_exact_mode():
    rng = np.random.default_rng(0)
    for w in (rng.standard_normal(30_000).astype(np.float32), rng.laplace(size=30_000).astype(np.float32)):
        density = estimate_density(w)
        turns = exact_turns(w, density.bandwidth)
        mine = density.modes[np.searchsorted(density.cuts, w)]
        exact = turns[::2][np.searchsorted(turns[1::2], w)]
        assert (np.abs(mine - exact) > 0.5 * density.bandwidth).mean() <= 1e-4


def test_tiles_give_the_same_extrema_as_one_grid(layers):
    for weights in layers:
        vector = as_vector(weights)
        whole = estimate_density(vector.weights)
        tiled = extrema.on_tiles(vector, whole.bandwidth)
        assert len(tiled.turns[::2]) == len(whole.modes)
        np.testing.assert_allclose(tiled.turns[::2], whole.modes, atol=0.02 * whole.bandwidth)


def test_many_tiles_join_without_a_seam(monkeypatch):
    vector = as_vector(np.random.default_rng(0).standard_normal(3000))
    one = extrema.on_tiles(vector, 0.01)
    monkeypatch.setattr(extrema, "_TILE", 500)
    many = extrema.on_tiles(vector, 0.01)
    np.testing.assert_allclose(many.turns, one.turns, rtol=1e-12)


@pytest.mark.parametrize("weights", [2, 3, 1000, 1001, 3000])
def test_tiles_and_order_change_nothing(monkeypatch, weights):
    vector = as_vector(np.random.default_rng(0).standard_normal(weights) ** 3)
    one = extrema.on_tiles(vector, 0.01)
    monkeypatch.setattr(extrema, "_TILE", 700)
    for ascending in (vector, replace(vector, weights=np.sort(vector.weights))):
        many = extrema.on_tiles(ascending, 0.01)
        np.testing.assert_allclose(many.turns, one.turns, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(many.heights, one.heights, rtol=1e-12)


def test_ascending_weights_have_the_same_bandwidths(layers):
    for weights in layers:
        vector = as_vector(weights)
        ordered = replace(vector, weights=np.sort(vector.weights))
        for rule in ("silverman/8", "scott", "median_gap"):
            assert resolve_bandwidth(ordered, rule) == pytest.approx(resolve_bandwidth(vector, rule), rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=60).filter(lambda w: len(set(w)) > 1), st.floats(1e-3, 10)
)
@example([-0.765625, -1.1754943508222875e-38], 1.0)  # the first weight's cell, rounded down
def test_modes_and_cuts_alternate_within_the_weights(weights, h):
    w = np.array(weights, np.float32)
    density = estimate_density(w, h)
    assert len(density.modes) == len(density.cuts) + 1
    mixed = np.empty(2 * len(density.modes) - 1)
    mixed[::2], mixed[1::2] = density.modes, density.cuts
    assert (np.diff(mixed) > 0).all()
    assert w.min() <= mixed[0]
    assert mixed[-1] <= w.max()


def test_modes_never_grow_with_the_bandwidth(layers):
    for weights in layers:
        counts = [len(estimate_density(weights, f"silverman/{d}").modes) for d in (16, 12, 8, 6, 4, 3, 2, 1)]
        assert all(wide <= narrow for narrow, wide in pairwise(counts)), counts


def test_a_mode_and_a_cut_closer_than_the_grid_are_found():
    # Two clusters of masses 10 and 3 drawn apart: by the exact derivative the second mode is born, together with a cut,
    # at a distance of 2.896 bandwidths. The slopes from cell to cell show it from 2.899 on.
    modes = [len(estimate_density(np.repeat([1.0, 1 + apart], [10, 3]), 1.0).modes) for apart in (2.8955, 2.8965)]
    assert modes == [1, 2]


def test_density_follows_shift_and_scale():
    w = np.random.default_rng(1).standard_normal(2000)
    plain, moved = estimate_density(w), estimate_density(8 * w + 4)
    np.testing.assert_allclose(moved.modes, 8 * plain.modes + 4, atol=1e-6)
    assert moved.bandwidth == pytest.approx(8 * plain.bandwidth)


def test_within_two_bandwidths_there_is_one_mode_and_a_wide_kernel_puts_it_at_the_mean():
    w = np.array([0.1, 0.2, 0.5])
    assert estimate_density(w, 1e6).modes == pytest.approx([w.mean()], abs=1e-9)
    assert len(estimate_density(w, 0.2).modes) == 1


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=40))
def test_under_a_very_wide_kernel_the_mode_is_the_mean(weights):
    w = np.array(weights, np.float32)
    mean = (w[w != 0] if w.any() else w).astype(np.float64).mean()
    assert estimate_density(w, 1e4).modes == pytest.approx([mean], abs=1e-6)


def test_two_equal_clusters_have_their_cut_in_the_middle():
    density = estimate_density(np.array([-1.0, -1.0, 1.0, 1.0]), 0.25)
    np.testing.assert_allclose(density.modes, [-1, 1], atol=1e-6)
    np.testing.assert_allclose(density.cuts, [0], atol=1e-9)


@pytest.mark.parametrize("divisor", [1, 3, 8.5])
def test_bandwidth_rules_are_their_formulas(divisor):
    w = np.random.default_rng(2).laplace(size=1001)
    sd, iqr, n = w.std(ddof=1), np.subtract(*np.percentile(w, [75, 25])), 1001
    gaps = np.diff(np.unique(w))
    formulas = {
        "silverman": 0.9 * min(sd, iqr / 1.34) * n**-0.2,
        "scott": 1.06 * sd * n**-0.2,
        "median_gap": np.median(gaps),
        "mean_gap": gaps.mean(),
    }
    for rule, h in formulas.items():
        assert resolve_bandwidth(as_vector(w), f"{rule}/{divisor}") == pytest.approx(h / divisor, rel=1e-9)


def test_a_layer_without_spread_between_quartiles_falls_back_on_its_deviation():
    w = np.full(1000, 2.0)
    w[:100] = np.linspace(-1, 1, 100)
    assert resolve_bandwidth(as_vector(w), "silverman") == pytest.approx(0.9 * w.std(ddof=1) * 1000**-0.2)


def test_contrast_drops_the_weakest_modes_first_and_keeps_one():
    w = np.random.default_rng(3).standard_normal(4000)
    counts = [len(estimate_density(w, contrast=c).modes) for c in (0, 0.01, 0.05, 0.2, 0.5, 0.999)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[3] > counts[-1] >= 1


def test_contrast_by_hand():
    # Peaks 10, 5, 8 with cuts 4 and 1: contrasts 0.6, 0.2, 0.875. The middle one goes with the cut of height 4.
    turns, heights = np.arange(5.0), np.array([10.0, 4.0, 5.0, 1.0, 8.0])
    modes, cuts = strong_modes(turns, heights, 0.3)
    assert modes.tolist() == [0.0, 4.0]
    assert cuts.tolist() == [3.0]
    # Now 1 - 1/10 and 1 - 1/8 remain: at 0.88 the lower peak goes too.
    assert strong_modes(turns, heights, 0.88)[0].tolist() == [0.0]


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.95))
def test_after_pruning_every_contrast_exceeds_the_limit(seed, limit):
    rng = np.random.default_rng(seed)
    n = 2 * int(rng.integers(1, 20)) + 1
    heights = np.empty(n)
    heights[::2], heights[1::2] = rng.uniform(0.5, 1, len(heights[::2])), rng.uniform(0.01, 0.5, len(heights[1::2]))
    modes, cuts = strong_modes(np.arange(float(n)), heights, limit)
    kept = np.sort(np.concatenate([modes, cuts])).astype(int)
    assert (kept % 2 == np.arange(len(kept)) % 2).all()
    if len(modes) > 1:
        h = heights[kept]
        walls = np.concatenate([[0], h[1::2], [0]])
        assert (1 - np.maximum(walls[1:], walls[:-1]) / h[::2] > limit).all()


def test_compiled_and_numpy_passes_agree():
    rng = np.random.default_rng(4)
    for dtype, size in ((np.float32, 20_001), (np.float64, 20_001), (np.float32, 700_000)):  # the last in threads
        w = rng.laplace(size=size).astype(dtype)
        w[::7] = w[0]
        low, high = float(w.min()), float(w.max())
        assert passes.deviation(w) == pytest.approx(passes_numpy.deviation(w), rel=1e-9)
        step = (high - low) / 1000
        binned = [own.bin_cubic(w, low - 3 * step, step, 1010) for own in (passes, passes_numpy)]
        np.testing.assert_allclose(*binned, atol=1e-7)
        half = np.exp(-0.5 * (np.arange(20) / 4) ** 2)
        np.testing.assert_allclose(*(own.smooth(binned[0], half) for own in (passes, passes_numpy)), atol=1e-9)
        edges = np.unique(rng.choice(w, 40))
        expected = np.searchsorted(edges, w, side="right")
        for own in (passes, passes_numpy):
            codes, member, lone = own.assort(w, low, high, edges)
            np.testing.assert_array_equal(codes, expected)
            for cell in range(len(edges) + 1):
                inside = np.unique(w[expected == cell])
                assert np.isnan(member[cell]) if inside.size == 0 else member[cell] in inside
                assert lone[cell] == (inside.size == 1)
            count, total = own.sums(w, codes, len(edges) + 1)
            np.testing.assert_array_equal(count, np.bincount(expected, minlength=len(edges) + 1))
            np.testing.assert_allclose(total, np.bincount(expected, w, len(edges) + 1), rtol=1e-9)
        values = rng.standard_normal(len(edges) + 2).astype(dtype)
        np.testing.assert_array_equal(passes.take(values, codes), values[expected])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100, 101, 300_000, 700_001])
def test_quartiles_are_numpys(size):
    rng = np.random.default_rng(size)
    ordinary = rng.standard_normal(size)
    tied, sorted_ = rng.choice([0.0, 1.0, 2.0], size), np.sort(ordinary)
    striped = np.where(np.arange(size) % 4 == 0, 5.0, ordinary)  # a sample in step with the stripes sees nothing else
    for w in (ordinary, tied, sorted_, striped):
        w = w.astype(np.float32)
        np.testing.assert_allclose(passes.quartiles(w), np.percentile(w.astype(np.float64), [25, 75]), rtol=1e-12)


@pytest.mark.parametrize("bandwidth", ["silverman/8", "scott", "median_gap", "mean_gap", 0.03])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_exact_zeros_set_no_density(bandwidth, dtype):
    rng = np.random.default_rng(8)
    live = rng.standard_normal(1500).astype(dtype)
    live = live[live != 0] + (dtype(5) if dtype == np.float16 else 0)  # for one dtype zero lies beyond all weights
    mixed = np.insert(live, rng.integers(0, len(live), 2000), rng.choice([0.0, -0.0], 2000))
    plain, sparse = (estimate_density(w, bandwidth, contrast=0.01) for w in (live, mixed))
    assert plain.bandwidth == sparse.bandwidth
    for name in ("grid", "values", "modes", "cuts"):
        np.testing.assert_array_equal(getattr(sparse, name), getattr(plain, name))


def test_density_without_numba_is_the_same(monkeypatch):
    w = np.random.default_rng(5).standard_normal(5000).astype(np.float32)
    compiled = estimate_density(w)
    for module in ("redlab.hashing.density", "redlab.hashing.extrema", "redlab.hashing.vector"):
        monkeypatch.setattr(f"{module}.passes", passes_numpy)
    plain = estimate_density(w)
    np.testing.assert_allclose(plain.modes, compiled.modes, atol=1e-9)
    assert len(plain.cuts) == len(compiled.cuts)


@pytest.mark.parametrize("scale", [1e30, 1e-40, 1.0])
def test_magnitude_does_not_matter(scale):
    w = np.random.default_rng(6).standard_normal(500)
    plain = estimate_density(w)
    for dtype in (np.float32, np.float64):
        density = estimate_density((w * scale).astype(dtype))
        assert len(density.modes) == pytest.approx(len(plain.modes), abs=2)
    assert len(estimate_density(w * 1e300).modes) == len(plain.modes)


def test_a_constant_layer_is_one_mode_of_no_width():
    density = estimate_density(torch.full((3, 3), 0.5))
    assert density.modes.tolist() == [0.5]
    assert (len(density.cuts), density.bandwidth) == (0, 0.0)


def test_a_frame_marks_its_modes_and_cuts():
    density = estimate_density(torch.randn(100))
    frame = density.frame(layer="conv1")
    assert (frame["mark"] == "mode").sum() == len(density.modes)
    assert (frame["mark"] == "cut").sum() == len(density.cuts)
    assert set(frame["layer"]) == {"conv1"}


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        (torch.tensor([1.0, float("nan")]), ValueError, "1 NaN and 0 infinite values of 2, the first at flat index 1"),
        (torch.tensor([float("inf"), 1.0, float("-inf")]), ValueError, "2 infinite"),
        (torch.tensor([1, 2]), TypeError, "int64"),
        (torch.tensor([True]), TypeError, "bool"),
        (torch.tensor([1j]), TypeError, "complex"),
        (np.array([1, 2]), TypeError, "int64"),
        (torch.empty(0, 3), ValueError, "empty"),
    ],
)
def test_bad_weights_are_refused_with_the_reason(weights, error, words):
    with pytest.raises(error, match=words):
        estimate_density(weights)


@pytest.mark.parametrize(
    "bandwidth", ["silvermann", "silverman/0", "scott/x", "silverman/-2", 0.0, -1.0, float("nan"), ""]
)
def test_bad_bandwidths_are_refused(bandwidth):
    with pytest.raises(ValueError, match="bandwidth"):
        estimate_density(torch.randn(50), bandwidth)


@pytest.mark.parametrize("contrast", [-0.1, 1.0, float("nan")])
def test_bad_contrasts_are_refused(contrast):
    with pytest.raises(ValueError, match="contrast"):
        estimate_density(torch.randn(50), contrast=contrast)
