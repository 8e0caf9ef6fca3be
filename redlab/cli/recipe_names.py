"""The recipes of ``redlab compress`` with their options, and the criteria of pruning, known before torch is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

_MERGING = ("alpha", "strategy", "round_to")
# What each recipe takes; ``recipes.RECIPES`` holds the steps.
OPTIONS = {
    "merge": (*_MERGING, "hashing"),
    "red": _MERGING,
    "red++": (*_MERGING, "max_error", "as_published"),
    "prune": ("criterion", "products", "round_to"),
}
# A criterion of channels -> whether it needs images; ``criteria.registry.CRITERIA`` holds the functions.
CRITERIA = {
    "random": False,
    "magnitude": False,
    "redundancy": False,
    "srinivas_babu": False,
    "neuron_merging": False,
    "reconstruction": False,
    "taylor": True,
    "flexrel": True,
    "singe": True,
    "oracle": True,
}


def check_recipe(recipe: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an unknown recipe or criterion, and for an option that belongs to another recipe."""
    if recipe not in OPTIONS:
        raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(OPTIONS)}")
    for name in options:
        if name not in OPTIONS[recipe]:
            raise ValueError(_of_another(name, recipe))
    if "criterion" in options:
        check_criterion(options["criterion"])


def _of_another(name: str, recipe: str) -> str:
    if name == "hashing" and recipe.startswith("red"):
        return f"the recipe {recipe} always hashes: --no-hash is for --recipe merge"
    owners = [own for own, taken in OPTIONS.items() if name in taken]
    whose = f"recipe {owners[0]}" if len(owners) == 1 else f"recipes {', '.join(owners)}"
    return f"{name} belongs to the {whose}; {recipe} takes {', '.join(OPTIONS[recipe])}"


def check_criterion(name: str) -> None:
    """Raises ValueError for an unknown criterion of channels, with a guess and the known ones."""
    if name not in CRITERIA:
        raise ValueError(f"{name!r} is no criterion for channels.{_guess(name, CRITERIA)} Known: {', '.join(CRITERIA)}")


def _guess(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
