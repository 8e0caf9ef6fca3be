"""Recipes: the steps that make a network smaller, one after another, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from redlab.cli.recipe_names import check_recipe
from redlab.compression.folding import fold_batchnorm
from redlab.compression.merging import Options
from redlab.compression.pipeline import MAX_ERROR, Step, red_plus_plus_steps, red_steps
from redlab.network.result import Result
from redlab.pruning.channels import prune_channels
from redlab.pruning.criteria.registry import CRITERIA
from redlab.pruning.scores import score_channels
from redlab.pruning.selection import check_share

SCORE_IMAGES = 1024  # training images that a criterion sees, as in benchmarks/pruning.md
CRITERION, PRODUCTS = "reconstruction", 0.5  # the best of those without data, and half of the products


def _merge(hashing: bool = True, **merging: Any) -> list[Step]:
    """RED's steps up to merging, hashed or not."""
    steps = red_steps(**merging)[:-1]
    return steps if hashing else [steps[0], steps[2]]


def _red_plus_plus(max_error: float | None = None, as_published: bool = False, **merging: Any) -> list[Step]:
    if as_published and max_error is not None:
        raise ValueError("as published there is no max_error: the bandwidth decides")
    max_error = MAX_ERROR if max_error is None else max_error
    if not 0 < max_error < float("inf"):
        raise ValueError(f"max_error must be a positive number (0.05 is 5 %), not {max_error}")
    return red_plus_plus_steps(max_error=max_error, as_published=as_published, **merging)


def _prune(
    criterion: str = CRITERION, products: float = PRODUCTS, round_to: int = 1, images: Dataset | None = None
) -> list[Step]:
    """Score the channels, and remove the lowest; before they merge batch norms are folded."""
    check_share("products", products)

    def prune(network: nn.Module) -> Result:
        scores = score_channels(network, criterion, images)
        return prune_channels(network, scores, products=products, round_to=round_to)

    folding = [Step("fold batch norms", fold_batchnorm)] if CRITERIA[criterion].compensation == "merge" else []
    return [*folding, Step(f"prune channels by {criterion}", prune)]


# Which options each takes stands in ``recipe_names``.
RECIPES: dict[str, Callable[..., list[Step]]] = {
    "merge": _merge,
    "red": red_steps,
    "red++": _red_plus_plus,
    "prune": _prune,
}


def steps_of(recipe: str, *, round_to: int = 1, images: Dataset | None = None, **options: Any) -> list[Step]:
    """The steps of a recipe.

    Arguments:
        recipe: "merge": fold batch norms, hash unless ``hashing`` is False, merge neurons; "red": the same, then
            separate kernels; "red++": fold, hash and correct biases, merge, split inputs; "prune": remove channels.
        round_to: as in ``merge_neurons``, or in ``prune_channels`` for "prune".
        images: what a criterion of "prune" scores on.
        options: of the recipe (``recipe_names.OPTIONS``). ``alpha`` and ``strategy`` as in ``merge_neurons``;
            ``max_error`` and ``as_published`` as in ``red_plus_plus``; ``criterion`` as in ``score_channels``;
            ``products`` as in ``prune_channels``.

    Raises:
        ValueError: an unknown recipe or criterion (the message lists the known ones), an option out of range or of
            another recipe.
    """
    check_recipe(recipe, options)
    Options(options.get("alpha", 0.0), options.get("strategy", "constant"), round_to=round_to)  # checks the ranges
    seen = {} if images is None else {"images": images}
    return RECIPES[recipe](**options, **seen, round_to=round_to)
