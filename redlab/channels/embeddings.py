"""Parameters of several axes that meet channels, such as a position embedding: which axis holds the channels.

What moves such a parameter (a view, a cut, an expand) waits until an operation joins it with a stream whose channels
are known. The axis that lies along those is then the one whose slices belong to the channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from redlab.channels.labels import Flow, compact
from redlab.network.operations import named
from redlab.network.trace import argument, in_place, operation

_SAME = named("copy", "cast", "activation zero", "rectifier zero", "activation", "function zero", "function", "dropout")
_SAME |= named("product zero", "quotient", "sum", "clamp")  # with a number
_MOVES = named("view", "transpose", "expand", "cut", "repeat")
_MEET = named("product zero", "sum", "quotient", "extremum", "of two")

Step = Callable[[Flow, Node], Any]


def waits(flow: Flow, node: Node) -> bool:
    """Whether ``node`` only moves a parameter whose axis isn't known yet; it is noted as waiting."""
    given = node.all_input_nodes
    if len(given) != 1 or operation(node) not in _SAME | _MOVES or in_place(node):
        return False
    root = flow.waiting.get(given[0], given[0])
    if flow.has(root) or len(flow.long_axes(root)) < 2:
        return False
    flow.waiting[node] = root
    return True


def settle(flow: Flow, node: Node, step: Step) -> None:
    """Decide the axes of the parameters that reach ``node``, and take the steps that waited for that."""
    given = [own for own in node.all_input_nodes if own in flow.waiting or len(flow.long_axes(own)) > 1]
    for own in given:
        root = flow.waiting.get(own, own)
        if flow.has(root):
            continue
        axis = _axis(flow, node, own, root)
        flow.put(root, flow.at(root) if axis is None else flow.source(root, axis))
        for waiting in [one for one, other in flow.waiting.items() if other is root]:
            del flow.waiting[waiting]
            flow.put(waiting, step(flow, waiting))


def _axis(flow: Flow, node: Node, own: Node, root: Node) -> int | None:
    """The axis of ``root`` that lies along the channels which it meets in ``node``; None if none does."""
    along = _channel_axes(flow, node, own)
    if len(along) != 1 or not isinstance(node.meta.get("val"), Tensor):
        return None
    ndim = node.meta["val"].ndim
    lies = {axis: _along(_moved(own, root, axis), ndim) for axis in flow.long_axes(root)}
    found = [axis for axis, own_axes in lies.items() if own_axes == along]
    # No other axis of the parameter may lie along the channels too, as in a table that is flattened.
    return found[0] if len(found) == 1 and sum(bool(axes & along) for axes in lies.values()) == 1 else None


def _channel_axes(flow: Flow, node: Node, own: Node) -> set[int]:
    """The axes of the output of ``node`` along which the channels of its other arguments lie."""
    name, ndim = operation(node), getattr(node.meta.get("val"), "ndim", 0)
    if name not in _MEET | named("join"):
        return set()
    others = [other for other in node.all_input_nodes if other is not own and other not in flow.waiting]
    known = [flow.at(other) for other in others if len(flow.long_axes(other)) < 2 or flow.has(other)]
    found = {axis + ndim - side.ndim for side in known if isinstance(side, Tensor) for axis in flow.labels.axes(side)}
    return found - {argument(node, "dim") % ndim} if name in named("join") else found


def _along(probe: Tensor, ndim: int) -> set[int]:
    probe = compact(probe)
    shift = ndim - probe.ndim
    return {
        axis + shift
        for axis, size in enumerate(probe.shape)
        if size > 1 and bool((probe != probe.narrow(axis, 0, 1)).any())
    }


def _moved(node: Node, root: Node, axis: int) -> Tensor:
    """The places of ``root`` along ``axis``, moved as the parameter is on its way to ``node``."""
    if node is root:
        shape = node.meta["val"].shape
        return torch.arange(shape[axis]).view([-1 if own == axis else 1 for own in range(len(shape))]).expand(shape)
    probe = _moved(node.all_input_nodes[0], root, axis)
    name, value = operation(node), node.meta["val"]
    if name in named("expand") or name in _SAME:
        return probe.expand(value.shape)
    if name in named("view"):
        return probe.reshape(value.shape)
    return node.target(probe, *node.args[1:], **node.kwargs)
