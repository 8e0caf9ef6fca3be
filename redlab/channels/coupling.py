"""Which channels of a network go together, and which must stay, with the reason.

Labels are pushed through the traced graph (``rules``). A group is a maximal set of channels with the same producers and
the same consumers. The graph does not show whether the network's own code accepts fewer channels: sizes written into it
(``x.view(-1, 400)``) do not follow. So it is tried on fake tensors: shapes only, no arithmetic, no memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import nn
from torch.fx import Node

from redlab.channels.groups import Group, Member
from redlab.channels.labels import Entry, Flow, compact
from redlab.channels.rules import follow
from redlab.channels.trials import Trials
from redlab.network.example import Example, fit_example
from redlab.network.layers import TO_PREPARE, unwrap, weight_layers
from redlab.network.trace import Graph, is_layer, operation, retrace
from redlab.network.trial_run import why_unseen


def couple(network: nn.Module, example: Example | None = None, known: Graph | None = None) -> list[Group]:
    """The groups of ``network``, in the order in which their first producers run; what never runs comes last.

    Every output channel of every conv and linear layer is in exactly one group. Channels that must stay are in groups
    with a reason in ``frozen``. The network is left as it was.

    Arguments:
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        known: its graph, or that of the same network with other values: then nothing is traced.

    Raises:
        ValueError: the network can't be traced.
    """
    network = unwrap(network)
    graph = retrace(network, example, known)
    trials, tried = Trials(network, fit_example(network, example), graph), Counter[Node]()
    while True:
        flow = follow(graph, tried)
        groups = _named(_groups(flow))
        if not (wrong := trials.wrong_ways(flow, groups)):
            break
        tried.update(wrong)
    covered = {member.tensor for group in groups for member in group.producers}
    groups = _named([*groups, *_uncovered(graph, covered, example)])
    fixed = trials.misfits(groups)
    return [replace(group, frozen=fixed[group.name], relu=False) if group.name in fixed else group for group in groups]


def _uncovered(graph: Graph, covered: set[str], example: Example | None) -> Iterable[Group]:
    """The layers whose weight no conv or linear operation of the graph reads under its own name, frozen."""
    paths = {module: path for path, module in graph.network.named_modules()}
    named = {f"{paths[layer.module]}.{layer.parameter}".lstrip("."): layer for layer in weight_layers(graph.network)}
    left = {tensor: layer for tensor, layer in named.items() if tensor not in covered}
    reasons = why_unseen(graph, [tensor for tensor, layer in left.items() if not layer.skipped], example)
    reasons |= {tensor: f"{why}: {TO_PREPARE}" for tensor, why in reasons.items() if "not straight to" in why}
    for tensor, layer in left.items():
        dim = 1 if getattr(layer.module, "transposed", False) else 0
        size = 0 if layer.lazy else layer.weight.shape[dim]
        shared = f"shares its weight with {' and '.join(layer.shared)}" if layer.shared else ""
        member = Member(tensor, dim, torch.arange(size)[:, None], size)
        yield Group(layer.name, size, (member,), (), frozen=layer.skipped or shared or reasons[tensor])


class _Slices(NamedTuple):
    """Slices of tensors that belong to channels, sorted by all four columns in this order; (slices,) each.

    Example: conv1 makes two channels, labels 0 and 1, and conv2 reads them.
        root     0 0 1 1   what leaves together has one root: channel 0 with its row and its column
        entry    0 1 0 1   entry 0 is the rows of conv1's weight, entry 1 the columns of conv2's
        ranks    0 0 0 0   one channel a root, so its rank is 0
        position 0 0 1 1   row 0 and column 0 are channel 0, row 1 and column 1 are channel 1
    Roots 0 and 1 have equal entries and ranks, so they are two channels of one group: Member(index=[[0], [1]]) twice.
    """

    root: ndarray
    entry: ndarray
    ranks: ndarray
    position: ndarray

    def by_root(self) -> list[_Slices]:
        """Apart, one a root."""
        cuts = np.flatnonzero(np.diff(self.root)) + 1
        return [_Slices(*own) for own in zip(*(np.split(column, cuts) for column in self), strict=True) if len(own[0])]


def _groups(flow: Flow) -> list[Group]:
    made = np.array([entry.role == "producer" and _makes(entry.node) for entry in flow.entries], dtype=bool)
    reasons, alike = flow.labels.reasons(), defaultdict(list)
    for own in _slices(flow).by_root():
        first = made[own.entry].argmax()
        if made[own.entry[first]]:  # else a parameter that no layer's channels meet
            place = int(own.entry[first]), int(own.position[first])
            alike[reasons.get(int(own.root[0]), ""), own.entry.tobytes(), own.ranks.tobytes()].append((place, own))
    moved = {label for labels in flow.moved for label in np.unique(compact(labels).numpy())}
    moved = set(flow.labels.together(torch.tensor(sorted(moved), dtype=torch.int64)).tolist())
    found = []
    for (reason, *_), placed in alike.items():
        (place, _), sets = min(placed, key=itemgetter(0)), [own for _, own in sorted(placed, key=itemgetter(0))]
        unmoved = moved.isdisjoint(int(own.root[0]) for own in sets)
        found.append((place, _group(flow.entries, place[0], sets, reason, unmoved)))
    return [group for _, group in sorted(found, key=itemgetter(0))]


def _slices(flow: Flow) -> _Slices:
    """Every slice that belongs to channels."""
    channels = [flow.labels.same(entry.labels).numpy() for entry in flow.entries]
    rank_of = _ranks(flow, channels)
    columns: list[tuple[ndarray, ...]] = [(np.empty(0, np.int64),) * 4]
    for number, (entry, own) in enumerate(zip(flow.entries, channels, strict=True)):
        roots = flow.labels.together(entry.labels[:, 0]).numpy()
        position = np.flatnonzero(roots >= 0)
        ranks = rank_of[own[position]]
        # A slice of several channels, such as a column of a grouped convolution: one code for all its ranks.
        code = ranks[:, 0] if ranks.shape[1] == 1 else np.unique(ranks, axis=0, return_inverse=True)[1].ravel()
        columns.append((roots[position], np.full(len(position), number), code, position))
    together = _Slices(*(np.concatenate(own) for own in zip(*columns, strict=True)))
    order = np.lexsort(together[::-1])
    return _Slices(*(column[order] for column in together))


def _ranks(flow: Flow, channels: list[ndarray]) -> ndarray:
    """By channel, its place among those that leave together with it, so that equal ranks mean the same channel of each.

    Example: of a convolution with 2 groups and 2 + 2 filters, channels 0 and 2 leave together, and so do 1 and 3. The
    ranks of 0 1 2 3 are 0 0 1 1.
    """
    known = np.unique(np.concatenate([np.zeros(0, np.int64), *(own.ravel() for own in channels)]))
    known = known[known >= 0]
    roots = flow.labels.together(torch.from_numpy(known)).numpy()
    order = np.argsort(roots, kind="stable")
    ranks = np.zeros(1 + known.max(initial=0), dtype=np.int64)
    ranks[known[order]] = np.arange(len(order)) - np.searchsorted(roots[order], roots[order])
    return ranks


def _group(entries: list[Entry], first: int, sets: list[_Slices], reason: str, unmoved: bool) -> Group:
    """The group whose channels are ``sets``, made by entry ``first``; ``unmoved``: nothing moves their zeros."""
    numbers, starts = np.unique(sets[0].entry, return_index=True)
    indices = np.split(np.stack([own.position for own in sets]), starts[1:], axis=1)
    roles: dict[str, list[Member]] = {"producer": [], "consumer": [], "padding": [], "size": []}
    for number, index in zip(numbers, indices, strict=True):
        slices, width = torch.from_numpy(index.copy()), len(entries[number].labels)
        roles[entries[number].role] += [Member(tensor, dim, slices, width) for tensor, dim in entries[number].tensors]
    makers = [entries[number].node for number in numbers if entries[number].role == "producer"]
    relu = not reason and unmoved and all(map(_feeds_relu, makers))
    name = entries[first].tensors[0][0].removesuffix("weight").rstrip("._")
    producers, consumers, paddings, sizes = map(tuple, roles.values())
    return Group(name, len(sets), producers, consumers, paddings, reason, relu, sizes)


def _makes(node: Node) -> bool:
    """Whether ``node`` makes channels: other parameters only go along with them."""
    return is_layer(node) or operation(node) == "embedding"


def _named(groups: Iterable[Group]) -> list[Group]:
    """The second group of a layer gets " (2)" after its name."""
    seen: Counter[str] = Counter()
    named = []
    for group in groups:
        seen[group.name] += 1
        named.append(replace(group, name=f"{group.name} ({seen[group.name]})") if seen[group.name] > 1 else group)
    return named


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
