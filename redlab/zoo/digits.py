"""Training the networks that ship: one recipe, and a card beside the weights. ``python -m redlab.zoo.digits NAME``."""

from __future__ import annotations

import json
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save
from torch import nn

from redlab.files.atomic import replace_file
from redlab.network.evaluation import evaluate
from redlab.network.recipe import Recipe
from redlab.network.training import Trained, train
from redlab.paths import PACKAGE
from redlab.zoo.datasets import load_dataset
from redlab.zoo.networks import build, input_shape

DIGITS = ("digits/resnet", "digits/mobilenet", "digits/mlp")
_SHIPPED = PACKAGE.parent / "data" / "digits"
_EPOCHS = 60
_SPLIT = (
    "scikit-learn's load_digits, 1,797 images of 8x8: 1,437 to train and 360 to test, "
    "train_test_split(test_size=360, stratify=labels, random_state=0)"
)


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
        "command": f"python -m redlab.zoo.digits {name} --seed {seed}"
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
    replace_file(folder / f"{name}.safetensors", save(tensors))
    replace_file(folder / f"{name}.json", (json.dumps(card, indent=2, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
