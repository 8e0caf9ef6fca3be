"""What a cell printed: joined as nbclient joins it, in time that is linear in the text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbclient.client import _RGX_CARRIAGERETURN
from nbformat import v4, write

from redlab.lab import jupyter_kernel
from redlab.lab.jupyter_kernel import tidy_streams
from redlab.lab.notebooks import without_paths
from redlab.lab.runs import run_notebook


def stream(text: str, name: str = "stdout") -> dict:
    return v4.new_output("stream", text=text, name=name)


def shown(*outputs: dict) -> list[tuple[str, str]]:
    return [(out.get("name", ""), out.get("text", "")) for out in tidy_streams(outputs)]


@given(st.lists(st.text("ab\r\n", max_size=8), min_size=1, max_size=6))
def test_it_shows_what_nbclient_shows(texts):
    assert shown(*map(stream, texts)) == [("stdout", _RGX_CARRIAGERETURN.sub("", "".join(texts)))]


def test_streams_are_joined_in_the_place_of_their_first_part():
    picture = v4.new_output("display_data", data={"image/png": "A"})
    outputs = [stream("a\n", "stderr"), stream("1"), picture, stream("b", "stderr"), stream("2\n")]
    assert shown(*outputs) == [("stdout", "12\n"), ("stderr", "a\nb"), ("", "")]
    assert shown(stream("a", "stderr"), picture, stream("1")) == [("stderr", "a"), ("", ""), ("stdout", "1")]
    assert shown() == []


def test_a_line_over_the_limit_is_cut_and_says_so():
    longest = jupyter_kernel.LONGEST
    ((_, text),) = shown(stream("x" * longest + "\n" + "y" * longest), stream("y" * 1234 + "\nshort"))
    first, second, third = text.split("\n")
    assert first == "x" * longest
    assert second == "y" * longest + f" [... cut: 1,234 of {longest + 1234:,} characters of this line]"
    assert third == "short"


@pytest.mark.parametrize("letters", ["x", "\r", "x\r", "/", "/ipykernel_1"])
def test_a_long_line_takes_no_time(letters):
    start = time.process_time()
    tidy_streams([stream(letters * 200_000)])
    without_paths(letters * 100_000, {"/home/me/x": "x"})
    assert time.process_time() - start < 1


def test_a_notebook_that_prints_a_long_line_ends_soon_after(tmp_path):
    cells = [v4.new_code_cell("n = 200_000", metadata={"tags": ["parameters"]}), v4.new_code_cell('print("x" * n)')]
    (tmp_path / "notebooks").mkdir()
    write(v4.new_notebook(cells=cells), tmp_path / "notebooks" / "01_long.ipynb")
    start = time.process_time()
    run = run_notebook("01", notebooks=tmp_path / "notebooks")
    assert time.process_time() - start < 10
    assert "cut: 190,000 of 200,000 characters" in (run.folder / "executed.ipynb").read_text()
