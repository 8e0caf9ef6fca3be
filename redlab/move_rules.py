"""Channel labels through the operations that only move data: executed on the labels.

What the network's code fixes, such as the place of a cut, freezes the channels that it would have to follow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from redlab.cifar_resnet import ZeroPadShortcut
from redlab.flow import Flow
from redlab.graph import module_path, operation
from redlab.labels import compact


def rectangular(flow: Flow, labels: Tensor, joined: int | None = None) -> Tensor:
    """Channels leave as whole slices along one axis: the one with the most channels.

    Along the axis ``joined`` by concatenation, unless it is that one, a slice is one channel: a class token's and the
    patches', say.
    """
    axes = flow.labels.axes(labels)
    if len(axes) > 1:
        roots = flow.labels.together(compact(labels))
        counts = {axis: _distinct(roots.movedim(axis, 0).flatten(1)) for axis in axes}
        kept = max(axes, key=lambda axis: (counts[axis], axis))
        for axis in axes:
            if axis != kept:
                flow.labels.unite_along(labels, axis, same=axis == joined)
        if joined in axes and joined != kept:
            return labels.amax(joined, keepdim=True).expand(labels.shape)
    return labels


def _distinct(rows: Tensor) -> int:
    return len({row.tobytes() for row in rows.contiguous().numpy()})  # torch.unique(dim=0) takes a minute for ViTs


def move(flow: Flow, node: Node) -> Tensor:
    """Moves data only: executed on the labels."""
    labels, value = flow.at(node.args[0]), node.meta["val"]
    name = operation(node)
    if name in ("view", "reshape", "view_as", "unflatten", "flatten"):
        return rectangular(flow, labels.reshape(value.shape))
    if name in ("expand", "expand_as"):
        return labels.expand(value.shape)
    return node.target(labels, *node.args[1:], **node.kwargs)


def cat(flow: Flow, node: Node) -> Tensor:
    """Concatenation: the labels side by side."""
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    parts, value = [flow.at(part) for part in node.args[0]], node.meta["val"]
    axis %= value.ndim
    parts = [part for part in parts if part.ndim == value.ndim]  # cat skips empty one-dimensional tensors
    small = [compact(part) for part in parts]
    sizes = [max(part.shape[a] for part in small) for a in range(value.ndim)]
    whole = [
        p.expand([o.shape[a] if a == axis else sizes[a] for a in range(value.ndim)])
        for p, o in zip(small, parts, strict=True)
    ]
    return rectangular(flow, torch.cat(whole, axis).expand(value.shape), axis)


def stack(flow: Flow, node: Node) -> Tensor:
    """Stacking: the labels along a new axis."""
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return rectangular(flow, torch.stack([flow.at(part) for part in node.args[0]], axis))


def cut(flow: Flow, node: Node) -> Any:
    """Takes a part of an axis: allowed where no channels lie along it, else the cut is fixed in the code."""
    labels = flow.at(node.args[0])
    axis = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % labels.ndim
    outputs = node.meta["val"]
    same_shape = isinstance(outputs, Tensor) and outputs.shape == labels.shape
    if flow.labels.vary(labels, axis) and not same_shape:
        return flow.freeze(node, f"{operation(node)} cuts it at a fixed place")
    return node.target(labels, *node.args[1:], **node.kwargs)


def chunk(flow: Flow, node: Node) -> Any:
    """Equal chunks stay equal where channel j of every chunk leaves together."""
    labels, axis = flow.at(node.args[0]), node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    chunks = list(torch.chunk(labels, node.args[1], axis))
    if not flow.labels.vary(labels, axis):
        return chunks
    if len(chunks) != node.args[1] or len({chunk.shape for chunk in chunks}) > 1:
        return flow.freeze(node, "chunk cuts it into unequal parts")
    for chunk in chunks[1:]:
        flow.labels.unite(chunks[0], chunk, same=False)
    return chunks


def split(flow: Flow, node: Node) -> Any:
    """``split`` and ``unbind``; ``split`` is handed its sizes, which do not follow the channels."""
    labels, name = flow.at(node.args[0]), operation(node)
    at = 1 if name == "unbind" else 2
    axis = (node.args[at] if len(node.args) > at else node.kwargs.get("dim", 0)) % labels.ndim
    if flow.labels.vary(labels, axis):
        return flow.freeze(node, f"{name} cuts it at a fixed place")
    return list(node.target(labels, *node.args[1:], **node.kwargs))


def roll(flow: Flow, node: Node) -> Tensor:
    """Rolling: the labels move as the data do."""
    labels, axes = flow.at(node.args[0]), node.args[2] if len(node.args) > 2 else ()
    if not axes or any(flow.labels.vary(labels, axis) for axis in axes):
        return flow.freeze(node, "roll moves it by a fixed distance")
    return labels


def pad(flow: Flow, node: Node) -> Tensor:
    """Beside an axis without channels the border belongs to the channels beside it."""
    labels, value = flow.at(node.args[0]), node.meta["val"]
    module = flow.graph.network.get_submodule(module_path(node))
    longer = [axis for axis in range(value.ndim) if value.shape[axis] != labels.shape[axis]]
    if type(module) is ZeroPadShortcut:
        return _zero_pad(flow, node, module)
    if any(flow.labels.vary(labels, axis) for axis in longer):
        return flow.freeze(node, f"{operation(node)} adds channels of a fixed number")
    for axis in longer:
        labels = labels.narrow(axis, 0, 1)
    return labels.expand(value.shape)


def _zero_pad(flow: Flow, node: Node, module: ZeroPadShortcut) -> Tensor:
    """The zeros of our CIFAR ResNets' shortcut are channels of their own: its widths are attributes."""
    labels = compact(flow.at(node.args[0]))
    zeros = flow.labels.fresh(count := module.zeros_before + module.zeros_after).view(1, count, 1, 1)
    flow.meet(node, [(module_path(node), 0)], "padding", zeros.flatten())
    before, after = zeros[:, : module.zeros_before], zeros[:, module.zeros_before :]
    return torch.cat([before, labels[:, :, :1, :1], after], 1).expand(node.meta["val"].shape)
