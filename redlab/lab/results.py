"""What many runs recorded, as one frame."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from redlab.lab.runs import Run, read_run

_OWN = ("notebook", "seconds", "run")


def load_runs(folder: str | Path) -> pd.DataFrame:
    """The results of every finished run below ``folder``, one under the other.

    Of several runs of one point (the package has changed in between) the last one counts. Runs that failed, that still
    run, or that recorded nothing are left out; ``attrs["without"]`` lists the folders of those that recorded nothing.

    Returns:
        The columns that the notebooks recorded, and levels of their index that have a name; before them ``notebook``,
        and every parameter by its name (lists as JSON); after them ``seconds`` and ``run``, the run's folder, relative
        to ``folder``. What the notebook recorded keeps its name: beside it stand "parameter_NAME", "run_notebook",
        "run_seconds" and "run_folder".

    Raises:
        FileNotFoundError: no such folder. ValueError: a file of a finished run is damaged.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> facts = {"notebook": "02_hash_collapse", "parameters": {"quick": True}, "seconds": 12.5}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pd.DataFrame({"accuracy": [97.5]}).to_parquet(f"{folder}/results.parquet")
        ...     _ = Path(folder, "run.json").write_text(json.dumps(facts))
        ...     load_runs(folder)[["notebook", "quick", "accuracy", "seconds"]]
                   notebook  quick  accuracy  seconds
        0  02_hash_collapse   True      97.5     12.5
    """
    return join_runs(last_runs(Path(folder)), Path(folder))


def last_runs(folder: Path) -> list[Run]:
    """The finished runs below ``folder``, sorted by folder, of several runs of one point the last.

    Raises: as ``load_runs``.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    last: dict[str, Run] = {}
    for mark in sorted(_marks(folder), key=lambda path: (path.stat().st_mtime_ns, path)):
        run = read_run(mark.parent)
        last[json.dumps([run.name, run.params], sort_keys=True)] = run
    return sorted(last.values(), key=lambda run: run.folder)


def join_runs(runs: Sequence[Run], root: Path | None = None) -> pd.DataFrame:
    """``load_runs`` of these finished runs, in their order; paths relative to ``root``."""
    found = [run for run in runs if (run.folder / "results.parquet").is_file()]
    frames = [_frame(run, run.folder.relative_to(root) if root else run.folder) for run in found]
    joined = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(_OWN))
    joined.attrs = {"without": [str(run.folder) for run in runs if run not in found]}
    return joined


def _marks(folder: Path) -> Iterator[Path]:
    """The ``run.json`` of every finished run; folders with a temporary name are skipped."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if "run.json" in files and os.path.isfile(mark := Path(place, "run.json")):  # no link that leads nowhere
            yield mark


def _frame(run: Run, name: Path) -> pd.DataFrame:
    frame = results_of(run.folder)
    frame.attrs = {}
    named = [level for level in frame.index.names if level is not None and level not in frame]
    frame = (frame.reset_index(named) if named else frame).reset_index(drop=True)
    before: dict[str, Any] = {_free("notebook", frame, "run_notebook"): run.name}
    for parameter, value in run.params.items():
        column = _free(parameter, [*frame, *_OWN], f"parameter_{parameter}")
        before[column] = json.dumps(value) if isinstance(value, list | dict) else value
    after = {_free("seconds", frame, "run_seconds"): run.seconds, _free("run", frame, "run_folder"): name.as_posix()}
    return pd.concat([pd.DataFrame(before, index=frame.index), frame], axis=1).assign(**after)


def results_of(folder: Path) -> pd.DataFrame:
    """What a finished run recorded, empty where it recorded nothing.

    Raises:
        ValueError: the file is damaged.
    """
    if not (path := folder / "results.parquet").is_file():
        return pd.DataFrame()
    try:
        return pd.read_parquet(path)
    except Exception as error:  # a damaged file raises nearly anything: KeyError, ArrowNotImplementedError
        raise ValueError(f"{path} is damaged ({error}): delete the folder, and run it again") from None


def _free(name: str, taken: Container, other: str) -> str:
    return other if name in taken else name
