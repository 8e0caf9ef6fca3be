"""Selection: which of the scored are removed. Exactly k, ties in a stable order, and never all of a layer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy import ndarray

from redlab.channels.groups import Group
from redlab.options import check_one_of, check_whole, count_of

SCOPES = ("global", "layer")
Kept = Mapping[str, ndarray]  # by group, a mask (size,)


def lowest(values: ndarray, k: int) -> ndarray:
    """The flat indices of the ``k`` lowest of ``values``; of equal ones those that come first."""
    return np.argsort(values, axis=None, kind="stable")[:k]


def check_share(name: str, share: float) -> None:
    """Raises ValueError if ``share`` is no share."""
    if not 0 <= share <= 1:  # NaN too
        raise ValueError(f"{name} must lie in [0, 1], not be {share!r}")


@dataclass(frozen=True, eq=False)
class Selector:
    """The order in which the channels of a network are removed.

    Attributes:
        scores: by group (size,). Lowest first; of equal ones the first group, and in it the first channel.
        scope: "global", one order over all groups; "layer", the same share of every group.
        round_to: every group keeps a multiple of so many channels, or all.
    """

    scores: Mapping[str, ndarray]
    scope: str = "global"
    round_to: int = 1

    def __post_init__(self) -> None:
        check_one_of("scope", self.scope, SCOPES)
        check_whole("round_to", self.round_to)

    @property
    def total(self) -> int:
        """How many channels are scored."""
        return sum(map(len, self.scores.values()))

    def without(self, k: int) -> dict[str, ndarray]:
        """What is kept when ``k`` channels are removed, or at scope "layer" the share k / total of each group."""
        return self.at(k / max(self.total, 1))

    def at(self, ratio: float) -> dict[str, ndarray]:
        """What is kept when this share is removed, rounded down. Each group keeps its best channel at least."""
        removed = self._removed(ratio)
        return {name: self._keep(values, removed[name]) for name, values in self.scores.items()}

    def _removed(self, ratio: float) -> dict[str, int]:
        """How many of each group."""
        if self.scope == "layer":
            return {name: min(count_of(ratio, len(own)), len(own) - 1) for name, own in self.scores.items()}
        # The best of each group stays out of the order.
        orders = {name: lowest(values, len(values) - 1) for name, values in self.scores.items()}
        owner = np.repeat(np.arange(len(orders)), [len(order) for order in orders.values()])
        values = np.concatenate([self.scores[name][order] for name, order in orders.items()] or [np.zeros(0)])
        counts = np.bincount(owner[lowest(values, count_of(ratio, self.total))], minlength=len(orders))
        return dict(zip(orders, counts.tolist(), strict=True))

    def _keep(self, values: ndarray, removed: int) -> ndarray:
        kept = min(-(-(len(values) - removed) // self.round_to) * self.round_to, len(values))
        mask = np.ones(len(values), bool)
        mask[lowest(values, len(values) - kept)] = False
        return mask

    def down_to(self, target: float, cost: Callable[[Kept], int], most: int | None = None) -> dict[str, ndarray]:
        """What is kept when the fewest channels are removed that bring ``cost`` to ``target`` or below.

        Arguments:
            most: no more channels than that are removed, whether or not the target is reached.
        """
        top = 1 if most is None else most / max(self.total, 1)
        # Every share at which one more channel is removed.
        sizes = map(len, self.scores.values()) if self.scope == "layer" else [self.total]
        shares = np.unique([0.0, *(k / size for size in sizes for k in range(1, size + 1))])
        shares = shares[shares <= top].tolist()
        # The cost falls with every channel that is removed.
        first = bisect_left(shares, True, hi=len(shares) - 1, key=lambda share: cost(self.at(share)) <= target)
        return self.at(shares[first])


class Products:
    """Counts the products of a network with fewer channels without building it: they scale with each weight's size.

    Arguments:
        groups: the coupled groups of the network.
        shapes: by the dotted name of each conv and linear weight, its shape.
        products: by the same name, the products of its layer.
        total: the products of the network; those of no layer stay.
        pairs: (shape[0], shape[1]) how many products belong to each kernel, for weights that have zeros. In the other
            layers all kernels have equally many.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        shapes: Mapping[str, Sequence[int]],
        products: Mapping[str, int],
        total: int,
        pairs: Mapping[str, ndarray] | None = None,
    ) -> None:
        self._shapes, self._products, self._pairs, self.total = shapes, products, pairs or {}, total
        members = [(group.name, m) for group in groups for m in (*group.producers, *group.consumers)]
        self._members = [(name, m.tensor, m.dim, m.index) for name, m in members if m.tensor in products]

    def __call__(self, kept: Kept) -> int:
        left = {name: [np.ones(size, bool) for size in shape[:2]] for name, shape in self._shapes.items()}
        for group, tensor, dim, index in self._members:
            if group in kept:
                left[tensor][dim][index.numpy()[~kept[group]]] = False
        return self.total - sum(self._products[name] - self._left(name, masks) for name, masks in left.items())

    def _left(self, name: str, masks: Sequence[ndarray]) -> int:
        if name in self._pairs:
            return int(self._pairs[name][np.ix_(*masks)].sum())
        now, before = prod(int(mask.sum()) for mask in masks), prod(map(len, masks))
        return self._products[name] * now // max(before, 1)
