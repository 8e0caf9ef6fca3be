"""Rounds: what every way of pruning in many steps has in common: its training, its state, its end and its result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from redlab.channels.coupling import couple
from redlab.channels.lineage import Lineage
from redlab.channels.table import channel_table
from redlab.files.state import read_state, write_state
from redlab.network.cost import measure_cost
from redlab.network.example import Inputs, fit_example
from redlab.network.layers import copy_network
from redlab.network.recipe import fingerprint
from redlab.network.result import Result, report_short, with_others
from redlab.network.training import OnBatch, check_training, train
from redlab.options import check_whole, count_of, settle
from redlab.progress import progress
from redlab.pruning.selection import check_share


@dataclass(frozen=True)
class FineTuning:
    """How a network is trained while it is pruned. The defaults are our choices.

    Attributes:
        every: minibatches between two removals, at a constant learning rate.
        learning_rate, batch_size, weight_decay, shift, flip: as in ``train``.
        epochs: of a final training under a cosine.
    """

    every: int = 10
    learning_rate: float = 0.01
    batch_size: int = 64
    weight_decay: float = 5e-4
    epochs: int = 0
    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        settle(self)
        check_whole("every", self.every, 0)
        check_whole("epochs", self.epochs, 0)
        check_training(self.learning_rate, self.batch_size, self.weight_decay, self.shift)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> FineTuning:
        """Raises ValueError for keys that are not known."""
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in given if key not in known]:
            raise ValueError(f"fine_tune knows no {unknown[0]!r}; it may hold {', '.join(known)}")
        return cls(**given)

    def some(
        self, network: nn.Module, dataset: Dataset, minibatches: int, seed: int, on_batch: OnBatch | None = None
    ) -> tuple[nn.Module, float]:
        """Train for so many minibatches of images drawn by ``seed``, with a new optimizer; with their mean loss."""
        images = draw(dataset, minibatches * self.batch_size, seed)
        trained = train(network, images, 1, **self._options, seed=seed, schedule="constant", on_batch=on_batch)
        return trained.network, float(trained.history["loss"].iloc[0])

    def finish(self, network: nn.Module, dataset: Dataset, seed: int, checkpoint: Path | None) -> nn.Module:
        """The final training; ``network`` itself if there is none."""
        if self.epochs == 0:
            return network
        return train(network, dataset, self.epochs, **self._options, seed=seed, checkpoint=checkpoint).network

    @property
    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("every", "epochs")}


def draw(dataset: Dataset, count: int, seed: int) -> Subset:
    """``count`` images in random order; all are drawn before one is drawn again."""
    random = np.random.default_rng(seed)
    orders = [random.permutation(len(dataset)) for _ in range(-(-count // len(dataset)))]
    return Subset(dataset, np.concatenate(orders)[:count].tolist())


def seed_of(*numbers: int) -> int:
    """One seed for each sequence of numbers of 0 or more, practically independent of the seeds of others."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@dataclass(frozen=True)
class Asked:
    """What every way of pruning in rounds is asked for; arguments as in ``iterative_prune``."""

    criterion: str
    criterion_options: dict[str, Any]
    target: float
    step: int | float
    fine_tune: FineTuning | None
    seed: int
    round_to: int

    def __post_init__(self) -> None:
        check_share("target", self.target)
        check_whole("seed", self.seed, 0)
        check_whole("round_to", self.round_to)

    @property
    def options(self) -> dict[str, Any]:
        """All of it, as plain data."""
        own = asdict(self)
        return {"criterion": own.pop("criterion"), **own.pop("criterion_options"), **own}


class Rounds(ABC):
    """A network that is pruned round after round.

    Attributes:
        original: the network that was passed in, and ``cost``, its ``measure_cost``.
        network: a copy, as pruned so far.
        lineage: of its channels.
        skipped: by original group, why it stays whole.
        history: a row of plain data a round.
        achieved: what the result reports besides shares and the number of rounds.
    """

    def __init__(
        self, network: nn.Module, dataset: Dataset | None, asked: Asked, folder: str | Path | None, example: Any
    ) -> None:
        self.original, self.dataset, self.asked = network, dataset, asked
        self.folder = None if folder is None else Path(folder)
        self.example: Inputs = fit_example(network, example)
        self.network = copy_network(network)
        self.lineage = Lineage(couple(network, self.example))
        self.skipped = {group.name: group.frozen for group in self.lineage.groups}
        self.cost = measure_cost(network, self.example)
        self.history: list[dict[str, Any]] = []
        self.achieved: dict[str, Any] = {}

    @abstractmethod
    def rounds(self) -> Iterator[dict[str, Any]]:
        """Prune until all is done, and yield the row of each round; go on after the rows that the history has."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that the next round depends on besides the history."""

    @abstractmethod
    def resume(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned."""

    def finish(self) -> None:
        """What is left to do between the last round and the final training."""
        self.network.eval()

    def run(self) -> Result:
        """All rounds that are not done yet, the final training, and the result."""
        images = 0 if self.dataset is None else len(self.dataset)
        call = self.asked.options | {"images": images, "network": fingerprint(self.original)}
        if self.folder and (state := read_state(self.folder / "rounds.pt", call)):
            self.history = state["history"]
            self.resume(state)
        rows = progress(self.rounds(), "pruning")
        for row in rows:
            self.history.append(row)
            if isinstance(rows, tqdm):  # there is no bar if another watcher is set
                rows.set_postfix(channels=row["channels"], products=row["products"])
            if self.folder:
                write_state(self.folder / "rounds.pt", call, self.state() | {"history": self.history})
        self.finish()
        if (tuning := self.asked.fine_tune) is not None:
            checkpoint = self.folder and self.folder / "fine_tuning.pt"
            self.network = tuning.finish(self.network, self.dataset, seed_of(self.asked.seed, 0), checkpoint)
        return self._result()

    @property
    def allowed(self) -> int:
        """How many products there may be at the end."""
        return count_of(self.asked.target, self.cost.attrs["products"])

    def products(self) -> int:
        """How many there are now."""
        return measure_cost(self.network, self.example).attrs["products"]

    def row(self, channels: int, products: int, loss: float | None) -> dict[str, Any]:
        """The row of the round that is ending."""
        share = round(products / max(self.cost.attrs["products"], 1), 6)
        return {"round": len(self.history) + 1, "channels": channels, "products": share, "loss": loss}

    def _result(self) -> Result:
        groups = [replace(group, frozen=self.skipped.get(group.name, "")) for group in self.lineage.groups]
        destinations = self.lineage.destinations()
        table = channel_table(self.original, self.network, groups, destinations, self.example, self.cost)
        share = round(self.products() / max(self.cost.attrs["products"], 1), 6)
        removed = 1 - self.lineage.left / max(self.lineage.free, 1)
        achieved = {"ratio": round(removed, 6), "products": share, "rounds": len(self.history)}
        plan = {"step": "iterative_prune", "options": self.asked.options, "achieved": achieved | self.achieved}
        left = {name: why for name, why in self.skipped.items() if why}
        plan |= report_short("products", 1 - self.asked.target, 1 - share, left, self.asked.round_to)
        table = with_others(table.rename(columns={"dead": "removed"}), self.original, self.network)
        return Result(self.network, table, plan | {"history": self.history})
