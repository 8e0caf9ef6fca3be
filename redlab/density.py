"""The density of a layer's weights: a Gaussian kernel estimate, its modes and the cuts between them.

d(w) = 1/(N h) sum_v K((w - v)/h) over the N scalars of a layer (RED, arXiv 2105.14797; METHODS section 2). The estimate is
computed on a grid of step h/16: cubic binning, which keeps each weight's first three moments, then one Gaussian filter cut at
6 h; extrema are placed between the cells by the quartic through five of them. The grid follows the bandwidth, never a fixed number of points.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from numpy import ndarray
from scipy.ndimage import gaussian_filter1d

from redlab import passes
from redlab.contrast import strong_modes

CELLS = 16  # grid cells per bandwidth
REACH = 6 * CELLS  # the kernel ends after six bandwidths
_JUMP = 2 * REACH + 8  # cells that a gap between weights is shortened to, where the density falls to zero in it
_WHOLE_GRID = 1 << 22  # up to here the grid is one array; beyond it is walked tile by tile
_TILE = 1 << 20
_FLAT = 1e-11  # relative differences below are rounding: a plateau
_NOISE = 1e-10  # heights below this share of the weights' number are zero: the kernel's cut tail wiggles there
_BANDWIDTH = re.compile(r"(median_gap|mean_gap|scott|silverman)(?:/([0-9.eE+-]+))?")


@dataclass(frozen=True, eq=False)
class Density:
    """A kernel density estimate.

    A density of discrete or spiky data misleads: a layer already hashed shows one peak per value, as wide as the
    bandwidth, where there is no width at all.

    Attributes:
        grid: (m,) float64 ascending, in units of the weights, six bandwidths beyond them at either end. Where a grid of
            step h/16 would exceed 4 M points, just the modes and cuts.
        values: (m,) float64, the density there, in 1/units; it integrates to 1 (inf for a constant layer).
        modes: (p,) the local maxima M_1 < ... < M_p.
        cuts: (p - 1,) the local minima between them.
        bandwidth: h, in units of the weights; 0.0 for a constant layer.
    """

    grid: Float64[ndarray, " m"]
    values: Float64[ndarray, " m"]
    modes: Float64[ndarray, " p"]
    cuts: Float64[ndarray, " c"]
    bandwidth: float

    def frame(self, **columns: object) -> pd.DataFrame:
        """A tidy frame (weight, density, mark: "", "mode" or "cut"; and what ``columns`` says), for ``plot_density``."""
        weight = np.concatenate([self.grid, self.modes, self.cuts])
        mark = np.repeat(["", "mode", "cut"], [len(self.grid), len(self.modes), len(self.cuts)])
        density = np.interp(weight, self.grid, self.values)
        return pd.DataFrame({"weight": weight, "density": density, "mark": mark, **columns})


def estimate_density(
    weights: torch.Tensor | ndarray, bandwidth: str | float = "silverman/8", contrast: float = 0.0
) -> Density:
    """Estimate the density of all scalars in ``weights``, of any shape.

    Arguments:
        bandwidth: "median_gap" or "mean_gap" (of consecutive distinct weights), "scott" = 1.06 sd N^(-1/5), "silverman" =
            0.9 min(sd, IQR/1.34) N^(-1/5) (Silverman 1986, eq. 3.31; sd with N - 1; sd alone where the IQR is 0), any of
            them over a number, or h itself. The default is our choice: METHODS section 2 holds the evidence.
        contrast: in [0, 1): modes that rise above their higher neighbouring cut by at most this share of their own
            height are dropped, weakest first (our choice). 0 keeps all.

    Raises:
        TypeError: integer, bool or complex weights.
        ValueError: no weights, NaN or inf among them, an unknown bandwidth or one that is not positive.

    Example:
        >>> import numpy as np
        >>> density = estimate_density(np.array([-1.0, -1.0, 1.0, 1.0, 1.0]), bandwidth=0.25)
        >>> density.modes.round(3).tolist(), density.cuts.shape
        ([-1.0, 1.0], (1,))
    """
    vector = as_vector(weights)
    exponent = binary_scale(vector)
    if exponent:
        h = bandwidth if isinstance(bandwidth, str) else np.ldexp(bandwidth, -exponent)
        small = estimate_density(np.ldexp(vector, -exponent), h, contrast)
        ends = (np.ldexp(part, exponent) for part in (small.grid, small.modes, small.cuts, small.bandwidth))
        grid, modes, cuts, h = ends
        return Density(grid, np.ldexp(small.values, -exponent), modes, cuts, float(h))
    h = resolve_bandwidth(vector, bandwidth)
    if h == 0.0:
        point = vector[:1].astype(np.float64)
        return Density(point, np.array([np.inf]), point, np.empty(0), 0.0)
    return _estimate(vector, h, contrast)


def as_vector(weights: torch.Tensor | ndarray) -> ndarray:
    """``weights`` as a contiguous, finite float32 or float64 vector (16-bit types become float32, exactly).

    Raises:
        TypeError: integer, bool or complex weights.
        ValueError: no weights, or NaN or inf among them.
    """
    if isinstance(weights, torch.Tensor):
        if not weights.is_floating_point():
            raise TypeError(f"weights must be real floating-point numbers, not {weights.dtype}")
        weights = weights.detach().cpu()
        weights = (weights if weights.dtype in (torch.float32, torch.float64) else weights.float()).numpy()
    weights = np.asarray(weights)
    if not np.issubdtype(weights.dtype, np.floating):
        raise TypeError(f"weights must be real floating-point numbers, not {weights.dtype}")
    if weights.size == 0:
        raise ValueError(f"weights are empty: shape {weights.shape}")
    vector = np.ascontiguousarray(weights, np.float64 if weights.dtype.itemsize > 4 else np.float32).ravel()
    # The sum of finite float32 weights is finite in float64: one fast pass; look closer where it is not.
    with np.errstate(over="ignore", invalid="ignore"):
        total = vector.sum(dtype=np.float64)
    if not np.isfinite(total) and not (finite := np.isfinite(vector)).all():
        raise ValueError(
            f"weights hold {np.isnan(vector).sum()} NaN and {np.isinf(vector).sum()} infinite values of {vector.size}"
            f", the first at flat index {int(np.argmin(finite))}"
        )
    return vector


def resolve_bandwidth(vector: ndarray, bandwidth: str | float) -> float:
    """The bandwidth h that a rule or number means for these weights; 0.0 where all are equal and a rule was given."""
    if not isinstance(bandwidth, str):
        if not 0 < bandwidth < np.inf:
            raise ValueError(f"bandwidth must be a positive finite number, not {bandwidth}")
        return float(bandwidth)
    match = _BANDWIDTH.fullmatch(bandwidth)
    divisor = _positive(match[2] or "1") if match else None
    if divisor is None:
        raise ValueError(
            f"unknown bandwidth {bandwidth!r}: use median_gap, mean_gap, scott or silverman, any of them over a positive "
            "number (silverman/8), or a positive number"
        )
    return _rule_of_thumb(vector, match[1]) / divisor


def _positive(text: str) -> float | None:
    try:
        return number if 0 < (number := float(text)) < np.inf else None
    except ValueError:
        return None


def _rule_of_thumb(vector: ndarray, rule: str) -> float:
    if rule.endswith("_gap"):
        gaps = np.diff(np.unique(vector).astype(np.float64))
        return 0.0 if gaps.size == 0 else float(np.median(gaps) if rule == "median_gap" else gaps.mean())
    low, high, _, spread = passes.moments(vector)
    if low == high:
        return 0.0
    if rule == "scott":
        return 1.06 * spread * vector.size**-0.2
    first, third = passes.quartiles(vector, low, high)
    return 0.9 * min(spread, (third - first) / 1.34 or spread) * vector.size**-0.2


def binary_scale(vector: ndarray) -> int:
    """The power of two to divide float64 weights by, so that their squares neither overflow nor vanish; mostly 0."""
    if vector.dtype == np.float32:
        return 0  # everything is computed in float64
    exponent = int(np.frexp(max(abs(vector.min()), abs(vector.max())))[1])
    return exponent if abs(exponent) > 300 else 0


def _estimate(vector: ndarray, h: float, contrast: float) -> Density:
    low, high = float(vector.min()), float(vector.max())
    step = h / CELLS
    if (high - low) / step + 2 * REACH + 4 > _WHOLE_GRID:
        return _on_tiles(vector, h, contrast)
    origin = low - (REACH + 2) * step
    size = int((high - origin) / step) + REACH + 4
    heights = _smooth(passes.bin_cubic(vector, origin, step, size), vector.size)
    turns, peaks = _extrema(*_slopes(heights, 0, size - 1))
    modes, cuts = strong_modes(turns, peaks, contrast)
    scale = 1.0 / (vector.size * step)
    modes, cuts = origin + modes * step, origin + cuts * step
    if high - low <= 2 * h:  # within two bandwidths there is one mode, which the grid would place to h/1000 only
        modes = np.array([_only_mode(vector, low, high, h)])
    grid = origin + np.arange(size) * step
    return Density(grid, heights * scale, np.clip(modes, low, high), cuts, h)


def _smooth(counts: Float64[ndarray, " m"], weights: int) -> Float64[ndarray, " m"]:
    # No FFT: its rounding makes false modes in the tails, where this sum of positive terms keeps its digits.
    heights = gaussian_filter1d(counts, CELLS, radius=REACH, mode="constant")
    heights[heights < _NOISE * weights] = 0.0
    return heights


def _slopes(heights: ndarray, start: int, stop: int) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Where the curve changes direction in cells [start, stop): (index, slope to the next, height, vertex), no plateaus.

    Kept are the slopes beside a change of sign, and the first and last, so that tiles can be joined. ``vertex`` is where
    an extremum at that cell lies, in cells from it.
    """
    slope = np.diff(heights[start : stop + 1])
    index = np.flatnonzero(np.abs(slope) > _FLAT * heights[start:stop])
    slope = slope[index]
    turn = np.flatnonzero((slope[1:] > 0) != (slope[:-1] > 0))
    kept = np.unique(np.concatenate([turn, turn + 1, [0, len(slope) - 1]])) if len(slope) else turn
    index = index[kept] + start
    return index, slope[kept], heights[index], _vertex(heights, index)


