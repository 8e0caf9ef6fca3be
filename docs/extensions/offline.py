"""The finished site: an index.html in front, and nothing in it that a browser would fetch from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

# What a browser fetches by itself: scripts, pictures, styles, fonts.
FETCHED = re.compile(
    r"""(?:<(?:script|img|iframe|link|source)\b[^>]*?\b(?:src|href)=|@import\s+|url\()["']?((?:https?:)?//[^"'\s>)]+)"""
)
FRONT = """<!doctype html>
<meta charset="utf-8"><title>redlab</title>
<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">redlab</a>
"""


def fetched(folder: Path) -> list[tuple[str, str]]:
    """(file, address) of whatever a page or style of ``folder`` would load from elsewhere."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in {".html", ".css"}]
    return [
        (str(path.relative_to(folder)), address)
        for path in files
        for address in FETCHED.findall(path.read_text(encoding="utf-8"))
    ]


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.name != "html":
        return
    (app.outdir / "index.html").write_text(FRONT, encoding="utf-8")
    if found := fetched(Path(app.outdir)):
        raise SphinxError(f"pages would load from elsewhere: {found[:5]}")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
