"""One scale a row: W[o] = s_o C[o]. The codes C of all rows share one codebook, which is what hashing works on.

What a codebook times a scale gives must be exact, so that a weight over its row's scale is its code again. Scales of
float32 and float64 have 8 significant bits, and codes are multiples of one power of two of at most 15 and 44 bits; so
sums of two products are exact, too. Scales of 16-bit and 8-bit types are powers of two. All of this is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import pairwise

import numpy as np
import torch
from numpy import ndarray

from redlab.hashing.passes import compiled, side_by_side

SCALES = ("none", "row")
_PART = 1 << 17  # weights that are worth a thread


@dataclass(frozen=True)
class Precision:
    """What numbers of a floating type a code and a scale may be.

    Attributes:
        scale: significant bits of a scale.
        code: bits of a code that is a whole number; ``fixed``: whether all codes must be multiples of one number.
        least, most: the smallest and the largest scale.
        largest, tiny: the largest and the smallest number of the type.
    """

    scale: int
    code: int
    fixed: bool
    least: float
    most: float
    largest: float
    tiny: float

    def round(self, scales: ndarray, how: np.ufunc = np.rint) -> ndarray:
        """Positive scales (rows,) with so few bits: the nearest, the next larger (``np.ceil``) or smaller ones."""
        fraction, exponent = np.frexp(scales)
        return np.clip(np.ldexp(how(np.ldexp(fraction, self.scale)), exponent - self.scale), self.least, self.most)

    def grid(self, largest: float, scales: ndarray) -> float:
        """The power of two that codes up to ``largest`` are multiples of, so that their products are exact."""
        unit = np.ldexp(1.0, int(np.frexp(largest)[1]) - self.code) if self.fixed else 0.0
        last = np.ldexp(1.0, int(np.frexp(scales.min())[1]) - self.scale)  # the last bit of the smallest scale
        return float(max(unit, self.tiny / last))

    def times_two_to(self, exponent: int) -> Precision:
        """For weights that were multiplied by 2^exponent and are multiplied back in the end."""
        with np.errstate(over="ignore", under="ignore"):
            least, most, largest, tiny = np.ldexp([self.least, self.most, self.largest, self.tiny], exponent).tolist()
        least, tiny = max(self.least, least), max(self.tiny, tiny)
        return replace(self, least=least, most=min(self.most, most), largest=min(self.largest, largest), tiny=tiny)


@cache
def precision_of(dtype: torch.dtype | np.dtype) -> Precision:
    """Of the weights' own type."""
    if not isinstance(dtype, torch.dtype):
        dtype = np.dtype(np.float64) if dtype.itemsize > 8 else dtype
    known = torch.finfo(dtype) if isinstance(dtype, torch.dtype) else np.finfo(dtype)
    own, least = float(known.eps), float(known.smallest_normal)
    scale, code = (8, 44) if own < 1e-10 else (8, 15) if own < 1e-6 else (1, 1 - int(np.log2(own)))
    most = np.ldexp(1 - 2.0**-scale, int(np.frexp(float(known.max))[1]))
    return Precision(scale, code, own < 1e-6, least, float(most), float(known.max), least * own)


@dataclass(frozen=True, eq=False)
class RowScales:
    """The scales of the rows of one layer, and where each row's weights lie in its vector.

    Attributes:
        ends: (rows + 1,) row o holds the weights in [ends[o], ends[o + 1]) of the vector, which has no zeros.
        scales: (rows,) float64, 1 for a row of zeros.
        grid: the power of two that all codes are multiples of; 0: codes are not rounded any further.
    """

    ends: ndarray
    scales: ndarray
    grid: float = 0.0

    @cached_property
    def squared(self) -> ndarray:
        """(rows,) what an error of a row's codes counts in the layer's squared error."""
        return np.square(self.scales)

    def sums(self, codes: ndarray, cells: ndarray, size: int) -> tuple[ndarray, ndarray]:
        """Count and sum of the codes in each of so many cells, weighed by their rows' squared scales."""
        parts = _by_rows(_sums, self.ends, (self.squared,), codes, cells, size)
        count, total = zip(*parts, strict=True)
        return sum(count), sum(total)

    def energy(self, codes: ndarray) -> float:
        """The sum of the squared weights."""
        return float(self.squared @ _filled(_energies, codes, self.ends))

    def rounded(self, values: ndarray) -> ndarray:
        """Values that codes may have."""
        return np.rint(values / self.grid) * self.grid if self.grid else values


def ends_of(shape: tuple[int, ...], live: ndarray | None) -> ndarray:
    """Where rows of a tensor of that shape begin and end among its weights that are not zero."""
    rows = shape[0] if len(shape) > 1 else 1
    size = int(np.prod(shape)) // rows
    counts = np.full(rows, size) if live is None else np.count_nonzero(live.reshape(rows, size), axis=1)
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def largest_in(weights: ndarray, ends: ndarray) -> ndarray:
    """(rows,) the largest magnitude of each row; 0 for a row of zeros."""
    return _filled(_largest, weights, ends)