def _vertex(heights: ndarray, index: ndarray) -> ndarray:
    """Newton steps to the extremum of the quartic through five cells, from the middle one, in cells."""
    a, b, c, d, e = (heights[np.clip(index + k, 0, len(heights) - 1)] for k in (-2, -1, 0, 1, 2))
    first, second = (a - 8 * b + 8 * d - e) / 12, (-a + 16 * b - 30 * c + 16 * d - e) / 12
    third, fourth = (-a + 2 * b - 2 * d + e) / 2, a - 4 * b + 6 * c - 4 * d + e
    x = np.zeros(len(index))
    for _ in range(4):
        slope = first + x * (second + x * (third / 2 + x * fourth / 6))
        curve = second + x * (third + x * fourth / 2)
        x = np.clip(x - np.divide(slope, curve, out=np.zeros_like(x), where=curve != 0), -1, 1)
    return x


def _extrema(index: ndarray, slope: ndarray, height: ndarray, vertex: ndarray) -> tuple[ndarray, ndarray]:
    """Positions (in cells) and heights of the alternating maxima and minima, the first and last of them maxima."""
    turn = np.flatnonzero((slope[1:] > 0) != (slope[:-1] > 0))
    left, right = index[turn] + 1, index[turn + 1]
    # One cell between rise and fall: its vertex. A plateau: its middle.
    position = np.where(left == right, left + vertex[turn + 1], 0.5 * (left + right))
    return position, height[turn + 1]


