"""Two executions of a notebook, compared."""

import base64
import copy
import struct

import pytest

from redlab.lab.refresh import changed_cells


def png(width: int, height: int, content: bytes = b"") -> str:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)
    return base64.b64encode(head + content).decode()


def cell(source: str, *outputs: dict, tags: tuple[str, ...] = ()) -> dict:
    return {"cell_type": "code", "source": source, "metadata": {"tags": list(tags)}, "outputs": list(outputs)}


def picture(*size: int, content: bytes = b"") -> dict:
    return {"output_type": "display_data", "data": {"image/png": png(*size, content), "text/plain": "<Figure>"}}


TEXT = {"output_type": "stream", "name": "stdout", "text": "1\n"}


@pytest.fixture
def book() -> dict:
    prose = {"cell_type": "markdown", "source": "# Title", "metadata": {}}
    return {"cells": [prose, cell("a = 1", TEXT), cell("train()", picture(640, 480), TEXT, tags=("unstable",))]}


def test_equal_outputs_are_no_difference(book):
    assert changed_cells(book, copy.deepcopy(book)) == []


def test_another_text_of_a_stable_cell_is_named_with_its_first_line(book):
    other = copy.deepcopy(book)
    other["cells"][1]["outputs"][0]["text"] = "2\n"
    assert changed_cells(book, other) == ["cell 1 (a = 1): other outputs"]


def test_an_unstable_cell_may_show_other_pixels_and_numbers_but_no_other_shape(book):
    other = copy.deepcopy(book)
    other["cells"][2]["outputs"] = [picture(640, 480, content=b"other"), {**TEXT, "text": "3\n"}]
    assert changed_cells(book, other) == []
    other["cells"][2]["outputs"][0] = picture(640, 481)
    assert changed_cells(book, other) == ["cell 2 (train()): outputs of another shape"]
    del other["cells"][2]["outputs"][0]
    assert changed_cells(book, other) == ["cell 2 (train()): outputs of another shape"]


def test_other_sources_and_cells_that_came_or_went_are_named(book):
    other = copy.deepcopy(book)
    other["cells"][1]["source"] = "a = 2"
    other["cells"].append(cell("b = 1"))
    assert changed_cells(book, other) == ["cell 1 (a = 2): another source", "2 code cells are 3 now"]
