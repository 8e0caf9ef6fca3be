"""Channel labels through operations that are given numbers of channels: cuts, splits, and the groups of a group norm.

A number follows the channels if a module holds it (then a plan sets it), or if the code computes it from the shape of
what it cuts. Which one it is, the graph does not show: each ``Way`` is tried on a smaller network (``trials``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from redlab.channels.labels import Flow
from redlab.channels.rules_layers import channel_norm
from redlab.channels.sizes import numbers_of, read_size
from redlab.network.trace import argument, operation

_MOST_BLOCKS = 64
_MOST_WAYS = 8
_END = 2**62  # of a slice without an end
Range = tuple[int, int]


@dataclass(frozen=True)
class Way:
    """One way in which the numbers of an operation may follow its channels.

    Attributes:
        sizes: by the dotted name of a number that a module holds, the ranges of channels that it is the length of.
        block: all blocks of so many channels shrink alike; 0: no condition.
    """

    sizes: tuple[tuple[str, tuple[Range, ...]], ...] = ()
    block: int = 0


def cut(flow: Flow, node: Node) -> Any:
    """Takes a part of an axis. If channels lie along it, the place of the cut must follow them."""
    labels, shape = flow.at(node.args[0]), node.meta["val"].shape
    axis = argument(node, "dim") % labels.ndim
    if shape == labels.shape:
        return labels
    if flow.labels.vary(labels, axis):
        return _cut_channels(flow, node, labels, axis)
    one = labels.narrow(axis, 0, min(1, labels.shape[axis]))
    return (one.squeeze(axis) if operation(node) == "select" else one).expand(shape)


def _cut_channels(flow: Flow, node: Node, labels: Tensor, axis: int) -> Any:
    part = part_of(node, labels.shape[axis])
    if part is None or not _follows(flow, node, labels, axis, [part]):
        return flow.freeze(node, f"{operation(node)} cuts it at a fixed place")
    return labels.narrow(axis, part[0], part[1] - part[0])


def part_of(node: Node, length: int) -> Range | None:
    """Where a slice starts and ends on an axis of that length; None if it takes other than one run of neighbours."""
    if operation(node) != "slice" or argument(node, "step") != 1:
        return None
    start, end = argument(node, "start") or 0, argument(node, "end")
    end = length if end is None or end > _END else end
    if not (isinstance(start, int) and isinstance(end, int)):
        return None
    return min(start % length if start < 0 else start, length), min(end % length if end < 0 else end, length)


def chunk(flow: Flow, node: Node) -> Any:
    """Equal chunks stay equal if channel j of every chunk leaves together."""
    labels, axis = flow.at(node.args[0]), argument(node, "dim")
    chunks = list(torch.chunk(labels, node.args[1], axis))
    if not flow.labels.vary(labels, axis):
        return chunks
    if len(chunks) != node.args[1] or len({chunk.shape for chunk in chunks}) > 1:
        return flow.freeze(node, "chunk cuts it into unequal parts")
    for chunk in chunks[1:]:
        flow.labels.unite(chunks[0], chunk, same=False)
    return chunks


def split(flow: Flow, node: Node) -> Any:
    """``split``, ``split_with_sizes``, ``tensor_split`` and ``unbind`` get sizes or places."""
    labels = flow.at(node.args[0])
    axis = argument(node, "dim") % labels.ndim
    parts = list(node.target(labels, *node.args[1:], **node.kwargs))
    if not flow.labels.vary(labels, axis):
        return parts
    if operation(node) in ("split", "split_with_sizes"):
        ends = list(accumulate(part.shape[axis] for part in parts))
        if _follows(flow, node, labels, axis, list(pairwise([0, *ends]))):
            return parts
    return flow.freeze(node, f"{operation(node)} cuts it at a fixed place")


def group_norm(flow: Flow, node: Node) -> Tensor:
    """A whole group may leave if the number of groups follows. With as many groups as channels it is an instance norm.

    With one group it is a layer norm over channels and space.
    """
    labels, groups = flow.at(node.args[0]), argument(node, "num_groups")
    if groups == 1 and flow.labels.vary(labels, 1):
        flow.freeze(node, "group_norm of one group reduces over it", [labels])
    if groups == 1 or not flow.labels.vary(labels, 1):
        return labels
    way = _way(flow, node, _ways_of_groups(flow, node, groups))
    if way is None:
        flow.freeze(node, "group_norm reduces over it, in a fixed number of groups", [labels])
        return labels
    channels = flow.slices(labels, 1)
    members = channels.view(groups, -1)
    flow.labels.unite_along(members, 1, same=False)
    flow.ways[node] = channels
    for name, _ in way.sizes:
        flow.measure(node, name, members)
        if not flow.name(argument(node, "weight")):  # else it is set with the weight
            _measure_channels(flow, node, name, channels)
    return channel_norm(flow, node)


def _measure_channels(flow: Flow, node: Node, name: str, channels: Tensor) -> None:
    beside = f"{name.rpartition('.')[0]}.num_channels".lstrip(".")
    if read_size(flow.graph.network, beside) == len(channels):
        flow.measure(node, beside, channels[:, None])


def _ways_of_groups(flow: Flow, node: Node, groups: int) -> list[Way]:
    held = {name: value for _, own in _held(flow, node) for name, value in own.items() if value == groups}
    own = [name for name in held if name.endswith("num_groups")] or list(held)
    return [*(Way(((name, ()),)) for name in own), Way()]


def _way(flow: Flow, node: Node, ways: Sequence[Way]) -> Way | None:
    """The way that is tried now; None if all were found wrong."""
    number = flow.tried.get(node, 0)
    return ways[number] if number < min(len(ways), _MOST_WAYS) else None


def _follows(flow: Flow, node: Node, labels: Tensor, axis: int, parts: Sequence[Range]) -> bool:
    """Whether the places of these parts are taken to follow the channels; then what must shrink alike is united."""
    length = labels.shape[axis]
    way = _way(flow, node, _ways(flow, node, parts, length))
    if way is None:
        return False
    channels = flow.slices(labels, axis)
    flow.ways[node] = channels
    for name, ranges in way.sizes:
        alike = torch.stack([channels[start:end] for start, end in ranges], 1)
        flow.labels.unite_along(alike, 1, same=False)
        flow.measure(node, name, alike)
    if way.block:
        flow.labels.unite_along(channels.view(-1, way.block), 0, same=False)
    return True


def _ways(flow: Flow, node: Node, parts: Sequence[Range], length: int) -> list[Way]:
    """The likely ones first: numbers that a module holds, the innermost first; then the shape of what is cut."""
    places = sorted({place for part in parts for place in part} - {0, length})
    runs, block = list(pairwise([0, *places, length])), gcd(length, *places)
    block = block if block > 1 and length // block <= _MOST_BLOCKS else 0
    found: list[Way] = []
    fractions = [Way(block=block)] if block else []
    for path, held in _held(flow, node):
        whole = tuple((name, ((0, length),)) for name, value in held.items() if value == length)
        found += _by_lists(path, held, parts)
        found += _by_numbers(held, runs, whole)
        found += _by_steps(held, places)
        fractions += [Way(whole, block)] if whole and block else []
    return list(dict.fromkeys([*found, *fractions]))


def _by_lists(path: str, held: dict[str, int], parts: Sequence[Range]) -> Iterable[Way]:
    """A list or tuple of the sizes of all parts."""
    lists: dict[str, list[str]] = {}
    for name in held:
        if name.rpartition(".")[2].isdigit():
            lists.setdefault(name.rpartition(".")[0], []).append(name)
    for names in lists.values():
        if [held[name] for name in names] == [end - start for start, end in parts]:
            yield Way(tuple((name, (part,)) for name, part in zip(names, parts, strict=True)))


def _by_numbers(held: dict[str, int], runs: Sequence[Range], whole: tuple) -> Iterable[Way]:
    """Numbers equal to the size of a run of channels: all of them, or each alone; with those equal to the whole."""
    fits = {name: tuple(run for run in runs if run[1] - run[0] == value) for name, value in held.items()}
    fits = {name: own for name, own in fits.items() if own}
    if not fits:
        return
    sets = [tuple(fits.items())] + ([((name, own),) for name, own in fits.items()] if len(fits) > 1 else [])
    for chosen in sets:
        yield Way(chosen)
    for chosen in sets if whole else ():
        yield Way((*chosen, *whole))


def _by_steps(held: dict[str, int], places: Sequence[int]) -> Iterable[Way]:
    """Numbers of which every place is a multiple."""
    for name, step in held.items():
        if 1 < step < max(places) and all(place % step == 0 for place in places):
            yield Way(((name, tuple((start, start + step) for start in range(0, max(places), step))),))


def _held(flow: Flow, node: Node) -> list[tuple[str, dict[str, int]]]:
    """The numbers of the module that runs ``node`` and of those around it, the innermost first, by dotted names."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    found = []
    for path in dict.fromkeys(reversed(stack)):
        module = flow.graph.network.get_submodule(path)
        found.append((path, {f"{path}.{name}".lstrip("."): value for name, value in numbers_of(module)}))
    return found
