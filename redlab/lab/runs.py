"""A run: one notebook executed with given parameters, in a folder named after everything that it depends on."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlab.files.atomic import move_folder, replaced_file
from redlab.lab.jupyter_kernel import execute, surroundings
from redlab.lab.keys import run_key
from redlab.lab.notebooks import find_notebook, known_names, read_cells
from redlab.lab.parameters import changed_parameters, default_parameters
from redlab.paths import checkout

if TYPE_CHECKING:
    import pandas as pd


_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # no space left, a file over the limit, a quota used up
_PROCESS = secrets.token_hex(4)
_MADE: set[Path] = set()  # folders that this process made for its runs


@dataclass(frozen=True)
class Run:
    """A finished run of a notebook.

    Attributes:
        folder: where ``executed.ipynb``, ``results.parquet``, ``figures/`` and ``run.json`` lie.
        name: the notebook's, such as ``02_hash_collapse``.
        params: every parameter with the value that it had.
        seconds: how long it took when it was executed.
        cached: whether it was found done, and nothing was executed.
        published: the folder that its figures were copied into, those of default parameters only.

    Example:
        >>> from pathlib import Path
        >>> run = Run(Path("runs/02_hash_collapse/5c1a"), "02_hash_collapse", {"quick": True}, seconds=12.5)
        >>> run.name, run.params, run.cached
        ('02_hash_collapse', {'quick': True}, False)
    """

    folder: Path
    name: str
    params: dict[str, Any]
    seconds: float
    cached: bool = False
    published: Path | None = None

    @property
    def results(self) -> pd.DataFrame:
        """The frame that the notebook recorded; FileNotFoundError where it recorded none."""
        import pandas as pd

        return pd.read_parquet(self.folder / "results.parquet")

    @property
    def figures(self) -> list[Path]:
        """The files in the run's folder of figures, by name."""
        return sorted(path for path in (self.folder / "figures").glob("*") if path.is_file())


class RunFailed(RuntimeError):
    """A notebook that did not run to its end; ``folder`` holds ``failed.json`` and what was executed.

    Attributes: folder, name, error (its class), message, cell (the source of the cell that failed, or "").
    """

    def __init__(self, folder: Path, name: str, error: str, message: str, cell: str):
        super().__init__(folder, name, error, message, cell)  # what pickle hands to the other side
        self.folder, self.name, self.error, self.message, self.cell = folder, name, error, message, cell

    def __str__(self) -> str:
        return f"{self.name} failed: {self.error}: {self.message}; see {self.notebook}"

    @property
    def notebook(self) -> Path:
        """The notebook as far as it was executed, or ``failed.json`` where no kernel started."""
        executed = self.folder / "executed.ipynb"
        return executed if executed.is_file() else self.folder / "failed.json"


def run_notebook(
    name: str | int | Path,
    params: dict[str, Any] | None = None,
    out: str | Path | None = None,
    *,
    notebooks: Path | None = None,
    again: bool = False,
    progress: bool = False,
    timeout: float | None = None,
    threads: int | None = None,
    publish: bool = True,
) -> Run:
    """Execute a notebook, unless the same was done before: same cells, same package, same parameters.

    Args:
        name: its number ("02"), file name, path, or an unambiguous part of its name.
        params: values for its parameters; those not named keep their defaults.
        out: where run folders are kept, as ``out/NAME/KEY``; default ``runs/`` of the checkout.
        notebooks: the folder of the notebooks; default the checkout's. ``runs/`` and ``figures/`` lie beside it.
        again: execute it even where it was done before (what it reads that no parameter names is no part of the key).
        progress: show a bar over its cells.
        timeout: seconds that each cell may take, rounded up to whole ones; by default any time.
        threads: of its kernel; by default as many as its libraries like.
        publish: with default parameters, copy the figures into ``figures/`` as well.

    Raises:
        ValueError, TypeError: an unknown notebook or parameter, or a value of the wrong type; nothing was executed.
        RunFailed: a cell failed or took too long, or the kernel died; the next call tries again.
        OSError: the disk is full; nothing of this run is left, and finished runs are whole.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nbformat import v4, write
        >>> cell = v4.new_code_cell("alpha = 0.1", metadata={"tags": ["parameters"]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(v4.new_notebook(cells=[cell]), f"{folder}/00_alpha.ipynb")
        ...     run = run_notebook("alpha", {"alpha": 0.2}, f"{folder}/runs", notebooks=Path(folder))
        >>> run.name, run.params
        ('00_alpha', {'alpha': 0.2})
    """
    notebooks = (notebooks or checkout() / "notebooks").resolve()
    path = find_notebook(name, notebooks)
    changed = known_names(changed_parameters(path, params or {}))
    if timeout is not None and not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
    folder = Path(out or notebooks.parent / "runs").resolve() / path.stem / run_key(path, changed)
    with _locked(folder):
        run = None if again else _finished(folder)
        run = run or _execute(path, folder, changed, progress, timeout, threads)
    if changed or path.parent != notebooks or not publish:
        return run
    return replace(run, published=_publish(run.figures, notebooks.parent / "figures"))


