"""Peaks and valleys of a Gaussian kernel density, on a grid that follows the bandwidth.

Cubic binning keeps each weight's first three moments; one Gaussian filter, cut at six bandwidths, makes the density;
the quartic through five cells places each extremum between them. A grid too long to hold is walked tile by tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from redlab.hashing import passes
from redlab.hashing.vector import Vector

CELLS = 12  # grid cells per bandwidth
REACH = 6 * CELLS  # the kernel ends after six bandwidths
_KERNEL = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / CELLS) ** 2)
_HALF_KERNEL = _KERNEL[REACH:] / _KERNEL.sum()
_JUMP = 2 * REACH + 8  # cells that a gap between weights is shortened to, where the density falls to zero in it
_WHOLE_GRID = 1 << 22  # up to here the grid is one array; beyond it is walked tile by tile
_TILE = 1 << 20
_FLAT = 1e-11  # relative differences below are rounding: a plateau
_NOISE = 1e-10  # heights below this share of the weights' number are zero: the kernel's cut tail wiggles there


@dataclass(frozen=True, eq=False)
class Extrema:
    """The maxima and minima of a density, and the curve that they were found on, in the units of the weights.

    Attributes:
        turns: (n,) alternating maxima and minima, ascending, a maximum at either end (n is odd).
        heights: (n,) the density there.
        grid, values: (m,) the curve; just the extrema where its grid would be too long to hold.
    """

    turns: Float64[ndarray, " n"]
    heights: Float64[ndarray, " n"]
    grid: Float64[ndarray, " m"]
    values: Float64[ndarray, " m"]


def find_extrema(vector: Vector, h: float) -> Extrema:
    """Of the density of ``vector`` under a Gaussian kernel of bandwidth h > 0."""
    low, high = vector.low, vector.high
    step = h / CELLS
    if (high - low) / step + 2 * REACH + 4 > _WHOLE_GRID:
        return on_tiles(vector, h)
    origin = low - (REACH + 2) * step
    size = int((high - origin) / step) + REACH + 4
    values = _smooth(passes.bin_cubic(vector.weights, origin, step, size), vector.size)
    scale = 1.0 / (vector.size * step)
    grid, density = origin + np.arange(size) * step, values * scale
    if high - low <= 2 * h:  # within two bandwidths there is one mode, which the grid would place to h/1000 only
        mode = _only_mode(vector, h)
        return Extrema(np.array([mode]), np.interp([mode], grid, density), grid, density)
    cells, heights = _extrema(_steps(values, 0, size - 1))
    return Extrema(np.clip(origin + cells * step, low, high), heights * scale, grid, density)


def on_tiles(vector: Vector, h: float) -> Extrema:
    """The same for a grid of any length: sort, shorten the gaps that no kernel reaches across, walk tile by tile."""
    ordered = np.sort(vector.weights)
    places = _places(ordered, h / CELLS)
    size = int(places[-1]) + REACH + 3
    before, found = _NO_STEPS, []
    for start in range(0, size, _TILE):
        steps = _joined(before, _tile_steps(places, start, min(start + _TILE, size)))
        found.append(_extrema(steps))
        before = Steps(*(part[-1:] for part in steps))  # does the next tile continue in the direction of this one?
    turns, heights = (np.concatenate(part) for part in zip(*found, strict=True))
    near = np.searchsorted(places, turns)
    near = np.unique(np.clip([near - 1, near], 0, ordered.size - 1))  # interpolation needs these weights only
    turns, heights = np.interp(turns, places[near], ordered[near]), heights * CELLS / (vector.size * h)
    return Extrema(turns, heights, turns, heights)


def _places(ordered: ndarray, step: float) -> ndarray:
    """(N,) ascending weights in cells of a grid whose empty stretches are shortened: no gap is longer than _JUMP."""
    places = np.zeros(ordered.size)
    with np.errstate(over="ignore"):  # an infinite gap is shortened as well
        np.subtract(ordered[1:], ordered[:-1], out=places[1:], dtype=np.float64)
        places /= step
    return np.cumsum(np.minimum(places, _JUMP, out=places), out=places) + (REACH + 1)


def _smooth(counts: Float64[ndarray, " m"], weights: int) -> Float64[ndarray, " m"]:
    heights = passes.smooth(counts, _HALF_KERNEL)
    heights[heights < _NOISE * weights] = 0.0
    return heights


class Steps(NamedTuple):
    """Steps of a curve from one cell to the next, ascending: those beside a change of direction.

    The heights 0 1 4 3 1 make the steps +1 +3 -1 -2. The direction changes between the steps at cells 1 and 2: there is
    a maximum at cell 2, moved by its vertex, say 2 - 0.1.

    Attributes:
        cell: (n,) where the step begins.
        rise: (n,) how much higher the next cell is, never 0. Only its sign is used.
        height: (n,) the curve at the cell.
        vertex: (n,) where an extremum at that cell lies, in cells from it.
    """

    cell: ndarray
    rise: ndarray
    height: ndarray
    vertex: ndarray

    @property
    def turns(self) -> ndarray:
        """After which steps the direction changes."""
        return np.flatnonzero((self.rise[1:] > 0) != (self.rise[:-1] > 0))


_NO_STEPS = Steps(np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0))


def _joined(first: Steps, second: Steps) -> Steps:
    return Steps(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))


def _steps(heights: ndarray, start: int, stop: int) -> Steps:
    """The steps in cells [start, stop), plateaus left out; the first and the last stay, so that tiles can be joined."""
    rise = np.diff(heights[start : stop + 1])
    cell = np.flatnonzero(np.abs(rise) > _FLAT * heights[start:stop])
    steps = Steps(cell + start, rise[cell], heights[cell + start], np.zeros(len(cell)))
    ends = [0, len(cell) - 1] if len(cell) else []
    kept = np.unique(np.concatenate([steps.turns, steps.turns + 1, ends])).astype(np.int64)
    cell = steps.cell[kept]
    seen = Steps(cell, steps.rise[kept], steps.height[kept], _vertex(heights, cell))
    steps = _joined(seen, _hidden_steps(heights, start, stop))
    order = np.argsort(steps.cell, kind="stable")
    return Steps(*(part[order] for part in steps))


def _hidden_steps(heights: ndarray, start: int, stop: int) -> Steps:
    """Steps that stand for a maximum and a minimum between two cells, where the heights alone only rise or only fall.

    Between cells 7 and 8 a rising curve may peak at 7.3 and dip at 7.6 before it rises on. Three steps say so: up at
    cell 6, down at cell 7 (vertex 0.3: the peak), up at cell 8 (vertex -0.4: the dip).
    Such a pair is there where the derivative, a parabola through the middles of three cells, has two roots nearby.
    """
    first, last = max(start, 2), min(stop, len(heights) - 4)
    rise = np.diff(heights[first - 1 : last + 2])
    before, here, after = rise[:-2], rise[1:-1], rise[2:]  # the steps before, at and after each of [first, last)
    size = np.abs(here)
    near = (size <= np.abs(before)) & (size <= np.abs(after)) & (before * after > 0)
    cell = first + np.flatnonzero(near & (size < 0.2 * np.abs(before + after)))
    # The derivative in the middle of a cell to fourth order: (27 (f1 - f0) - (f2 - f_1)) / 24.
    a, b, c = (
        (27 * (heights[k + 1] - heights[k]) - (heights[k + 2] - heights[k - 1])) / 24
        for k in (cell - 1, cell, cell + 1)
    )
    bend, tilt = (a - 2 * b + c) / 2, (c - a) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(tilt**2 - 4 * bend * b) / np.abs(2 * bend)
        middle = cell + 0.5 - tilt / (2 * bend)
    real = (root > 0) & (np.sign(bend) == np.sign(b)) & (np.abs(middle - cell - 0.5) < 1)
    cell, root, middle, way = cell[real], root[real], middle[real], np.sign(b[real])
    level, still = heights[cell], np.zeros(len(cell))
    on = Steps(cell - 1, way, level, still)
    back = Steps(cell, -way, level, middle - root - cell)
    again = Steps(cell + 1, way, level * (1 - 1e-12 * way), middle + root - cell - 1)
    return _joined(_joined(on, back), again)


def _vertex(heights: ndarray, index: ndarray) -> ndarray:
    """Newton steps to the extremum of the quartic through five cells, from the middle one, in cells."""
    a, b, c, d, e = heights.take(index + np.arange(-2, 3)[:, None], mode="clip")
    first, second = (a - 8 * b + 8 * d - e) / 12, (-a + 16 * b - 30 * c + 16 * d - e) / 12
    third, fourth = (-a + 2 * b - 2 * d + e) / 2, a - 4 * b + 6 * c - 4 * d + e
    x = np.zeros(len(index))
    for _ in range(3):
        slope = first + x * (second + x * (third / 2 + x * fourth / 6))
        curve = second + x * (third + x * fourth / 2)
        x = np.minimum(np.maximum(x - slope / np.where(curve == 0, np.inf, curve), -1), 1)
    return x


def _extrema(steps: Steps) -> tuple[ndarray, ndarray]:
    """Positions (in cells) and heights of the alternating maxima and minima, the first and last of them maxima."""
    turn = steps.turns
    left, right = steps.cell[turn] + 1, steps.cell[turn + 1]
    # One cell between rise and fall: its vertex. A plateau: its middle.
    position = np.where(left == right, left + steps.vertex[turn + 1], 0.5 * (left + right))
    return position, steps.height[turn + 1]


def _only_mode(vector: Vector, h: float) -> float:
    """The maximum of a density whose weights lie within two bandwidths: a fixed point of the mean shift."""
    low, high = vector.low, vector.high
    if low == high:
        return low
    step = (high - low) / 1024
    counts = passes.bin_cubic(vector.weights, low - 2 * step, step, 1030)  # a cell to spare at either end: rounding
    place = low + step * np.arange(-2, 1028)
    mode = float(counts @ place / counts.sum())
    for _ in range(100):
        pull = counts * np.exp(-0.5 * ((place - mode) / h) ** 2)
        moved = float(pull @ place / pull.sum())
        if abs(moved - mode) <= 1e-12 * (high - low):
            break
        mode = moved
    return mode


def _tile_steps(places: ndarray, start: int, stop: int) -> Steps:
    """The steps in cells [start, stop) of a long grid: only the weights whose kernels reach there are looked at."""
    halo = REACH + 4
    low, high = np.searchsorted(places, [start - halo, stop + halo])
    if low == high:
        return _NO_STEPS
    counts = passes.bin_cubic(places[low:high], float(start - halo - 2), 1.0, stop - start + 2 * halo + 6)
    steps = _steps(_smooth(counts, places.size), halo + 2, halo + 2 + stop - start)
    return steps._replace(cell=steps.cell + start - halo - 2)
