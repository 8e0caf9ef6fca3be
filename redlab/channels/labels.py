"""Channel labels: which channels are the same, which must leave together, and which must stay.

A tensor of labels has the shape of the activation that it describes. A label of 0 or more is the channel that the
element belongs to. A negative label is an element of fixed width: an input, a constant, or the output of an unknown
operation. ``Flow`` holds the labels of every activation of a network, and the slices of its
tensors that belong to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from redlab.network.trace import Graph


class Labels:
    """The labels given out so far, united at two levels.

    *Same*: two labels are one channel, such as the two sides of a sum. *Together*: two channels must leave together,
    such as channel j of every group of a grouped convolution. What is the same is also together.
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
        """The negative label, a scalar, of elements that cannot be removed for ``reason``."""
        return torch.tensor(-1 - self._fixed.setdefault(reason, len(self._fixed)))

    def why_fixed(self, labels: Tensor) -> str:
        """The reason of the first of ``labels``, all of fixed width."""
        return list(self._fixed)[-1 - int(compact(labels).flatten()[0])] if labels.numel() else ""

    def same(self, labels: Tensor) -> Tensor:
        """The channel of each label: the smallest label that is the same."""
        return _roots(self._same, labels)

    def together(self, labels: Tensor) -> Tensor:
        """The set that each label must leave with, by the smallest label of the set; -1 for what is fixed."""
        return _roots(self._together, labels).clamp(min=-1)

    def unite(self, one: Tensor, other: Tensor, same: bool) -> None:
        """Element by element, with broadcasting. A label that meets an element of fixed width is frozen."""
        low, high = _pairs(*torch.broadcast_tensors(compact(one), compact(other)))
        for constant, label in pairs_of(low, high, (low < 0) & (high >= 0)):
            self._why.setdefault(label, list(self._fixed)[-1 - constant])
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
                self._why.setdefault(label, reason)

    def reasons(self) -> dict[int, str]:
        """Why a set of labels that leave together must stay, by the set's smallest label, as ``together`` gives it."""
        roots = self.together(torch.tensor(list(self._why), dtype=torch.int64)).tolist()
        # In reverse order, so that the first reason stays.
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


@dataclass(eq=False)
class Entry:
    """Tensors whose slices belong to channels, all in the same way.

    Attributes:
        tensors: (dotted name, dim) of each.
        role: "producer", "consumer", "padding" (a module that pads, and whose widths are attributes) or "size" (a
            number that a module holds; it has as many slices as it counts).
        labels: (positions, w): the channels that each slice belongs to; w > 1 where a column of a grouped
            convolution serves one channel of every group.
        node: the operation that reads them.
    """

    tensors: list[tuple[str, int]]
    role: str
    labels: Tensor
    node: Node