def _only_mode(vector: ndarray, low: float, high: float, h: float) -> float:
    """The maximum of a density whose weights lie within two bandwidths: a fixed point of the mean shift."""
    if low == high:
        return low
    step = (high - low) / 1024
    counts = passes.bin_cubic(vector, low - step, step, 1028)
    place = low + step * np.arange(-1, 1027)
    mode = float(counts @ place / counts.sum())
    for _ in range(100):
        pull = counts * np.exp(-0.5 * ((place - mode) / h) ** 2)
        moved = float(pull @ place / pull.sum())
        if abs(moved - mode) <= 1e-12 * (high - low):
            break
        mode = moved
    return mode


def _on_tiles(vector: ndarray, h: float, contrast: float) -> Density:
    """The same for grids too long to hold: sort, shorten the gaps that the kernel does not reach across, walk in tiles."""
    ordered = np.sort(vector).astype(np.float64)
    gaps = np.minimum(np.diff(ordered) / (h / CELLS), _JUMP)
    cells = np.concatenate([[0.0], np.cumsum(gaps)]) + REACH + 1
    size = int(cells[-1]) + REACH + 3
    parts = [_tile_slopes(cells, start, min(start + _TILE, size)) for start in range(0, size, _TILE)]
    turns, peaks = _extrema(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    modes, cuts = strong_modes(turns, peaks, contrast)
    heights = np.interp(np.sort(np.concatenate([modes, cuts])), turns, peaks) * CELLS / (vector.size * h)
    modes, cuts = np.interp(modes, cells, ordered), np.interp(cuts, cells, ordered)
    return Density(np.sort(np.concatenate([modes, cuts])), heights, modes, cuts, h)


def _tile_slopes(cells: ndarray, start: int, stop: int) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    halo = REACH + 4
    first, last = np.searchsorted(cells, [start - halo, stop + halo])
    if first == last:
        return np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0)
    counts = passes.bin_cubic(cells[first:last], float(start - halo - 2), 1.0, stop - start + 2 * halo + 6)
    heights = _smooth(counts, len(cells))
    index, slope, height, vertex = _slopes(heights, halo + 2, halo + 2 + stop - start)
    return index + start - halo - 2, slope, height, vertex
