"""Every public name has an example in its docstring, and what the example shows is what comes out."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import redlab


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What examples may use without importing it: the public names, and the three libraries that all know."""
    return {name: getattr(redlab, name) for name in redlab.__all__} | {"np": np, "pd": pd, "torch": torch}


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In an empty folder that stays so, without a figure left open."""
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", redlab.__all__)
def test_the_example_shows_what_comes_out(name, known):
    text = inspect.getdoc(getattr(redlab, name)) or ""
    found = re.search(r"^Example:\n((?:    .*\n?|\n)+)\Z", text, re.MULTILINE)
    assert found, f"{name} has no example at the end of its docstring"
    example = doctest.DocTestParser().get_doctest(inspect.cleandoc(found[1]) + "\n", dict(known), name, None, None)
    assert example.examples
    assert not [line.source for line in example.examples if line.options], "nothing is skipped or compared loosely"
    assert any(line.want for line in example.examples)
    told: list[str] = []
    doctest.DocTestRunner().run(example, out=told.append)
    assert not told, "".join(told)
