"""Recipes of ``redlab compress``: the steps that make a network smaller, by name. Torch is loaded with the steps."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from redlab.compression.pipeline import Step
    from redlab.network.result import Result

_MERGING = ("alpha", "strategy", "round_to")
# What each recipe takes.
OPTIONS = {
    "merge": (*_MERGING, "hashing"),
    "red": (*_MERGING, "scale"),
    "red++": (*_MERGING, "scale", "max_noise", "max_error", "as_published"),
    "prune": ("criterion", "products", "round_to"),
}
# A criterion of channels -> whether it needs images; ``criteria.registry.CRITERIA`` holds the functions.
CRITERIA = dict.fromkeys(
    ("random", "magnitude", "redundancy", "srinivas_babu", "neuron_merging", "reconstruction"), False
) | dict.fromkeys(("taylor", "flexrel", "singe", "oracle"), True)
CRITERION, PRODUCTS = "reconstruction", 0.5  # the best of those without data, and half of the products
SCORE_IMAGES = 1024  # training images that a criterion sees, as in benchmarks/pruning.md


def check_recipe(recipe: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an unknown recipe or criterion, and for an option that belongs to another recipe."""
    if recipe not in OPTIONS:
        raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(OPTIONS)}")
    for name in options:
        if name not in OPTIONS[recipe]:
            raise ValueError(_of_another(name, recipe))
    if (name := options.get("criterion", CRITERION)) not in CRITERIA:
        guess = "".join(f" Did you mean {close!r}?" for close in get_close_matches(name, CRITERIA, n=1))
        raise ValueError(f"{name!r} is no criterion for channels.{guess} Known: {', '.join(CRITERIA)}")


def _of_another(name: str, recipe: str) -> str:
    if name == "hashing" and recipe.startswith("red"):
        return f"the recipe {recipe} always hashes: --no-hash is for --recipe merge"
    owners = [own for own, taken in OPTIONS.items() if name in taken]
    whose = f"recipe {owners[0]}" if len(owners) == 1 else f"recipes {', '.join(owners)}"
    return f"{name} belongs to the {whose}; {recipe} takes {', '.join(OPTIONS[recipe])}"


def needs_images(recipe: str, options: Mapping[str, Any]) -> bool:
    """Whether the recipe scores channels by a criterion that needs images."""
    return recipe == "prune" and CRITERIA[options.get("criterion", CRITERION)]


def steps_of(recipe: str, *, round_to: int = 1, images: Dataset | None = None, **options: Any) -> list[Step]:
    """The steps of a recipe.

    Arguments:
        recipe: "merge": prepare and fold, hash unless ``hashing`` is False, merge neurons; "red": the same, then
            separate kernels; "red++": prepare, hash and correct biases, merge, split inputs; "prune": remove channels.
        round_to: as in ``merge_neurons``, or in ``prune_channels`` for "prune".
        images: what a criterion of "prune" scores on.
        options: of the recipe (``OPTIONS``). ``alpha`` and ``strategy`` as in ``merge_neurons``; ``scale``,
            ``max_noise``, ``max_error`` and ``as_published`` as in ``red_plus_plus``; ``criterion`` as in
            ``score_channels``; ``products`` as in ``prune_channels``.

    Raises:
        ValueError: an unknown recipe or criterion (the message lists the known ones), an option out of range or of
            another recipe.
    """
    from redlab.compression.pipeline import red_plus_plus_steps, red_steps

    check_recipe(recipe, options)
    if recipe == "prune":
        return _prune(round_to, images, **options)
    if recipe == "red++":
        _check_bounds(**{name: options.get(name) for name in ("max_noise", "max_error", "as_published")})
        return red_plus_plus_steps(round_to, **options)
    hashed = options.pop("hashing", True)
    steps = red_steps(round_to=round_to, **options)
    return steps if recipe == "red" else steps[:-1] if hashed else [steps[0], steps[2]]


def _check_bounds(max_noise: float | None, max_error: float | None, as_published: bool | None) -> None:
    bounds = {"max_noise": max_noise, "max_error": max_error}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if len(given) == 2:
        raise ValueError("pass max_noise, of the whole network, or max_error, of its weights: not both")
    for name, bound in given.items():
        if as_published:
            raise ValueError(f"as published there is no {name}: the bandwidth decides")
        if not 0 < bound < float("inf"):
            raise ValueError(f"{name} must be a positive number (0.05 is 5 %), not {bound}")


def _prune(round_to: int, images: Dataset | None, criterion: str = CRITERION, products: float = PRODUCTS) -> list[Step]:
    """Score the channels, and remove the lowest; before they merge batch norms are folded."""
    from redlab.compression.merging import Options
    from redlab.compression.pipeline import Step
    from redlab.compression.preparing import prepare
    from redlab.pruning.channels import prune_channels
    from redlab.pruning.criteria.registry import CRITERIA
    from redlab.pruning.scores import score_channels
    from redlab.pruning.selection import check_share

    check_share("products", products)
    Options(round_to=round_to)  # checks the range

    def prune(network: nn.Module) -> Result:
        scores = score_channels(network, criterion, images)
        return prune_channels(network, scores, products=products, round_to=round_to)

    first = [Step("fold batch norms", prepare)] if CRITERIA[criterion].compensation == "merge" else []
    return [*first, Step(f"prune channels by {criterion}", prune)]
