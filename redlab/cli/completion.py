"""What the Tab key offers in a shell: names from lists that need no torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from redlab.cli.recipes import CRITERIA, OPTIONS
from redlab.zoo.dataset_names import PLACES
from redlab.zoo.names import FACTS, list_networks


def _completion(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Offers those of ``names`` that begin with the word."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


complete_commands = _completion(
    ("run", "refresh", "sweep", "report", "compress", "export", "inspect", "lab")
)  # for help
complete_recipes, complete_criteria = _completion(OPTIONS), _completion(CRITERIA)


def complete_notebooks(incomplete: str) -> list[str]:
    """The notebooks of this checkout; none outside of one."""
    try:
        from redlab.lab.notebooks import list_notebooks

        return _completion(list_notebooks())(incomplete)
    except (OSError, ModuleNotFoundError):  # no checkout; redlab without the extra lab
        return []


def complete_networks(incomplete: str) -> list[str]:
    """Names of networks, and where the word leads: folders of saved ones, and what files of Python define."""
    folder, slash, _ = incomplete.rpartition("/")
    facts = sorted(Path(f"{folder}{slash}" or ".").glob(f"*/{FACTS}"))
    saved = (f"{folder}{slash}{path.parent.name}" for path in facts)
    return _completion([*list_networks(), *saved, *_defined(incomplete)])(incomplete)


def complete_datasets(incomplete: str) -> list[str]:
    """Names of datasets, folders after ``folder:``, and what files of Python define where the word leads."""
    before, colon, path = incomplete.partition("folder:")
    above, slash, _ = path.rpartition("/")
    inner = sorted(Path(f"{above}{slash}" or ".").glob("*/")) if colon and not before else []
    folders = (f"folder:{above}{slash}{own.name}" for own in inner)
    return _completion([*PLACES, *(["folder:"] if incomplete else []), *folders, *_defined(incomplete)])(incomplete)


def _defined(incomplete: str) -> Iterator[str]:
    """``FILE.py:NAME`` for the classes and functions of files that the word may lead to; none is run."""
    path, _, _ = incomplete.partition(":")
    folder, slash, _ = path.rpartition("/")
    for file in sorted(Path(f"{folder}{slash}" or ".").glob("*.py")) if path else ():
        named = f"{folder}{slash}{file.name}"
        with suppress(OSError, ValueError, SyntaxError, RecursionError, MemoryError):
            for node in ast.parse(file.read_bytes()).body if named.startswith(path) else ():
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                    yield f"{named}:{node.name}"