class Flow:
    """What is known so far of the channels of ``graph``. ``rules.follow`` fills it, operation by operation.

    Attributes:
        tried: by operation, how many of the ways in which its number may follow the channels were found wrong.
        ways: by operation whose number is taken to follow the channels, those that it meets.
        waiting: by operation that only moves a parameter of several axes, the parameter: none is known as that of the
            channels yet.
    """

    def __init__(self, graph: Graph, tried: Mapping[Node, int] | None = None) -> None:
        self.graph, self.labels = graph, Labels()
        self.tried = tried or {}
        self.ways: dict[Node, Tensor] = {}
        self.waiting: dict[Node, Node] = {}
        self.entries: list[Entry] = []
        self._entry_of: dict[tuple[str, int, str], Entry] = {}
        self.moved: list[Tensor] = []  # labels that meet an operation that doesn't map 0 to 0
        self._at: dict[Node, Any] = {}
        self._name = {node: name for name, node in reversed(graph.tensors.items())}

    def name(self, node: Any) -> str:
        """The dotted name of the parameter or buffer that ``node`` is, or ""."""
        return self._name.get(node, "") if isinstance(node, Node) else ""

    def at(self, node: Node) -> Any:
        """The labels of what ``node`` computes; a list for several outputs, None for what isn't a tensor."""
        if node not in self._at:
            self._at[node] = self._source(node)
        return self._at[node]

    def has(self, node: Node) -> bool:
        """Whether the labels of what ``node`` computes are known."""
        return node in self._at

    def put(self, node: Node, labels: Any) -> None:
        """``labels`` are those of what ``node`` computes."""
        self._at[node] = labels

    def inputs(self, node: Node) -> list[Tensor]:
        """The labels of every tensor among the arguments of ``node``."""
        found = [self.at(argument) for argument in node.all_input_nodes]
        flat = [labels for one in found for labels in (one if isinstance(one, list) else [one])]
        return [labels for labels in flat if labels is not None]

    def freeze(self, node: Node, reason: str, labels: list[Tensor] | None = None) -> Any:
        """Freeze the labels that reach ``node``; its own outputs are of fixed width."""
        for reached in self.inputs(node) if labels is None else labels:
            self.labels.freeze(reached, reason)
        return self.of_fixed_width(node, reason)

    def of_fixed_width(self, node: Node, reason: str) -> Any:
        """Labels for the outputs of ``node``: they cannot change, for ``reason``."""
        label, value = self.labels.fixed(reason), node.meta.get("val")
        if isinstance(value, list | tuple):
            return [label.expand(v.shape) if isinstance(v, Tensor) else None for v in value]
        return label.expand(value.shape) if isinstance(value, Tensor) else None

    def slices(self, labels: Tensor, axis: int) -> Tensor:
        """One label for each slice along ``axis``; all that lies in a slice becomes one channel."""
        flat = compact(labels.movedim(axis, 0)).flatten(1)
        self.labels.unite_along(flat, 1, same=True)
        return flat[:, 0].expand(labels.shape[axis]) if len(flat) == 1 else flat[:, 0]

    def meet(self, node: Node, tensors: list[tuple[str, int]], role: str, labels: Tensor) -> None:
        """Enter that the slices of ``tensors`` belong to ``labels``. A second use of the same slices unites the two."""
        labels = labels if labels.ndim == 2 else labels[:, None]
        new = []
        for tensor, dim in tensors:
            entry = self._entry_of.get((tensor, dim, role))
            if entry is None:
                new.append((tensor, dim))
            elif entry.labels is not labels:
                self.labels.unite(entry.labels, labels, same=True)
        if new:
            self.entries.append(Entry(new, role, labels, node))
            self._entry_of |= {(*tensor, role): self.entries[-1] for tensor in new}

    def measure(self, node: Node, name: str, labels: Tensor) -> None:
        """Enter that the number ``name`` counts the rows of ``labels``, each one or several channels."""
        if (entry := self._entry_of.get((name, 0, "size"))) is None:
            self.meet(node, [(name, 0)], "size", labels)
        else:
            self.labels.unite(entry.labels[:, :1], labels, same=False)

    def known(self, tensor: str, dim: int, role: str) -> Tensor | None:
        """The labels of the slices of a tensor that was met before."""
        entry = self._entry_of.get((tensor, dim, role))
        return None if entry is None else entry.labels

    def _source(self, node: Node) -> Any:
        name, long = self.name(node), self.long_axes(node)
        if len(long) != 1:
            return self.of_fixed_width(node, f"it meets {name or 'a constant'}, of fixed width")
        # One number a channel, such as the layer_scale of ConvNeXt, follows the channels that it meets.
        return self.source(node, long[0])

    def long_axes(self, node: Node) -> list[int]:
        """The axes along which a parameter or buffer of floating numbers has several; none of other tensors."""
        value = node.meta.get("val")
        if not self.name(node) or not isinstance(value, Tensor) or not value.is_floating_point():
            return []
        return [axis for axis, size in enumerate(value.shape) if size > 1]

    def source(self, node: Node, axis: int) -> Tensor:
        """New labels for the slices of a parameter along ``axis``: a channel carries them, as it does its filter."""
        value = node.meta["val"]
        labels = self.labels.fresh(value.shape[axis])
        self.meet(node, [(self.name(node), axis)], "producer", labels)
        self.moved.append(labels)
        return labels.view([-1 if own == axis else 1 for own in range(value.ndim)]).expand(value.shape)
