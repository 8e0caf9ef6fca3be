"""Every public name has an example in its docstring, and what the example shows is what comes out."""

from __future__ import annotations

import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import redlab
from redlab.paths import checkout
from redlab.pruning.criteria.registry import CRITERIA

# The public names, figures, and those of rarer use.
NAMED = {
    name: getattr(import_module(f"redlab.{home}"), name) for name, home in (redlab._HOME | redlab._ELSEWHERE).items()
} | {name: getattr(redlab.plots, name) for name in redlab.plots.__all__}


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What examples may use without importing it: the public names, and the three libraries that all know."""
    return NAMED | {"np": np, "pd": pd, "torch": torch}


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In an empty folder that stays so, without a figure left open."""
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMED)
def test_the_example_shows_what_comes_out(name, known):
    text = inspect.getdoc(NAMED[name]) or ""
    found = re.search(r"^Example:\n((?:    .*\n?|\n)+)\Z", text, re.MULTILINE)
    assert found, f"{name} has no example at the end of its docstring"
    example = doctest.DocTestParser().get_doctest(inspect.cleandoc(found[1]) + "\n", dict(known), name, None, None)
    assert example.examples
    assert not [line.source for line in example.examples if line.options], "nothing is skipped or compared loosely"
    assert any(line.want for line in example.examples)
    told: list[str] = []
    doctest.DocTestRunner().run(example, out=told.append)
    assert not told, "".join(told)


def _documented() -> list[tuple[str, str]]:
    criteria = [each for own in CRITERIA.values() for each in (own.channels, own.weights) if each is not None]
    objects = [*NAMED.values(), *criteria]
    return [(own.__name__, inspect.getdoc(own) or "") for own in objects if hasattr(own, "__name__")]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, text in _documented() if "Defaults:\n" in text])
def test_the_evidence_that_a_docstring_names_is_there(name, text):
    text = " ".join(text.split())
    root = checkout()
    files = re.findall(r"\b(?:figures|benchmarks|notebooks)/[\w/]+\.\w+", text)
    sections = re.findall(r'\b(README\.md|benchmarks/\w+\.md), "([^"]+)"', text)
    assert files or sections, f"{name} gives no figure or table for its defaults"
    assert not [file for file in files if not (root / file).is_file()]
    pages = "\n".join(path.read_text() for path in sorted((root / "docs").glob("*.md")))  # the rest of the README
    for file, section in sections:
        held = pages if file == "README.md" else (root / file).read_text()
        assert re.search(rf"^## {re.escape(section)}(,|$)", held, re.MULTILINE), section
    for benchmark in re.findall(r"python -m benchmarks\.(\w+)", text):
        assert (root / "benchmarks" / f"{benchmark}.py").is_file()


def _anchors(page: Path) -> set[str]:
    """What a link to a heading of a page ends in: its words in lower case, hyphens between them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, text in _documented() if "docs/" in text])
def test_the_page_that_a_docstring_names_is_there(name, text):
    for page, anchor in re.findall(r"\bdocs/(\w+\.md)(?:#([\w-]+))?", text):
        assert (checkout() / "docs" / page).is_file(), page
        assert not anchor or anchor in _anchors(checkout() / "docs" / page), anchor


def test_every_default_has_a_heading_to_link_to():
    """docs/defaults.md has "function: argument", of functions and arguments that exist."""
    heads = re.findall(r"^## (\w+): (.+)$", (checkout() / "docs" / "defaults.md").read_text(), re.MULTILINE)
    functions = {
        name: own for own in CRITERIA.values() for name, own in [(own.channels.__name__, own.channels)]
    } | NAMED
    assert len(heads) > 30
    for function, words in heads:
        known_arguments = set(inspect.signature(functions[function]).parameters)
        for word in re.split(r", | and ", words):
            known = known_arguments | set(inspect.signature(NAMED["hash_network"]).parameters) | {"hashing"}
            assert word in known, (function, word)
