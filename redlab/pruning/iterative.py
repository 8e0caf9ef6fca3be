"""Iterative pruning: a few channels are removed, the network learns for a while, and what is left is scored again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import nn
from torch.utils.data import Dataset

from redlab.channels.groups import Group
from redlab.compression.replay import take_step
from redlab.files.state import assign, tensors_of
from redlab.network.example import Example
from redlab.network.layers import unwrap
from redlab.network.recipe import change_recipe, recipe_of
from redlab.network.result import Result
from redlab.network.samples import as_dataset, example_of
from redlab.options import check_number, check_one_of, check_whole, count_of, fitted, plain_options
from redlab.pruning.channels import prune_channels
from redlab.pruning.criteria.registry import CRITERIA, find_criterion
from redlab.pruning.rounds import Asked, FineTuning, Rounds, draw, seed_of
from redlab.pruning.scores import Scores, score_channels
from redlab.pruning.selection import SCOPES, Selector
from redlab.pruning.spp import spp


@plain_options
@torch.inference_mode(False)
@torch.enable_grad()
def iterative_prune(
    network: nn.Module,
    criterion: str,
    dataset: Dataset | None,
    target: float,
    step: int | float,
    fine_tune: Mapping[str, Any] | None = None,
    *,
    momentum: float | None = None,
    score_images: int = 640,
    seed: int = 0,
    folder: str | Path | None = None,
    round_to: int = 1,
    scope: str = "global",
    example: Example | None = None,
    **options: Any,
) -> Result:
    """Prune ``network`` round after round: score, remove ``step`` channels, learn from a few minibatches.

    The way of Molchanov et al. (CVPR 2019, arXiv 1906.10771), for any criterion. Our choices: scores are measured in
    eval mode, on images of their own; each stretch of learning starts a new optimizer, without warm-up; the last round
    removes only as many channels as it takes to reach ``target``. Batch norms are not folded.

    Arguments:
        network: left untouched, as is torch's global random state.
        criterion: one of ``score_channels``; or "spp", and ``redlab.pruning.spp`` says what differs.
        dataset: of (inputs, label), as for ``evaluate``, for scores and learning; None if neither needs images.
        target: the share of the network's multiplications to keep, in [0, 1]; each coupled group keeps its best
            channel.
        step: channels to remove in a round, at least one, or their share, in (0, 1), of those that may be removed. If
            ``round_to`` or scope "layer" allow none, two steps are removed at once, or three, ...
        fine_tune: None for no learning at all; or a dict with any of ``FineTuning``'s attributes: ``every``
            (minibatches between two removals, 10), ``learning_rate`` (0.01), ``batch_size`` (64), ``weight_decay``
            (5e-4), ``epochs`` (of a final training, 0), ``shift``, ``flip``.
        momentum: of the scores' running average over the rounds, in [0, 1); by default 0.9 for taylor, else 0.
        score_images: how many images the scores of a round use, others in each round; at most all.
        seed: of all that is random, also in the criterion; images and their order depend on it and the round only.
        folder: keeps the state of every round. The same call goes on from there, to the same result bit for bit.
        round_to, scope: as in ``prune_channels``, and ``example``; ``options`` are the criterion's.

    Returns:
        ``layers`` as of ``prune_channels``, from the original network to the last. ``plan`` holds ``options``,
        ``achieved``, and ``history``, one dict a round: ``round``, ``channels`` (left, of those that may be removed),
        ``products`` (the share left), ``loss`` (in nats, mean over the minibatches after the removal; None without).
        The recipe of the network holds the plan of every round.

    Raises:
        ValueError: an unknown criterion, option or key, a number out of range, no images, a folder of another call.
        OSError: the state could not be written; the one before is still there.

    Example:
        >>> result = iterative_prune(load_network("digits/mlp"), "magnitude", None, target=0.5, step=100)
        >>> [row["channels"] for row in result.plan["history"]], result.plan["achieved"]["products"]
        ([284, 252], 0.497462)
    """
    network, dataset = unwrap(network), None if dataset is None else as_dataset(dataset)
    example = example_of(network, example, dataset)
    tuning = None if fine_tune is None else FineTuning.of(fine_tune)
    common = (criterion, options, target, step, tuning, seed, round_to)
    if criterion == "spp":
        _check_spp(momentum, options)
        return spp(network, dataset, Asked(*common), folder, example, **options)
    momentum = (0.9 if criterion == "taylor" else 0.0) if momentum is None else momentum
    asked = _Asked(*common, momentum, score_images, scope)
    if tuning is not None and not dataset:
        raise ValueError("fine-tuning needs images: pass a dataset that holds some, or fine_tune=None")
    with torch.random.fork_rng():
        return _ByScores(network, dataset, asked, folder, example).run()


def _check_spp(momentum: float | None, options: Mapping[str, Any]) -> None:
    if unknown := [option for option in options if option not in ("a", "u", "cap")]:
        raise ValueError(f"spp takes no option {unknown[0]!r}. It takes a, u, cap")
    if momentum is not None:
        raise ValueError("spp takes no momentum: its norms are means over all updates")


@dataclass(frozen=True)
class _Asked(Asked):
    momentum: float
    score_images: int
    scope: str

    def __post_init__(self) -> None:
        try:
            scorer = find_criterion(self.criterion, "channels", self.criterion_options).scorer("channels")
            object.__setattr__(self, "criterion_options", fitted(scorer, self.criterion_options))
        except ValueError as error:
            raise ValueError(f"{error}, spp" if self.criterion not in CRITERIA else str(error)) from None
        super().__post_init__()
        check_one_of("scope", self.scope, SCOPES)
        if not (0 < self.step < 1 or (self.step >= 1 and self.step == int(self.step))):
            raise ValueError(f"step must be a number of channels or a share in (0, 1), not {self.step!r}")
        check_number("momentum", self.momentum, below=1)
        check_whole("score_images", self.score_images)


class _ByScores(Rounds):
    """Rounds that each remove the channels of lowest scores."""

    asked: _Asked

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._averages = np.full(self.lineage.total, np.nan)
        self._before = len(_steps(self.network))

    def rounds(self) -> Iterator[dict[str, Any]]:
        products = self.products()
        while products > self.allowed:
            number = len(self.history) + 1
            scores = self._scores(number)
            count = self._count(scores)
            if count == 0:
                return
            self._remove(scores, count, self.allowed / products)
            loss, products = self._learn(number), self.products()
            yield self.row(self.lineage.left, products, loss)

    def _scores(self, number: int) -> Scores:
        """Those of this round, averaged with those of the rounds before."""
        asked, images = self.asked, None
        seed = seed_of(asked.seed, number, 0)
        if self.dataset is not None:
            images = draw(self.dataset, min(asked.score_images, len(self.dataset)), seed)
        taken = inspect.signature(CRITERIA[asked.criterion].scorer("channels")).parameters
        options = asked.criterion_options | ({"seed": seed} if "seed" in taken else {})
        scores = score_channels(self.network, asked.criterion, images, example=self.example, **options)
        self.skipped = dict(scores.skipped) if number == 1 else self.skipped
        groups = {group.name: group for group in scores.groups}
        return replace(scores, values={name: self._averaged(groups[name], own) for name, own in scores.values.items()})

    def _averaged(self, group: Group, new: ndarray) -> ndarray:
        channels, kept = self.lineage.numbers(group), self.asked.momentum
        old = self._averages[channels]
        self._averages[channels] = np.where(np.isnan(old), new, kept * old + (1 - kept) * new)
        return self._averages[channels]

    def _count(self, scores: Scores) -> int:
        """How many channels to remove: a step, or the fewest steps that remove any; 0 if none can be removed."""
        step = int(self.asked.step) if self.asked.step >= 1 else max(1, count_of(self.asked.step, self.lineage.free))
        selector = Selector(scores.values, self.asked.scope, self.asked.round_to)
        counts = range(step, selector.total + step, step)
        return next((k for k in counts if any(not kept.all() for kept in selector.without(k).values())), 0)

    def _remove(self, scores: Scores, count: int, share: float) -> None:
        limits: dict[str, Any] = {"count": count, "scope": self.asked.scope, "round_to": self.asked.round_to}
        pruned = prune_channels(self.network, scores, products=share, **limits, example=self.example)
        self.lineage.follow(pruned.plan)
        self.network = pruned.network

    def _learn(self, number: int) -> float | None:
        """The mean loss of the minibatches after a removal."""
        tuning = self.asked.fine_tune
        if tuning is None or tuning.every == 0:
            return None
        seed = seed_of(self.asked.seed, number, 1)
        self.network, loss = tuning.some(self.network, self.dataset, tuning.every, seed)
        return loss

    def state(self) -> dict[str, Any]:
        steps = list(_steps(self.network)[self._before :])
        own = {"steps": steps, "tensors": tensors_of(self.network), "skipped": self.skipped}
        return own | {"averages": torch.from_numpy(self._averages)}

    def resume(self, state: dict[str, Any]) -> None:
        steps = (*_steps(self.network), *state["steps"])
        for step in state["steps"]:
            self.network = take_step(self.network, step)
            if step["step"] == "plan":
                self.lineage.follow(step)
        change_recipe(self.network, steps=steps)
        assign(self.network, state["tensors"])
        self.skipped, self._averages = state["skipped"], state["averages"].numpy()


def _steps(network: nn.Module) -> tuple[dict, ...]:
    """The steps in its recipe, which records what is done to the network."""
    recipe = recipe_of(network)
    return recipe.steps if recipe else ()
