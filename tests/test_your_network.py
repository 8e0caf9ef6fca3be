"""docs/your_network.md, step by step: a network in a file of one's own, through everything, as the page shows it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from redlab.paths import checkout

pytest.importorskip("timm")
pytest.importorskip("transformers")
PAGE = (checkout() / "docs" / "your_network.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|bash|yaml)\n(.*?)```", PAGE, re.S)
FILES = {code.split("\n")[0][2:]: code for _, code in BLOCKS if re.match(r"# \S+\.(py|yml)\n", code)}
STEPS = [code for language, code in BLOCKS if language == "python" and code not in FILES.values()]
COMMANDS = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the reader of the page works: his files, and what the Python of the page leaves there."""
    place = tmp_path_factory.mktemp("mine")
    for name, text in FILES.items():
        (place / name).write_text(text)
    (place / "page.py").write_text("\n".join(STEPS))
    (place / "said.txt").write_text(_run([sys.executable, "page.py"], place))
    return place


def _run(words: list[str], place: Path) -> str:
    paths = os.pathsep.join(filter(None, [str(checkout()), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        words,
        cwd=place,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_page_names_its_files():
    assert set(FILES) == {"my_net.py", "sweep.yml"}
    assert len(STEPS) >= 6
    assert {shlex.split(line)[1] for line in COMMANDS} == {"compress", "run", "sweep"}


@pytest.mark.slow
def test_the_python_of_the_page_runs(folder):
    said = (folder / "said.txt").read_text()
    accuracies = [float(text) for text in re.findall(r"accuracy ([\d.]+) %", said)]
    assert accuracies[0] > 60  # chance is 10
    assert accuracies[-1] == accuracies[-2]  # the pruned network, saved and opened again


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_page_run(line, folder):
    words = shlex.split(line)
    out = ["--out", "runs"] if words[1] == "run" else []
    assert _run([sys.executable, "-m", "redlab.cli", *words[1:], *out], folder)
