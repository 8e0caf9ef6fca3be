"""The fuzzer: it finds what is planted, and in the loaders a short run finds nothing; ``make fuzz`` runs longer."""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path

import pytest
from fuzz import runner
from fuzz.__main__ import main
from fuzz.runner import fuzz, place_input
from fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_are_opened_or_refused_as_declared(target, tmp_path):
    tally = fuzz(target, tmp_path, seed=0, numbers=range(18))
    assert not tally.findings
    assert tally.inputs == 18
    assert tally.opened > 0
    assert tally.refused > 0


def planted(opens, named=True) -> Target:
    def make(folder: Path) -> None:
        (folder / "one").mkdir()
        (folder / "one" / "a.txt").write_text("a,b\nc,d\n")

    return Target("planted", make, opens, (ValueError,), named)


class Harm:
    def __reduce__(self):
        return os.system, ("true",)


def refuse(folder: Path) -> None:
    raise ValueError("something is wrong somewhere")


def kill(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def multiply(folder: Path) -> None:
    import numpy as np

    np.float32(3e38) * np.float32(3e38)


PLANTED = {
    "raises KeyError": lambda folder: {}["a"],
    "raises RuntimeWarning": multiply,
    "raises MemoryError": lambda folder: bytearray(1 << 40),
    "takes more than 0.2 seconds": lambda folder: time.sleep(60),
    "kills the process, exit code -9": kill,
    "does not name the file: ValueError": refuse,
    "does more than read: os.system": lambda folder: pickle.loads(pickle.dumps(Harm())),
    "does more than read: open": lambda folder: (folder / "b.txt").write_text("mine"),
    "does more than read: os.remove": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found_and_kept(what, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "HANGS", 0.2 if "takes" in what else 20)
    tally = fuzz(planted(PLANTED[what]), tmp_path, seed=0, numbers=range(1, 4))
    ((found, (first, times)),) = tally.findings.items()
    assert found.startswith(what)
    assert (first, times) == (1, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["planted-1"]


def test_a_refusal_need_not_name_a_file_where_the_target_has_none(tmp_path):
    tally = fuzz(planted(refuse, named=False), tmp_path, seed=0, numbers=range(3))
    assert (tally.opened, tally.refused) == (0, 3)


def test_the_number_of_an_input_says_what_it_is(tmp_path):
    target = planted(refuse)
    (tmp_path / "seeds").mkdir()
    target.make(tmp_path / "seeds")

    def content(number: int, seed: int = 0) -> list:
        place_input(target, tmp_path, seed, number)
        return [(path.name, path.read_bytes() if path.is_file() else b"") for path in (tmp_path / "input").iterdir()]

    assert content(0) == [("a.txt", b"a,b\nc,d\n")]
    assert [content(k) for k in range(20)] == [content(k) for k in range(20)]
    assert [content(k) for k in range(20)] != [content(k, seed=1) for k in range(20)]


def test_the_command_reports_and_says_how_to_see_it_again(tmp_path, capsys):
    targets = [planted(PLANTED["raises KeyError"])]
    assert main(["--seconds", "0.2", "--seed", "7"], targets, tmp_path) == 1
    said = capsys.readouterr().out
    assert "planted: raises KeyError" in said
    assert "-m tests.fuzz --only planted --seed 7 --number 0" in said
    assert main(["--only", "planted", "--seed", "7", "--number", "5"], targets, tmp_path) == 1
    assert [line.split() for line in capsys.readouterr().out.splitlines()][2] == ["planted", "1", "0", "0", "1"]
    assert main(["--seconds", "0.1"], [planted(lambda folder: None)], tmp_path) == 0
