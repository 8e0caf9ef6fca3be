"""Smaller networks tried out: whether the network's own code accepts fewer channels, and whether numbers follow them.

Widths that the code has fixed, or computes with, are found on fake tensors. Where a number is taken to follow
(``rules_cuts``), a smaller network is traced, and each of its operations must have the shapes, places and numbers that
the labels foretell.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node

from redlab.channels.apply import edits_of, narrow
from redlab.channels.arithmetic import Arithmetic, Call, why_other
from redlab.channels.groups import Group
from redlab.channels.labels import Flow, compact
from redlab.channels.plan import make_plan
from redlab.channels.rules_cuts import part_of
from redlab.network.evaluating import evaluating, first_line
from redlab.network.example import Inputs
from redlab.network.trace import Graph, argument, operation, trace
from redlab.network.trial_run import culprits


class _Tried(NamedTuple):
    """What a trial ended with, the module that raised it, and what was computed before."""

    error: Exception | None
    path: str
    calls: list[Call]


def _left_of(size: int) -> int:
    """How many channels of a group a trial leaves: about half of them, and no number that many others divide.

    Examples: 64 -> 31, 16 -> 7, 8 -> 3; of fewer than 6 all but one.
    """
    return size - 1 if size < 6 else (size // 2 - 1) | 1


class Trials:
    """Trials of ``network``, whose graph on ``inputs`` is ``graph``."""

    def __init__(self, network: nn.Module, inputs: Inputs, graph: Graph) -> None:
        self._network, self._inputs, self._graph = network, inputs, graph

    def misfits(self, groups: Sequence[Group]) -> dict[str, str]:
        """By the name of every free group that cannot lose a channel, why: the error of the network's code."""
        free = {group.name: group for group in groups if not group.frozen and group.size > 1}
        return culprits(list(free), lambda names: self._why_not([free[name] for name in names]))

    def _why_not(self, groups: Sequence[Group]) -> str:
        """Why the network with fewer channels in each of ``groups`` does not run, or computes something else; or ""."""
        left = {group.name: _left_of(group.size) for group in groups}
        plan = make_plan(groups, {g.name: [-1] * (g.size - left[g.name]) + [*range(left[g.name])] for g in groups})
        tried = self._run(plan)
        if tried.error:
            return f"its width is fixed in the network's code: {first_line(tried.error)}"
        return why_other(self._whole.calls, tried.calls) if not self._whole.error else ""

    @cached_property
    def _whole(self) -> _Tried:
        """The network itself."""
        return self._run({"groups": {}, "members": {}})

    def _run(self, plan: dict) -> _Tried:
        """The network with the channels that ``plan`` leaves, on fake tensors."""
        mode, smaller, noted = FakeTensorMode(allow_non_fake_inputs=True), nn.Module(), Arithmetic()
        try:
            smaller = narrow(self._network, edits_of(plan), _fakes(self._network, mode))
            inputs = self._inputs.each(mode.from_tensor)
            with mode, noted, evaluating(smaller):
                inputs.run(smaller)
        except Exception as error:  # whatever the network's own code raises
            return _Tried(error, _raised_in(smaller, error), noted.calls)
        return _Tried(None, "", noted.calls)

    def wrong_ways(self, flow: Flow, groups: Sequence[Group]) -> list[Node]:
        """The operations whose number doesn't follow the channels in the way that ``flow`` takes it to.

        Each group loses another number of channels, so that what only happens to fit does not pass.
        """
        free = [group for group in groups if not group.frozen and group.size > 1] if flow.ways else []
        roots = {group.name: _roots(flow, group) for group in free}
        met = {root for labels in flow.ways.values() for root in flow.labels.together(labels).flatten().tolist()}
        touched = [group for group in free if not met.isdisjoint(roots[group.name])]
        if not touched:
            return []
        draw = random.Random(0)
        lost = {group.name: draw.randint(1, max(1, group.size // 2)) for group in touched}
        plan = make_plan(touched, {g.name: [-1] * lost[g.name] + [*range(g.size - lost[g.name])] for g in touched})
        tried = self._run(plan)
        if tried.error:
            return self._suspects(flow, tried.path)
        try:
            smaller = trace(narrow(self._network, edits_of(plan)), self._inputs)
        except ValueError:  # no error on fake tensors, but in tracing
            return list(flow.ways)
        removed = {root for group in touched for root in roots[group.name][: lost[group.name]]}
        return Foretold(flow, torch.tensor(sorted(removed))).differing(self._graph, smaller)

    def _suspects(self, flow: Flow, path: str) -> list[Node]:
        """Of the operations whose numbers are taken to follow, the last one before an error in the module ``path``.

        With it all that are alike: of the same operation in a module of the same class.
        """
        calls = _calls(self._graph)
        inside = [place for place, node in enumerate(calls) if _is_inside(node, path)]
        before = [node for node in calls[: max(inside, default=len(calls)) + 1] if node in flow.ways]
        last = before[-1] if before else next(iter(flow.ways))
        return [node for node in flow.ways if self._kind(flow, node) == self._kind(flow, last)]

    def _kind(self, flow: Flow, node: Node) -> tuple:
        return operation(node), type(self._graph.caller(node)), flow.tried.get(node, 0)


def _raised_in(network: nn.Module, error: Exception) -> str:
    """The dotted name of the innermost module of ``network`` whose code raised ``error``."""
    paths = {id(module): path for path, module in network.named_modules()}
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return next(reversed([paths[id(own)] for frame in frames if id(own := frame.f_locals.get("self")) in paths]), "")


def _is_inside(node: Node, path: str) -> bool:
    return any(own == path for own, _ in node.meta.get("nn_module_stack", {}).values())


def _roots(flow: Flow, group: Group) -> list[int]:
    """The set of labels that each channel of ``group`` leaves with."""
    member = group.producers[0]
    labels = flow.known(member.tensor, member.dim, "producer")
    assert labels is not None  # a group is made of entries
    return flow.labels.together(labels[member.index[:, 0], 0]).tolist()


class Foretold:
    """What each operation is after the labels ``removed`` have left."""

    def __init__(self, flow: Flow, removed: Tensor) -> None:
        self._flow, self._removed = flow, removed

    def differing(self, graph: Graph, smaller: Graph) -> list[Node]:
        """The operations of ``graph``, among those whose numbers follow, to blame for what differs in ``smaller``."""
        pairs = list(zip(_calls(graph), _calls(smaller), strict=False))
        if len(_calls(graph)) != len(_calls(smaller)) or any(one.target != other.target for one, other in pairs):
            return list(self._flow.ways)
        wrong = [one for one, other in pairs if one in self._flow.ways and not self._at_its_place(one, other)]
        if wrong or all(self._as_large(one, other) and _numbers(one) == _numbers(other) for one, other in pairs):
            return wrong
        return list(self._flow.ways)

    def _at_its_place(self, one: Node, other: Node) -> bool:
        """Whether a cut lies at the place, or a norm has the number of groups, that is foretold."""
        kept = ~torch.isin(self._flow.labels.together(self._flow.ways[one]), self._removed)
        if operation(one) == "group_norm":
            return argument(other, "num_groups") == int(kept.view(argument(one, "num_groups"), -1).any(1).sum())
        if operation(one) != "slice":
            return self._as_large(one, other)
        before = [0, *kept.cumsum(0).tolist()]
        part = part_of(one, len(kept))
        return part is not None and part_of(other, before[-1]) == (before[part[0]], before[part[1]])

    def _as_large(self, one: Node, other: Node) -> bool:
        outputs = zip(*map(_listed, (self._flow.at(one), _value(one), _value(other))), strict=True)
        return all(self._shape(labels, old) == new.shape for labels, old, new in outputs if labels is not None)

    def _shape(self, labels: Tensor, old: Tensor) -> torch.Size:
        small = compact(labels)
        gone = torch.isin(self._flow.labels.together(small), self._removed)
        lost = [int(gone.movedim(axis, 0).flatten(1).all(1).sum()) for axis in range(gone.ndim)] if gone.any() else []
        sizes = [size - (lost[axis] if lost and small.shape[axis] > 1 else 0) for axis, size in enumerate(old.shape)]
        return torch.Size(sizes)


def _calls(graph: Graph) -> list[Node]:
    return [node for node in graph.fx.nodes if node.op == "call_function"]


def _value(node: Node) -> Any:
    return node.meta.get("val")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _numbers(node: Node) -> list[float]:
    """The fractions among the arguments, which are no sizes: the same for a network of any width."""
    return [value for value in _flat((*node.args, *node.kwargs.values())) if isinstance(value, float)]


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _fakes(network: nn.Module, mode: FakeTensorMode) -> dict[int, Tensor]:
    """A fake for every parameter and buffer, by the ``id`` of that."""
    fakes: dict[int, Tensor] = {id(tensor): mode.from_tensor(tensor.detach()) for tensor in network.buffers()}
    for tensor in network.parameters():
        fakes[id(tensor)] = nn.Parameter(mode.from_tensor(tensor.detach()), requires_grad=False)
    return fakes
