"""Fine-tuning: training between two removals of channels, and after the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset

from redlab.network.training import OnBatch, Trained, check_training, train
from redlab.options import check_whole, settle


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
    ) -> Trained:
        """Train for so many minibatches of images drawn by ``seed``, with a new optimizer."""
        images = draw(dataset, minibatches * self.batch_size, seed)
        return train(network, images, 1, **self._options, seed=seed, schedule="constant", on_batch=on_batch)

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
