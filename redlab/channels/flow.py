"""The channel labels of every activation of a network, and the slices of its tensors that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from redlab.channels.labels import Labels, compact
from redlab.network.trace import Graph


@dataclass(eq=False)
class Entry:
    """Tensors whose slices belong to channels, all in the same way.

    Attributes:
        tensors: (dotted name, dim) of each.
        role: "producer", "consumer" or "padding" (a module that pads, and whose widths are attributes).
        labels: (positions, w): the channels that each slice belongs to; w > 1 where a column of a grouped
            convolution serves one channel of every group.
        node: the operation that reads them.
    """

    tensors: list[tuple[str, int]]
    role: str
    labels: Tensor
    node: Node


class Flow:
    """What is known of the channels of ``graph`` so far; ``channel_rules.follow`` fills it, operation by operation."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.labels = graph, Labels()
        self.entries: list[Entry] = []
        self._entry_of: dict[tuple[str, int, str], Entry] = {}
        self.moved: list[Tensor] = []  # what meets an operation that doesn't map 0 to 0
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

    def put(self, node: Node, labels: Any) -> None:
        """``labels`` are those of what ``node`` computes."""
        self._at[node] = labels

    def inputs(self, node: Node) -> list[Tensor]:
        """The labels of every tensor among the arguments of ``node``."""
        found = [self.at(argument) for argument in node.all_input_nodes]
        flat = [labels for one in found for labels in (one if isinstance(one, list) else [one])]
        return [labels for labels in flat if labels is not None]

    def freeze(self, node: Node, reason: str, labels: list[Tensor] | None = None) -> Any:
        """Freeze what reaches ``node``; its own outputs are of fixed width."""
        for reached in self.inputs(node) if labels is None else labels:
            self.labels.freeze(reached, reason)
        return self.of_fixed_width(node, reason)

    def of_fixed_width(self, node: Node, reason: str) -> Any:
        """Labels for the outputs of ``node`` that say that they can't change, and why."""
        label, value = self.labels.fixed(reason), node.meta.get("val")
        if isinstance(value, list | tuple):
            return [label.expand(v.shape) if isinstance(v, Tensor) else None for v in value]
        return label.expand(value.shape) if isinstance(value, Tensor) else None

    def slices(self, labels: Tensor, axis: int) -> Tensor:
        """One label for each slice along ``axis``: what lies in one slice is one channel."""
        flat = compact(labels.movedim(axis, 0)).flatten(1)
        self.labels.unite_along(flat, 1, same=True)
        return flat[:, 0].expand(labels.shape[axis]) if len(flat) == 1 else flat[:, 0]

    def meet(self, node: Node, tensors: list[tuple[str, int]], role: str, labels: Tensor) -> None:
        """Enter that slices of ``tensors`` belong to ``labels``; a second use of the same slices unites the two."""
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

    def known(self, tensor: str, dim: int, role: str) -> Tensor | None:
        """The labels of the slices of a tensor that was met before."""
        entry = self._entry_of.get((tensor, dim, role))
        return None if entry is None else entry.labels

    def _source(self, node: Node) -> Any:
        name, value = self.name(node), node.meta.get("val")
        long = [axis for axis, size in enumerate(value.shape) if size > 1] if isinstance(value, Tensor) else []
        if not name or len(long) != 1 or not value.is_floating_point():
            return self.of_fixed_width(node, f"it meets {name or 'a constant'}, of fixed width")
        # One number a channel, such as ConvNeXt's layer_scale: it follows the channels that it meets.
        labels = self.labels.fresh(value.shape[long[0]])
        self.meet(node, [(name, long[0])], "producer", labels)
        self.moved.append(labels)
        return labels.view([-1 if axis in long else 1 for axis in range(value.ndim)])
