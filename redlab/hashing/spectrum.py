"""How often a tensor takes which value, before and after hashing, in memory for one sorted copy of it.

What hashing does to a tensor as a whole depends on its values alone, not on their order: from the sorted values follow
the density, the cells, the error and the entropy, all exact, block by block. ``hash_weights`` does the same with the
tensor in its order, and about four copies of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy import ndarray

from redlab.files.entries import Entry
from redlab.hashing import passes_numpy
from redlab.hashing.bandwidth import resolve_bandwidth
from redlab.hashing.cells import Cells, round_up
from redlab.hashing.chance import expected_unique
from redlab.hashing.density import Density, density_of
from redlab.hashing.sorted_values import (
    AT_ONCE,
    bits_of,
    how_often,
    in_parts,
    ordered_weights,
    own_values,
    why_unchanged,
    without_zeros,
)
from redlab.hashing.vector import Vector, binary_scale, measured
from redlab.hashing.weights import representatives

FLAT = "one axis, not hashed"
APART, AT_LEAST = "hashing would keep most values, which lie a bandwidth and more apart", "; modes: at least"
_MANY = 1 << 20  # weights above which memory for many modes matters


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The values of one tensor, and of the tensor hashed by the default rule.

    Attributes:
        size: how many weights; ``zeros``, how many of them are exactly zero.
        distinct_before: how many values they take; ``distinct``, after hashing.
        modes: of the density at the default bandwidth.
        error: relative L2 error of hashing, 0 where nothing was hashed.
        entropy: Shannon's, in bits a weight, of the values after hashing.
        often: (k, 2) how often values that cost a product (all but zero) are there, and how many values that often.
        unhashed: why the values were left as they are, or "".
        cells: where hashing sends each weight; None where each value is a cell of its own.
    """

    size: int
    zeros: int
    distinct_before: int
    modes: int
    distinct: int
    error: float
    entropy: float
    often: ndarray
    unhashed: str = ""
    cells: Lookup | None = None

    def expected(self, n: int) -> float:
        """How many products chance leaves a unit of ``n`` of these weights; see ``expected_unique``."""
        return sum(many * expected_unique(np.array([count]), n, total=self.size) for count, many in self.often.tolist())


@dataclass(frozen=True, eq=False)
class Lookup:
    """The cells of hashing, c of them.

    Attributes:
        low, high: the smallest and the largest weight but exact zeros, times 2^-exponent.
        edges: (c - 1,) cell k holds the weights in [edges[k - 1], edges[k]).
        products: (c + 1,) whether the cell's value costs a product: it is not zero; False for c, the exact zeros.
        exponent: what float64 weights were scaled by so that they can be squared; mostly 0.
    """

    low: float
    high: float
    edges: ndarray
    products: ndarray
    exponent: int = 0

    def codes(self, weights: ndarray) -> ndarray:
        """(n,) the cell of each of some weights of the tensor, (n,) float32 or float64; c for exact zeros."""
        weights = np.ldexp(weights, -self.exponent) if self.exponent else weights
        zero = weights == 0
        found = passes_numpy.look_up(np.where(zero, self.low, weights), self.low, self.edges, self._slots)
        return np.where(zero, len(self.products) - 1, found)

    @cached_property
    def _slots(self) -> tuple | None:
        return passes_numpy.slots(self.edges.dtype, self.low, self.high, self.edges)


def spectrum_of(entry: Entry, bandwidth: str | float = "silverman/8") -> Spectrum:
    """The spectrum of a floating-point tensor of any shape but empty.

    Tensors of one axis (biases, norms) are not hashed, as ``hash_network`` leaves them.

    Arguments:
        bandwidth: see ``estimate_density``.

    Raises:
        NotFinite: NaN or inf in it.
    """
    ordered = ordered_weights(entry)
    distinct, entropy, often = own_values(ordered)
    vector, exponent = _vector(ordered)
    size, zeros = ordered.size, vector.zeros
    own = bandwidth if isinstance(bandwidth, str) else float(np.ldexp(bandwidth, -exponent))
    h = resolve_bandwidth(vector, own)
    flat = len(entry.shape) < 2
    if modes := _apart(vector, h):
        return Spectrum(
            size, zeros, distinct, modes, distinct, 0.0, entropy, often, (FLAT if flat else APART) + AT_LEAST
        )
    density = density_of(vector, h)
    unhashed = FLAT if flat else why_unchanged(distinct - (zeros > 0), vector.size, zeros)
    if not unhashed:
        return _hashed(vector, density, entry.dtype, distinct, exponent)
    return Spectrum(size, zeros, distinct, len(density.modes), distinct, 0.0, entropy, often, unhashed)


