"""Structured probabilistic pruning (Wang et al., BMVC 2018, arXiv 1709.06994): channels are shut at random while the
network learns, small ones ever more often, until as many as wanted are always shut.

    every t iterations, in each group:  p(c) <- p(c) + Delta(rank of c by its L1 norm), within [0, 1]
    Delta(r) = A exp(-alpha r),  r <= N;   2uA - A exp(-alpha (2N - r)),  r > N
    alpha = (ln 2 - ln u) / (R n),  N = -ln(u) / alpha:   Delta(0) = A, Delta(N) = uA, Delta(R n) = 0

As in code that we take for the authors' (Caffe_IncReg, a copy): a channel with p = 1 is shut for good and no longer
ranked, and R n counts those that are still to be shut. So never more than R n are shut, and the last one needs no more
updates than the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn
from torch.utils.data import Dataset

from redlab.channels.apply import apply_plan
from redlab.channels.groups import Group
from redlab.channels.plan import make_plan
from redlab.files.state import assign, tensors_of
from redlab.network.example import Example, Inputs, place_of, remember_example
from redlab.network.result import Result
from redlab.options import check_whole, plain_options
from redlab.pruning.channels import products_of
from redlab.pruning.gates import gated
from redlab.pruning.rounds import Asked, FineTuning, Rounds, seed_of
from redlab.pruning.scores import score_channels
from redlab.pruning.selection import Selector, lowest
from redlab.pruning.subject import Subject, per_channel

_SURE = 1 - 1e-9  # twenty times 0.05 need not be 1 in binary


def delta(rank: ndarray, to_shut: int, a: float = 0.05, u: float = 0.25) -> ndarray:
    """By how much p rises for the channels of these ranks; the smallest has rank 0. It falls with the rank, to 0 at
    ``to_shut``.

    Arguments:
        to_shut: how many channels are still to be shut, R n, at least 1.
        a: Delta(0), and ``u``, in (0, 1), where it turns: Delta(N) = u a.
    """
    alpha = (np.log(2) - np.log(u)) / to_shut
    turn = -np.log(u) / alpha
    late = 2 * u * a - a * np.exp(np.minimum(alpha * (rank - 2 * turn), 50))  # all below -1 have the same effect
    return np.where(rank <= turn, a * np.exp(-alpha * rank), late)


def raised(p: ndarray, norms: ndarray, goal: int, a: float = 0.05, u: float = 0.25) -> ndarray:
    """(n,) the probabilities after an update of a group of which ``goal`` channels are to be shut for good.

    Once they are, p of all the others is 0: the rest learns undisturbed while other groups go on (our choice).
    """
    p, rest = p.copy(), np.flatnonzero(p < 1)
    if (to_shut := goal - (len(p) - len(rest))) > 0:
        order = rest[lowest(norms[rest], len(rest))]
        p[order] = np.clip(p[order] + delta(np.arange(len(order)), to_shut, a, u), 0, 1)
        p[p > _SURE] = 1
    return p if (p == 1).sum() < goal else np.where(p == 1, 1.0, 0.0)


class Masked(nn.Module):
    """``network``, whose consumer layers get 0 of each channel that the last ``draw`` shut.

    Arguments:
        groups: of ``network``.
        p: by their names, the probability that each channel is shut (size,).
    """

    def __init__(self, network: nn.Module, groups: Sequence[Group], p: Mapping[str, ndarray]) -> None:
        super().__init__()
        self.network, self.groups = network, [group for group in groups if group.name in p]
        self._p = [torch.from_numpy(p[group.name]) for group in self.groups]
        self.gates = [torch.ones(len(own)) for own in self._p]

    def draw(self) -> None:
        """New gates, 0 or 1, by torch's global generator."""
        self.gates = [(torch.rand(len(own), dtype=own.dtype) >= own).float() for own in self._p]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        place = place_of(self.network)
        return gated(self.network, self.groups, [gate.to(**place) for gate in self.gates], Inputs(args, kwargs))


