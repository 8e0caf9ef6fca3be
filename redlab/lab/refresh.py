"""Notebooks executed anew: written back with their outputs, or compared with what is committed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from redlab.lab.notebooks import find_notebook, scrub
from redlab.lab.outputs import changed_cells
from redlab.lab.runs import Run, RunFailed, part_of, run_notebook
from redlab.paths import PACKAGE, checkout, data_root

if TYPE_CHECKING:
    from nbformat import NotebookNode


def refresh(name: str | int | Path, *, notebooks: Path | None = None, progress: bool = False) -> Run:
    """Execute a notebook with its default parameters and write it back, scrubbed, with its outputs.

    Raises: as ``run_notebook``; a notebook that fails is left as it was, and so is one that was edited meanwhile, which
        is a RunFailed too.
    """
    import nbformat

    notebooks = (notebooks or checkout() / "notebooks").resolve()
    path = find_notebook(name, notebooks)
    before = path.read_bytes()
    run = run_notebook(path, notebooks=notebooks, again=True, progress=progress)
    notebook = _scrubbed(run, notebooks)
    if path.read_bytes() != before:  # an editor saved it: what was typed there is worth more than outputs
        raise RunFailed(run.folder, run.name, "Edited", "it was edited while it was executed, and is left as it is", "")
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return run


def check_outputs(
    name: str | int | Path, *, notebooks: Path | None = None, progress: bool = False
) -> tuple[Run, list[str]]:
    """Execute a notebook as ``refresh`` does, write nothing back, and say which cells show something else now.

    Raises: as ``run_notebook``.
    """
    import nbformat

    notebooks = (notebooks or checkout() / "notebooks").resolve()
    path = find_notebook(name, notebooks)
    run = run_notebook(path, notebooks=notebooks, again=True, progress=progress, publish=False)
    return run, changed_cells(nbformat.read(path, as_version=4), _scrubbed(run, notebooks))


def _scrubbed(run: Run, notebooks: Path) -> NotebookNode:
    """What was executed, as it is committed."""
    import nbformat

    return scrub(
        nbformat.read(run.folder / "executed.ipynb", as_version=4), private_paths(run.folder, notebooks.parent)
    )


def private_paths(folder: Path, root: Path) -> dict[str, str]:
    """The paths that would tell where this machine keeps things, each with what the reader sees instead."""
    home, data = str(Path.home()), str(data_root())
    paths = {str(part_of(folder)): "", str(folder): "", str(root): "", str(PACKAGE.parent): "", sys.prefix: ".venv"}
    return {**paths, data: "$REDLAB_DATA", **({home: "~"} if home != "/" else {})}
