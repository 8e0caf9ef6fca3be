"""Channel labels: which channels are one channel, which must leave together, and which must stay.

A tensor of labels has the shape of the activation that it describes. A label of 0 or more is a channel: the element is
there as long as the channel is. A negative label is an element of fixed width: an input, a constant, or what an
operation makes that nobody knows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Labels:
    """The labels given out so far, united at two levels.

    *Same*: two labels are one channel, as the two sides of a sum are. *Together*: two channels that must leave
    together, as channel j of every group of a grouped convolution. What is the same is also together.
    """

    def __init__(self) -> None:
        self._same = np.zeros(0, dtype=np.int64)
        self._together = np.zeros(0, dtype=np.int64)
        self._fixed: dict[str, int] = {}
        self._why: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """``count`` new labels."""
        new = np.arange(len(self._same), len(self._same) + count)
        self._same = np.concatenate([self._same, new])
        self._together = np.concatenate([self._together, new])
        return torch.from_numpy(new)

    def fixed(self, reason: str) -> Tensor:
        """The negative label, a scalar, of elements that can't be removed for ``reason``."""
        return torch.tensor(-1 - self._fixed.setdefault(reason, len(self._fixed)))

    def same(self, labels: Tensor) -> Tensor:
        """The channel of each label: the smallest label that is the same."""
        return _roots(self._same, labels)

    def together(self, labels: Tensor) -> Tensor:
        """What each label must leave with: the smallest label of its set; -1 for what is fixed."""
        return _roots(self._together, labels).clamp(min=-1)

    def unite(self, one: Tensor, other: Tensor, same: bool) -> None:
        """Element by element, with broadcasting; what meets an element of fixed width freezes."""
        low, high = _pairs(*torch.broadcast_tensors(compact(one), compact(other)))
        for constant, label in pairs_of(low, high, (low < 0) & (high >= 0)):
            self._freeze_one(label, list(self._fixed)[-1 - constant])
        for parents in (self._together, self._same) if same else (self._together,):
            for first, second in pairs_of(low, high, low >= 0):
                _union(parents, first, second)

    def unite_along(self, labels: Tensor, axis: int, same: bool) -> None:
        """Unite what lies along ``axis``."""
        if labels.shape[axis] > 1:
            self.unite(labels.narrow(axis, 0, 1), labels.narrow(axis, 1, labels.shape[axis] - 1), same)

    def freeze(self, labels: Tensor, reason: str) -> None:
        """The channels of ``labels`` must stay; the first reason given to a label is kept."""
        for label in np.unique(compact(labels).numpy()).tolist():
            if label >= 0:
                self._freeze_one(label, reason)

    def _freeze_one(self, label: int, reason: str) -> None:
        self._why.setdefault(int(label), reason)

    def reasons(self) -> dict[int, str]:
        """Why a set of labels that leave together must stay, by the set's smallest label, as ``together`` gives it."""
        roots = self.together(torch.tensor(list(self._why), dtype=torch.int64)).tolist()
        # The other way round, so that the first reason stays.
        return dict(zip(reversed(roots), reversed(self._why.values()), strict=True))

    def vary(self, labels: Tensor, axis: int) -> bool:
        """Whether channels lie along ``axis``: whether a removal could shorten it."""
        labels = compact(labels)
        if labels.shape[axis] < 2:
            return False
        roots = self.together(labels)
        return bool((roots != roots.narrow(axis, 0, 1)).any())

    def axes(self, labels: Tensor) -> list[int]:
        """The axes along which channels lie."""
        return [axis for axis in range(labels.ndim) if self.vary(labels, axis)]


def compact(labels: Tensor) -> Tensor:
    """``labels`` without the repetitions of ``expand``: an axis along which it is expanded gets size 1."""
    for axis, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        labels = labels.narrow(axis, 0, 1) if stride == 0 and size > 1 else labels
    return labels


def pairs_of(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> list[tuple[int, int]]:
    """The pairs (first, second) at the places where ``where`` holds, as Python numbers."""
    return list(zip(first[where].tolist(), second[where].tolist(), strict=True))


def _pairs(one: Tensor, other: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The distinct unequal pairs of elements, the smaller element first."""
    low, high = torch.minimum(one, other).flatten().numpy(), torch.maximum(one, other).flatten().numpy()
    base = 1 + int(high.max(initial=0)) - int(low.min(initial=0))
    codes = np.unique((low * base + (high - low))[low != high])  # one number a pair: high - low < base
    return codes // base, codes // base + codes % base


def _roots(parents: np.ndarray, labels: Tensor) -> Tensor:
    numbers = labels.numpy()
    if not (numbers >= 0).any():
        return labels
    roots = np.where(numbers >= 0, parents[np.maximum(numbers, 0)], numbers)
    while not np.array_equal(above := np.where(roots >= 0, parents[np.maximum(roots, 0)], roots), roots):
        roots = above
    return torch.from_numpy(np.asarray(roots))


def _root(parents: np.ndarray, label: int) -> int:
    while parents[label] != label:
        parents[label] = parents[parents[label]]
        label = parents[label]
    return label


def _union(parents: np.ndarray, one: int, other: int) -> None:
    one, other = _root(parents, one), _root(parents, other)
    parents[max(one, other)] = min(one, other)
