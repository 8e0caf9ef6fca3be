"""Run notebooks again, and save them with their outputs or compare these with the committed ones."""

from __future__ import annotations

import base64
import struct
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from redlab.files.atomic import replaced_file
from redlab.lab.notebooks import find_notebook, scrub
from redlab.lab.runs import Run, RunFailed, part_of, run_notebook
from redlab.paths import PACKAGE, checkout, data_root


def refresh(name: str | int | Path, *, notebooks: Path | None = None, progress: bool = False) -> Run:
    """Execute a notebook with its default parameters and write it back, scrubbed, with its outputs.

    Raises: as ``run_notebook``; a notebook that fails is left as it was, and so is one that was edited meanwhile, which
        is a RunFailed too.
    """
    path = find_notebook(name, notebooks)
    before = path.read_bytes()
    run, notebook = _executed(path, notebooks, progress, publish=True)
    if path.read_bytes() != before:  # an editor saved it: what was typed there is worth more than outputs
        raise RunFailed(run.folder, run.name, "Edited", "it was edited while it was executed, and is left as it is", "")
    with replaced_file(path) as part:
        part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return run


def check_outputs(
    name: str | int | Path, *, notebooks: Path | None = None, progress: bool = False
) -> tuple[Run, list[str]]:
    """Execute a notebook as ``refresh`` does, write nothing back, and say which cells show something else now.

    Raises: as ``run_notebook``.
    """
    path = find_notebook(name, notebooks)
    run, notebook = _executed(path, notebooks, progress, publish=False)
    return run, changed_cells(nbformat.read(path, as_version=4), notebook)


def _executed(path: Path, notebooks: Path | None, progress: bool, publish: bool) -> tuple[Run, NotebookNode]:
    """The run of a notebook that is executed again, and what was executed as it is committed."""
    notebooks = (notebooks or checkout() / "notebooks").resolve()
    run = run_notebook(path, notebooks=notebooks, again=True, progress=progress, publish=publish)
    executed = nbformat.read(run.folder / "executed.ipynb", as_version=4)
    return run, scrub(executed, private_paths(run.folder, notebooks.parent))


def private_paths(folder: Path, root: Path) -> dict[str, str]:
    """The local paths to remove from outputs, each with its replacement."""
    home, data = str(Path.home()), str(data_root())
    paths = {str(part_of(folder)): "", str(folder): "", str(root): "", str(PACKAGE.parent): "", sys.prefix: ".venv"}
    return {**paths, data: "$REDLAB_DATA", **({home: "~"} if home != "/" else {})}


def changed_cells(committed: dict, fresh: dict) -> list[str]:
    """A line for each code cell whose outputs differ between two executions, both scrubbed; [] where none do.

    Outputs must be equal. Cells tagged ``unstable`` (live training) differ between processors. Their outputs must have
    the same shape: as many of the same kinds, images of the same size.
    """
    pairs = zip(_code(committed), _code(fresh), strict=False)
    lines = [line for number, (old, new) in enumerate(pairs, 1) if (line := _difference(number, old, new))]
    counts = len(_code(committed)), len(_code(fresh))
    return lines + ([f"{counts[0]} code cells are {counts[1]} now"] if counts[0] != counts[1] else [])


def _code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _difference(number: int, old: dict, new: dict) -> str:
    first = next(iter(str("".join(new["source"])).strip().splitlines()), "")
    where = f"cell {number} ({first})"
    if "".join(old["source"]) != "".join(new["source"]):
        return f"{where}: another source"
    if "unstable" in new["metadata"].get("tags", []):
        return "" if _shapes(old) == _shapes(new) else f"{where}: outputs of another shape"
    return "" if old["outputs"] == new["outputs"] else f"{where}: other outputs"


def _shapes(cell: dict) -> list[Any]:
    return [(output["output_type"], _shape(output.get("data", {}))) for output in cell["outputs"]]


def _shape(data: dict) -> list[Any]:
    """The kinds of one output; of an image also its width and height, from the first bytes of the PNG."""
    png = "".join(data.get("image/png", ""))
    return [sorted(data), struct.unpack(">II", base64.b64decode(png[:32])[16:24]) if png else None]
