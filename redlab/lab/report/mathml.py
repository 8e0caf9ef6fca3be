"""Formulas in markdown as MathML, which browsers show without a script.

A formula is taken out before markdown is converted, which would take its underscores for emphasis, and put in after.
"""

from __future__ import annotations

import re
from html import escape, unescape
from xml.etree.ElementTree import tostring

# Code and the addresses of links come first: dollars in them are dollars. After Pandoc, $5 and $6 are no formula: no
# space inside, no digit behind.
_FORMULA = re.compile(
    r"(?P<code>(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`))|(?P<escaped>\\\$)|(?P<address>\]\([^\s)]+)"
    r"|\$\$(?P<block>(?:(?!\$\$).)+?)\$\$"
    r"|(?P<bare>\\begin\{(?P<name>[a-z]+\*?)\}.+?\\end\{(?P=name)\})"
    r"|\$(?=\S)(?P<inline>(?:(?!\n\s*\n)(?:\\.|[^$\\]))+?)(?<=\S)\$(?!\d)",
    re.DOTALL,
)
# What the converter would set in one line, though it is several, and what it would show as a word.
_ROWS = re.compile(
    r"\\(begin|end)\{(?:align|aligned|(?:fl|x)align\*?|gather\*?|gathered|multline\*?|eqnarray\*?)\}"
    r"|\\(begin)\{alignat\*?\}\{\d+\}|\\(end)\{alignat\*?\}"
)
_LABEL = re.compile(r"\\label\{[^{}]*\}")
_TOKEN = re.compile(r"xformula(\d+)x")


def hide_math(markdown: str, formulas: list[str]) -> str:
    """``markdown`` with a token of letters and digits for each formula, whose MathML is appended to ``formulas``."""

    def hide(match: re.Match) -> str:
        tex = match["block"] or match["bare"] or match["inline"]
        if tex is None:
            return match[0]
        formulas.append(to_mathml(tex, block=match["inline"] is None))
        return f"xformula{len(formulas) - 1}x"

    return _FORMULA.sub(hide, markdown)


def show_math(html: str, formulas: list[str]) -> str:
    """``html`` with the formulas where ``hide_math`` left their tokens."""
    return _TOKEN.sub(lambda match: formulas[int(match[1])] if int(match[1]) < len(formulas) else match[0], html)


def drop_math(text: str) -> str:
    """``text`` without tokens, for places where no element can stand."""
    return " ".join(_TOKEN.sub("", text).split())


def to_mathml(tex: str, block: bool = False) -> str:
    """TeX as a ``<math>`` element; as code, just as it was typed, where it can't be read."""
    try:
        rows = _ROWS.sub(lambda match: f"\\{next(filter(None, match.groups()))}{{align*}}", _LABEL.sub("", tex))
        element = _element(rows, "block" if block else "inline")
    except Exception:  # the converter's errors have no common class, and a report is worth more than one formula
        return f"<code>{escape(tex)}</code>"
    # log n, not logn: the space that TeX leaves after the name of a function.
    return re.sub(r"(<mi>[a-z]{2,}</mi>)(?=<m[in]>)", r'\1<mspace width="0.17em"/>', element)


def _element(tex: str, display: str) -> str:
    from latex2mathml.converter import convert_to_element

    math = convert_to_element(tex, display=display)
    for part in math.iter():
        # Signs are written as &#x02211; there, words as they were typed: <b> in \text is text. No link stays.
        part.text = part.text and unescape(part.text)
        part.attrib.pop("href", None)
    return tostring(math, encoding="unicode")
