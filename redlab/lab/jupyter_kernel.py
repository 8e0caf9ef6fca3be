"""Kernels: how a notebook is executed, and what its results depend on beyond its cells and parameters."""

from __future__ import annotations

import logging
import math
import os
import platform
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlab.lab.keys import version_of
from redlab.paths import data_root

if TYPE_CHECKING:
    from nbformat import NotebookNode

# OpenMP (torch), and numba, which would take all cores otherwise.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
# The kernels that run: by their manager, of which each execution has its own, the process; or that it was stopped.
_RUNNING: dict[type, int] = {}
_STOPPED = 0
LONGEST = 10_000  # characters of a printed line
_PACKAGES = ("redlab", "torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "papermill")


def execute(
    path: Path,
    work: Path,
    changed: dict[str, Any],
    progress: bool = False,
    timeout: float | None = None,
    threads: int | None = None,
) -> None:
    """Execute the notebook ``path`` into ``work/executed.ipynb``, with ``changed`` injected after its parameters.

    Arguments:
        timeout: seconds that a cell may take, rounded up to whole ones.
        threads: of the kernel; None leaves that to its environment.

    Raises:
        papermill.PapermillExecutionError: where a cell failed.
        nbclient.exceptions.CellTimeoutError: where one took longer than ``timeout``.
        nbclient.exceptions.DeadKernelError: where the kernel died.
    """
    import papermill

    manager = _kernel_manager(_kernel_environment(work, threads))
    # It warns of parameters that its line-by-line reading misses; ours were checked, and unknown ones refused. Its
    # errors it raises, too.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        papermill.execute_notebook(
            path,
            work / "executed.ipynb",
            changed,
            kernel_name="python3",
            language="python",
            progress_bar={"desc": path.stem, "leave": False} if progress else False,
            resources={"metadata": {"path": str(path.parent)}},  # the kernel's folder; `cwd` changes this process's
            kernel_manager_class=manager,
            execution_timeout=None if timeout is None else math.ceil(timeout),
            extra_arguments=["--log-level=CRITICAL"],  # a kernel that is asked to stop prints an error otherwise
            on_cell_executed=_tidy,
        )
    except BaseException as error:
        if _RUNNING.pop(manager, None) == _STOPPED:
            raise KeyboardInterrupt from error
        raise
    finally:
        _RUNNING.pop(manager, None)


def stop_kernels() -> None:
    """End every kernel of this process, in any thread; whoever waits for one is interrupted, as by Ctrl-C."""
    for manager, pid in list(_RUNNING.items()):
        if pid != _STOPPED:
            _RUNNING[manager] = _STOPPED
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # it leads its own group, with what it started


def _tidy(cell: Any, **_: Any) -> None:
    cell.outputs = tidy_streams(cell.outputs)


def _kernel_environment(work: Path, threads: int | None) -> dict[str, str]:
    # Without MPLBACKEND a kernel draws into the notebook, also where the caller's shell sets it.
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return {
        "PYTHONHASHSEED": "0",  # the order of a set shows in outputs, which are to be the same in every run
        **inherited,
        "PYTHONPATH": os.pathsep.join(_own_places()),
        "REDLAB_OUT": str(work),
        "REDLAB_DATA": str(data_root()),  # absolute: the kernel works in another folder
        "TQDM_DISABLE": "1",  # a bar would leave widget state in the notebook
        **({} if threads is None else dict.fromkeys(_THREADS, str(threads))),
    }


def _own_places() -> list[str]:
    """Where this process imports from besides what is installed, absolute: package.module:NAME is found there."""
    roots = {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    places = dict.fromkeys(os.path.abspath(entry) for entry in sys.path)  # "" is the current folder
    return [place for place in places if not roots.intersection(map(str, _with_parents(place)))]


def _with_parents(place: str) -> tuple[Path, ...]:
    path = Path(os.path.realpath(place))
    return (path, *path.parents)


def _kernel_manager(environment: dict[str, str]) -> type:
    """A kernel manager that starts this very interpreter with ``environment``, which os.environ never holds: threads
    may run several notebooks at once.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from traitlets import default

    class Manager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _this_interpreter(self) -> KernelSpecManager:
            # With no folder to look in, "python3" is the running Python, not what the user registered under that name.
            return KernelSpecManager(parent=self, kernel_dirs=[])

        @default("transport_encryption")
        def _encrypted(self) -> str:
            return "auto"  # free, and it silences the warning about kernels that anyone on the machine may talk to

        # As in jupyter_client, the method of an asynchronous manager stands in for one that is not.
        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            await super().start_kernel(**{**options, "env": environment})
            provisioner: Any = self.provisioner  # of a process of this machine
            _RUNNING[type(self)] = provisioner.pid

    return Manager


def surroundings(folder: Path, threads: int | None = None) -> dict[str, Any]:
    """What the results may depend on beyond the key: versions, platform, threads, commit. No host and no user name."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "threads": threads or asked_threads() or os.cpu_count() or 1,
        "versions": {name: found for name in _PACKAGES if (found := version_of(name))},
        "commit": _commit(folder),
    }


def asked_threads() -> int | None:
    """How many ``OMP_NUM_THREADS`` asks for, of which "4,2" is a form; None where it is no positive number."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) or None if first.isdecimal() else None


def _commit(folder: Path) -> str | None:
    """The commit that ``folder`` is at, with ``-dirty`` where tracked files differ from it; None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def tidy_streams(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """The outputs with all that went to one stream in the place of its first part, stdout before stderr beside it.

    How prints fall into messages differs from run to run. Of a line that was overwritten (``\\r``) the last state
    stays, of one longer than ``LONGEST`` the beginning, with how much was cut. The time is linear in the text: the
    pattern of nbclient, which does the same otherwise, takes a minute for a line of 200,000 characters.
    """
    parts: dict[str, list[NotebookNode]] = defaultdict(list)
    for output in outputs:
        if output["output_type"] == "stream":
            parts[output["name"]].append(output)
    later = {id(output) for own in parts.values() for output in own[1:]}
    for own in parts.values():
        lines = "".join(output["text"] for output in own).split("\n")
        own[0]["text"] = "\n".join(_cut(_last_state(line)) for line in lines)
    kept = [output for output in outputs if id(output) not in later]
    for k, pair in enumerate(pairwise(kept)):
        if [output.get("name") for output in pair] == ["stderr", "stdout"]:  # which of them came first is random
            kept[k : k + 2] = reversed(pair)
    return kept


def _last_state(line: str) -> str:
    """What a terminal shows of a line that goes back to its start; a return at its very end overwrites nothing."""
    return line[line.rfind("\r", 0, len(line) - 1) + 1 :] if line else line


def _cut(line: str) -> str:
    cut = f" [... cut: {len(line) - LONGEST:,} of {len(line):,} characters of this line]"
    return line if len(line) <= LONGEST else line[:LONGEST] + cut
