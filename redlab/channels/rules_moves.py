"""Channel labels through the operations that only move data: executed on the labels.

A number in the network's code, such as the place of a cut, freezes the channels that it would have to follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from redlab.channels.labels import Flow, compact
from redlab.network.trace import argument, module_path, operation
from redlab.network.zero_pad import ZeroPadShortcut


def rectangular(flow: Flow, labels: Tensor, joined: int | None = None, view: Node | None = None) -> Tensor:
    """Channels leave as whole slices along one axis: the one with the most channels.

    Along the axis ``joined`` by concatenation, if it is another one, a slice is one channel: a channel of a class token
    is the same channel of the patches, for example.

    Arguments:
        view: what made the axes out of one. Of 16 channels in 4 x 4 the code may fix either length: each is tried.
    """
    axes = flow.labels.axes(labels)
    if len(axes) > 1:
        roots = flow.labels.together(compact(labels))
        counts = {axis: _distinct(roots.movedim(axis, 0).flatten(1)) for axis in axes}
        likely = sorted(axes, key=lambda axis: (counts[axis], axis), reverse=True)
        equal = [axis for axis in likely if counts[axis] == counts[likely[0]]]
        number = flow.tried.get(view, 0) if view is not None and len(equal) > 1 else 0
        if number >= len(equal):
            return flow.freeze(view, f"{operation(view)} cuts it into parts of a fixed length")
        kept = equal[number]
        if view is not None and len(equal) > 1:
            flow.ways[view] = compact(labels).flatten()
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
    if name in ("view", "reshape", "view_as", "reshape_as", "unflatten", "flatten"):
        return rectangular(flow, labels.reshape(value.shape), view=node)
    if name in ("expand", "expand_as"):
        return labels.expand(value.shape)
    return node.target(labels, *node.args[1:], **node.kwargs)


def cat(flow: Flow, node: Node) -> Tensor:
    """Concatenation: the labels side by side."""
    axis = argument(node, "dim")
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
    axis = argument(node, "dim")
    return rectangular(flow, torch.stack([flow.at(part) for part in node.args[0]], axis))


def glu(flow: Flow, node: Node) -> Any:
    """The first half times the sigmoid of the second: channel j of one meets channel j of the other."""
    one, other = flow.at(node.args[0]).chunk(2, argument(node, "dim"))
    flow.labels.unite(one, other, same=True)
    return one


def repeat(flow: Flow, node: Node) -> Tensor:
    """``repeat`` and ``tile``: whole copies side by side."""
    value, small = node.meta["val"], compact(flow.at(node.args[0]))
    counts = [1] * (value.ndim - len(node.args[1])) + list(node.args[1])
    small = small.view([1] * (value.ndim - small.ndim) + [*small.shape])
    counts = [count if size > 1 else 1 for count, size in zip(counts, small.shape, strict=True)]
    return rectangular(flow, small.repeat(counts).expand(value.shape))


def repeat_interleave(flow: Flow, node: Node) -> Tensor:
    """Every element several times in a row, equally often."""
    labels, count, axis = flow.at(node.args[0]), argument(node, "repeats"), argument(node, "dim")
    if axis is None or not isinstance(count, int):
        return flow.freeze(node, "repeat_interleave moves it")
    small = compact(labels)
    small = small.repeat_interleave(count, axis) if small.shape[axis] > 1 else small
    return rectangular(flow, small.expand(node.meta["val"].shape))


def roll(flow: Flow, node: Node) -> Tensor:
    """Along an axis without channels it changes nothing."""
    labels, axes = flow.at(node.args[0]), argument(node, "dims")
    if not axes or any(flow.labels.vary(labels, axis) for axis in axes):
        return flow.freeze(node, "roll moves it by a fixed distance")
    return labels


def flip(flow: Flow, node: Node) -> Tensor:
    """After a removal, the channels that are left are flipped as all were."""
    small = compact(flow.at(node.args[0]))
    return small.flip(argument(node, "dims")).expand(node.meta["val"].shape)


def pixel_shuffle(flow: Flow, node: Node) -> Tensor:
    """Every output channel is woven from r^2 input channels, which leave together."""
    return _reshuffled(flow, node, lambda small, r: small.unflatten(-3, (-1, r * r)).movedim(-3, -1)[..., 0, 0, :])


def pixel_unshuffle(flow: Flow, node: Node) -> Tensor:
    """Every input channel becomes r^2 output channels."""
    return _reshuffled(flow, node, lambda small, r: small[..., 0].repeat_interleave(r * r, -2))


def _reshuffled(flow: Flow, node: Node, by_channel: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``by_channel``: from labels (..., channels, 1, 1) to (..., new channels, labels of each)."""
    labels, r = flow.at(node.args[0]), node.args[1]
    if any(flow.labels.vary(labels, axis) for axis in (-2, -1)):
        return flow.freeze(node, f"{operation(node)} weaves it into channels")
    made = by_channel(labels[..., :1, :1], r)
    flow.labels.unite_along(made, made.ndim - 1, same=False)
    return made[..., :1, None].expand(node.meta["val"].shape)


def channel_shuffle(flow: Flow, node: Node) -> Tensor:
    """Channel j of every group leaves together, so that the groups stay of equal size."""
    labels, groups = flow.at(node.args[0]), node.args[1]
    small = labels[:1].flatten(2)[..., :1].view(1, groups, -1)
    if any(flow.labels.vary(labels, axis) for axis in range(2, labels.ndim)):
        return flow.freeze(node, "channel_shuffle moves it")
    flow.labels.unite_along(small, 1, same=False)
    shape = [1, -1] + [1] * (labels.ndim - 2)
    return small.transpose(1, 2).reshape(shape).expand(labels.shape)


def pad(flow: Flow, node: Node) -> Tensor:
    """Along an axis without channels, the border belongs to the channels next to it."""
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
    """The zeros of a ``ZeroPadShortcut`` are channels of their own: its widths are attributes that a plan changes."""
    labels = compact(flow.at(node.args[0]))
    zeros = flow.labels.fresh(count := module.zeros_before + module.zeros_after).view(1, count, 1, 1)
    flow.meet(node, [(module_path(node), 0)], "padding", zeros.flatten())
    before, after = zeros[:, : module.zeros_before], zeros[:, module.zeros_before :]
    return torch.cat([before, labels[:, :, :1, :1], after], 1).expand(node.meta["val"].shape)
