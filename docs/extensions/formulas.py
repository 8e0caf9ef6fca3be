"""Formulas as MathML, which browsers draw without a script."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

# log n, not logn: the space that TeX leaves after the name of a function.
_FUNCTION = re.compile(r"(<mi>(?:log|exp|ln|sin|cos|max|min)</mi>)(?=<m(?:i|n|row|frac|sub)\b)")


def _mathml(tex: str, display: str) -> str:
    return _FUNCTION.sub(r'\1<mspace width="0.17em"/>', convert(tex, display=display))


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def _alone(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """A formula that cannot be converted is an error that names its page."""
    for node in doctree.findall(lambda n: isinstance(n, nodes.math | nodes.math_block)):
        try:
            convert(node.astext())
        except Exception as error:  # the converter's errors have no common class
            raise ValueError(f"{docname}: no MathML for {escape(node.astext())!r}: {error}") from error


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    app.connect("doctree-resolved", _alone)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
