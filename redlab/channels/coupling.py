"""Which channels of a network go together, and which must stay, with the reason.

Labels are pushed through the traced graph (``channel_rules``); a group is a maximal set of channels with the same
producers and the same consumers. What the graph can't show is whether the network's code would accept other widths:
``trial`` finds that out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from redlab.channels.fixed_widths import misfits
from redlab.channels.flow import Entry, Flow
from redlab.channels.groups import Group, Member
from redlab.channels.labels import compact
from redlab.channels.rules import follow
from redlab.network.example import Example, fit_example
from redlab.network.layers import unwrap, weight_layers
from redlab.network.trace import Graph, is_layer, operation, trace
from redlab.network.trial_run import why_unseen


def couple(network: nn.Module, example: Example | None = None) -> list[Group]:
    """The groups of ``network``, in the order in which their first producers run; what never runs comes last.

    Every output channel of every conv and linear layer is in exactly one group. Channels that must stay are in groups
    with a reason in ``frozen``. The network is left as it was.

    Arguments:
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.

    Raises:
        ValueError: the network can't be traced.
    """
    network = unwrap(network)
    graph = trace(network, example)
    flow = follow(graph)
    groups = _groups(flow)
    covered = {member.tensor for group in groups for member in group.producers}
    groups = _named([*groups, *_uncovered(graph, covered, example)])
    fixed = misfits(network, fit_example(network, example), groups)
    return [replace(group, frozen=fixed[group.name], relu=False) if group.name in fixed else group for group in groups]


def _uncovered(graph: Graph, covered: set[str], example: Example | None) -> Iterable[Group]:
    """The layers whose weight no conv or linear operation of the graph reads under its own name, frozen."""
    paths = {module: path for path, module in graph.network.named_modules()}
    named = {f"{paths[layer.module]}.{layer.parameter}".lstrip("."): layer for layer in weight_layers(graph.network)}
    left = {tensor: layer for tensor, layer in named.items() if tensor not in covered}
    reasons = why_unseen(graph, [tensor for tensor, layer in left.items() if not layer.skipped], example)
    for tensor, layer in left.items():
        size = 0 if "lazy" in layer.skipped else _rows(layer.module, layer.weight)
        dim = 1 if getattr(layer.module, "transposed", False) else 0
        shared = f"shares its weight with {' and '.join(layer.shared)}" if layer.shared else ""
        member = Member(tensor, dim, torch.arange(size)[:, None], size)
        yield Group(layer.name, size, (member,), (), frozen=layer.skipped or shared or reasons[tensor])


def _rows(module: nn.Module, weight: Tensor) -> int:
    return weight.shape[1] if getattr(module, "transposed", False) else weight.shape[0]


def _groups(flow: Flow) -> list[Group]:
    entries, table = flow.entries, _slices(flow)
    is_made = np.array([entry.role == "producer" and is_layer(entry.node) for entry in entries], dtype=bool)
    starts = np.flatnonzero(np.r_[True, table["root"][1:] != table["root"][:-1]])
    reasons, alike, place = flow.labels.reasons(), defaultdict(list), {}
    for own in np.split(table, starts[1:]) if len(table) else []:
        made = is_made[own["entry"]]
        if made.any():  # else a parameter that no layer's channels meet
            first = own[made.argmax()]
            place[int(own["root"][0])] = (int(first["entry"]), int(first["position"]))
            signature = (own["entry"].tobytes(), own["ranks"].tobytes())
            alike[(reasons.get(int(own["root"][0]), ""), *signature)].append(own)
    zeros, found = _Zeros(flow), []
    for (reason, *_), sets in alike.items():
        sets.sort(key=lambda own: place[int(own["root"][0])])
        roots = [int(own["root"][0]) for own in sets]
        numbers, firsts = np.unique(sets[0]["entry"], return_index=True)
        indices = np.split(np.stack([own["position"] for own in sets]), firsts[1:], axis=1)
        parts = [entries[number] for number in numbers]
        relu = not reason and zeros.stay(parts, roots)
        found.append((place[roots[0]], _group(entries[place[roots[0]][0]], parts, indices, reason, relu)))
    return [group for _, group in sorted(found, key=lambda item: item[0])]


def _slices(flow: Flow) -> np.ndarray:
    """Every slice that belongs to channels: (root, entry, ranks, position), sorted in that order.

    Slices with one root leave together. A rank numbers the channels with one root, so that equal ranks under two roots
    mean the same channel of each; ``ranks`` is a code for those of all the channels that the slice belongs to.
    """
    same = [flow.labels.same(entry.labels).numpy() for entry in flow.entries]
    rank_of = _ranks(flow, same)
    rows = []
    for number, (entry, channels) in enumerate(zip(flow.entries, same, strict=True)):
        roots = flow.labels.together(entry.labels[:, 0]).numpy()
        position = np.flatnonzero(roots >= 0)
        ranks = rank_of[channels[position]]
        ranks = ranks[:, 0] if ranks.shape[1] == 1 else np.unique(ranks, axis=0, return_inverse=True)[1].ravel()
        own = np.empty(len(position), dtype=[(name, np.int64) for name in ("root", "entry", "ranks", "position")])
        own["root"], own["entry"], own["ranks"], own["position"] = roots[position], number, ranks, position
        rows.append(own)
    table = np.concatenate(rows) if rows else np.empty(0, dtype=[("root", np.int64)])
    return table[np.lexsort([table[name] for name in reversed(table.dtype.names or ())])]


def _ranks(flow: Flow, same: list[np.ndarray]) -> np.ndarray:
    """By channel, its place among those that leave together with it."""
    channels = np.unique(np.concatenate([np.zeros(0, np.int64), *(own.ravel() for own in same)]))
    channels = channels[channels >= 0]
    roots = flow.labels.together(torch.from_numpy(channels)).numpy()
    order = np.lexsort((channels, roots))
    starts = np.searchsorted(roots[order], roots[order])
    ranks = np.zeros(1 + channels.max(initial=0), dtype=np.int64)
    ranks[channels[order]] = np.arange(len(order)) - starts
    return ranks


def _group(first: Entry, parts: list[Entry], indices: list[np.ndarray], reason: str, relu: bool) -> Group:
    roles: dict[str, list[Member]] = {"producer": [], "consumer": [], "padding": []}
    for entry, index in zip(parts, indices, strict=True):
        roles[entry.role] += [
            Member(tensor, dim, torch.from_numpy(index.copy()), len(entry.labels)) for tensor, dim in entry.tensors
        ]
    name = first.tensors[0][0].removesuffix("weight").rstrip("._")
    producers, consumers, paddings = map(tuple, roles.values())
    return Group(name, len(indices[0]), producers, consumers, paddings, reason, relu)


def _named(groups: Iterable[Group]) -> list[Group]:
    """The second group of a layer gets " (2)" behind its name."""
    seen: Counter[str] = Counter()
    named = []
    for group in groups:
        seen[group.name] += 1
        named.append(replace(group, name=f"{group.name} ({seen[group.name]})") if seen[group.name] > 1 else group)
    return named


class _Zeros:
    """Which channels are zero for every consumer once the ReLUs behind their producers make them zero."""

    def __init__(self, flow: Flow) -> None:
        moved = {label for labels in flow.moved for label in np.unique(compact(labels).numpy())}
        self._moved = set(flow.labels.together(torch.tensor(sorted(moved), dtype=torch.int64)).tolist())

    def stay(self, producers: list[Entry], roots: list[int]) -> bool:
        own = [entry.node for entry in producers if entry.role == "producer"]
        return all(map(_feeds_relu, own)) and not self._moved.intersection(roots)


def _feeds_relu(node: Node) -> bool:
    """Whether all that uses ``node`` is a ReLU, or a batch norm that only ReLUs use."""
    return all(
        _is_relu(user) or (not _is_norm(node) and _is_norm(user) and all(map(_is_relu, user.users)))
        for user in node.users
    )


def _is_norm(node: Node) -> bool:
    return operation(node) == "batch_norm"


def _is_relu(node: Node) -> bool:
    return operation(node) in ("relu", "relu6") or (operation(node) == "hardtanh" and node.args[1:2] in ((0,), (0.0,)))


__all__ = ["Group", "Member", "couple"]
