"""The command behind a run, read back by the command line itself."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat import v4, write

from redlab.cli import main as cli
from redlab.lab.parameters import changed_parameters, command_of, typed_parameters

DEFAULTS = 'n = 3\nrate = 0.5\nrule = "kde"\nflag = False\nlevels = [0.1, 0.2]\nfree = None\n'


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebooks") / "05_some.ipynb"
    cell = v4.new_code_cell(DEFAULTS, metadata={"tags": ["parameters"]})
    write(v4.new_notebook(cells=[cell]), path)
    return path


def read_back(notebook, command: str) -> dict:
    words = shlex.split(command)
    assert words[:2] == ["redlab", "run"]
    given = cli._join_pairs(words[3:])
    assert given[0::2] == ["-p"] * (len(given) // 2)
    return typed_parameters(notebook, given[1::2])


@given(
    n=st.integers(),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    rule=st.text(st.characters(codec="ascii", exclude_categories=["Cc"])).filter(
        lambda text: text.lower() not in ("null", "~") and not text.isspace()
    ),
    flag=st.booleans(),
    levels=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    free=st.one_of(st.none(), st.sampled_from(["cifar10", "1e-3", "off", "12", "a b", "it's", "2024-01-01", "-p"])),
)
def test_it_gives_the_same_parameters_again(notebook, **params):
    changed = changed_parameters(notebook, params)
    assert read_back(notebook, command_of(notebook, params)) == changed


def test_only_what_differs_from_the_defaults_is_named(notebook):
    assert command_of(notebook, {"n": 3, "rate": 0.5, "rule": "kde"}) == "redlab run 05"
    assert command_of(notebook, {"n": 4, "rule": "silverman/8"}) == "redlab run 05 -p n 4 -p rule silverman/8"
    assert command_of(notebook, {"levels": [0.3]}) == "redlab run 05 -p levels '[0.3]'"


def test_a_number_that_two_notebooks_share_is_no_name(notebook):
    twin = notebook.with_name("05_other.ipynb")
    twin.write_bytes(notebook.read_bytes())
    assert command_of(notebook, {}) == "redlab run 05_some"
    twin.unlink()


def test_a_parameter_that_is_no_more_is_an_error(notebook):
    with pytest.raises(ValueError, match="unknown parameter"):
        command_of(notebook, {"gone": 1})
