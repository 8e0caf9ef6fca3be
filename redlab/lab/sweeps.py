"""Sweeps: one notebook at many points, each a run of its own, here or on a cluster. What is done is not done again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlab.lab.results import join_runs
from redlab.lab.runs import Run, RunFailed, give_up, run_notebook
from redlab.lab.spec import Spec, describe, read_spec
from redlab.lab.workers import Killed, check_engine, map_unordered, threads_each
from redlab.paths import checkout
from redlab.progress import progress

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Swept:
    """The outcomes of the points of a sweep, in their order.

    Attributes:
        spec: the sweep.
        outcomes: of each point its finished run, or the failure.
    """

    spec: Spec
    outcomes: tuple[Run | RunFailed, ...]

    @property
    def failures(self) -> list[RunFailed]:
        return [own for own in self.outcomes if isinstance(own, RunFailed)]

    @property
    def runs(self) -> list[Run]:
        return [own for own in self.outcomes if isinstance(own, Run)]

    def frame(self) -> pd.DataFrame:
        """The results of all finished points, as ``load_runs`` gives them."""
        return join_runs([run.folder for run in self.runs])


def sweep(
    spec: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    jobs: int = 1,
    dask: str | None = None,
    *,
    timeout: float | None = None,
    notebooks: Path | None = None,
) -> pd.DataFrame:
    """Run a notebook at every point of a sweep, and return the results of all as one frame.

    A point is a run as ``run_notebook`` makes it, in a folder named after all that it depends on. Points that are done
    are not run again; those that failed or were killed are. Another sweep may work in the same folder.

    Arguments:
        spec: a YAML file, or a dict, with the keys notebook, grid, points and seeds (``redlab.lab.spec.read_spec``).
        out: where run folders are kept, as ``out/NAME/KEY``; default ``runs/`` of the checkout.
        jobs: notebooks side by side, each in a kernel of its own; the cores are divided among them.
        dask: the address of a Dask scheduler, "tcp://host:8786", whose workers run the points instead. They must see
            the same ``out`` and the same checkout.
        timeout: seconds that each cell of a notebook may take.
        notebooks: the folder of the notebooks; default the checkout's.

    Returns:
        As ``load_runs``, of the points of this sweep that are done. Points that failed are named in a warning, and
        stand in ``attrs["failed"]``, one text each.

    Raises:
        ValueError, TypeError, FileNotFoundError: the specification is wrong; nothing has run.
        OSError: the disk is full, or no Dask scheduler answers. What is done stays done. A point at which worker after
            worker dies has failed; the others continue.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nbformat import v4, write
        >>> recorded = "import pandas, redlab; redlab.record(pandas.DataFrame({'share': [1 - alpha]}))"
        >>> cells = [v4.new_code_cell("alpha = 0.1", metadata={"tags": ["parameters"]}), v4.new_code_cell(recorded)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(v4.new_notebook(cells=cells), f"{folder}/00_alpha.ipynb")
        ...     spec = {"notebook": "alpha", "grid": {"alpha": [0.25]}}
        ...     sweep(spec, f"{folder}/runs", notebooks=Path(folder))[["notebook", "alpha", "share"]]
           notebook  alpha  share
        0  00_alpha   0.25   0.75
    """
    swept = run_sweep(read_spec(spec, notebooks), out, jobs, dask, timeout, notebooks, _bar)
    frame = swept.frame()
    frame.attrs["failed"] = [str(failure) for failure in swept.failures]
    if swept.failures:
        listed = "\n".join(frame.attrs["failed"])
        warnings.warn(f"{len(swept.failures)} of {len(swept.outcomes)} points failed:\n{listed}", stacklevel=2)
    return frame


def run_sweep(
    spec: Spec,
    out: str | Path | None = None,
    jobs: int = 1,
    dask: str | None = None,
    timeout: float | None = None,
    notebooks: Path | None = None,
    watched: Callable[..., Any] | None = None,
) -> Swept:
    """``sweep`` of a specification that was read.

    Arguments:
        watched: wraps the iterator over (number of the point, outcome), such as in a bar.
    """
    check_engine(jobs, dask)
    notebooks = (notebooks or checkout() / "notebooks").resolve()
    out = Path(out or notebooks.parent / "runs").resolve()
    fixed = (spec.notebook, out, notebooks, timeout, threads_each(jobs))
    calls = [(number, point, *fixed) for number, point in enumerate(spec.points)]
    with closing(map_unordered(_run_point, calls, jobs, dask)) as made:
        done = (_given_up(own) if isinstance(own, Killed) else own for own in made)
        found = dict(watched(done, len(calls)) if watched else done)
    return Swept(spec, tuple(found[number] for number in range(len(calls))))


def _given_up(killed: Killed) -> tuple[int, Run | RunFailed]:
    number, point, notebook, out, *_ = killed.call
    advice = "give the workers more memory or time, or leave the point out: the next call tries it again"
    what = f"worker after worker died at the point {describe(point)} (or at one beside it in the same worker); {advice}"
    return number, give_up(notebook, point, out, "KilledWorker", f"{what}. Dask: {killed.message}")


def _bar(points: Iterable, total: int) -> Iterable:
    return progress(points, "points", total)


def _run_point(
    number: int, params: dict[str, Any], notebook: Path, out: Path, notebooks: Path, timeout: float, threads: int
) -> tuple[int, Run | RunFailed]:
    options: dict[str, Any] = {"notebooks": notebooks, "timeout": timeout, "threads": threads, "publish": False}
    try:
        return number, run_notebook(notebook, params, out, **options)
    except RunFailed as failed:
        return number, failed