@plain_options
def spp(
    network: nn.Module,
    dataset: Dataset,
    asked: Asked,
    folder: str | Path | None,
    example: Example | None,
    a: float = 0.05,
    u: float = 0.25,
    cap: int = 1000,
) -> Result:
    """``iterative_prune(network, "spp", ...)``, which says what the arguments mean, except for the following.

    A round is an update of p and ``step`` iterations under it. A shut channel is read as 0, as if it were removed. Our
    choices: L1 norms are means over the layers that make a channel, and over all updates so far; R is the same share of
    every group, the smallest that reaches ``target``, whatever ``scope`` says; each round starts a new optimizer;
    ``momentum`` is refused and ``score_images`` not used.

    Arguments:
        asked: ``step``, iterations between two updates, t; the images are repeated as needed. ``fine_tune``, how it
            learns; ``every`` is not used. None: the defaults, since SPP cannot do without learning.
        a, u: of ``delta``.
        cap: the most updates: ranks that keep changing may keep every p below 1. Groups that have not reached R then
            lose their channels of highest p; ``achieved`` has their number under "completed".

    Raises: as ``iterative_prune``.
    """
    if not dataset:
        raise ValueError("spp needs images: pass a dataset that holds some")
    check_whole("spp: step", asked.step)
    check_whole("spp: cap", cap)
    if not (0 < a <= 1 and 0 < u < 1):
        raise ValueError(f"spp: a must lie in (0, 1] and u in (0, 1), not be {a!r} and {u!r}")
    options = {"a": a, "u": u, "cap": cap}
    asked = replace(asked, criterion_options=options, fine_tune=asked.fine_tune or FineTuning())
    with torch.random.fork_rng():
        return _Shutting(network, dataset, asked, folder, example).run()


class _Shutting(Rounds):
    """Rounds in which channels become ever more likely to be shut."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        scores = score_channels(self.original, "magnitude", example=self.example)
        selector = Selector(scores.values, "layer", self.asked.round_to)
        self._cost = products_of(self.original, scores.groups, self.cost, self.example)
        kept = selector.down_to(self.allowed, self._cost)
        self.skipped = dict(scores.skipped)
        self._goals = {name: int((~mask).sum()) for name, mask in kept.items() if not mask.all()}
        self._groups = [group for group in self.lineage.groups if group.name in self._goals]
        self._p = {group.name: np.zeros(group.size) for group in self._groups}
        self._norms = {group.name: np.zeros(group.size) for group in self._groups}  # summed over the updates

    def rounds(self) -> Iterator[dict[str, Any]]:
        while self._open and len(self.history) < self.asked.criterion_options["cap"]:
            self._update()
            loss = self._learn()
            kept = {name: p < 1 for name, p in self._p.items()}
            shut = sum(int((~mask).sum()) for mask in kept.values())
            yield self.row(self.lineage.free - shut, self._cost(kept), loss)

    @property
    def _open(self) -> dict[str, int]:
        """By group, how many channels are still to be shut for good."""
        short = {name: goal - int((self._p[name] == 1).sum()) for name, goal in self._goals.items()}
        return {name: count for name, count in short.items() if count}

    def _update(self) -> None:
        a, u = (self.asked.criterion_options[name] for name in ("a", "u"))
        sizes = {name: weight.abs().double() for name, weight in Subject(self.network).weights().items()}
        for group in self._groups:
            self._norms[group.name] += per_channel(group, sizes)
            own = self._p[group.name], self._norms[group.name], self._goals[group.name]
            self._p[group.name] = raised(*own, a, u)

    def _learn(self) -> float:
        """The mean loss of ``step`` iterations, each with gates of its own."""
        seed, masked = seed_of(self.asked.seed, len(self.history) + 1), Masked(self.network, self._groups, self._p)
        tuning = self.asked.fine_tune
        assert tuning is not None  # ``spp`` sees to it
        masked, loss = tuning.some(masked, self.dataset, int(self.asked.step), seed, lambda copied, _: copied.draw())
        self.network = masked.network
        return loss

    def finish(self) -> None:
        super().finish()
        if short := self._open:
            self.achieved["completed"] = sum(short.values())
        destinations = {}
        for name, goal in self._goals.items():
            kept = np.ones(len(self._p[name]), bool)
            # The highest p is removed first; of equal ones, the smallest channel.
            kept[np.lexsort((self._norms[name], -self._p[name]))[:goal]] = False
            destinations[name] = np.where(kept, np.cumsum(kept) - 1, -1).tolist()
        plan = make_plan(self.lineage.groups, destinations)
        self.network = apply_plan(self.network, plan)
        remember_example(self.network, self.example)
        self.lineage.follow(plan)

    def state(self) -> dict[str, Any]:
        own = {"p": self._p, "norms": self._norms}
        tensors = {key: {n: torch.from_numpy(v) for n, v in values.items()} for key, values in own.items()}
        return tensors | {"tensors": tensors_of(self.network)}

    def resume(self, state: dict[str, Any]) -> None:
        assign(self.network, state["tensors"])
        self._p, self._norms = ({n: v.numpy() for n, v in state[key].items()} for key in ("p", "norms"))
