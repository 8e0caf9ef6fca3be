"""The density of a layer's weights: a Gaussian kernel estimate, its modes and the cuts between them.

d(w) = 1/(N h) sum_v K((w - v)/h) over the N scalars of a layer that are not exactly zero, as RED (arXiv 2105.14797)
looks at weights. Exact zeros belong to no mode, so that they set no bandwidth (our choice).
"""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from numpy import ndarray

from redlab.hashing import passes
from redlab.hashing.extrema import find_extrema
from redlab.hashing.vector import Vector, as_vector, binary_scale
from redlab.options import check_number, plain_options

_BANDWIDTH = re.compile(r"(median_gap|mean_gap|scott|silverman)(?:/([0-9.eE+-]+))?")


@dataclass(frozen=True, eq=False)
class Density:
    """A kernel density estimate.

    A density of discrete or spiky data misleads: a layer already hashed shows one peak per value, as wide as the
    bandwidth, where there is no width at all.

    Attributes:
        grid: (m,) float64 ascending, in units of the weights, six bandwidths beyond them at either end. Where a grid of
            step h/12 would exceed 4 M points, just the modes and cuts.
        values: (m,) float64, the density there, in 1/units; it integrates to 1 (inf for a constant layer).
        modes: (p,) the local maxima M_1 < ... < M_p.
        cuts: (p - 1,) the local minima between them.
        bandwidth: h, in units of the weights; 0.0 for a constant layer.

    Example:
        >>> density = estimate_density(torch.tensor([1.0, 1.0, 2.0]), bandwidth=0.1)
        >>> density.modes.round(3).tolist(), np.trapezoid(density.values, density.grid).round(3).item()
        ([1.0, 2.0], 1.0)
        >>> density.frame()["mark"].value_counts()[["mode", "cut"]].tolist()
        [2, 1]
    """

    grid: Float64[ndarray, " m"]
    values: Float64[ndarray, " m"]
    modes: Float64[ndarray, " p"]
    cuts: Float64[ndarray, " c"]
    bandwidth: float

    def frame(self, **columns: object) -> pd.DataFrame:
        """A tidy frame for ``plot_density``: weight, density, mark ("", "mode" or "cut"), and what ``columns`` says."""
        weight = np.concatenate([self.grid, self.modes, self.cuts])
        mark = np.repeat(["", "mode", "cut"], [len(self.grid), len(self.modes), len(self.cuts)])
        density = np.interp(weight, self.grid, self.values)
        return pd.DataFrame({"weight": weight, "density": density, "mark": mark, **columns})


@plain_options
def estimate_density(
    weights: torch.Tensor | ndarray, bandwidth: str | float = "silverman/8", contrast: float = 0.0
) -> Density:
    """Estimate the density of all scalars but exact zeros in ``weights``, of any shape.

    Where all are zero, it is theirs.

    Arguments:
        bandwidth: "median_gap" or "mean_gap" (of consecutive distinct weights), "scott" = 1.06 sd N^(-1/5),
            "silverman" = 0.9 min(sd, IQR/1.34) N^(-1/5) (Silverman 1986, eq. 3.31; sd with N - 1; sd alone where the
            IQR is 0), any of them over a number, or h itself. The papers leave it open; the default is our choice
            (docs/defaults.md).
        contrast: in [0, 1): modes that rise above their higher neighbouring cut by at most this share of their own
            height are dropped, weakest first (our choice). 0, the papers' choice, keeps all (docs/defaults.md).

    Raises:
        TypeError: integer, bool or complex weights, or neither tensor nor array; an option of another kind.
        ValueError: no weights, NaN or inf among them, an unknown bandwidth or one that is not positive.

    Example:
        >>> density = estimate_density(torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0]), bandwidth=0.25)
        >>> density.modes.round(3).tolist(), density.cuts.shape
        ([-1.0, 1.0], (1,))
    """
    parse_bandwidth(bandwidth)
    check_number("contrast", contrast, below=1)
    vector = as_vector(weights)
    if exponent := binary_scale(vector):
        h = bandwidth if isinstance(bandwidth, str) else float(np.ldexp(bandwidth, -exponent))
        small = vector.times_two_to(-exponent)
        return _times(density_of(small, resolve_bandwidth(small, h), contrast), exponent)
    return density_of(vector, resolve_bandwidth(vector, bandwidth), contrast)


def density_of(vector: Vector, h: float, contrast: float = 0.0) -> Density:
    """``estimate_density`` of a checked vector under a bandwidth in its own units; 0.0 is for a constant layer."""
    if h == 0.0:
        point = vector.weights[:1].astype(np.float64)
        return Density(point, np.array([np.inf]), point, np.empty(0), 0.0)
    found = find_extrema(vector, h)
    modes, cuts = strong_modes(found.turns, found.heights, contrast)
    return Density(found.grid, found.values, modes, cuts, h)


