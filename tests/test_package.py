"""The package as a whole: what importing it costs, and what it offers."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import redlab

ROOT = Path(__file__).resolve().parent.parent


def test_importing_redlab_imports_nothing_heavy():
    heavy = {"torch", "torchvision", "pandas", "numpy", "matplotlib", "papermill", "typer"}
    code = f"import sys, redlab; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", redlab.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert (getattr(redlab, name).__doc__ or "").strip()


def test_public_names_are_listed_by_dir():
    assert set(redlab.__all__) <= set(dir(redlab))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'hash_netwrok'.*hash_network"):
        redlab.hash_netwrok  # noqa: B018


def test_the_version_is_that_of_pyproject():
    assert redlab.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
