"""Data-free parameter pruning (Srinivas & Babu, BMVC 2015, arXiv 1507.06149): the cheapest pair to merge merges first.

s_ij = mean over the layers' outputs of a_j^2, times ||W_i - W_j||^2:  a_j the input slices of j, W_i the row of i
repeat: the pair with the lowest s_ij merges: j is removed, a_i <- a_i + a_j;  score(j) = s_ij then
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from redlab.channels.groups import Group
from redlab.compression.channel_rows import effective_rows, slices_of
from redlab.compression.similarity import pairwise_distances
from redlab.progress import progress
from redlab.pruning.subject import Scored, Subject, last_turn, turn


def srinivas_babu(subject: Subject) -> Scored:
    """The saliency of each channel in its turn; its merge target absorbs its slices in the consumer layers."""
    values, targets = {}, {}
    for group in progress(subject.free, "merging"):
        squares = pairwise_distances(effective_rows(subject.folded, group)).astype(np.float64) ** 2
        values[group.name], targets[group.name] = _merged(squares, _read(subject, group))
    return Scored(values, targets)


def _read(subject: Subject, group: Group) -> ndarray:
    """(size, d) the input slices of each channel in all consumer layers."""
    weights = subject.weights(folded=True)
    own = [m for m in group.consumers if m.tensor in weights]
    columns = [slices_of(weights[m.tensor], m.index, m.dim) for m in own] or [np.ones((group.size, 1))]
    return np.concatenate(columns, axis=1).astype(np.float64)


def _merged(squares: ndarray, read: ndarray) -> tuple[ndarray, ndarray]:
    """(n,) each: the saliency at which a channel is removed, never below the one before, and its merge target."""
    n = len(squares)
    scores, targets, top = np.zeros(n), np.full(n, -1), 0.0
    distances, cost = squares.copy(), (read**2).mean(1)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(1)
    for _ in range(n - 1):
        saliency = cost * distances[np.arange(n), nearest]
        removed = int(saliency.argmin())
        target, top = int(nearest[removed]), turn(float(saliency[removed]), top)
        scores[removed], targets[removed] = top, target
        read[target] += read[removed]
        cost[target], cost[removed] = (read[target] ** 2).mean(), np.inf
        distances[:, removed] = np.inf
        stale = np.flatnonzero((nearest == removed) & np.isfinite(cost))
        nearest[stale] = distances[stale].argmin(1)
        nearest[removed] = removed
        distances[removed, removed] = np.inf
    scores[np.isfinite(cost)] = last_turn(top)
    return scores, targets
