"""Hashing weights with ResNet-50's layer shapes, against sorting them and against other density estimators.

``python -m benchmarks.hashing``. Random normal weights; 25.5 M in 54 layers. The peers only estimate the density, at
the same bandwidth and on a grid as fine; ours also finds modes and cuts and replaces every weight. scipy and
scikit-learn evaluate the exact sum and get the sizes that they finish. Row scales are measured against hashing without.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import torchvision
from KDEpy import FFTKDE
from numba import njit
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity
from statsmodels.nonparametric.kde import KDEUnivariate

from benchmarks.timing import interleaved, store
from redlab import estimate_density, hash_weights
from redlab.hashing.density import resolve_bandwidth, strong_modes
from redlab.hashing.extrema import CELLS
from redlab.hashing.rules import Rule
from redlab.hashing.vector import as_vector
from redlab.progress import progress


def main() -> None:
    shaped = resnet50()
    publish("hashing ResNet-50 with one scale a row", interleaved(scaled(shaped), 7, "kde"))
    publish("balanced rounding of ResNet-50", interleaved(balanced(shaped), 5, "np.sort"))
    layers = [layer.ravel() for layer in shaped]
    for bandwidth in ("silverman", "silverman/8", "silverman/10"):
        publish(f"hashing ResNet-50, {bandwidth}", interleaved(whole_network(layers, bandwidth), 5, "np.sort"))
    largest = max(layers, key=len)
    publish("hashing 2.4 M weights, silverman/8", interleaved(whole_network([largest], "silverman/8"), 7, "np.sort"))
    for size in (2_304, 36_864):
        publish(f"density of {size:,} weights, silverman/8", interleaved(one_layer(largest[:size]), 3, "redlab"))
    publish("weights in another mode than the exact density gives", exactness(layers[::6]))  # minutes each million


def publish(benchmark: str, frame: pd.DataFrame) -> None:
    print(f"\n{benchmark}\n{frame.to_string(index=False, float_format='{:.3g}'.format)}", flush=True)
    store(benchmark, frame)


def resnet50() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [p.shape for p in torchvision.models.resnet50().parameters() if p.dim() > 1]
    return [0.02 * rng.standard_normal(tuple(shape), dtype=np.float32) for shape in shapes]


def scaled(layers: list[np.ndarray]) -> dict:
    """Hashing with and without row scales, and with steps by least squares."""
    uniform = {"rule": "uniform", "max_error": 0.1}
    ways: dict[str, dict] = {"kde": {}, "uniform": uniform}
    ways |= {f"{name}, row scales": options | {"scale": "row"} for name, options in ways.items()}
    ways["uniform, row scales, mse"] = uniform | {"scale": "row", "clip": "mse"}
    return {name: partial(_hash, layers, options) for name, options in ways.items()}


def balanced(layers: list[np.ndarray]) -> dict:
    """One pass of balanced rounding over all layers, and hashing with it: without and with row scales."""
    uniform = {"rule": "uniform", "max_error": 0.1}
    cells = [Rule(**uniform).cells(as_vector(layer)) for layer in layers]
    return {
        "np.sort": lambda: [np.sort(layer.ravel()) for layer in layers],
        "one pass": lambda: [own.balanced() for own in cells],
        "uniform, nearest": partial(_hash, layers, uniform),
        "uniform, balanced": partial(_hash, layers, uniform | {"rounding": "balanced"}),
        "uniform, row scales, balanced": partial(_hash, layers, uniform | {"rounding": "balanced", "scale": "row"}),
    }


def _hash(layers: list[np.ndarray], options: dict) -> None:
    for layer in layers:
        hash_weights(layer, **options)


def whole_network(layers: list[np.ndarray], bandwidth: str) -> dict:
    widths = [resolve_bandwidth(as_vector(layer), bandwidth) for layer in layers]
    return {
        "np.sort": lambda: [np.sort(layer) for layer in layers],
        "redlab": lambda: [hash_weights(layer, bandwidth=bandwidth) for layer in layers],
        "copy": lambda: [layer.copy() for layer in layers],
        "KDEpy FFTKDE": lambda: [fftkde(layer, h) for layer, h in zip(layers, widths, strict=True)],
        "statsmodels": lambda: [statsmodels(layer, h) for layer, h in zip(layers, widths, strict=True)],
    }


def one_layer(weights: np.ndarray) -> dict:
    h = resolve_bandwidth(as_vector(weights), "silverman/8")
    grid = grid_of(weights, h)
    return {
        "redlab": lambda: estimate_density(weights, h),
        "KDEpy FFTKDE": lambda: fftkde(weights, h),
        "statsmodels": lambda: statsmodels(weights, h),
        "scipy gaussian_kde": lambda: gaussian_kde(weights, h / weights.std(ddof=1))(grid),
        "scikit-learn": lambda: KernelDensity(bandwidth=h).fit(weights[:, None]).score_samples(grid[:, None]),
    }


def grid_of(weights: np.ndarray, h: float) -> np.ndarray:
    low, high = float(weights.min()) - 6 * h, float(weights.max()) + 6 * h
    return np.linspace(low, high, int((high - low) / h * CELLS) + 2)


def fftkde(weights: np.ndarray, h: float) -> np.ndarray:
    return FFTKDE(bw=h, kernel="gaussian").fit(weights).evaluate(grid_of(weights, h))


def statsmodels(weights: np.ndarray, h: float) -> np.ndarray:
    estimate = KDEUnivariate(weights.astype(float))
    estimate.fit(bw=h, fft=True, gridsize=len(grid_of(weights, h)), cut=6)
    return estimate.density


def exactness(layers: list[np.ndarray]) -> pd.DataFrame:
    """Share of all weights whose mode is farther than h/2 from the one that the exact density gives them."""
    rows = []
    for bandwidth in ("silverman", "silverman/8"):
        moved = weights = 0
        most = 0
        for layer in progress(layers, f"exact density, {bandwidth}"):
            mine = estimate_density(layer, bandwidth)
            modes, cuts = exact_modes(np.sort(layer).astype(np.float64), mine.bandwidth)
            theirs = modes[np.searchsorted(cuts, layer)]
            ours = mine.modes[np.searchsorted(mine.cuts, layer)]
            moved += int((np.abs(theirs - ours) > 0.5 * mine.bandwidth).sum())
            weights += layer.size
            strong = len(estimate_density(layer, bandwidth, contrast=0.01).modes)
            most = max(
                most, abs(strong - len(contrasted(np.sort(layer).astype(np.float64), mine.bandwidth, modes, cuts)))
            )
        rows.append(
            {"bandwidth": bandwidth, "weights": weights, "share": moved / weights, "modes_off_at_contrast": most}
        )
    return pd.DataFrame(rows)


def exact_modes(ordered: np.ndarray, h: float) -> tuple[np.ndarray, np.ndarray]:
    """Zeros of the exact derivative: bracketed on a grid of h/32, then bisected.

    Where the derivative comes near zero between grid points, the vertex of a parabola through three of them is tried.
    """
    grid = np.arange(ordered[0] - h, ordered[-1] + h, h / 32)
    values = derivative(ordered, grid, h)
    a, b, c = values[:-2], values[1:-1], values[2:]
    near = (np.abs(b) <= np.abs(a)) & (np.abs(b) <= np.abs(c)) & (a * b > 0) & (b * c > 0)
    k = np.flatnonzero(near)
    extra = grid[k + 1] - h / 32 * (c[k] - a[k]) / (2 * (a[k] - 2 * b[k] + c[k]))
    grid = np.unique(np.concatenate([grid, extra]))
    rising = derivative(ordered, grid, h) > 0
    turn = np.flatnonzero(rising[1:] != rising[:-1])
    low, high = grid[turn], grid[turn + 1]
    for _ in range(20):
        middle = 0.5 * (low + high)
        same = (derivative(ordered, middle, h) > 0) == rising[turn]
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    turns = 0.5 * (low + high)
    return turns[::2], turns[1::2]


def contrasted(ordered: np.ndarray, h: float, modes: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    turns = np.sort(np.concatenate([modes, cuts]))
    return strong_modes(turns, height(ordered, turns, h), 0.01)[0]


@njit
def derivative(ordered, points, h):
    out = np.zeros(points.size)
    first = 0
    for i in range(points.size):
        while first < ordered.size and ordered[first] < points[i] - 8.5 * h:
            first += 1
        j = first
        while j < ordered.size and ordered[j] < points[i] + 8.5 * h:
            z = (ordered[j] - points[i]) / h
            out[i] += z * np.exp(-0.5 * z * z)
            j += 1
    return out


@njit
def height(ordered, points, h):
    out = np.zeros(points.size)
    for i in range(points.size):
        for w in ordered[np.searchsorted(ordered, points[i] - 8.5 * h) : np.searchsorted(ordered, points[i] + 8.5 * h)]:
            out[i] += np.exp(-0.5 * ((w - points[i]) / h) ** 2)
    return out


if __name__ == "__main__":
    main()
