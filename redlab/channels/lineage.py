"""Lineage: which channel of the original network each channel is, while channels are removed round after round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from redlab.channels.apply import edits_of
from redlab.channels.groups import Group


class Lineage:
    """Every channel of ``groups`` keeps one number: its place among all of them.

    Every round couples groups anew, and a group's name may then belong to another group: it is the name of the layer
    that makes the group first. So channels are known by the tensors that make them.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)
        self._starts = np.cumsum([0, *(group.size for group in groups)])
        self._fates = np.arange(self.total)  # itself, its merge target, or -1
        self._numbers: dict[tuple[str, int], ndarray] = {}  # by tensor and dim, of each slice
        for group, start in zip(groups, self._starts, strict=False):
            for member in group.producers:
                own = self._numbers.setdefault((member.tensor, member.dim), np.full(member.width, -1))
                own[member.index.numpy()] = start + np.arange(group.size)[:, None]

    @property
    def total(self) -> int:
        """How many channels there were."""
        return int(self._starts[-1])

    @property
    def free(self) -> int:
        """How many channels there were in groups that may lose channels."""
        return sum(group.size for group in self.groups if not group.frozen)

    @property
    def left(self) -> int:
        """How many of those are left."""
        return self.free - int((self._fates != np.arange(self.total)).sum())

    def numbers(self, group: Group) -> ndarray:
        """(size,) the numbers of the channels of ``group``, which is a group of the network as it is now."""
        member = next(m for m in group.producers if (m.tensor, m.dim) in self._numbers)
        return self._numbers[member.tensor, member.dim][member.index[:, 0].numpy()]

    def follow(self, plan: dict[str, Any]) -> None:
        """Take note that ``plan`` was applied to the network."""
        for (tensor, dim), edit in edits_of(plan).items():
            if (tensor, dim) not in self._numbers:
                continue
            own = self._numbers[tensor, dim]
            for part in edit.parts:
                if part.role == "producer":
                    channels, becomes = own[part.index[:, 0].numpy()], part.becomes.numpy()
                    self._fates[channels] = np.where(becomes >= 0, channels[becomes], -1)
            self._numbers[tensor, dim] = own[edit.stay.numpy()]

    def destinations(self) -> dict[str, list[int]]:
        """By original group that lost channels, the destinations as in ``make_plan``."""
        fates, before = self._fates, None
        while before is None or (fates != before).any():  # a merge target may have been removed later
            fates, before = np.where(fates >= 0, self._fates[fates], -1), fates
        found = {}
        for group, start in zip(self.groups, self._starts, strict=False):
            own = fates[start : start + group.size]
            alive = np.unique(own[own >= 0])
            if len(alive) < group.size:
                found[group.name] = np.where(own >= 0, np.searchsorted(alive, own), -1).tolist()
        return found
