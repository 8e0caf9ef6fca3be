"""Which scale each value of an activation follows, one rule a kind of operation.

Two values that are added, pooled or compared must be scaled alike. An operation without a rule here, or one whose
arguments are not known to allow it, is not positively homogeneous: f(t x) = t f(x) for t > 0. What it reads stays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from redlab.channels.labels import Labels, compact
from redlab.network.layers import Layer
from redlab.network.operations import named
from redlab.network.trace import Graph, argument, in_place, is_layer, operation


@dataclass(frozen=True, eq=False)
class Ends:
    """One layer, the labels of its outputs (n_out,) and those of its inputs (n_in,)."""

    layer: Layer
    rows: Tensor
    columns: Tensor


class Scales:
    """The label of every value of ``graph``: values with one label are scaled alike, those below 0 not at all.

    Attributes:
        labels: the labels given out, and which of them must stay.
        ends: the layers whose rows and columns can take a scale.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.labels = graph, Labels()
        self.ends: list[Ends] = []
        self._at: dict[Node, Any] = {}
        for node in graph.fx.nodes:
            self._at[node] = self._of(node)

    def at(self, node: Node) -> Any:
        """The labels of what ``node`` computes; a list for several outputs, None for what is no tensor."""
        return self._at[node]

    def freeze(self, node: Node, reason: str) -> Any:
        """All that ``node`` reads keeps its scale, and so does what it computes."""
        for labels in self.inputs(node):
            self.labels.freeze(labels, reason)
        return self.fixed(node, reason)

    def fixed(self, node: Node, reason: str) -> Any:
        """Labels for the outputs of ``node``: they keep their scale, for ``reason``."""
        label, value = self.labels.fixed(reason), node.meta.get("val")
        if isinstance(value, list | tuple):
            return [label.expand(own.shape) if isinstance(own, Tensor) else None for own in value]
        return label.expand(value.shape) if isinstance(value, Tensor) else None

    def inputs(self, node: Node) -> list[Tensor]:
        """The labels of every tensor among the arguments of ``node``."""
        found = [self.at(own) for own in node.all_input_nodes]
        flat = [labels for one in found for labels in (one if isinstance(one, list) else [one])]
        return [labels for labels in flat if labels is not None]

    def _of(self, node: Node) -> Any:
        if node.op == "output":
            return self.freeze(node, "network output")
        if node.op != "call_function":
            return self.fixed(node, "network input" if node in self.graph.inputs else "a constant")
        if node.target is operator.getitem:
            return self.at(node.args[0])[node.args[1]]
        if is_layer(node):
            return _layer(self, node)
        inputs = self.inputs(node)
        if not any(map(_is_scaled, inputs)):
            return self.fixed(node, self.labels.why_fixed(inputs[0]) if inputs else "a constant")
        name = operation(node)
        # What is written into values that keep their scale changes them where they are read next.
        written = in_place(node) and not _is_scaled(self.at(node.args[0]))
        made = RULES[name](self, node) if name in RULES and not written else None
        return self.freeze(node, f"{name} does not keep a scale") if made is None else made


_Rule = Callable[[Scales, Node], Any]


def _is_scaled(labels: Tensor) -> bool:
    return bool((compact(labels) >= 0).any())


def _layer(scales: Scales, node: Node) -> Tensor:
    """Its columns can take a scale of its input off, its rows can give its output one."""
    graph, labels, weight = scales.graph, scales.at(node.args[0]), node.args[1]
    if why := graph.why_fixed(node, widths=False):
        return scales.freeze(node, why)
    axis = labels.ndim - (1 if operation(node) == "linear" else weight.meta["val"].ndim - 1)
    columns = _one_a_slice(scales, labels, axis)
    rows = scales.labels.fresh(node.meta["val"].shape[axis])
    scales.ends.append(Ends(graph.layers[weight], rows, columns))
    return rows.view([-1 if own == axis else 1 for own in range(labels.ndim)]).expand(node.meta["val"].shape)