def _times(density: Density, exponent: int) -> Density:
    """The density of the weights times 2^exponent, exactly."""
    grid, modes, cuts = (np.ldexp(part, exponent) for part in (density.grid, density.modes, density.cuts))
    return Density(grid, np.ldexp(density.values, -exponent), modes, cuts, float(np.ldexp(density.bandwidth, exponent)))


def resolve_bandwidth(vector: Vector, bandwidth: str | float) -> float:
    """The bandwidth h that a rule or number means for these weights; 0.0 where all are equal and a rule was given."""
    rule, number = parse_bandwidth(bandwidth)
    return _rule_of_thumb(vector, rule) / number if rule else number


def parse_bandwidth(bandwidth: str | float) -> tuple[str, float]:
    """("silverman", 8.0) for "silverman/8"; ("", 0.05) for 0.05.

    Raises:
        ValueError: neither a known rule nor a positive number.
    """
    if not isinstance(bandwidth, str):
        if not 0 < bandwidth < np.inf:
            raise ValueError(f"bandwidth must be a positive finite number, not {bandwidth}")
        return "", float(bandwidth)
    match = _BANDWIDTH.fullmatch(bandwidth)
    divisor = _positive(match[2] or "1") if match else None
    if match is None or divisor is None:
        raise ValueError(
            f"unknown bandwidth {bandwidth!r}: use median_gap, mean_gap, scott or silverman, any of them over a "
            "positive number (silverman/8), or a positive number"
        )
    return match[1], divisor


def _positive(text: str) -> float | None:
    try:
        return number if 0 < (number := float(text)) < np.inf else None
    except ValueError:
        return None


def _rule_of_thumb(vector: Vector, rule: str) -> float:
    if rule.endswith("_gap"):
        gaps = np.diff(np.unique(vector.weights).astype(np.float64))
        return 0.0 if gaps.size == 0 else float(np.median(gaps) if rule == "median_gap" else gaps.mean())
    if vector.low == vector.high:
        return 0.0
    if rule == "scott":
        return 1.06 * vector.spread * vector.size**-0.2
    first, third = passes.quartiles(vector.weights)
    return 0.9 * min(vector.spread, (third - first) / 1.34 or vector.spread) * vector.size**-0.2


def strong_modes(
    turns: Float64[ndarray, " n"], heights: Float64[ndarray, " n"], contrast: float
) -> tuple[ndarray, ndarray]:
    """The modes and cuts that stay when the weak ones are removed.

    A mode's contrast is its height above its higher neighbouring cut, divided by its own height. The mode with the
    smallest contrast is removed together with its higher cut, until all contrasts exceed ``contrast``. One mode always
    stays. Our choice: the papers keep every mode.

    The heights 5 1 3 2 8 (modes 5, 3, 8; cuts 1, 2) have the contrasts 0.8, 0.33 and 0.75. At ``contrast`` 0.5 the mode
    3 is removed with the cut 2: 5 1 8 stay.

    Arguments:
        turns: positions of alternating maxima and minima, ascending, a maximum at either end (n odd).
        heights: the density there.
        contrast: in [0, 1); 0 keeps every mode.

    Raises:
        ValueError: a contrast outside [0, 1).
    """
    check_number("contrast", contrast, below=1)
    if contrast == 0:
        return turns[::2], turns[1::2]
    kept = _prune(heights.tolist(), contrast)
    return turns[::2][kept[::2] // 2], turns[1::2][kept[1::2] // 2]


def _prune(heights: list[float], limit: float) -> ndarray:
    """Indices of the extrema that stay; neighbours are a linked list, contrasts a heap with stale entries."""
    n = len(heights)
    left, right = list(range(-1, n - 1)), [*range(1, n), -1]
    alive = [True] * n

    def contrast(mode: int) -> float:
        return 1 - max(heights[cut] for cut in (left[mode], right[mode]) if cut >= 0) / heights[mode]

    heap = [(contrast(mode), mode) for mode in range(0, n, 2)] if n > 1 else []
    heapq.heapify(heap)
    while heap and heap[0][0] <= limit:
        value, mode = heapq.heappop(heap)
        if not alive[mode] or (left[mode] < 0 and right[mode] < 0) or value != contrast(mode):
            continue  # removed, the last one, or its neighbours changed since (a fresh entry is in the heap then)
        cut = max((c for c in (left[mode], right[mode]) if c >= 0), key=heights.__getitem__)
        alive[mode] = alive[cut] = False
        before, after = (left[cut], right[mode]) if cut < mode else (left[mode], right[cut])
        if before >= 0:
            right[before] = after
        if after >= 0:
            left[after] = before
        for near in [near for near in (before, after) if near >= 0]:
            # The mode there, or where a cut stands the modes beside it: their neighbours have changed.
            for mode in (near,) if near % 2 == 0 else (left[near], right[near]):
                if mode >= 0 and (left[mode] >= 0 or right[mode] >= 0):
                    heapq.heappush(heap, (contrast(mode), mode))
    return np.flatnonzero(alive)
