"""Training of any network: ``train``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from redlab.files.state import assign, read_state, tensors_of, write_state
from redlab.network.example import Inputs, answer
from redlab.network.layers import copy_network, forget_output_statistics, unwrap
from redlab.network.recipe import fingerprint
from redlab.network.samples import Labelled, as_dataset, batches, flip_images, placed, shift_images
from redlab.options import check_number, check_one_of, check_whole, plain_options
from redlab.progress import progress

OnBatch = Callable[[nn.Module, int], None]
Penalty = Callable[[nn.Module], Tensor]
Observe = Callable[[nn.Module], Any]
MakeOptimizer = Callable[[nn.Module], Optimizer]


@dataclass(frozen=True, eq=False)
class Trained:
    """What training returns.

    Attributes:
        network: a trained copy, in eval mode.
        history: one row an epoch: ``epoch``, ``loss`` (in nats, mean of cross-entropy plus penalty), ``accuracy``
            (percent, on the augmented images of the epoch), ``learning_rate`` (at its end).
        observations: what ``observe`` returned, before the first epoch and after each.
    """

    network: nn.Module
    history: pd.DataFrame
    observations: list = field(default_factory=list)


@plain_options
def train(
    network: nn.Module,
    dataset: Labelled,
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
    observe: Observe | None = None,
    optimizer: MakeOptimizer | None = None,
    checkpoint: str | Path | None = None,
    depends: Mapping[str, Any] | None = None,
) -> Trained:
    """Train a copy of ``network`` by SGD with Nesterov momentum 0.9.

    ``network`` and torch's global random state are left untouched. The same seed gives the same weights on one machine
    with the same number of threads. Parameters that do not require gradients stay as they are. What folding knew of the
    layers' outputs is forgotten.

    Arguments:
        epochs: passes over ``dataset``; 0 returns the copy.
        learning_rate: at its peak.
        weight_decay: on matrices and kernels only, not on biases and norms.
        smoothing: label smoothing, in [0, 1).
        shift: images move by up to so many pixels each way; zeros fill the gap.
        flip: half of the images, at random, are mirrored left to right.
        schedule: of the learning rate: "cosine", a tenth of warm-up, then a cosine to zero; or "constant".
        on_batch: called before each minibatch with the copy that is trained and the minibatch's number, from 0.
        penalty: called for each minibatch with the copy; what it returns, in nats, is added to the loss.
        observe: called with the copy, in eval mode, before the first epoch and after each. It returns numbers, text and
            tensors in dicts and lists, which are collected in ``observations``.
        optimizer: makes another optimizer for the copy, whose learning rates follow ``schedule``. ``learning_rate`` and
            ``weight_decay`` are then not used.
        checkpoint: a file, written after every epoch. The same call goes on from it to the same weights bit for bit, or
            returns at once. A call is the same if the network's values, the number of images, the options and
            ``depends`` are equal and the same hooks are set; hooks must depend on nothing else but their arguments and
            torch's global generator.
        depends: what else the result depends on, as plain data.

    Raises:
        ValueError: no images, nothing to train, a number out of range, an unknown ``schedule``; a checkpoint of another
            call, or a damaged one.
        FloatingPointError: the loss is no longer finite.
        OSError: the checkpoint could not be written; the one before is still there.
    """
    network, dataset = unwrap(network), as_dataset(dataset)
    check_training(learning_rate, batch_size, weight_decay, shift)
    check_number("smoothing", smoothing, below=1)
    check_one_of("schedule", schedule, SCHEDULES)
    options = _Options(epochs, learning_rate, batch_size, weight_decay, smoothing, shift, flip, schedule, seed)
    if len(dataset) == 0 or epochs < 0:
        raise ValueError(f"training needs images and epochs >= 0, not {len(dataset)} images for {epochs} epochs")
    # All that is random (order, shifts, dropout) draws from the global generators, which are restored afterwards.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hooks = {"on_batch": on_batch, "penalty": penalty, "observe": observe, "optimizer": optimizer}
        run = _Run(copy_network(network), dataset, options, hooks)
        if checkpoint is not None:
            call = asdict(options) | {"images": len(dataset), "network": fingerprint(network)}
            call |= {name: hook is not None for name, hook in hooks.items()} | dict(depends or {})
            run.resume(read_state(checkpoint, call))
        if not run.rows:
            run.observe()
        for _ in progress(range(len(run.rows), epochs), "train"):
            run.epoch()
            if checkpoint is not None:
                write_state(checkpoint, call, run.state())
    return run.trained()


def check_training(learning_rate: float, batch_size: int, weight_decay: float, shift: int) -> None:
    """Raises ValueError if a number of ``train`` is out of range."""
    check_whole("batch_size", batch_size)
    check_number("learning_rate", learning_rate)
    check_number("weight_decay", weight_decay)
    check_number("shift", shift)


@dataclass(frozen=True)
class _Options:
    """What a training depends on besides the network, the images and the hooks."""

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

    def __init__(self, network: nn.Module, dataset: Dataset, options: _Options, hooks: dict[str, Any]) -> None:
        self.network, self.options, self.hooks = network, options, hooks
        if options.epochs:  # what folding remembered of the outputs holds no longer
            forget_output_statistics(network)
        self.loader = _loader(dataset, options.batch_size)
        make = hooks["optimizer"] or (lambda own: sgd(own, options.learning_rate, options.weight_decay))
        self.optimizer = make(network)
        self.rates = LambdaLR(self.optimizer, SCHEDULES[options.schedule](options.epochs * len(self.loader)))
        self.rows: list[list] = []
        self.observations: list = []

    def observe(self) -> None:
        """What the caller asks of the network, before the first epoch and after each."""
        if (observe := self.hooks["observe"]) is not None:
            self.observations.append(observe(self.network.eval()))

    def epoch(self) -> None:
        """One pass over the images, and its row of the history."""
        self.network.train()
        loss_sum, right, seen, number = 0.0, 0, 0, len(self.rows) + 1
        for batch, (inputs, labels) in enumerate(self.loader, len(self.rows) * len(self.loader)):
            loss, hits = self._step(batch, inputs, labels)
            loss_sum += loss * len(labels)
            right += hits
            seen += len(labels)
        if not math.isfinite(loss_sum):
            raise FloatingPointError(f"the loss is {loss_sum / seen} in epoch {number}: try a lower learning_rate")
        self.rows.append([number, loss_sum / seen, 100 * right / seen, self.rates.get_last_lr()[0]])
        self.observe()

    def _step(self, batch: int, inputs: Inputs, labels: Tensor) -> tuple[float, int]:
        """One minibatch: its loss in nats, and how many images were right."""
        inputs, labels = placed(self.network, (inputs.each(self._moved), labels))
        if (on_batch := self.hooks["on_batch"]) is not None:
            on_batch(self.network, batch)
        logits = answer(self.network, inputs)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.options.smoothing)
        if (penalty := self.hooks["penalty"]) is not None:
            loss = loss + penalty(self.network)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.rates.step()
        return float(loss.detach()), int((logits.argmax(1) == labels).sum())

    def _moved(self, images: Tensor) -> Tensor:
        """Shifted and mirrored at random; what is no image, (n, channels, height, width), stays as it is."""
        if images.ndim != 4:
            return images
        return flip_images(shift_images(images, self.options.shift), self.options.flip)

    def state(self) -> dict:
        """All that the next epoch depends on."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        parts = {"optimizer": self.optimizer.state_dict(), "rates": self.rates.state_dict(), "rows": self.rows}
        parts |= {"observations": self.observations}
        return parts | {"tensors": tensors_of(self.network), "generator": torch.get_rng_state(), "cuda": cuda}

    def resume(self, state: dict | None) -> None:
        """Go on from ``state``; None: from the start."""
        if state is None:
            return
        assign(self.network, state["tensors"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        self.rows, self.observations = state["rows"], state["observations"]
        torch.set_rng_state(state["generator"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])

    def trained(self) -> Trained:
        self.optimizer.zero_grad(set_to_none=True)
        columns = ["epoch", "loss", "accuracy", "learning_rate"]
        return Trained(self.network.eval(), pd.DataFrame(self.rows, columns=columns), self.observations)


def minibatches(dataset: Labelled, batch_size: int) -> int:
    """How many an epoch of ``train`` has."""
    return len(_loader(as_dataset(dataset), batch_size))


def _loader(dataset: Dataset, batch_size: int) -> DataLoader:
    # Batch norm cannot train on a batch of one: a single image left over waits for the next epoch.
    drop_last = len(dataset) > batch_size and len(dataset) % batch_size == 1
    return batches(dataset, batch_size, shuffle=True, drop_last=drop_last)


def sgd(network: nn.Module, learning_rate: float, weight_decay: float, others: Sequence[dict] = ()) -> SGD:
    """The optimizer of ``train``: ``weight_decay`` on matrices and kernels only.

    Arguments:
        others: groups of parameters with options of their own.
    """
    apart = {id(parameter) for group in others for parameter in group["params"]}
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    trainable = [parameter for parameter in trainable if id(parameter) not in apart]
    if not trainable and not apart:
        raise ValueError(f"{type(network).__name__} has no parameter that requires a gradient: nothing to train")
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return SGD([g for g in [*groups, *others] if g["params"]], learning_rate, momentum=0.9, nesterov=True)


def _warm_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, steps // 10)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


SCHEDULES: dict[str, Callable[[int], Callable[[int], float]]] = {
    "cosine": _warm_cosine,
    "constant": lambda steps: lambda step: 1.0,
}
