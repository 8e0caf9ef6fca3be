"""Redundancy: how far a channel is from its nearest neighbour. RED merges the closest first.

score(c) = height at which c joins a cluster of earlier channels, in the dendrogram of the distances
           D(i, j) = ||row_i - row_j||_2 between neurons (RED, NeurIPS 2021, arXiv 2105.14797; the linkage is ours)
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from redlab.compression.channel_rows import effective_rows
from redlab.compression.similarity import Dendrogram, dendrogram
from redlab.pruning.subject import Scored, Subject, last_turn


def redundancy(subject: Subject, linkage: str = "complete", relative: bool = True) -> Scored:
    """Channels that merge early are redundant; the merge target is the first channel of the cluster they join.

    Arguments:
        linkage: "complete" or "single", as in ``merge_neurons``.
        relative: heights over the group's mean row length, so that groups can be compared (our choice).
    """
    values, targets = {}, {}
    for group in subject.free:
        rows = effective_rows(subject.folded, group)
        values[group.name], targets[group.name] = joining_heights(dendrogram(rows, linkage))
        if relative and (length := np.linalg.norm(rows, axis=1).mean()) > 0:
            values[group.name] /= length
    return Scored(values, targets)


def joining_heights(tree: Dendrogram) -> tuple[ndarray, ndarray]:
    """(n,) each: the height at which each row's cluster joins that of an earlier row, and that row.

    The first row joins none: its merge target is -1, its height above all others.
    """
    n, u = len(tree.first), len(tree.leaves)
    heights, targets = np.zeros(n), tree.first.copy()
    leader = np.concatenate([tree.leaves, np.zeros(len(tree.merges), int)])
    for k, (one, other, height, _) in enumerate(tree.merges):
        early, late = sorted((leader[int(one)], leader[int(other)]))
        leader[u + k], targets[late], heights[late] = early, early, height
    targets[0], heights[0] = -1, last_turn(heights.max(initial=0))
    return heights, targets
