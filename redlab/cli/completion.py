"""What the Tab key offers in a shell: names from lists that need no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from redlab.cli.recipes import CRITERIA, OPTIONS
from redlab.zoo.dataset_names import PLACES
from redlab.zoo.names import FACTS, list_networks


def _completion(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Offers those of ``names`` that begin with the word."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


complete_commands = _completion(("run", "refresh", "sweep", "report", "compress", "inspect", "lab"))  # for help
complete_recipes, complete_criteria = _completion(OPTIONS), _completion(CRITERIA)
complete_datasets = _completion(PLACES)


def complete_notebooks(incomplete: str) -> list[str]:
    """The notebooks of this checkout; none outside of one."""
    try:
        from redlab.lab.notebooks import list_notebooks

        return _completion(list_notebooks())(incomplete)
    except (OSError, ModuleNotFoundError):  # no checkout; redlab without the extra lab
        return []


def complete_networks(incomplete: str) -> list[str]:
    """Names of networks, and folders of saved ones that lie where the word leads."""
    folder, slash, _ = incomplete.rpartition("/")
    facts = sorted(Path(f"{folder}{slash}" or ".").glob(f"*/{FACTS}"))
    return _completion([*list_networks(), *(f"{folder}{slash}{path.parent.name}" for path in facts)])(incomplete)
