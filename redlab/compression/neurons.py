"""The neurons of a coupled group: how many of them merge, and what each becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray

from redlab.compression.similarity import Dendrogram, clusters_at
from redlab.options import count_of


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of a group that may merge: all its channels but the dead ones.

    Attributes:
        size: channels of the group.
        alive: (size,) which of them are not dead; n of them.
        first: (n,) the first neuron identical to each.
        grow: the function that makes their dendrogram.
    """

    size: int
    alive: ndarray
    first: ndarray
    grow: Callable[[], Dendrogram]

    @cached_property
    def tree(self) -> Dendrogram:
        """Grown only where neurons merge that are not identical: large layers take a second."""
        return self.grow()

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def distinct(self) -> int:
        return len(np.unique(self.first))


def count_merges(neurons: Neurons, alpha: float, alpha_of: str) -> int:
    """How many neurons merging removes: never all, and of identical ones all but one."""
    n = len(neurons)
    if alpha == 0 or n < 2:
        return n - neurons.distinct
    if alpha_of == "share":
        return min(max(count_of(alpha, neurons.size), n - neurons.distinct), n - 1)
    tree = neurons.tree
    place = np.searchsorted(tree.leaves, tree.first)
    pairs = tree.distances[np.ix_(place, place)][np.triu_indices(n, 1)]
    return tree.merged_within(float(np.quantile(pairs, alpha)))


def destinations_of(neurons: Neurons, merges: int, round_to: int) -> list[int]:
    """The new index of every channel of a group, -1 for removed ones. New channels are ordered by first members.

    Of six channels let 2 be dead, 0 and 3 identical, and 1 and 5 merge: the destinations are 0 1 -1 0 2 1. With
    ``round_to`` 4 one more channel must stay: the last merge is undone, 0 1 -1 0 2 3.
    """
    alive, live = neurons.alive, len(neurons)
    wanted = min(-(-max(live - merges, 1) // round_to) * round_to, neurons.size)
    clusters = np.full(neurons.size, -1)
    clusters[alive] = _clusters(neurons, min(wanted, live))
    # More channels are wanted than live: the first dead ones stay, each by itself.
    stay = np.flatnonzero(~alive)[: max(wanted - live, 0)]
    clusters[stay] = live + np.arange(len(stay))
    places = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters[clusters >= 0].tolist()))}
    return [places.get(cluster, -1) for cluster in clusters.tolist()]


def _clusters(neurons: Neurons, wanted: int) -> ndarray:
    """(n,) the cluster of each neuron where exactly ``wanted`` are left."""
    n = len(neurons)
    if wanted < neurons.distinct:
        return clusters_at(neurons.tree, n - wanted)
    clusters = neurons.first.copy()
    copies = np.flatnonzero(clusters != np.arange(n))
    spared = copies[len(copies) - (wanted - neurons.distinct) :]
    clusters[spared] = spared
    return clusters
