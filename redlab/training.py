"""Training: ``train`` for any network, and ``python -m redlab.training NAME`` for the ones that ship."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from redlab.datasets import load_dataset
from redlab.evaluation import evaluate
from redlab.networks import build, input_shape, place_of
from redlab.paths import PACKAGE
from redlab.progress import progress
from redlab.recipe import Recipe

DIGITS = ("digits/resnet", "digits/mobilenet", "digits/mlp")
_SHIPPED = PACKAGE.parent / "data" / "digits"
_EPOCHS = 60
_SPLIT = (
    "scikit-learn's load_digits, 1,797 images of 8x8: 1,437 to train and 360 to test, "
    "train_test_split(test_size=360, stratify=labels, random_state=0)"
)


@dataclass(frozen=True, eq=False)
class Trained:
    """What training made.

    Attributes:
        network: a trained copy, in eval mode.
        history: one row an epoch: ``epoch``, ``loss`` (mean cross-entropy in nats), ``accuracy`` (percent, on the
            augmented images as they passed), ``learning_rate`` (at the epoch's end).
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
) -> Trained:
    """Train a copy of ``network``: SGD with Nesterov momentum 0.9, a tenth of warm-up, then a cosine to zero.

    ``network`` is left untouched, and so is torch's global random state: the same seed gives the same weights on one
    machine with the same number of threads. Parameters that do not require gradients stay as they are.

    Arguments:
        epochs: passes over ``dataset``; 0 returns the copy.
        learning_rate: at its peak.
        weight_decay: on matrices and kernels only; biases and norms go free.
        smoothing: label smoothing, in [0, 1).
        shift: images move by up to so many pixels each way, zeros coming in.

    Raises:
        ValueError: an empty dataset, negative ``epochs``, or no parameter to train.
        FloatingPointError: the loss is no longer finite.
    """
    if len(dataset) == 0 or epochs < 0:
        raise ValueError(f"training needs images and epochs >= 0, not {len(dataset)} images for {epochs} epochs")
    network = copy.deepcopy(network)
    # Everything random (order, shifts, dropout) draws from the global generators, which come back afterwards.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loader = _loader(dataset, batch_size)
        optimizer = _optimizer(network, learning_rate, weight_decay)
        schedule = LambdaLR(optimizer, _warm_cosine(epochs * len(loader)))
        rows = []
        for epoch in progress(range(1, epochs + 1), "train"):
            loss, accuracy = _one_epoch(network, loader, optimizer, schedule, smoothing, shift)
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} in epoch {epoch}: try a lower learning_rate")
            rows.append((epoch, loss, accuracy, schedule.get_last_lr()[0]))
    optimizer.zero_grad(set_to_none=True)
    return Trained(network.eval(), pd.DataFrame(rows, columns=["epoch", "loss", "accuracy", "learning_rate"]))


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


def _one_epoch(
    network: nn.Module, loader: DataLoader, optimizer: SGD, schedule: LambdaLR, smoothing: float, shift: int
) -> tuple[float, float]:
    """(mean loss in nats, accuracy in percent) of one pass."""
    network.train()
    place = place_of(network)
    loss_sum, right, seen = 0.0, 0, 0
    for images, labels in loader:
        images, labels = _shifted(images, shift).to(**place), labels.to(place["device"])
        logits = network(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_sum += float(loss.detach()) * len(labels)
        right += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
    return loss_sum / seen, 100 * right / seen


def _shifted(images: Tensor, shift: int) -> Tensor:
    """Each image moved by its own random whole pixels in [-shift, shift], both ways; (n, c, h, w) stays that shape."""
    if shift == 0:
        return images
    n, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4)
    down, right = torch.randint(0, 2 * shift + 1, (2, n, 1, 1))
    rows = torch.arange(height).reshape(1, -1, 1) + down
    columns = torch.arange(width).reshape(1, 1, -1) + right
    # Advanced indices around a slice put the indexed axes first: (n, h, w, c).
    return padded[torch.arange(n).reshape(-1, 1, 1), :, rows, columns].permute(0, 3, 1, 2)


def main(
    name: Annotated[str, typer.Argument(help="digits/resnet, digits/mobilenet, digits/mlp, or the part after digits/")],
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    epochs: Annotated[int, typer.Option(help="passes over the training split", min=1)] = _EPOCHS,
    out: Annotated[Path, typer.Option(help="folder for NAME.safetensors and NAME.json")] = _SHIPPED,
) -> None:
    """Train one of the networks that ship, and write its weights and its card."""
    full = name if name in DIGITS else f"digits/{name}"
    if full not in DIGITS:
        raise typer.BadParameter(f"unknown network {name!r}; known: {', '.join(DIGITS)}")
    torch.set_num_threads(1)  # sums are rounded in the same order however many cores there are
    began = time.perf_counter()
    trained = train_digits(full, seed, epochs)
    card = _card(full, seed, epochs, trained.network) | {"seconds": round(time.perf_counter() - began, 1)}
    _write(out, full.removeprefix("digits/"), trained.network, card)
    print(f"{full}: test accuracy {card['test_accuracy']} %, {card['parameters']:,} parameters, {card['seconds']} s")


def train_digits(name: str, seed: int, epochs: int) -> Trained:
    """Train ``name`` on the digits' training split by one recipe, fixed without a look at the test split."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(name)
    network.redlab = Recipe(name, input_shape(name))
    return train(network, load_dataset("digits", "train"), epochs, smoothing=0.1, shift=1, seed=seed)


def _card(name: str, seed: int, epochs: int, network: nn.Module) -> dict:
    return {
        "network": name,
        "command": f"python -m redlab.training {name} --seed {seed}"
        + (f" --epochs {epochs}" if epochs != _EPOCHS else ""),
        "seed": seed,
        "epochs": epochs,
        "date": date.today().isoformat(),
        "test_accuracy": round(evaluate(network, load_dataset("digits", "test")).accuracy, 2),
        "train_accuracy": round(evaluate(network, load_dataset("digits", "train")).accuracy, 2),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "input_shape": list(input_shape(name)),
        "data": _SPLIT,
        "recipe": "SGD, Nesterov momentum 0.9, peak learning rate 0.1, warm-up and cosine, batch 64, "
        "weight decay 5e-4, label smoothing 0.1, shifts of up to 1 pixel; last epoch kept",
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "scikit-learn", "numpy")},
    }


def _write(folder: Path, name: str, network: nn.Module, card: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    _replace(folder / f"{name}.safetensors", save(tensors))
    _replace(folder / f"{name}.json", (json.dumps(card, indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    # A run that is killed here leaves the old file whole, or none.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    typer.run(main)
