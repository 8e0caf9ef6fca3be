"""Training: ``train`` for any network, and ``python -m redlab.training NAME`` for the ones that ship (``digits``)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from redlab.augmentation import flip_images, shift_images
from redlab.networks import place_of
from redlab.progress import progress
from redlab.states import assign, fingerprint, read_state, tensors_of, write_state

OnBatch = Callable[[nn.Module, int], None]
Penalty = Callable[[nn.Module], Tensor]


@dataclass(frozen=True, eq=False)
class Trained:
    """What training made.

    Attributes:
        network: a trained copy, in eval mode.
        history: one row an epoch: ``epoch``, ``loss`` (in nats, the mean of what is minimised: cross-entropy and
            penalty), ``accuracy`` (percent, on the augmented images as they passed), ``learning_rate`` (at the epoch's
            end).
    """

    network: nn.Module
    history: pd.DataFrame


def train(
    network: nn.Module,
    dataset: Dataset,
    epochs: int,
    learning_rate: float = 0.1,
    batch_size: int = 64,
    weight_decay: float = 5e-4,
    smoothing: float = 0.0,
    shift: int = 0,
    seed: int = 0,
    *,
    flip: bool = False,
    schedule: str = "cosine",
    on_batch: OnBatch | None = None,
    penalty: Penalty | None = None,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Train a copy of ``network`` by SGD with Nesterov momentum 0.9.

    ``network`` and torch's global random state are left untouched: the same seed gives the same weights on one machine
    with the same number of threads. Parameters that do not require gradients stay as they are.

    Arguments:
        epochs: passes over ``dataset``; 0 returns the copy.
        learning_rate: at its peak.
        weight_decay: on matrices and kernels only; biases and norms go free.
        smoothing: label smoothing, in [0, 1).
        shift: images move by up to so many pixels each way, zeros coming in.
        flip: every second image, by chance, is mirrored left to right.
        schedule: of the learning rate: "cosine", a tenth of warm-up, then a cosine to zero; or "constant".
        on_batch: called before each minibatch with the copy that is trained and the minibatch's number, from 0.
        penalty: called for each minibatch with the copy; what it returns, in nats, is added to the loss.
        checkpoint: a file, written after every epoch, from which the same call goes on to the same weights bit for bit,
            or returns at once. Compared are the network's values, the number of images, and whether there are hooks:
            these must depend on nothing but their arguments and torch's global generator.

    Raises:
        ValueError: no images, nothing to train, negative ``epochs``, an unknown ``schedule``; a checkpoint that is
            another call's, or damaged.
        FloatingPointError: the loss is no longer finite.
        OSError: the checkpoint could not be written; the one before is still there.
    """
    options = _Options(epochs, learning_rate, batch_size, weight_decay, smoothing, shift, flip, schedule, seed)
    if len(dataset) == 0 or epochs < 0:
        raise ValueError(f"training needs images and epochs >= 0, not {len(dataset)} images for {epochs} epochs")
    if schedule not in _SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(_SCHEDULES)}, not {schedule!r}")
    # All that is random (order, shifts, dropout) draws from the global generators, which come back afterwards.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        run = _Run(copy.deepcopy(network), dataset, options, on_batch, penalty)
        if checkpoint is not None:
            hooks = {"on_batch": on_batch is not None, "penalty": penalty is not None}
            call = asdict(options) | {"images": len(dataset), "network": fingerprint(network), **hooks}
            run.resume(read_state(checkpoint, call))
        for _ in progress(range(len(run.rows), epochs), "train"):
            run.epoch()
            if checkpoint is not None:
                write_state(checkpoint, call, run.state())
    return run.trained()


@dataclass(frozen=True)
class _Options:
    """What a training depends on beside the network, the images and the hooks."""

    epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float
    smoothing: float
    shift: int
    flip: bool
    schedule: str
    seed: int


class _Run:
    """A training under way: ``network`` is its own."""

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        options: _Options,
        on_batch: OnBatch | None,
        penalty: Penalty | None,
    ) -> None:
        self.network, self.options, self.on_batch, self.penalty = network, options, on_batch, penalty
        self.loader = _loader(dataset, options.batch_size)
        self.optimizer = _optimizer(network, options.learning_rate, options.weight_decay)
        self.rates = LambdaLR(self.optimizer, _SCHEDULES[options.schedule](options.epochs * len(self.loader)))
        self.rows: list[list] = []

    def epoch(self) -> None:
        """One pass over the images, and its row of the history."""
        self.network.train()
        loss_sum, right, seen, number = 0.0, 0, 0, len(self.rows) + 1
        for batch, (images, labels) in enumerate(self.loader, len(self.rows) * len(self.loader)):
            loss, hits = self._step(batch, images, labels)
            loss_sum += loss * len(labels)
            right += hits
            seen += len(labels)
        if not math.isfinite(loss_sum):
            raise FloatingPointError(f"the loss is {loss_sum / seen} in epoch {number}: try a lower learning_rate")
        self.rows.append([number, loss_sum / seen, 100 * right / seen, self.rates.get_last_lr()[0]])

    def _step(self, batch: int, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """Of one minibatch the loss in nats, and how many images were right."""
        place = place_of(self.network)
        images = flip_images(shift_images(images, self.options.shift), self.options.flip).to(**place)
        labels = labels.to(place["device"])
        if self.on_batch is not None:
            self.on_batch(self.network, batch)
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.options.smoothing)
        if self.penalty is not None:
            loss = loss + self.penalty(self.network)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.rates.step()
        return float(loss.detach()), int((logits.argmax(1) == labels).sum())

    def state(self) -> dict:
        """All that the next epoch depends on."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        parts = {"optimizer": self.optimizer.state_dict(), "rates": self.rates.state_dict(), "rows": self.rows}
        return parts | {"tensors": tensors_of(self.network), "generator": torch.get_rng_state(), "cuda": cuda}

    def resume(self, state: dict | None) -> None:
        """Go on from there; None: from the start."""
        if state is None:
            return
        assign(self.network, state["tensors"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        self.rows = state["rows"]
        torch.set_rng_state(state["generator"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])

    def trained(self) -> Trained:
        self.optimizer.zero_grad(set_to_none=True)
        columns = ["epoch", "loss", "accuracy", "learning_rate"]
        return Trained(self.network.eval(), pd.DataFrame(self.rows, columns=columns))


def _loader(dataset: Dataset, batch_size: int) -> DataLoader:
    # Batch norm cannot train on a batch of one: where one image would be left over, it waits for the next epoch.
    drop_last = len(dataset) > batch_size and len(dataset) % batch_size == 1
    return DataLoader(dataset, batch_size, shuffle=True, drop_last=drop_last)


def _optimizer(network: nn.Module, learning_rate: float, weight_decay: float) -> SGD:
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(network).__name__} has no parameter that requires a gradient: nothing to train")
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return SGD([g for g in groups if g["params"]], learning_rate, momentum=0.9, nesterov=True)


def _warm_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, steps // 10)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


_SCHEDULES: dict[str, Callable[[int], Callable[[int], float]]] = {
    "cosine": _warm_cosine,
    "constant": lambda steps: lambda step: 1.0,
}


if __name__ == "__main__":
    import typer

    from redlab.digits import main

    typer.run(main)