def _one_a_slice(scales: Scales, labels: Tensor, axis: int) -> Tensor:
    """One label for each slice along ``axis``: all of a slice is scaled alike."""
    flat = compact(labels.movedim(axis, 0)).flatten(1)
    scales.labels.unite_along(flat, 1, same=True)
    return flat.amax(1).expand(labels.shape[axis])


def _same(scales: Scales, node: Node) -> Any:
    return scales.at(node.args[0]).expand(node.meta["val"].shape)


def _cast(scales: Scales, node: Node) -> Any:
    return _same(scales, node) if node.meta["val"].is_floating_point() else None


def _clamp(scales: Scales, node: Node) -> Any:
    """One bound, 0: a ReLU, or the lower half."""
    bounds = [argument(node, name) for name in ("min", "max")]
    bounds = [bound for bound in bounds if bound is not None]
    return _same(scales, node) if len(bounds) == 1 and _is_zero(bounds[0]) else None


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _threshold(scales: Scales, node: Node) -> Any:
    return _same(scales, node) if not argument(node, "threshold") and not argument(node, "value") else None


def _alpha_dropout(scales: Scales, node: Node) -> Any:
    return None if argument(node, "train") else _same(scales, node)


def _meet(scales: Scales, node: Node) -> Any:
    """Tensors that meet element by element; the number 0 meets all."""
    sides = node.args[:2]
    if any(not isinstance(side, Node) and not _is_zero(side) for side in sides):
        return None
    shape = node.meta["val"].shape
    tensors = [compact(scales.at(side)) for side in sides if isinstance(side, Node)]
    for other in tensors[1:]:
        scales.labels.unite(tensors[0], other, same=True)
    made = tensors[0]
    for other in tensors[1:]:
        made = torch.maximum(made, other)  # a label of its own, where one of the two has any
    return made.expand(shape)


def _product(scales: Scales, node: Node) -> Any:
    """By a number, or by a tensor that keeps its scale, such as the gate of a squeeze and excitation."""
    sides = [scales.at(side) for side in node.args[:2] if isinstance(side, Node) and scales.at(side) is not None]
    own = [side for side in sides if _is_scaled(side)]
    return own[0].expand(node.meta["val"].shape) if len(own) == 1 else None


def _quotient(scales: Scales, node: Node) -> Any:
    above, below = node.args[:2]
    if not isinstance(above, Node) or argument(node, "rounding_mode") is not None:
        return None
    return None if isinstance(below, Node) and _is_scaled(scales.at(below)) else _same(scales, node)


def _pool(scales: Scales, node: Node) -> Any:
    ranks = next((int(digit) for digit in operation(node) if digit.isdigit()), 2)
    return _over(scales, node, range(-ranks, 0), keep=True)


def _reduce(scales: Scales, node: Node) -> Any:
    axes = argument(node, "dim")
    axes = [axes] if isinstance(axes, int) else axes or range(scales.at(node.args[0]).ndim)
    return _over(scales, node, axes, keep=False)


def _largest(scales: Scales, node: Node) -> Any:
    """``max`` and ``min``: of two tensors, or over axes."""
    return _meet(scales, node) if isinstance(argument(node, "other"), Node) else _reduce(scales, node)


def _scan(scales: Scales, node: Node) -> Any:
    labels = scales.at(node.args[0])
    scales.labels.unite_along(labels, argument(node, "dim") % labels.ndim, same=True)
    return labels


