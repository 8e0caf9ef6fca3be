"""Cells of numbers that break between an accuracy, its interval and what is left, and nowhere else."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_TOGETHER = re.compile(r"\[[\d., ]+\]|\([\d./ ]+%?\)|\d+\.\d+ ± \d+\.\d+|\d+(?:\.\d+)? %")


def _keep(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for table in doctree.findall(nodes.table):
        for text in list(table.findall(nodes.Text)):
            kept = _TOGETHER.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
            if kept != text:
                text.parent.replace(text, nodes.Text(kept))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", _keep)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
