"""Link ``code`` that is a public name to its entry in the reference."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

_NAME = re.compile(r"(?:rl\.|redlab\.)?(?:plots\.)?(?P<name>[A-Za-z_]\w*)(?:\(.*\))?", re.DOTALL)


def _link(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    objects = {name.split(".")[-1]: found for name, found in app.env.domains.python_domain.objects.items()}
    for node in list(doctree.findall(nodes.literal)):
        found = _NAME.fullmatch(node.astext())
        target = found and objects.get(found["name"])
        if not target or target.docname == docname or _inside(node, (nodes.reference, nodes.title)):
            continue
        link = make_refnode(app.builder, docname, target.docname, target.node_id, node.deepcopy())
        node.parent.replace(node, link)


def _inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    while node := node.parent:
        if isinstance(node, kinds):
            return True
    return False


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