def _over(scales: Scales, node: Node, axes: Any, keep: bool) -> Any:
    """What is joined along ``axes`` is scaled alike; a second output holds places, which have no scale."""
    labels, value = scales.at(node.args[0]), node.meta["val"]
    for axis in sorted({axis % labels.ndim for axis in axes}, reverse=True):
        scales.labels.unite_along(compact(labels), axis, same=True)
        labels = compact(labels).amax(axis, keepdim=True).expand(_with(labels, axis, 1))
    first = value[0] if isinstance(value, list | tuple) else value
    if not keep:
        gone = {axis % labels.ndim for axis in axes}
        labels = labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in gone])
        labels = labels if labels.ndim == first.ndim else labels.reshape(first.shape)
    labels = labels.expand(first.shape)
    return [labels, *scales.fixed(node, "places have no scale")[1:]] if first is not value else labels


def _move(scales: Scales, node: Node) -> Any:
    """Executed on the labels."""
    value = node.meta["val"]
    if operation(node) in VIEWS:
        # view(dtype) reads the bits anew.
        return scales.at(node.args[0]).reshape(value.shape) if value.is_floating_point() else None
    made = node.target(*map_arg(node.args, scales.at), **map_arg(node.kwargs, scales.at))
    return list(map(_shrunk, made)) if isinstance(made, list | tuple) else _shrunk(made)


def _shrunk(labels: Tensor) -> Tensor:
    """The same labels, with nothing stored twice along an axis on which they are equal."""
    small = compact(labels)
    for axis in range(small.ndim):
        if small.shape[axis] > 1 and bool((small == small.narrow(axis, 0, 1)).all()):
            small = small.narrow(axis, 0, 1)
    return small.clone().expand(labels.shape)


def _pad(scales: Scales, node: Node) -> Any:
    """Zeros have any scale: next to values of one scale they take it, as channels of their own they get new labels."""
    labels, (sides, constant) = (
        scales.at(node.args[0]),
        (node.args[1], argument(node, "mode", "constant") == "constant"),
    )
    if constant and argument(node, "value"):
        return None
    for place in range(len(sides) // 2):
        axis, (before, after) = labels.ndim - 1 - place, sides[2 * place : 2 * place + 2]
        small = compact(labels)
        if small.shape[axis] == 1 or not (before or after):
            labels = small.expand(_with(labels, axis, labels.shape[axis] + before + after))
        elif not constant or min(before, after) < 0:
            return None
        else:
            ends = [scales.labels.fresh(count).view(_with(small, axis, count, 1)) for count in (before, after)]
            ends = [end.expand(_with(small, axis, end.shape[axis])) for end in ends]
            whole = torch.cat([ends[0], small, ends[1]], axis)
            labels = whole.expand(_with(labels, axis, whole.shape[axis]))
    return labels


def _with(labels: Tensor, axis: int, size: int, others: int | None = None) -> list[int]:
    """The shape of ``labels`` with another size along ``axis``, and ``others`` along all other axes if given."""
    return [size if own == axis else others or old for own, old in enumerate(labels.shape)]


VIEWS = named("view")
RULES: dict[str, _Rule] = {
    **dict.fromkeys(named("rectifier zero", "copy", "dropout"), _same),
    **dict.fromkeys(("prelu", "abs", "neg", "negative", "positive"), _same),
    **dict.fromkeys(named("alpha dropout"), _alpha_dropout),
    **dict.fromkeys(named("cast"), _cast),
    **dict.fromkeys(named("clamp"), _clamp),
    **dict.fromkeys(named("sum", "extremum"), _meet),
    **dict.fromkeys(named("product zero"), _product),
    **dict.fromkeys(("div", "divide", "true_divide"), _quotient),
    **dict.fromkeys(named("pool", "upsample"), _pool),
    **dict.fromkeys(("mean", "sum", "nanmean", "nansum", "amax", "amin"), _reduce),
    **dict.fromkeys(named("largest"), _largest),
    "cumsum": _scan,
    **dict.fromkeys(named("view", "transpose", "expand", "split", "join", "repeat", "shuffle"), _move),
    **dict.fromkeys(("slice", "select", "narrow", "chunk", "stack"), _move),
    **dict.fromkeys(named("pad"), _pad),
    "threshold": _threshold,
}
