"""What the Tab key offers in a shell: names from lists that need no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from redlab.cli.recipe_names import CRITERIA, OPTIONS
from redlab.zoo.names import FACTS, PLACES, list_networks


def _starting(names: Iterable[str], start: str) -> list[str]:
    return [name for name in names if name.startswith(start)]


def complete_commands(incomplete: str) -> list[str]:
    """The commands themselves, for ``redlab help``."""
    return _starting(("run", "refresh", "sweep", "report", "compress", "inspect", "lab"), incomplete)


def complete_notebooks(incomplete: str) -> list[str]:
    """The notebooks of this checkout; none outside of one."""
    try:
        from redlab.lab.notebooks import list_notebooks

        return _starting(list_notebooks(), incomplete)
    except (OSError, ModuleNotFoundError):  # no checkout; redlab without the extra lab
        return []


def complete_networks(incomplete: str) -> list[str]:
    """Names of networks, and folders of saved ones that lie where the word leads."""
    folder, slash, _ = incomplete.rpartition("/")
    facts = sorted(Path(f"{folder}{slash}" or ".").glob(f"*/{FACTS}"))
    return _starting([*list_networks(), *(f"{folder}{slash}{path.parent.name}" for path in facts)], incomplete)


def complete_recipes(incomplete: str) -> list[str]:
    """The recipes of ``redlab compress``."""
    return _starting(OPTIONS, incomplete)


def complete_criteria(incomplete: str) -> list[str]:
    """The criteria of the recipe prune."""
    return _starting(CRITERIA, incomplete)


def complete_datasets(incomplete: str) -> list[str]:
    """The datasets that redlab knows."""
    return _starting(PLACES, incomplete)
