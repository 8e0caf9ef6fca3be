"""What a sweep costs beyond papermill itself, and what a second kernel brings; ``python -m benchmarks.sweeping``.

The notebook does arithmetic on one thread for as long as it is told, in steps of equal work. A point of a sweep is
locked, executed under a temporary name, described and moved; papermill alone executes it.
"""

from __future__ import annotations

import logging
import tempfile
from itertools import count
from pathlib import Path

import nbformat
import papermill
from nbformat import v4

from benchmarks.timing import interleaved, store
from redlab import sweep

ROUNDS, SECONDS = 5, 20.0
PARAMETERS = """
steps = 100  # of equal work
point = 0  # tells one point from the other
"""
BODY = """
import numpy as np
import pandas as pd
from redlab import record

numbers = np.random.default_rng(0).random(1_000_000)
for _ in range(steps):
    numbers = np.sin(numbers)
record(pd.DataFrame({"point": [point]}))
"""
CALIBRATION = 200  # steps


def main() -> None:
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        notebooks = Path(folder) / "notebooks"
        notebook, points = _write(notebooks), count()
        _overhead(notebook, notebooks, points)
        _scaling(notebooks, points)


def _write(folder: Path) -> Path:
    folder.mkdir()
    tagged = v4.new_code_cell(PARAMETERS.strip(), metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = folder / "01_work.ipynb"
    nbformat.write(v4.new_notebook(cells=[tagged, v4.new_code_cell(BODY.strip())], metadata=kernel), path)
    return path


def _overhead(notebook: Path, notebooks: Path, points: count) -> None:
    """One point of some seconds, by papermill alone and as a sweep; new parameters each time: nothing is kept."""

    def alone() -> None:
        values = {"steps": CALIBRATION, "point": next(points)}
        papermill.execute_notebook(notebook, notebooks.parent / "out.ipynb", values, progress_bar=False)

    def swept() -> None:
        values = [{"steps": CALIBRATION, "point": next(points)}]
        sweep({"notebook": "01", "points": values}, notebooks.parent / "runs", notebooks=notebooks)

    table = interleaved({"papermill": alone, "redlab sweep": swept}, ROUNDS, "papermill")
    print(f"\none point\n{table.to_string(index=False)}")
    store("a point of a sweep", table)


def _scaling(notebooks: Path, points: count) -> None:
    """Two points of 20 s or more, one after the other and side by side, one thread each."""
    steps = _steps(notebooks, points)

    def two(jobs: int) -> None:
        values = [{"steps": steps, "point": next(points)} for _ in range(2)]
        sweep({"notebook": "01", "points": values}, notebooks.parent / "runs", jobs, notebooks=notebooks)

    table = interleaved({"1 job": lambda: two(1), "2 jobs": lambda: two(2)}, 3, "1 job")
    print(f"\ntwo points of {steps} steps\n{table.to_string(index=False)}")
    store("two points of a sweep, one job or two", table)


def _steps(notebooks: Path, points: count) -> int:
    """How many take ``SECONDS``: from the difference of two runs, so that the kernel's start is not counted."""
    runs = [{"steps": CALIBRATION * factor, "point": next(points)} for factor in (1, 3)]
    seconds = sweep({"notebook": "01", "points": runs}, notebooks.parent / "runs", notebooks=notebooks)["seconds"]
    return int(SECONDS * 2 * CALIBRATION / (seconds.max() - seconds.min()))


if __name__ == "__main__":
    main()
