"""How alike the rows of a matrix are: exact duplicates, all distances, and the dendrogram that orders the merges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor

from redlab.network.layers import as_floats
from redlab.options import check_one_of

LINKAGES = ("complete", "single")
# Columns that tell rows apart before they are read as a whole.
_PROBES = 8
# Squared distances below this share of the squared lengths have lost too many digits to cancellation. Gram matrices
# in float32 err by some 1e-6 of the squared lengths, in float64 by 1e-14.
_CANCELLED = {4: 1e-2, 8: 1e-8}
# Rows of distances that are worked out together; values in flight where pairs are computed anew: they stay in cache.
_BLOCK, _CHUNK = 256, 1 << 18
# Numbers, and rows, of which duplicates are looked for together.
_PART = 1 << 21, 1 << 16


def exact_duplicates(rows: ndarray) -> ndarray:
    """For each row the index of the first row that equals it: (n, d) -> (n,) int64, ``first[i] <= i``.

    Equal means equal numbers, so that -0.0 equals 0.0. Rows that differ in their sum or in one of a few columns are
    told apart by those alone; all others are compared as a whole. Costs about one read of the rows.

    Raises:
        ValueError: NaN or inf among the rows.

    Example:
        >>> exact_duplicates(np.array([[1.0, 0.0], [2.0, 3.0], [1.0, -0.0]]))
        array([0, 1, 0])
    """
    rows, sums = _checked(rows)
    first = _lookalikes(rows, sums)
    alike = np.flatnonzero(first != np.arange(len(rows)))
    equal = np.array([(rows[row] == rows[first[row]]).all() for row in alike], bool)
    # Mostly none are left: rows of equal sums and probes that differ (permutations of one another, say).
    leaders: dict[bytes, int] = {}
    for row in alike[~equal]:
        first[row] = leaders.setdefault((rows[row] + 0.0).tobytes(), row)
    return first


def count_duplicates(rows: Tensor) -> int:
    """How many rows of a tensor, along its first axis, equal one before them, exactly; in memory for a part of them.

    Rows of floating numbers, in any of torch's types, finite. Where they are many, or no float32 yet, they are dealt
    out by a checksum of their bits, so that equal ones meet in the same part.
    """
    rows = rows.reshape(len(rows), -1)
    parts = max(rows.numel() // _PART[0], len(rows) // _PART[1]) + 1
    if parts == 1:
        return _repeated(rows)
    step = max(1, _CHUNK // rows.shape[1])
    sums = np.concatenate([_checksums(rows[start : start + step]) for start in range(0, len(rows), step)])
    part = (sums >> np.uint64(40)) % np.uint64(parts)
    order = np.argsort(part, kind="stable")
    ends = np.searchsorted(part[order], np.arange(1, parts))
    return sum(_repeated(rows[rows_of]) for rows_of in np.split(order, ends))


def _repeated(rows: Tensor) -> int:
    if len(rows) < 2:
        return 0
    first = exact_duplicates(as_floats(rows).numpy())
    return int((first != np.arange(len(first))).sum())


def _checksums(rows: Tensor) -> ndarray:
    """(n,) uint64: equal for equal rows, nearly always different for others."""
    numbers = np.ascontiguousarray(as_floats(rows).numpy()) + 0.0  # + 0.0: no zero is negative
    bits = numbers.view(f"u{numbers.itemsize}").astype(np.uint64)
    odd = np.random.default_rng(0).integers(1 << 63, size=bits.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return bits @ odd


def pairwise_distances(rows: ndarray) -> ndarray:
    """Euclidean distances between all rows: (n, d) -> (n, n) in the dtype of the rows, symmetric, the diagonal 0.

    From one Gram matrix of the centred rows. Where that cancels, the pair is computed anew from its difference, so
    that distances of near rows are as good as those of far ones: to about 1e-4 of themselves in float32, mostly 1e-6.

    Raises:
        ValueError: NaN or inf among the rows.
    """
    rows, _ = _checked(rows)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        centred = rows - rows.mean(0)
        squares = np.einsum("ij,ij->i", centred, centred)
    if not 1e-20 < squares.max() < 1e20 and (exponent := _exponent(rows)):
        return np.ldexp(pairwise_distances(np.ldexp(rows, -exponent)), exponent)
    distances = np.empty((len(rows), len(rows)), rows.dtype)
    for start in range(0, len(rows), _BLOCK):
        _measure(centred, squares, distances, start)
    return distances


def _exponent(rows: ndarray) -> int:
    """The power of two to divide the rows by where their squares vanish (1e-30 in float32) or overflow, else 0."""
    exponent = int(np.frexp(max(rows.max(initial=0), -rows.min(initial=0)))[1])
    return exponent if abs(exponent) > 20 else 0


@dataclass(frozen=True, eq=False)
class Dendrogram:
    """The order in which rows merge: identical ones first, then the others, the nearest first.

    Attributes:
        first: (n,) for each row the index of the first one identical to it. Those u that are their own are the leaves.
        merges: (u - 1, 4) float64, scipy's linkage matrix over the leaves: the two clusters, height, size.
        distances: (u, u) between the leaves.
    """

    first: ndarray
    merges: ndarray
    distances: ndarray

    @property
    def leaves(self) -> ndarray:
        """(u,) the rows that the leaves stand for."""
        return np.unique(self.first)

    @property
    def identical(self) -> int:
        """How many rows are removed when identical ones are merged."""
        return len(self.first) - len(self.leaves)

    @property
    def order(self) -> ndarray:
        """(n,) all rows as the leaves of the tree stand side by side, identical ones next to each other."""
        leaves = hierarchy.leaves_list(self.merges) if len(self.merges) else np.arange(len(self.leaves))
        place = np.argsort(leaves)[np.searchsorted(self.leaves, self.first)]
        return np.argsort(place, kind="stable")

    @property
    def closeness(self) -> float:
        """How much nearer than the median pair the nearest one is: 1 where rows are identical, else below."""
        if self.identical or len(self.leaves) < 2:
            return float(self.identical > 0)
        return 1 - float(self.merges[0, 2] / np.median(self.distances[np.triu_indices(len(self.leaves), 1)]))

    def merged_within(self, height: float) -> int:
        """How many rows are removed when every merge up to ``height`` is done."""
        return self.identical + int(np.searchsorted(self.merges[:, 2], height, side="right"))


def dendrogram(rows: ndarray, linkage: str = "complete", first: ndarray | None = None) -> Dendrogram:
    """Hierarchical clustering of the rows (n, d) by Euclidean distance; one serves every number of merges.

    Identical rows change neither linkage, so that only one of each takes part. Equal distances are merged in an order
    that the rows alone decide: the same rows give the same tree.

    Arguments:
        linkage: "complete", the distance of two clusters is that of their farthest rows; "single", of their nearest.
        first: which rows count as identical, as ``exact_duplicates`` gives it; by default those of the rows.

    Raises:
        ValueError: no rows, NaN or inf among them, an unknown linkage.
    """
    check_one_of("linkage", linkage, LINKAGES)
    first = exact_duplicates(rows) if first is None else first
    distances = pairwise_distances(rows[np.unique(first)])
    if len(distances) == 1:
        return Dendrogram(first, np.empty((0, 4)), distances)
    merges = hierarchy.linkage(squareform(distances, checks=False), linkage)
    return Dendrogram(first, merges, distances)


def clusters_at(tree: Dendrogram, merged: int) -> ndarray:
    """The cluster of each row once ``merged`` rows are removed: (n,) int64, numbered by first members.

    Exactly so many are removed, except that identical rows are always merged and that one cluster stays.
    """
    merges = tree.merges[: max(merged - tree.identical, 0), :2].astype(int)
    u = len(tree.leaves)
    # Merge k makes the cluster u + k, so that from the last to the first each hands its root down to its two parts.
    root = np.arange(u + len(merges))
    for k in reversed(range(len(merges))):
        root[merges[k]] = root[u + k]
    clusters = root[:u][np.searchsorted(tree.leaves, tree.first)]
    _, members, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(members))[inverse]


def _checked(rows: ndarray) -> tuple[ndarray, ndarray]:
    """The rows, contiguous, in float32 or float64, and their sums, which tell whether all is finite in one read."""
    if rows.ndim != 2 or len(rows) == 0 or not np.issubdtype(rows.dtype, np.floating):
        raise ValueError(f"rows must be a matrix of floats with at least one row, not {rows.dtype} of {rows.shape}")
    rows = np.ascontiguousarray(rows, np.float64 if rows.dtype.itemsize > 4 else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = rows.sum(1)
    # A finite sum has finite terms only; one that overflows deserves a second look.
    suspects = np.flatnonzero(~np.isfinite(sums))
    if len(bad := suspects[~np.isfinite(rows[suspects]).all(1)]):
        raise ValueError(f"NaN or inf in {len(bad)} of {len(rows)} rows, the first of them row {bad[0]}")
    return rows, np.nan_to_num(sums)


def _lookalikes(rows: ndarray, sums: ndarray) -> ndarray:
    """(n,) for each row the first one of equal sum and probes."""
    probes = rows[:, :: max(1, rows.shape[1] // _PROBES)]
    signatures = np.column_stack([sums, probes]) + 0.0  # + 0.0: no zero is negative
    leaders: dict[bytes, int] = {}
    keys = signatures.view(f"V{signatures[0].nbytes}").ravel().tolist()
    return np.array([leaders.setdefault(key, row) for row, key in enumerate(keys)])


def _measure(rows: ndarray, squares: ndarray, distances: ndarray, start: int) -> None:
    """Fill some rows of the distances up to the diagonal, and the columns that mirror them."""
    stop = min(start + _BLOCK, len(rows))
    block = rows[start:stop] @ rows[:stop].T
    lengths = squares[start:stop, None] + squares[:stop]
    block *= -2
    block += lengths
    lengths *= _CANCELLED[rows.itemsize]
    left, right = np.divmod(np.flatnonzero(block <= lengths), stop)
    step = max(1, _CHUNK // max(rows.shape[1], 1))
    for k in range(0, len(left), step):  # anew where cancellation has spoilt them
        i, j = left[k : k + step], right[k : k + step]
        difference = rows[start + i] - rows[j]
        block[i, j] = np.einsum("ij,ij->i", difference, difference)
    np.sqrt(block, out=block)
    distances[start:stop, :stop] = block
    distances[:stop, start:stop] = block.T
