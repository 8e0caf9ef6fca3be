"""Opening damaged folders one after the other, in a process that may die of them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch

from .mutations import mutate
from .targets import Target

HANGS = 20.0  # seconds after which an input counts as one that never ends
MEMORY = 3 << 30  # bytes that opening one may take beyond what the process has
OPENED, REFUSED = "opened", "refused"
# What nothing does that only reads; beside these, opening a file to write.
_DEEDS = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.remove"}
_DEEDS |= {"os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree"}


@dataclass
class Tally:
    """What came of the inputs of a target.

    Attributes:
        opened, refused: how many.
        findings: what else came out; by its kind the number of the first such input, and how many there were.
    """

    target: Target
    opened: int = 0
    refused: int = 0
    findings: dict[str, list[int]] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return self.opened + self.refused + sum(count for _, count in self.findings.values())

    def add(self, number: int, outcome: str) -> bool:
        """Count an outcome; whether it is the first finding of its kind."""
        self.opened += outcome == OPENED
        self.refused += outcome == REFUSED
        if outcome in (OPENED, REFUSED):
            return False
        self.findings.setdefault(outcome, [number, 0])[1] += 1
        return self.findings[outcome][1] == 1


def fuzz(target: Target, out: Path, seed: int, numbers: Iterable[int]) -> Tally:
    """Open inputs of ``target``.

    Arguments:
        out: a folder, in which the first input of each kind of finding stays.
        seed, numbers: together with the name of the target they say what the inputs are.
    """
    tally = Tally(target)
    shutil.rmtree(out / target.name, ignore_errors=True)  # of a run that was cut off
    with Worker(target, out / target.name, seed) as worker:
        for number in numbers:
            if tally.add(number, worker.open(number)):
                shutil.copytree(worker.input, out / f"{target.name}-{number}", symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(out / target.name)
    return tally


class Worker:
    """A process that opens inputs of a target; another one takes the place of one that died."""

    def __init__(self, target: Target, folder: Path, seed: int) -> None:
        self.target, self.folder, self.seed, self.input = target, folder, seed, folder / "input"

    def __enter__(self) -> Worker:
        # A fork is there at once; the libraries that it would import anew take seconds.
        fork = multiprocessing.get_context("fork")
        self.answers, there = fork.Pipe()
        self.process = fork.Process(target=_work, args=(self.target, self.folder, self.seed, there), daemon=True)
        self.process.start()
        there.close()
        self.answers.recv()  # it is ready
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.answers.close()

    def open(self, number: int) -> str:
        """What came of an input: ``OPENED``, ``REFUSED``, or a finding in words."""
        try:
            self.answers.send(number)
            if self.answers.poll(HANGS):
                return self.answers.recv()
            outcome = f"takes more than {HANGS:g} seconds"
        except (EOFError, ConnectionError):
            self.process.join()
            outcome = f"kills the process, exit code {self.process.exitcode}"
        self.__exit__()
        self.__enter__()
        return outcome


def _work(target: Target, folder: Path, seed: int, answers) -> None:
    """Make the valid folders, then open inputs by number until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    seeds = folder / "seeds"
    if not seeds.exists():
        seeds.mkdir(parents=True)
        torch.manual_seed(0)
        target.make(seeds)
    tempfile.gettempdir()  # it writes a file to see whether it can
    (folder / "work").mkdir(exist_ok=True)
    os.chdir(folder / "work")
    warnings.simplefilter("ignore", UserWarning)  # ours: of what is left out
    warnings.simplefilter("error", RuntimeWarning)  # numpy's: of numbers that mean nothing
    _limit_memory()
    deeds: list[str] = []
    sys.addaudithook(lambda event, args: deeds.append(f"{event} {args[0]}") if acts(event, args, folder) else None)
    answers.send("ready")
    while True:
        number = answers.recv()
        damaged = place_input(target, folder, seed, number)
        deeds.clear()
        outcome = attempt(target, folder / "input")
        if deeds and damaged:  # a valid one may be the first to need what is compiled and cached
            outcome = f"does more than read: {deeds[0].replace(str(folder), '')}"
        answers.send(outcome)


def _limit_memory() -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))


def acts(event: str, args: tuple, folder: Path) -> bool:
    """Whether more than reading happens, besides what torch keeps among the temporary files."""
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    if event not in _DEEDS and not (event == "open" and args[2] & writes):
        return False
    return str(folder) in str(args[0]) or not str(args[0]).startswith(tempfile.gettempdir())


def place_input(target: Target, folder: Path, seed: int, number: int) -> bool:
    """Make ``folder/input`` the input of this number, a valid folder, and damage it; the first ones stay as they are.

    Returns:
        Whether it was damaged.
    """
    draw = Random(f"{seed} {target.name} {number}")
    seeds = sorted((folder / "seeds").iterdir())
    shutil.rmtree(folder / "input", ignore_errors=True)
    shutil.copytree(seeds[number % len(seeds)], folder / "input")
    if number < len(seeds):
        return False
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        mutate(folder / "input", draw)
    target.seal(folder / "input", draw)
    return True


def attempt(target: Target, folder: Path) -> str:
    """Open one folder: ``OPENED``, ``REFUSED``, or a finding in words."""
    try:
        target.open(folder)
        return OPENED
    except target.declared as error:
        if isinstance(error, OSError) or not target.named or str(folder) in str(error):
            return REFUSED
        return f"does not name the file: {_where(error)}"
    except BaseException as error:
        return f"raises {_where(error)}"


def _where(error: BaseException) -> str:
    """The error's class and the last line of redlab in its traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "redlab" in Path(frame.filename).parts]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
