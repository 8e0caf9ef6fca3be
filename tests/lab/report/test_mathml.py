"""Formulas in markdown: found where they are, left alone where they are none."""

from xml.etree import ElementTree

import pytest

from redlab.lab.report.mathml import drop_math, hide_math, show_math, to_mathml


@pytest.mark.parametrize(
    "text", ["`$HOME` and `$x$`", "```\n$x$ $$y$$\n```", r"\$x\$", "costs $5 and $6", "a $ b $ c", "[a](https://b/$c$)"]
)
def test_dollars_of_code_and_money_stay(text):
    formulas = []
    assert hide_math(text, formulas) == text
    assert formulas == []


def test_formulas_come_back_where_they_were():
    formulas = []
    hidden = hide_math("of $a_1$, $b_1$ and\n$$\\sum_i\nx_i$$", formulas)
    assert "$" not in hidden
    assert "_" not in hidden  # which markdown would take for emphasis
    shown = show_math(hidden, formulas)
    assert shown.count("<math") == 3
    assert shown.count('display="block"') == 1
    assert shown.startswith("of <math")
    assert drop_math(hidden) == "of , and"
    assert show_math("xformula9x", formulas) == "xformula9x"


def test_what_cannot_be_read_is_shown_as_typed():
    assert to_mathml(r"\left(a<b") == r"<code>\left(a&lt;b</code>"


def test_a_function_keeps_its_distance():
    assert '<mi>log</mi><mspace width="0.17em"/><mi>n</mi>' in to_mathml(r"\log n")
    assert "mspace" not in to_mathml("h(n)")


def test_what_stands_in_a_formula_is_text_and_no_markup():
    for tex in (r"\text{<img src=x onerror=y> & more}", "a < b > c", r"\text{</math><b>}", r"\sum_i x_i"):
        for part in ElementTree.fromstring(to_mathml(tex)).iter():
            assert part.tag.startswith("{http://www.w3.org/1998/Math/MathML}m")
    assert "<mtext>a &lt; b</mtext>" in to_mathml(r"\text{a < b}").replace("\N{NO-BREAK SPACE}", " ")
    assert "javascript" not in to_mathml(r"\href{javascript:run()}{x}")


@pytest.mark.parametrize(
    "name", ["align", "align*", "aligned", "gather", "eqnarray", "multline*", "flalign", "cases", "pmatrix", "split"]
)
@pytest.mark.parametrize("around", ["", "$$"])
def test_lines_of_a_formula_stay_lines_with_dollars_and_bare(name, around):
    formulas = []
    tex = rf"\begin{{{name}}} a &= b \label{{eq:1}} \\ c &= d_1 \end{{{name}}}"
    assert hide_math(f"so\n\n{around}{tex}{around}\n\n`{tex}`", formulas) == f"so\n\nxformula0x\n\n`{tex}`"
    (math,) = formulas
    rows = [part for part in ElementTree.fromstring(math).iter() if part.tag.endswith("mtr")]
    assert len(rows) == 2
    assert "".join(ElementTree.fromstring(math).itertext()).replace("(", "").replace(")", "") in ("a=bc=d1", "{a=bc=d1")
    assert 'display="block"' in math


def test_an_equation_and_numbered_columns_are_formulas_too():
    assert "<mi>a</mi><mo>=</mo><mi>b</mi>" in to_mathml(r"\begin{equation} a = b \end{equation}")
    math = ElementTree.fromstring(to_mathml(r"\begin{alignat}{2} a &= b \\ c &= d \end{alignat}"))
    assert "".join(math.itertext()) == "a=bc=d"
