"""Rounds: what all pruning that takes many steps has in common: its state, its end, and its result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from redlab.channels.coupling import couple
from redlab.channels.lineage import Lineage
from redlab.channels.table import channel_table
from redlab.files.state import read_state, write_state
from redlab.network.cost import measure_cost
from redlab.network.example import Inputs, fit_example
from redlab.network.fingerprint import fingerprint
from redlab.network.layers import copy_network
from redlab.network.reasons import report_short
from redlab.network.remainder import with_others
from redlab.network.result import Result
from redlab.progress import progress
from redlab.pruning.fine_tuning import FineTuning, seed_of
from redlab.pruning.selection import count_of


class Asked(Protocol):
    """What every way of pruning in rounds is asked for; ``options`` is all of it as plain data."""

    @property
    def target(self) -> float: ...

    @property
    def fine_tune(self) -> FineTuning | None: ...

    @property
    def seed(self) -> int: ...

    @property
    def options(self) -> dict[str, Any]: ...


class Rounds(ABC):
    """A network that is pruned round after round.

    Attributes:
        original: the network that was passed in, and ``cost`` its own by ``measure_cost``.
        network: what has become of it: a copy.
        lineage: of its channels.
        skipped: by original group, why it stays whole.
        history: a row of plain data a round.
        achieved: what the result should tell beside shares and the number of rounds.
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
        """Prune, and give the row of each round, until all is done; where the history has rows, go on behind them."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that the next round depends on beside the history."""

    @abstractmethod
    def resume(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` gave."""

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
            if isinstance(rows, tqdm):  # where somebody else watches, there is no bar
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
        """Of the round that is ending."""
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
        gone = 1 - self.lineage.left / max(self.lineage.free, 1)
        achieved = {"ratio": round(gone, 6), "products": share, "rounds": len(self.history)}
        plan = {"step": "iterative_prune", "options": self.asked.options, "achieved": achieved | self.achieved}
        left = {name: why for name, why in self.skipped.items() if why}
        plan |= report_short("products", 1 - self.asked.target, 1 - share, left, self.asked.options.get("round_to", 1))
        table = with_others(table.rename(columns={"dead": "removed"}), self.original, self.network)
        return Result(self.network, table, plan | {"history": self.history})
