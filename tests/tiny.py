"""Tiny notebooks for the tests of runs and sweeps, which count how often each was executed; a kernel costs a second."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import v4

COUNTED = """
n = 1
seed = 0
rate = 0.5
how = ""  # print, write, raise, die or hang
meet = 0  # starts in the log to wait for
kilobytes = 0  # printed or written
log = ""  # a file, which gets a line at the start of each execution and one at its end
"""
TELL = """
import json, os, time
from pathlib import Path

def tell(what):
    facts = {"what": what, "n": n, "seed": seed, "time": time.time(), "pid": os.getpid(), "parent": os.getppid()}
    with open(log, "a") as file:
        file.write(json.dumps({**facts, "threads": os.environ.get("OMP_NUM_THREADS")}) + "\\n")

tell("start")
"""
ACT = """
beside = Path(log).parent
while (beside / f"hold{n}").exists() or Path(log).read_text().count('"start"') < meet:
    time.sleep(0.05)
if how == "print":
    print(("x" * 99 + "\\n") * 10 * kilobytes)
if how == "write":
    (Path(os.environ["REDLAB_OUT"]) / "figures" / "big").write_bytes(bytes(1000 * kilobytes))
if not (beside / "mended").exists():
    if how == "raise":
        raise ZeroDivisionError("not yet")
    if how == "die":
        os._exit(1)
    if how == "hang":
        time.sleep(600)
"""
RECORD = """
import pandas as pd
from redlab.lab.runs import output_folder, record
(output_folder() / "square.txt").write_text(str(n * n))
record(pd.DataFrame({"layer": ["a", "b"], "square": [n * n, -n * n], "share": [rate / n, seed / 7]}))
tell("end")
"""


def write_notebook(path: Path, parameters: str | None, *cells: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tagged = [v4.new_code_cell(parameters.strip(), metadata={"tags": ["parameters"]})] if parameters else []
    code = [v4.new_code_cell(cell.strip()) for cell in cells]
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# Tiny"), *tagged, *code]), path)
    return path


def write_counted(folder: Path) -> Path:
    """``folder/notebooks/01_counted.ipynb``."""
    return write_notebook(folder / "notebooks" / "01_counted.ipynb", COUNTED, TELL, ACT, RECORD)


def told(log: Path, what: str = "start") -> list[dict]:
    """What the executions told at their start, or their end, in order."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return [facts for line in lines if (facts := json.loads(line))["what"] == what]


def times_executed(log: Path) -> dict[int, int]:
    """How many executions of each ``n`` began."""
    return dict(Counter(facts["n"] for facts in told(log)))


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """What must not differ between two sweeps of the same points: no log of theirs, no seconds, no folders."""
    own = frame.drop(columns=["log", "meet", "seconds", "run"])
    own.attrs = {}
    return own.sort_values(["n", "seed", "how", "layer"], ignore_index=True)


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    """Fails where it does not come true in time; the time is generous, for machines that do other things too."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
