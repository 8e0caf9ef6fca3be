"""The layers of the package: CONTRIBUTING.md and pyproject.toml place every module alike, and imports go down only."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["face", "lab", "act", "measure", "know"]


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """By layer, the modules in its row of CONTRIBUTING.md."""
    rows = re.findall(r"^\| (\w+) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return {layer: re.split(r"[,;] ", modules) for layer, modules in rows if layer in LAYERS}


@pytest.fixture(scope="module")
def contract() -> list[list[str]]:
    """The modules of each layer in the contract, from the top."""
    (found,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert found["exhaustive"]
    return [re.split(r"\s*:\s*", layer.strip()) for layer in found["layers"]]


def test_every_module_stands_in_exactly_one_row(table):
    counts = Counter(module for modules in table.values() for module in modules)
    files = {path.stem for path in (ROOT / "redlab").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "redlab").glob("*/__init__.py")}
    assert set(counts) == files | packages
    assert not [module for module, count in counts.items() if count > 1]


def test_the_contract_says_what_the_table_says(table, contract):
    assert list(table) == LAYERS
    assert list(map(sorted, contract)) == [sorted(table[layer]) for layer in LAYERS]


def test_an_import_goes_down_only():
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
