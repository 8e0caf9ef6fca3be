"""Which channels of a network go together, and which must stay, with the reason.

Labels are pushed through the traced graph (``channel_rules``); a group is a maximal set of channels with the same
producers and the same consumers. What the graph can't show is whether the network's code would accept other widths:
``trial`` finds that out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx import Node

from redlab.channel_rules import follow
from redlab.flow import Entry, Flow
from redlab.graph import fit_example, is_layer, operation, trace
from redlab.groups import Group, Member
from redlab.labels import compact
from redlab.layers import weight_layers
from redlab.trial import misfits


def couple(network: nn.Module, example: Tensor | None = None) -> list[Group]:
    """The groups of ``network``, in the order in which their first producers run; what never runs comes last.

    Every output channel of every conv and linear layer is in exactly one group. Channels that must stay are in groups
    with a reason in ``frozen``. The network is left as it was.

    Arguments:
        example: what the network takes, batch first; by default ``example_input(network)``.

    Raises:
        ValueError: the network can't be traced.
    """
    graph = trace(network, example)
    flow = follow(graph)
    groups = _groups(flow)
    covered = {member.tensor for group in groups for member in group.producers}
    groups = _named([*groups, *_uncovered(network, covered)])
    fixed = misfits(network, fit_example(network, example), groups)
    return [replace(group, frozen=fixed[group.name], relu=False) if group.name in fixed else group for group in groups]


def _uncovered(network: nn.Module, covered: set[str]) -> Iterable[Group]:
    """The layers whose weight the graph doesn't show, frozen."""
    paths = {module: path for path, module in network.named_modules()}
    for layer in weight_layers(network):
        tensor = f"{paths[layer.module]}.{layer.parameter}".lstrip(".")
        if tensor not in covered:
            size = 0 if "lazy" in layer.skipped else _rows(layer.module, layer.weight)
            dim = 1 if getattr(layer.module, "transposed", False) else 0
            member = Member(tensor, dim, torch.arange(size)[:, None], size)
            yield Group(layer.name, size, (member,), (), frozen=layer.skipped or "never called in eval mode")


def _rows(module: nn.Module, weight: Tensor) -> int:
    return weight.shape[1] if getattr(module, "transposed", False) else weight.shape[0]


def _groups(flow: Flow) -> list[Group]:
    entries = flow.entries
    layers = {number for number, entry in enumerate(entries) if entry.role == "producer" and is_layer(entry.node)}
    alike: dict[tuple, list[int]] = defaultdict(list)
    classes, reasons, place = _classes(flow, entries), flow.labels.reasons(), {}
    for root, slices in classes.items():
        if made := layers & slices.keys():  # else a parameter that no layer's channels meet
            place[root] = (min(made), slices[min(made)][0][1])
            signature = tuple((e, tuple(ranks for ranks, _ in slices[e])) for e in sorted(slices))
            alike[(reasons.get(root, ""), signature)].append(root)
    zeros, found = _Zeros(flow), []
    for (reason, signature), roots in alike.items():
        roots.sort(key=place.get)
        indices = [torch.tensor([[p for _, p in classes[root][e]] for root in roots]) for e, _ in signature]
        parts = [entries[e] for e, _ in signature]
        relu = not reason and zeros.stay(parts, roots)
        found.append((place[roots[0]], _group(entries[place[roots[0]][0]], parts, indices, reason, relu)))
    return [group for _, group in sorted(found, key=lambda item: item[0])]


def _classes(flow: Flow, entries: list[Entry]) -> dict[int, dict[int, list[tuple[tuple[int, ...], int]]]]:
    """Per set of labels that leave together: per entry, the (ranks, position) of its slices, sorted.

    A rank numbers the channels within the set, so that equal ranks of two sets mean the same channel of each.
    """
    members: dict[int, set[int]] = defaultdict(set)
    slices: dict[int, dict[int, list]] = defaultdict(lambda: defaultdict(list))
    for number, entry in enumerate(entries):
        roots, same = flow.labels.together(entry.labels).tolist(), flow.labels.same(entry.labels).tolist()
        for position, (root, channels) in enumerate(zip(roots, same, strict=True)):
            if root[0] >= 0:
                members[root[0]].update(channels)
                slices[root[0]][number].append((channels, position))
    ranks = {root: {label: rank for rank, label in enumerate(sorted(labels))} for root, labels in members.items()}
    return {
        root: {
            e: sorted((tuple(ranks[root][c] for c in channels), p) for channels, p in found) for e, found in own.items()
        }
        for root, own in slices.items()
    }


def _group(first: Entry, parts: list[Entry], indices: list[Tensor], reason: str, relu: bool) -> Group:
    roles: dict[str, list[Member]] = {"producer": [], "consumer": [], "padding": []}
    for entry, index in zip(parts, indices, strict=True):
        roles[entry.role] += [Member(tensor, dim, index, len(entry.labels)) for tensor, dim in entry.tensors]
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
        moved = [flow.labels.together(compact(labels)).flatten() for labels in flow.moved]
        self._moved = set(torch.cat(moved).tolist()) if moved else set()

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
