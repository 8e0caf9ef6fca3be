"""Recipes: the steps that make a network smaller, one after another, by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from redlab.datasets import ImageArray, load_dataset
from redlab.folding import fold_batchnorm
from redlab.hashing import hash_network
from redlab.layers import weight_layers
from redlab.merging import Options, merge_neurons
from redlab.paths import data_root
from redlab.recipe import recipe_of
from redlab.result import Result

# The family of a network's name -> the dataset that it was trained on, and what of it lies under the data root.
_TRAINED_ON = {"digits": ("digits", ""), "cifar10": ("cifar10", "cifar10/cifar-10-batches-py")}


@dataclass(frozen=True)
class Step:
    """One step of a recipe: what a reader calls it, and the function from a network to a Result."""

    title: str
    take: Callable[[nn.Module], Result]


def _merge(options: Options, hashing: bool) -> list[Step]:
    """RED's first two steps: hash (or not) and merge the neurons."""
    merging = partial(merge_neurons, **vars(options))
    steps = [
        Step("fold batch norms", fold_batchnorm),
        Step("hash weights", hash_network),
        Step("merge neurons", merging),
    ]
    return steps if hashing else [steps[0], steps[2]]


RECIPES: dict[str, Callable[[Options, bool], list[Step]]] = {"merge": _merge}


def steps_of(
    recipe: str, alpha: float = 0.0, strategy: str = "constant", hashing: bool = True, round_to: int = 1
) -> list[Step]:
    """The steps of a recipe.

    Arguments:
        recipe: "merge": fold batch norms, hash unless ``hashing`` is False, merge neurons.
        alpha, strategy, round_to: as in ``merge_neurons``.

    Raises:
        ValueError: an unknown recipe (the message lists the known ones), or an option out of range.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(RECIPES)}")
    options = Options(alpha, strategy, linkage="complete", alpha_of="share", dead=True, round_to=round_to)
    return RECIPES[recipe](options, hashing)


def take_steps(network: nn.Module, steps: Iterable[Step]) -> Iterator[tuple[Step, Result, float]]:
    """Take one step after the other: each with its result and its seconds, as soon as it is done."""
    for step in steps:
        start = time.perf_counter()
        result = step.take(network)
        yield step, result, time.perf_counter() - start
        network = result.network


def layer_table(results: list[Result]) -> pd.DataFrame:
    """One row a conv or linear layer: the last step's table, with each layer's distinct values and hashing error."""
    table = results[-1].layers.copy()
    weights = {layer.name: layer.weight.detach().cpu() for layer in weight_layers(results[-1].network)}
    distinct = {name: len(np.unique(weight.double().numpy())) for name, weight in weights.items()}
    table.insert(table.columns.get_loc("weights") + 1, "distinct", table["layer"].map(distinct).astype("int64"))
    for result in results:
        if "error" in result.layers:
            error = table["layer"].map(result.layers.set_index("layer")["error"])
            table.insert(table.columns.get_loc("distinct") + 1, "error", error)
    return table


def dataset_of(network: nn.Module, limit: int | None = None) -> ImageArray | None:
    """The test images that ``network`` was trained for, where they are known and here already; nothing is fetched."""
    recipe = recipe_of(network)
    name, needed = _TRAINED_ON.get(recipe.architecture.partition("/")[0] if recipe else "", (None, ""))
    if name is None or (not (data_root() / needed).exists() and needed):
        return None
    return load_dataset(name, limit=limit)


def bytes_of(place: nn.Module | Path) -> int:
    """Of a network: its tensors as they are, tied ones once. Of a folder: its files."""
    if isinstance(place, Path):
        return sum(path.stat().st_size for path in place.iterdir())
    tensors = {id(tensor): tensor for tensor in place.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
