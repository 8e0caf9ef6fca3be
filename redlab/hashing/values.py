"""Which values one tensor takes before and after hashing: how many, how often, and how many products they cost.

Memory stays within four copies of the tensor: counting works on a sorted copy, some thousand weights at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray

from redlab.hashing.chance import expected_unique
from redlab.hashing.density import density_of, resolve_bandwidth
from redlab.hashing.rules import Rule, cells_of
from redlab.hashing.vector import AT_ONCE, Vector, as_vector, in_parts
from redlab.hashing.weights import as_numpy, in_range, representatives, why_unchanged

FLAT = "one axis, not hashed"
APART, AT_LEAST = "hashing would keep most values, which lie a bandwidth and more apart", "; modes: at least"
_MANY = 1 << 20  # in larger tensors the memory for many modes matters


@dataclass(frozen=True, eq=False)
class Values:
    """The values of one tensor, and of the tensor hashed by rule "kde".

    Attributes:
        hashed: the hashed tensor, up to a power of two; the tensor itself where it is ``unhashed``.
        zeros: how many weights are exactly zero.
        distinct_before: how many values they take; ``distinct``, after hashing.
        modes: of the density, whether or not the tensor is hashed.
        error: relative L2 error of hashing.
        entropy: Shannon's, in bits a weight, of the values after hashing.
        often: how many values but zero are there so many times, by the number of times.
        unhashed: why the tensor was left alone, or "".
    """

    hashed: torch.Tensor
    zeros: int
    distinct_before: int
    modes: int
    distinct: int
    error: float
    entropy: float
    often: dict[int, int]
    unhashed: str

    def expected(self, n: int) -> float:
        """How many products chance leaves a unit of ``n`` of these weights; see ``expected_unique``."""
        size = self.hashed.numel()
        return sum(many * expected_unique([count], n, total=size) for count, many in self.often.items())


def measure_values(weight: torch.Tensor, bandwidth: str | float = "silverman/8") -> Values:
    """The values of a floating-point tensor of any shape but empty, and what hashing leaves of them.

    Tensors of one axis (biases, norms) are not hashed, as ``hash_network`` leaves them. Nor are large tensors with so
    many modes that hashing would keep most values.

    Arguments:
        bandwidth: see ``estimate_density``.

    Raises:
        NotFinite: NaN or inf in it.
    """
    vector, rule, _ = in_range(as_vector(weight), Rule(bandwidth=bandwidth))
    h = resolve_bandwidth(vector, rule.bandwidth)
    modes, unhashed = _modes_apart(vector, h), FLAT if weight.ndim < 2 else ""
    if modes:
        unhashed = (unhashed or APART) + AT_LEAST
    if unhashed := unhashed or why_unchanged(vector):
        distinct, entropy, often = _count(vector.whole(vector.weights))
        modes = modes or len(density_of(vector, h).modes)
        return Values(weight, vector.zeros, distinct, modes, distinct, 0.0, entropy, often, unhashed)
    before = vector.distinct + (vector.zeros > 0)
    cells = cells_of(vector, "kde", h)
    values = representatives(cells, weight)
    hashed = torch.from_numpy(cells.assign(values)).reshape(weight.shape)
    # Two cells may have the same value in a short type, and zeros join the cell whose value is zero.
    taken, place = np.unique(np.append(values, 0), return_inverse=True)
    counts = np.bincount(place, np.append(cells.filling.tally[0], vector.zeros)).astype(np.int64)
    taken, counts = taken[counts > 0], counts[counts > 0]
    error, bits = cells.error_at(values), _bits(counts, weight.numel())
    often = _how_often(counts[taken != 0])
    return Values(hashed, vector.zeros, before, len(cells.centres), len(taken), error, bits, often, "")


def _modes_apart(vector: Vector, h: float) -> int:
    """How many modes there are at least in a large tensor that has more than one for sixteen weights; else 0.

    Where most weights are alike the bandwidth may be that narrow, and all modes would take more memory than the tensor.
    Two neighbouring weights that lie 2.5 bandwidths apart belong to two modes.
    """
    few = vector.size // 16
    if vector.size <= _MANY or vector.high - vector.low <= 2.5 * h * few:
        return 0
    gaps = sum(int((np.diff(part.astype(np.float64)) > 2.5 * h).sum()) for part in in_parts(np.sort(vector.weights)))
    return gaps + 1 if gaps > few else 0


def _count(weights: ndarray) -> tuple[int, float, dict[int, int]]:
    """How many values there are, their entropy in bits a weight, and how many but zero are there how often."""
    distinct, bits, often = 0, 0.0, Counter[int]()
    for part in _whole_values(np.sort(weights)):
        values, counts = np.unique(part, return_counts=True)
        distinct, bits = distinct + len(values), bits + _bits(counts, weights.size)
        often.update(_how_often(counts[values != 0]))
    return distinct, bits, often


def _bits(counts: ndarray, size: int) -> float:
    """What values of so many weights each add to the entropy of ``size`` weights, in bits a weight."""
    return float(counts @ np.log2(size / counts)) / size


def _how_often(counts: ndarray) -> dict[int, int]:
    """How many of the counts are there, by the count: 3 3 5 is {3: 2, 5: 1}."""
    return dict(zip(*(part.tolist() for part in np.unique(counts, return_counts=True)), strict=True))


def _whole_values(ordered: ndarray) -> Iterator[ndarray]:
    """Sorted weights in pieces that each end where a value ends: 1 1 2 2 2 3, two at a time, is 1 1, 2 2 2, 3."""
    start = 0
    while start < ordered.size:
        last = ordered[min(start + AT_ONCE, ordered.size) - 1]
        stop = int(np.searchsorted(ordered, last, "right"))
        yield ordered[start:stop]
        start = stop


def count_products(weight: torch.Tensor) -> int:
    """How many products the inputs of a weight ask for when every distinct one is computed once (unit "channel").

    A pixel of input channel i meets all weights of that channel, W[:, i]: as many products as they take values, zero
    apart.

    Arguments:
        weight: (out, in, *kernel), taken for one group.
    """
    channels = weight.reshape(*weight.shape[:2], -1).transpose(0, 1)
    total = 0
    for part in channels.split(max(1, AT_ONCE // max(1, channels[0].numel()))):
        values = np.sort(as_numpy(part.flatten(1)), axis=1)
        first = np.ones(values.shape, bool)
        np.not_equal(values[:, 1:], values[:, :-1], out=first[:, 1:])
        total += int(np.count_nonzero(first & (values != 0)))
    return total