def _apart(vector: Vector, h: float) -> int:
    """How many modes there are at least, where a large tensor has so many that hashing would keep most values; else 0.

    Weights most of which are alike can leave so narrow a bandwidth. Two weights 2.5 bandwidths apart are two modes; a
    hundred bytes for each mode of every sixteenth weight would be more than the tensor itself takes.
    """
    few = vector.size // 16
    if vector.size <= _MANY or vector.high - vector.low <= 2.5 * h * few:
        return 0
    gaps = sum(int((np.diff(part.astype(np.float64)) > 2.5 * h).sum()) for part in in_parts(vector.weights))
    return gaps + 1 if gaps > few else 0


def _vector(ordered: ndarray) -> tuple[Vector, int]:
    """As a vector, in place; float64 weights that would overflow when squared are divided by a power of two."""
    made = measured(without_zeros(ordered), ordered.shape, ascending=True)
    if exponent := binary_scale(made):
        np.ldexp(made.weights, -exponent, out=made.weights)
        made = measured(without_zeros(made.weights), ordered.shape, ascending=True)
    return made, exponent


def _hashed(vector: Vector, density: Density, dtype: torch.dtype, distinct: int, exponent: int) -> Spectrum:
    cells, ends = _cells(vector, density)
    values = representatives(cells, torch.empty(0, dtype=dtype))
    lengths, size = np.append(np.diff(ends), vector.zeros), vector.size + vector.zeros
    taken, value = np.unique(np.append(values, 0)[lengths > 0], return_inverse=True)
    counts = np.bincount(value, lengths[lengths > 0])
    return Spectrum(
        size=size,
        zeros=vector.zeros,
        distinct_before=distinct,
        modes=len(density.modes),
        distinct=len(taken),
        error=_error(vector, ends, values),
        entropy=bits_of(counts, size),
        often=how_often(counts[taken != 0].astype(np.int64)),
        cells=Lookup(vector.low, vector.high, cells.edges, np.append(values != 0, False), exponent),
    )


def _cells(vector: Vector, density: Density) -> tuple[Cells, ndarray]:
    """The cells of a density, and where in the sorted weights each begins, with their end."""
    ordered = vector.weights
    edges = round_up(density.cuts, ordered.dtype)
    ends = np.concatenate([[0], np.searchsorted(ordered, edges), [vector.size]])
    first, last = ends[:-1], ends[1:] - 1
    used, inside = first <= last, vector.size - 1
    least, most = (np.where(used, ordered[np.clip(at, 0, inside)], np.nan).astype(edges.dtype) for at in (first, last))
    cells = Cells(vector, edges, density.modes)
    cells.__dict__["_assorted"] = (np.empty(0, np.uint8), most, least == most)  # its codes are not asked for
    return cells.at_lone_weights(), ends


def _error(vector: Vector, bounds: ndarray, levels: ndarray) -> float:
    """||hash(W) - W|| / ||W||, where the sorted weights from ``bounds[k]`` on become ``levels[k]``."""
    scale = max(abs(vector.low), abs(vector.high))  # squares of 1e-200 vanish
    squares = energy = 0.0
    for start in range(0, vector.size, AT_ONCE):
        part = vector.weights[start : start + AT_ONCE].astype(np.float64)
        first, last = np.searchsorted(bounds, [start, start + len(part)])
        stretch = slice(max(first - 1, 0), last)
        repeats = np.diff(np.clip(bounds[stretch.start : last + 1], start, start + len(part)))
        moved = (np.repeat(levels[stretch], repeats) - part) / scale
        part /= scale
        squares, energy = squares + float(moved @ moved), energy + float(part @ part)
    return float(np.sqrt(squares / energy))
