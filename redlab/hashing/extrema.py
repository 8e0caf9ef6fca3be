"""Peaks and valleys of a Gaussian kernel density, on a grid that follows the bandwidth.

Cubic binning keeps each weight's first three moments; one Gaussian filter, cut at six bandwidths, makes the density;
the quartic through five cells places each extremum between them. A grid too long to hold is walked tile by tile.
"""

from __future__ import annotations

from dataclasses import dataclass

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
_BLOCK = 1 << 20  # weights whose places are worked out together
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
    cells, heights = _extrema(*_slopes(values, 0, size - 1))
    return Extrema(np.clip(origin + cells * step, low, high), heights * scale, grid, density)


def on_tiles(vector: Vector, h: float) -> Extrema:
    """The same for a grid of any length: sort, shorten the gaps that no kernel reaches across, walk tile by tile."""
    places = _Places(np.sort(vector.weights), h / CELLS)
    last: list[ndarray] = [np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0)]
    found = []
    for start in range(0, places.size, _TILE):
        tile = _tile_slopes(places, start, min(start + _TILE, places.size))
        slopes = [np.concatenate(pair) for pair in zip(last, tile, strict=True)]
        found.append(_extrema(*slopes))
        last = [part[-1:] for part in slopes]  # whether the next tile goes on as this one ends
    turns, heights = (np.concatenate(part) for part in zip(*found, strict=True))
    turns, heights = places.weights_at(turns), heights * CELLS / (vector.size * h)
    return Extrema(turns, heights, turns, heights)


class _Places:
    """Ascending weights on a grid whose empty stretches are shortened, worked out block by block: never all at once.

    Attributes:
        ordered: (N,) the weights.
        starts: (b,) the place of the first weight of each block, in cells.
        size: how many cells there are.
    """

    def __init__(self, ordered: ndarray, step: float) -> None:
        self.ordered, self._step, self._begins = ordered, step, [0.0]
        self._last = (-1, np.empty(0), np.empty(0))
        for k in range(max(1, -(-(len(ordered) - 1) // _BLOCK))):
            self._begins.append(self._block(k)[2][-1])
        self.starts = np.array(self._begins[:-1]) + REACH + 1
        self.size = int(self._begins[-1] + REACH + 1) + REACH + 3

    def block(self, k: int) -> tuple[ndarray, ndarray]:
        """The weights of block k, with the first of the next one, and their places."""
        _, own, cells = self._block(k)
        return own, cells + REACH + 1

    def _block(self, k: int) -> tuple[int, ndarray, ndarray]:
        if self._last[0] != k:
            own = self.ordered[k * _BLOCK : (k + 1) * _BLOCK + 1].astype(np.float64)
            with np.errstate(over="ignore"):  # an infinite gap is a jump as well
                gaps = np.minimum(np.diff(own) / self._step, _JUMP)
            self._last = (k, own, np.cumsum(np.concatenate([self._begins[k : k + 1], gaps])))
        return self._last

    def binned(self, first: float, last: float, origin: float, size: int) -> ndarray | None:
        """The weights with places in [first, last) on the cells from ``origin`` on, or None where there are none."""
        counts = None
        begin, end = np.searchsorted(self.starts, [first, last])
        for k in range(max(begin - 1, 0), end):
            cells = self.block(k)[1]
            cells = cells if k == len(self.starts) - 1 else cells[:-1]
            low, high = np.searchsorted(cells, [first, last])
            if low < high:
                part = passes.bin_cubic(cells[low:high], origin, 1.0, size)
                counts = part if counts is None else counts + part
        return counts

    def weights_at(self, places: ndarray) -> ndarray:
        """The weights that ascending places stand for, linear between neighbours."""
        ends = np.searchsorted(places, self.starts[1:])
        parts = np.split(places, ends)
        return np.concatenate([np.interp(part, *self.block(k)[::-1]) for k, part in enumerate(parts)])


def _smooth(counts: Float64[ndarray, " m"], weights: int) -> Float64[ndarray, " m"]:
    heights = passes.smooth(counts, _HALF_KERNEL)
    heights[heights < _NOISE * weights] = 0.0
    return heights


def _slopes(heights: ndarray, start: int, stop: int) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Where the curve changes direction in cells [start, stop): index, slope to the next, height, vertex; no plateaus.

    Kept are the slopes beside a change of sign, and the first and last, so that tiles can be joined. ``vertex`` is
    where an extremum at that cell lies, in cells from it.
    """
    slope = np.diff(heights[start : stop + 1])
    index = np.flatnonzero(np.abs(slope) > _FLAT * heights[start:stop])
    slope = slope[index]
    turn = np.flatnonzero((slope[1:] > 0) != (slope[:-1] > 0))
    kept = np.unique(np.concatenate([turn, turn + 1, [0, len(slope) - 1]])) if len(slope) else turn
    index = index[kept] + start
    found = (index, slope[kept], heights[index], _vertex(heights, index))
    hidden = _hidden(heights, start, stop)
    if not len(hidden[0]):
        return found
    index, slope, height, place = (np.concatenate(pair) for pair in zip(found, hidden, strict=True))
    order = np.argsort(index, kind="stable")
    return index[order], slope[order], height[order], place[order]


def _hidden(heights: ndarray, start: int, stop: int) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """A maximum and a minimum between two cells, which no slope from cell to cell shows, as such slopes.

    They are there where the derivative, a parabola through the middles of three cells, comes near zero and changes sign
    twice. Each pair becomes three slopes: as the curve goes, the other way, and as it goes again.
    """
    first, last = max(start, 2), min(stop, len(heights) - 4)
    slope = np.diff(heights[first - 1 : last + 2])  # of the cells before, at and after each of [first, last)
    before, here, after = slope[:-2], slope[1:-1], slope[2:]
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
    index = np.concatenate([cell - 1, cell, cell + 1])
    vertex = np.concatenate([np.zeros(len(cell)), middle - root - cell, middle + root - cell - 1])
    level = heights[cell]
    height = np.concatenate([level, level, level * (1 - 1e-12 * way)])
    return index, np.concatenate([way, -way, way]), height, vertex


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


def _extrema(index: ndarray, slope: ndarray, height: ndarray, vertex: ndarray) -> tuple[ndarray, ndarray]:
    """Positions (in cells) and heights of the alternating maxima and minima, the first and last of them maxima."""
    turn = np.flatnonzero((slope[1:] > 0) != (slope[:-1] > 0))
    left, right = index[turn] + 1, index[turn + 1]
    # One cell between rise and fall: its vertex. A plateau: its middle.
    position = np.where(left == right, left + vertex[turn + 1], 0.5 * (left + right))
    return position, height[turn + 1]


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


def _tile_slopes(places: _Places, start: int, stop: int) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    halo = REACH + 4
    counts = places.binned(start - halo, stop + halo, float(start - halo - 2), stop - start + 2 * halo + 6)
    if counts is None:
        return np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0)
    heights = _smooth(counts, len(places.ordered))
    index, slope, height, vertex = _slopes(heights, halo + 2, halo + 2 + stop - start)
    return index + start - halo - 2, slope, height, vertex
