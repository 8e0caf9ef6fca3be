"""Text in the figures that are committed can be read in print: no letter is smaller than 9 points.

Their PDFs are taken apart: a letter is as large as its font operator says, times what the matrices around it do.
"""

import re
import zlib
from math import hypot

import pytest
from matplotlib.figure import Figure

from redlab.paths import checkout
from redlab.studies.plots.save import save_figure

PDFS = sorted((checkout() / "figures").glob("*.pdf"))
STRING = re.compile(rb"\((?:\\.|[^\\()])*\)|<[0-9A-Fa-f\s]*>", re.S)  # matplotlib escapes brackets in strings
SHOWS = ("Tj", "TJ", "'", '"')


def words_of(pdf):
    """What the page draws, word by word, each string as ``()``: what is written may look like an operator."""
    number = re.search(rb"/Contents (\d+) 0 R", pdf)[1]
    stream = re.search(rb"\n%s 0 obj\n.*?>>\s*stream\r?\n(.*?)\r?\nendstream" % number, pdf, re.S)[1]
    return STRING.sub(b"()", zlib.decompress(stream)).decode("latin-1").split()


def stretch(matrix, outer):
    """The linear part of one matrix times that of the matrices around it; shifts change no size."""
    (a, b, c, d), (e, f, g, h) = matrix, outer
    return (a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h)


def text_sizes(words):
    """The height in points of the font of every piece of text on a page."""
    sizes, size, stack = [], 0.0, []
    matrix = text = whole = (1.0, 0.0, 0.0, 1.0)
    for place, word in enumerate(words):
        if word == "q":
            stack.append((matrix, size))
        elif word == "Q":
            matrix, size = stack.pop()
        elif word == "cm":
            matrix = stretch(map(float, words[place - 6 : place - 2]), matrix)
        elif word == "BT":
            text = whole
        elif word == "Tm":
            text = tuple(map(float, words[place - 6 : place - 2]))
        elif word == "Tf":
            size = float(words[place - 1])
        elif word in SHOWS:
            sizes.append(size * hypot(*stretch(text, matrix)[2:]))
    return sizes


@pytest.mark.parametrize("path", PDFS, ids=lambda path: path.stem)
def test_no_text_of_a_committed_figure_is_smaller_than_nine_points(path):
    words = words_of(path.read_bytes())
    assert min(text_sizes(words)) > 8.99
    # Images, markers and paths alone are drawn by name: a letter that were would have no font operator.
    objects = {words[place - 1] for place, word in enumerate(words) if word == "Do"}
    assert all(re.fullmatch(r"/[IMP]\d+", name) for name in objects)


def test_sizes_are_those_that_were_asked_for(tmp_path):
    figure = Figure()
    figure.text(0.1, 0.1, "plain (Tf) 1 0 0 1", fontsize=11)
    figure.text(0.5, 0.5, "turned", fontsize=20, rotation=30)
    figure.text(0.1, 0.8, "$10^2$", fontsize=30)
    save_figure(figure, "sizes", tmp_path)
    found = text_sizes(words_of((tmp_path / "sizes.pdf").read_bytes()))
    assert {round(size, 3) for size in found} == {11, 20, 30, 21}


def test_matrices_around_text_count():
    page = "q 0.5 0 0 0.5 7 7 cm q 2 0 0 2 0 0 cm Q BT /F1 9 Tf 0 2 -2 0 0 0 Tm () Tj ET BT [ () 3 () ] TJ ET Q"
    assert text_sizes(page.split()) == [9, 4.5]
