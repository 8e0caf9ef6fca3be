"""What many runs recorded, as one frame."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

_OWN = ("notebook", "seconds", "run")
_FACTS: dict[str, Any] = {"notebook": str, "parameters": dict, "seconds": int | float}


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


def last_runs(folder: Path) -> list[Path]:
    """The folders of the finished runs below ``folder``, sorted, of several runs of one point the last.

    Raises: as ``load_runs``.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    last: dict[str, Path] = {}
    for mark in sorted(_marks(folder), key=lambda path: (path.stat().st_mtime_ns, path)):
        facts = facts_of(mark.parent)
        last[json.dumps([facts["notebook"], facts["parameters"]], sort_keys=True)] = mark.parent
    return sorted(last.values())


def join_runs(folders: Sequence[Path], root: Path | None = None) -> pd.DataFrame:
    """``load_runs`` of these folders of finished runs, in their order; paths relative to ``root``."""
    found = [folder for folder in folders if (folder / "results.parquet").is_file()]
    frames = [_frame(folder, folder.relative_to(root) if root else folder) for folder in found]
    joined = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["notebook", "seconds", "run"])
    joined.attrs = {"without": [str(folder) for folder in folders if folder not in found]}
    return joined


def _marks(folder: Path) -> Iterator[Path]:
    """The ``run.json`` of every finished run; folders with a temporary name are skipped."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if "run.json" in files and os.path.isfile(mark := Path(place, "run.json")):  # no link that leads nowhere
            yield mark


def facts_of(folder: Path) -> dict[str, Any]:
    """The ``notebook`` of a finished run, its ``parameters``, and the ``seconds`` that it took.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if wrong := [key for key, kind in _FACTS.items() if not isinstance(facts[key], kind)]:
            raise TypeError(f"{wrong[0]!r} is a {type(facts[wrong[0]]).__name__}")
        json.dumps(facts, ensure_ascii=False, allow_nan=False).encode()  # half a letter and nan end here: no JSON
        return {key: facts[key] for key in _FACTS}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged ({error!r}): delete the folder, and run it again") from None


def _frame(folder: Path, name: Path) -> pd.DataFrame:
    facts, frame = facts_of(folder), results_of(folder)
    frame.attrs = {}
    named = [level for level in frame.index.names if level is not None and level not in frame]
    frame = (frame.reset_index(named) if named else frame).reset_index(drop=True)
    own = {_free("notebook", frame, "run_notebook"): facts["notebook"]}
    for parameter, value in facts["parameters"].items():
        column = _free(parameter, [*frame, *_OWN], f"parameter_{parameter}")
        own[column] = json.dumps(value) if isinstance(value, list | dict) else value
    after = {
        _free("seconds", frame, "run_seconds"): facts["seconds"],
        _free("run", frame, "run_folder"): name.as_posix(),
    }
    return pd.concat([pd.DataFrame(own, index=frame.index), frame], axis=1).assign(**after)


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
