"""Rounds: what every way of pruning in many steps has in common: its state, its end and its result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset
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
from redlab.options import check_whole, count_of
from redlab.progress import progress
from redlab.pruning.fine_tuning import FineTuning, seed_of
from redlab.pruning.selection import check_share


@dataclass(frozen=True)
class Asked:
    """What every way of pruning in rounds is asked for; arguments as in ``iterative_prune``."""

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
        return asdict(self)


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
        self._train()
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

    def _train(self) -> None:
        if (tuning := self.asked.fine_tune) is not None:
            checkpoint = self.folder and self.folder / "fine_tuning.pt"
            self.network = tuning.finish(self.network, self.dataset, seed_of(self.asked.seed, 0), checkpoint)

    def _result(self) -> Result:
        groups = [replace(group, frozen=self.skipped.get(group.name, "")) for group in self.lineage.groups]
        destinations = self.lineage.destinations()
        table = channel_table(self.original, self.network, groups, destinations, self.example, self.cost)
        share = round(self.products() / max(self.cost.attrs["products"], 1), 6)
        removed = 1 - self.lineage.left / max(self.lineage.free, 1)
        achieved = {"ratio": round(removed, 6), "products": share, "rounds": len(self.history)}
        plan = {"step": "iterative_prune", "options": self.asked.options, "achieved": achieved | self.achieved}
        left = {name: why for name, why in self.skipped.items() if why}
        plan |= report_short("products", 1 - self.asked.target, 1 - share, left, self.asked.options.get("round_to", 1))
        table = with_others(table.rename(columns={"dead": "removed"}), self.original, self.network)
        return Result(self.network, table, plan | {"history": self.history})
