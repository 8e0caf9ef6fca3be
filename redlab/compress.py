"""Recipes: the steps that make a network smaller, one after another, by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from redlab.datasets import ImageArray, load_dataset
from redlab.merging import Options
from redlab.paths import data_root
from redlab.pipeline import MAX_ERROR, Step, red_plus_plus_steps, red_steps
from redlab.recipe import recipe_of
from redlab.result import Result

# The family of a network's name -> the dataset that it was trained on, and what of it lies under the data root.
_TRAINED_ON = {"digits": ("digits", ""), "cifar10": ("cifar10", "cifar10/cifar-10-batches-py")}


def _merge(hashing: bool, max_error: float | None, as_published: bool, **merging: Any) -> list[Step]:
    """RED's steps up to merging, hashed or not."""
    steps = _red(True, max_error, as_published, **merging)[:-1]
    return steps if hashing else [steps[0], steps[2]]


def _red(hashing: bool, max_error: float | None, as_published: bool, **merging: Any) -> list[Step]:
    if max_error is not None or as_published:
        raise ValueError(f"{'as_published' if as_published else 'max_error'} belongs to the recipe red++")
    _check_hashing(hashing, "red")
    return red_steps(**merging)


def _red_plus_plus(hashing: bool, max_error: float | None, as_published: bool, **merging: Any) -> list[Step]:
    _check_hashing(hashing, "red++")
    if as_published and max_error is not None:
        raise ValueError("as published there is no max_error: the bandwidth decides")
    max_error = MAX_ERROR if max_error is None else max_error
    if not 0 < max_error < float("inf"):
        raise ValueError(f"max_error must be a positive number (0.05 is 5 %), not {max_error}")
    return red_plus_plus_steps(max_error=max_error, as_published=as_published, **merging)


def _check_hashing(hashing: bool, recipe: str) -> None:
    if not hashing:
        raise ValueError(f"the recipe {recipe} hashes: --no-hash goes with --recipe merge")


RECIPES: dict[str, Callable[..., list[Step]]] = {"merge": _merge, "red": _red, "red++": _red_plus_plus}


def steps_of(
    recipe: str,
    alpha: float = 0.0,
    strategy: str = "constant",
    hashing: bool = True,
    round_to: int = 1,
    max_error: float | None = None,
    as_published: bool = False,
) -> list[Step]:
    """The steps of a recipe.

    Arguments:
        recipe: "merge": fold batch norms, hash unless ``hashing`` is False, merge neurons; "red": the same, then
            separate kernels; "red++": fold, hash and correct biases, merge, split inputs.
        alpha, strategy, round_to: as in ``merge_neurons``.
        max_error, as_published: as in ``red_plus_plus``, for "red++" alone.

    Raises:
        ValueError: an unknown recipe (the message lists the known ones), an option out of range or of another recipe.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(RECIPES)}")
    Options(alpha, strategy, round_to=round_to)  # refuses what is out of range
    merging = {"alpha": alpha, "strategy": strategy, "round_to": round_to}
    return RECIPES[recipe](hashing, max_error, as_published, **merging)


def take_steps(network: nn.Module, steps: Iterable[Step]) -> Iterator[tuple[Step, Result, float]]:
    """Take one step after the other: each with its result and its seconds, as soon as it is done."""
    for step in steps:
        start = time.perf_counter()
        result = step.take(network)
        yield step, result, time.perf_counter() - start
        network = result.network


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