def record(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep ``frame`` as the results of this run, and return it; in a live notebook it is only returned.

    Raises:
        ValueError: where this run has recorded a frame already: one notebook, one frame.

    Example:
        >>> record(pd.DataFrame({"network": ["digits/mlp"], "accuracy": [97.5]}))
              network  accuracy
        0  digits/mlp      97.5
    """
    if out := os.environ.get("REDLAB_OUT"):
        path = Path(out) / "results.parquet"
        if path.exists():
            raise ValueError("this notebook has recorded its results already: call record once, with one frame")
        frame.to_parquet(path)
    return frame


def output_folder() -> Path:
    """The folder for figures: ``$REDLAB_OUT/figures`` in a run, ``figures/`` of the checkout in a live notebook."""
    if out := os.environ.get("REDLAB_OUT"):
        return Path(out) / "figures"
    return checkout() / "figures"


def read_run(folder: Path) -> Run:
    """The finished run in ``folder``, out of its ``run.json``.

    Raises:
        ValueError: the file is damaged. FileNotFoundError: there is none.
    """
    kinds = {"notebook": str, "parameters": dict, "seconds": int | float}
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if wrong := [key for key, kind in kinds.items() if not isinstance(facts[key], kind)]:
            raise TypeError(f"{wrong[0]!r} is a {type(facts[wrong[0]]).__name__}")
        json.dumps(facts, ensure_ascii=False, allow_nan=False).encode()  # half a letter and nan end here: no JSON
        return Run(folder, facts["notebook"], facts["parameters"], facts["seconds"], cached=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged ({error!r}): delete the folder, and run it again") from None


def _finished(folder: Path) -> Run | None:
    """The run that is done; None where there is none, or where a file of it was damaged since."""
    results = folder / "results.parquet"
    with suppress(OSError, ValueError):
        if not results.exists() or results.read_bytes().endswith(b"PAR1"):
            return read_run(folder)
    return None


def _execute(
    path: Path, folder: Path, changed: dict[str, Any], progress: bool, timeout: float | None, threads: int | None
) -> Run:
    """Execute under a temporary name; what appears under ``folder`` is whole, whether done or failed."""
    work = part_of(folder)
    for left in folder.parent.glob(f".{folder.name}.*part"):  # by a run that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    facts: dict[str, Any] = {"notebook": path.stem, "parameters": {**default_parameters(path), **changed}}
    facts |= surroundings(path.parent, threads)
    start = time.perf_counter()
    with _room(work, path.stem):
        (work / "figures").mkdir(parents=True)
        try:
            execute(path, work, changed, progress, timeout, threads)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            failure = _failure(error, work)
            _write_json(work / "failed.json", {**facts, **failure})
            move_folder(work, folder)
            raise RunFailed(folder, path.stem, **failure) from error
        facts["seconds"] = round(time.perf_counter() - start, 3)
        _write_json(work / "run.json", facts)
    move_folder(work, folder)
    return Run(folder, path.stem, facts["parameters"], facts["seconds"])


def give_up(notebook: Path, changed: dict[str, Any], out: Path, error: str, message: str) -> Run | RunFailed:
    """Mark a run as failed whose process has died; returns the run itself where it had finished before."""
    folder = out / notebook.stem / run_key(notebook, changed)
    if run := _finished(folder):
        return run
    failure = {"error": error, "message": message, "cell": ""}
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {**default_parameters(notebook), **changed}
    _write_json(folder / "failed.json", {"notebook": notebook.stem, "parameters": parameters, **failure})
    return RunFailed(folder, notebook.stem, **failure)


@contextmanager
def _room(work: Path, name: str) -> Iterator[None]:
    """Remove ``work`` if the disk is full or Ctrl-C ends the block; the error says what happened."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if not isinstance(error, OSError) or error.errno not in _FULL:
            raise
        what = f"{os.strerror(error.errno or errno.ENOSPC)} while {name} was run in {work.parent}"
        rest = "nothing of this run is left, and finished runs are whole: make room and call again"
        raise OSError(error.errno, f"{what}; {rest}") from error


def _failure(error: Exception, work: Path) -> dict[str, str]:
    executed = work / "executed.ipynb"
    try:
        cells = read_cells(executed)
    except (OSError, ValueError):  # no kernel started, or it was cut off while it was written
        cells = []
    started = [cell["source"] for cell in cells if cell["metadata"].get("papermill", {}).get("start_time")]
    kind, message = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return {"error": kind, "message": message, "cell": started[-1] if started else ""}


def part_of(folder: Path) -> Path:
    """The temporary name of a run's folder, until it is whole."""
    # A name of this process alone: the kernel of a killed one lives up to a second longer, and may still write.
    return folder.with_name(f".{folder.name}.{_PROCESS}.part")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time works on ``folder``; the lock ends with its process, also a killed one.

    Ctrl-C removes the lock too, and the folders that were made for it.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    folders = (lock.parent, *lock.parent.parents)
    _MADE.update(path for path in folders if not path.exists())
    handle = _open_lock(lock)
    try:
        yield
    except KeyboardInterrupt:
        lock.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: another run of this process is in it, and comes last
            for path in folders:
                if path in _MADE:
                    path.rmdir()
        raise
    finally:
        os.close(handle)  # and so free


def _open_lock(lock: Path) -> int:
    """The lock's file, held: once it is ours, it may be no file any more, where Ctrl-C ended who held it before."""
    import fcntl

    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the folder went meanwhile
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock)):
                    return handle
            os.close(handle)


def _publish(figures: list[Path], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for figure in figures:
        with replaced_file(folder / figure.name) as part:  # another process may publish the same run
            shutil.copyfile(figure, part)
    return folder


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
