"""The weights of one tensor in ascending order, and what their order alone tells: distinct values and entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy import ndarray
from torch import Tensor

from redlab.files.entries import Entry
from redlab.hashing.patterns import tally

# A layer of so few distinct values, and at least four weights to each, was hashed before.
FEW = 256
AT_ONCE = 1 << 18  # weights that are worked on together: temporaries of a few megabytes


class NotFinite(ValueError):
    """NaN or inf in a tensor, how many."""


def ordered_weights(entry: Entry) -> ndarray:
    """All its weights, ascending, float32 or float64; sorted in place where they are that already."""
    if entry.dtype.itemsize <= 2:
        values, counts = tally(_flat(entry.read()))  # gone before the next line makes float32 of it
        _check(int(counts[np.isnan(values)].sum()), int(counts[np.isinf(values)].sum()))
        return np.repeat(values, counts)
    weights = _flat(entry.read()).numpy()
    if not (np.isfinite(weights.min()) and np.isfinite(weights.max())):  # NaN where there is one
        _check(*(sum(int(bad(part).sum()) for part in in_parts(weights)) for bad in (np.isnan, np.isinf)))
    weights.sort()
    return weights


def _check(nan: int, infinite: int) -> None:
    if nan or infinite:
        raise NotFinite(f"it holds {nan:,} NaN and {infinite:,} infinite values")


def _flat(tensor: Tensor) -> Tensor:
    """All elements in any order: those of the storage where it holds no others."""
    if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size():
        return tensor.as_strided((tensor.numel(),), (1,), 0)
    return tensor.reshape(-1)


def in_parts(weights: ndarray) -> Iterator[ndarray]:
    """A vector in pieces that fit a cache."""
    return (weights[start : start + AT_ONCE] for start in range(0, weights.size, AT_ONCE))


def _runs(ordered: ndarray) -> Iterator[tuple[ndarray, ndarray]]:
    """The distinct values, ascending, with how often each is there, some at a time."""
    begin, size = 0, ordered.size
    for start in range(0, size, AT_ONCE):
        first, stop = max(start - 1, 0), min(start + AT_ONCE, size)
        part = ordered[first:stop]
        ends = np.flatnonzero(part[1:] != part[:-1]) + first + 1
        ends = np.append(ends, size) if stop == size else ends
        if len(ends):
            yield ordered[ends - 1], np.diff(ends, prepend=begin)
            begin = ends[-1]


def own_values(ordered: ndarray) -> tuple[int, float, ndarray]:
    """How many distinct values there are, their entropy in bits a weight, and how often they are there, zero apart."""
    often: Counter[float] = Counter()
    distinct, bits = 0, 0.0
    for values, counts in _runs(ordered):
        distinct += len(values)
        bits += bits_of(counts, ordered.size)
        often.update(dict(how_often(counts[values != 0]).tolist()))
    return distinct, bits, np.array(sorted(often.items())).reshape(-1, 2)


def without_zeros(ordered: ndarray) -> ndarray:
    """The weights but exact zeros, still ascending, moved together in place; all, where there is nothing but zeros."""
    zero = ordered.dtype.type(0)  # of any other dtype it would make searchsorted copy the weights
    first, last = (int(np.searchsorted(ordered, zero, side)) for side in ("left", "right"))
    if last - first in (0, ordered.size):
        return ordered
    for start in range(last, ordered.size, AT_ONCE):
        part = ordered[start : start + AT_ONCE]
        ordered[first : first + part.size] = part
        first += part.size
    return ordered[:first]


def how_often(counts: ndarray) -> ndarray:
    """(m, 2): each distinct count, ascending, and how many values are there so often."""
    return np.stack(np.unique(counts, return_counts=True), axis=1)


def bits_of(counts: ndarray, size: int) -> float:
    """What values of so many weights each add to the entropy of ``size`` weights, in bits a weight."""
    return float(counts @ np.log2(size / counts)) / size


def why_unchanged(distinct: int, size: int, zeros: int = 0) -> str:
    """Why hashing leaves ``size`` weights of so many distinct values, and exact ``zeros``, as they are, or ""."""
    if distinct == 1:
        return "all its weights are equal" + (" or zero" if zeros else "")
    hashed = distinct <= FEW and distinct <= size / 4
    return f"already hashed: {distinct} distinct values" + (" and zero" if zeros else "") if hashed else ""