def root_mean_squares(weights: ndarray, ends: ndarray) -> ndarray:
    """(rows,) of each row's weights that are not zero; 0 for a row of zeros."""
    if weights.dtype == np.float32:  # whose squares neither overflow nor vanish in float64
        return np.sqrt(_filled(_energies, weights, ends) / np.maximum(np.diff(ends), 1))
    return _filled(_rms, weights, ends)


def divide(weights: ndarray, ends: ndarray, scales: ndarray) -> ndarray:
    """The weights, each over the scale of its row."""
    found = np.empty_like(weights)
    _by_rows(_divide, ends, (scales.astype(weights.dtype),), weights, found)
    return found


def grid_errors(weights: ndarray, ends: ndarray, steps: ndarray, most: int) -> ndarray:
    """(rows,) squared errors of rounding each row to multiples -most ... most of its own step."""
    return _filled(_grid_errors, weights, ends, steps, most=most)


def least_squares_steps(weights: ndarray, ends: ndarray, largest: ndarray, most: int) -> ndarray:
    """(rows,) the step whose multiples -most ... most are nearest to each row, in squares: at most largest / most.

    Steps from there down to what clips at half the root mean square are tried, each a little smaller; from the best of
    them codes and step follow one another to a local optimum, which is never worse. The search is our choice.
    """
    return _filled(_least_squares, weights, ends, largest, most=most)


def _filled(kernel, weights: ndarray, ends: ndarray, *rowwise: ndarray, most: int = 0) -> ndarray:
    found = np.zeros(len(ends) - 1)
    _by_rows(kernel, ends, (*rowwise, found), weights, most)
    return found


def _by_rows(kernel, ends: ndarray, rowwise: tuple[ndarray, ...], *whole: object) -> list:
    """What ``kernel(ends, *rowwise, *whole)`` returns for whole rows at a time, the parts side by side in threads."""
    rows = len(ends) - 1
    parts = max(1, min(torch.get_num_threads(), int(ends[-1]) // _PART, rows))
    cuts = np.linspace(0, rows, parts + 1, dtype=np.int64)
    own = [(ends[a : b + 1], *(array[a:b] for array in rowwise)) for a, b in pairwise(cuts)]
    return side_by_side(kernel, own, *whole)


@compiled
def _sums(ends, factors, weights, codes, cells):
    count, total = np.zeros(cells), np.zeros(cells)
    for o in range(len(factors)):
        factor = factors[o]
        for j in range(ends[o], ends[o + 1]):
            count[codes[j]] += factor
            total[codes[j]] += factor * weights[j]
    return count, total


@partial(compiled, fastmath=True)
def _energies(ends, found, weights, most):
    for o in range(len(found)):
        total = 0.0
        for j in range(ends[o], ends[o + 1]):
            w = np.float64(weights[j])
            total += w * w
        found[o] = total


@partial(compiled, fastmath=True)
def _largest(ends, found, weights, most):
    for o in range(len(found)):
        largest = 0.0
        for j in range(ends[o], ends[o + 1]):
            largest = max(largest, abs(np.float64(weights[j])))
        found[o] = largest


@partial(compiled, fastmath=True)
def _rms(ends, found, weights, most):
    for o in range(len(found)):
        largest = total = 0.0
        for j in range(ends[o], ends[o + 1]):
            largest = max(largest, abs(np.float64(weights[j])))
        inverse = 1.0 / max(largest, 1e-300)  # squares of 1e-200 vanish
        for j in range(ends[o], ends[o + 1]):
            w = np.float64(weights[j]) * inverse
            total += w * w
        found[o] = np.sqrt(total / max(ends[o + 1] - ends[o], 1)) / inverse


@compiled
def _divide(ends, scales, weights, found):
    for o in range(len(scales)):
        for j in range(ends[o], ends[o + 1]):
            found[j] = weights[j] / scales[o]


@partial(compiled, fastmath=True)
def _error(weights, first, last, step, most):
    """The squared error of some weights, and the step that is best for the multiples that they took."""
    error = along = square = 0.0
    inverse = 1.0 / step
    for j in range(first, last):
        w = np.float64(weights[j])
        k = min(max(np.rint(w * inverse), -np.float64(most)), np.float64(most))
        d = w - k * step
        error += d * d
        along += k * w
        square += k * k
    return error, (along / square if square > 0.0 else step)


@compiled
def _grid_errors(ends, steps, found, weights, most):
    for o in range(len(found)):
        if ends[o + 1] > ends[o]:
            found[o] = _error(weights, ends[o], ends[o + 1], steps[o], most)[0]


@compiled
def _least_squares(ends, largest, found, weights, most):
    for o in range(len(found)):
        first, last = ends[o], ends[o + 1]
        if first == last:
            continue
        square = 0.0
        for j in range(first, last):
            w = np.float64(weights[j]) / largest[o]
            square += w * w
        step = largest[o] / most
        lowest = 0.5 * np.sqrt(square / (last - first))  # of the range that codes cover
        ratio = lowest ** (1.0 / 12)
        best, better = _error(weights, first, last, step, most)
        found[o] = step
        for _ in range(12):
            step *= ratio
            error, moved = _error(weights, first, last, step, most)
            if error < best:
                best, found[o], better = error, step, moved
        for _ in range(8):
            error, moved = _error(weights, first, last, better, most)
            if not error < best:
                break
            best, found[o], better = error, better, moved
