"""The runs in a report, and the facts about them that are shown beside their numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlab.lab.keys import run_key
from redlab.lab.notebooks import without_paths
from redlab.lab.parameters import changed_parameters, command_of
from redlab.lab.refresh import private_paths
from redlab.lab.results import results_of
from redlab.lab.runs import Run, RunFailed, read_run
from redlab.studies.titles import short_name
from redlab.zoo.code import code_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Source:
    """A run, and the notebook that it was a run of; what it says holds no path of this machine."""

    run: Run
    notebook: Path

    @cached_property
    def private(self) -> dict[str, str]:
        codes = (code_of(value) for value in self.run.params.values() if isinstance(value, str))
        files = [code.path for code in codes if code and code.is_file]  # of them the name is shown, without the folder
        return private_paths(self.run.folder, self.notebook.parent.parent) | {str(path.parent): "" for path in files}

    @cached_property
    def command(self) -> str:
        """What makes the run again, typed in the folder of the checkout, or beside the file that it names."""
        return without_paths(command_of(self.notebook, self.run.params), self.private)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """``run.json``: versions, platform, threads, commit."""
        return json.loads((self.run.folder / "run.json").read_text(encoding="utf-8"))

    def frame(self) -> pd.DataFrame | None:
        """What it recorded, with its network named; None where it recorded nothing.

        Raises:
            ValueError: the file is damaged.
        """
        if not (self.run.folder / "results.parquet").is_file():
            return None
        frame = results_of(self.run.folder)
        return frame if "network" in frame else frame.assign(network=short_name(self.run.params.get("network") or ""))


def other_runs(notebook: Path, known: Run | RunFailed, left_out: Counter) -> Iterator[Source]:
    """The runs of ``notebook`` with other parameters beside ``known``, if their cells and package are today's.

    ``left_out`` counts the others, by reason.
    """
    for mark in sorted(known.folder.parent.glob("[!.]*/run.json")):
        if mark.parent == known.folder:
            continue
        if why := _why_not(notebook, mark.parent):
            left_out[why] += 1
        else:
            yield Source(read_run(mark.parent), notebook)


def _why_not(notebook: Path, folder: Path) -> str:
    """Why a run is left out: it is "older" or "quick"; "" if it is not."""
    try:
        changed = changed_parameters(notebook, read_run(folder).params)
    except (OSError, ValueError, TypeError):  # a parameter that there is no more, or a damaged file
        return "older"
    if run_key(notebook, changed) != folder.name:
        return "older"
    return "quick" if changed.get("quick") else ""


def left_out_words(left_out: Counter) -> str:
    """What was left out, in a sentence; "" for nothing."""
    reasons = {"older": "of an older package or notebook", "quick": "quick"}
    said = [f"{left_out[why]} {words}" for why, words in reasons.items() if left_out[why]]
    return f"Runs beside these that were left out: {', '.join(said)}." if said else ""


def sources_of(outcomes: Sequence[Run | RunFailed], notebooks: Path, left_out: Counter) -> dict[str, list[Source]]:
    """By notebook its finished runs, the one of ``outcomes`` first."""
    found: dict[str, list[Source]] = {}
    for outcome in outcomes:
        path = notebooks / f"{outcome.name}.ipynb"
        own = [Source(outcome, path)] if isinstance(outcome, Run) else []
        found[outcome.name] = [*own, *other_runs(path, outcome, left_out)]
    return found
