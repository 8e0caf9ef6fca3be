"""A notebook as a chapter of the report, and other markdown as its sections: HTML that fetches and runs nothing.

What a notebook holds is cleaned by the sanitiser that nbconvert uses (bleach): only tags and attributes of a list
stay. What a page without scripts can't show is said in words, in its place.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any
from urllib.parse import unquote

import bleach
from bleach.css_sanitizer import CSSSanitizer
from bs4 import BeautifulSoup, Tag
from nbconvert import HTMLExporter
from nbconvert.filters.markdown import markdown2html
from nbformat import NotebookNode, v4
from traitlets.config import Config

from redlab.lab.report.mathml import drop_math, hide_math, show_math
from redlab.paths import PACKAGE

# What a page can show without a script, the best first.
_SHOWN = ("image/svg+xml", "image/png", "text/html", "text/markdown", "image/jpeg", "text/latex", "text/plain")
_FORMULAS = ("text/markdown", "text/latex")  # outputs that may hold some
_DROPPED = ("script", "style", "link", "base", "meta")  # which show nothing themselves
_PLAYED = ("iframe", "object", "embed", "video", "audio", "canvas", "svg")
_SEEN = ("img", "table", "hr", "progress", "meter")
_TAGS = """
    a abbr b blockquote br caption cite code col colgroup dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins kbd
    li mark meter ol p pre progress q s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul
"""
_ATTRIBUTES = {
    "*": ["class", "style", "title"],
    "a": ["href"],
    "img": ["src", "alt", "width", "height"],
    "ol": ["start"],
}
_ATTRIBUTES |= {tag: ["colspan", "rowspan", "scope"] for tag in ("td", "th")} | {"details": ["open"]}
_ATTRIBUTES |= {tag: ["value", "max", "min"] for tag in ("progress", "meter")}
_NO_WORDS = "No description has been provided for this image"  # nbconvert's
_EMPTY = "data:image/png;base64,"
_LONG = 30  # rows of a table that is not folded away


@dataclass(frozen=True)
class Chapter:
    """A part of the report.

    Attributes:
        anchor: the id of its section in the page.
        title, body: HTML.
        sections: (id, title) of each heading below its own.
        failure: of a notebook that failed: ``message``, ``cell`` and ``command``.
        made: of one that did not: ``command``, ``day`` and ``seconds``.
        frames: the frames that its runs recorded (``tables.whole_frame``).
    """

    anchor: str
    title: str
    body: str
    sections: list[tuple[str, str]] = field(default_factory=list)
    failure: dict[str, str] | None = None
    made: dict[str, Any] | None = None
    frames: list[dict[str, Any]] = field(default_factory=list)


def notebook_chapter(notebook: NotebookNode, name: str, known: Collection[str] = ()) -> Chapter:
    """An executed notebook; its cells are changed in place.

    Arguments:
        name: the notebook's, which is the chapter's anchor.
        known: the notebooks that have a chapter: links to their files become links to it.
    """
    formulas: list[str] = []
    say_left_out(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = hide_math(cell.source, formulas)
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            data |= {kind: hide_math("".join(data[kind]), formulas) for kind in _FORMULAS if kind in data}
    html, _ = _exporter().from_notebook_node(notebook)
    return _chapter(html, formulas, name, known)


def markdown_chapter(markdown: str, anchor: str, known: Collection[str] = ()) -> Chapter:
    """A markdown text, whose first heading is the title."""
    formulas: list[str] = []
    return _chapter(clean(markdown2html(hide_math(markdown, formulas))), formulas, anchor, known)


def clean(html: str) -> str:
    """``html`` without what runs, loads or styles the page; what would have been seen of it is named."""
    soup = BeautifulSoup(html, "html.parser")
    for tag in (*soup.find_all(_DROPPED), *soup.find_all("a", class_="anchor-link")):
        tag.decompose()
    for tag in soup.find_all(_PLAYED):
        if not tag.decomposed:  # it was inside another one
            tag.replace_with(f"[left out: {tag.name}]")
    protocols = {*bleach.ALLOWED_PROTOCOLS, "data"}  # the images of the notebook
    return bleach.clean(
        str(soup), set(_TAGS.split()), _ATTRIBUTES, protocols=protocols, strip=True, css_sanitizer=CSSSanitizer()
    )


def say_left_out(notebook: NotebookNode) -> None:
    """Put a note before each output of which nothing, or the text alone, can be shown. Cells are changed in place."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [part for output in cell.outputs for part in _with_note(output)]
        elif "attachments" in cell or "attachment:" in cell.source:
            cell.attachments = _Attachments(_attached(cell.get("attachments")))


def _with_note(output: NotebookNode) -> Iterator[NotebookNode]:
    data = output.get("data", {})
    seen = {kind for kind in _SHOWN if kind in data and (kind != "text/html" or _shows("".join(data[kind])))}
    left = [kind for kind in data if kind not in seen]
    if left and not seen - {"text/plain"}:
        note = f"[left out, for this page can't show it: {', '.join(left)}]"
        yield v4.new_output("display_data", data={"text/plain": note})
        output.data = {kind: data[kind] for kind in data if kind in seen}
    if seen or not data:
        yield output


def _shows(html: str) -> bool:
    """Whether anything is seen of it without its scripts."""
    soup = BeautifulSoup(clean(html), "html.parser")
    return bool(soup.get_text().strip() or soup.find(_SEEN))


class _Attachments(NotebookNode):
    """The images that a markdown cell holds; one that it lacks is an empty one, where nbconvert would raise."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):  # which Python itself looks for, and nodes look for here
            raise KeyError(name)
        return self.get(unquote(name)) or {"image/png": ""}


def _attached(attachments: Any) -> dict[str, Any]:
    known = attachments if isinstance(attachments, dict) else {}
    return {name: own for name, own in known.items() if isinstance(own, dict) and own}


@cache
def _exporter() -> HTMLExporter:
    # It warns of images without words, which get theirs after it.
    logging.getLogger("redlab.report").setLevel(logging.ERROR)
    exporter = HTMLExporter(
        log=logging.getLogger("redlab.report"),
        config=Config({"NbConvertBase": {"display_data_priority": list(_SHOWN)}}),
        template_name="basic",
        raw_template=(PACKAGE / "lab" / "report" / "cells.html.j2").read_text(encoding="utf-8"),
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        embed_images=True,
    )
    exporter.register_filter("clean_html", clean)  # nbconvert's own list has no headings, images and paragraphs
    return exporter


def _chapter(html: str, formulas: list[str], anchor: str, known: Collection[str]) -> Chapter:
    soup = BeautifulSoup(html, "html.parser")
    _replace_images(soup)
    _link(soup, known)
    first = soup.find("h1")
    _describe(soup, first.get_text() if first else anchor)
    title = first.extract().decode_contents() if first else escape(anchor)
    sections = _number_headings(soup, anchor)
    _frame_tables(soup)
    done = [(id_, show_math(text, formulas)) for id_, text in sections]
    return Chapter(anchor, show_math(title, formulas), show_math(break_headings(str(soup)), formulas), done)


def _replace_images(soup: BeautifulSoup) -> None:
    """Images from elsewhere become links; an image that the notebook lacks becomes a note."""
    for image in soup.find_all("img"):
        source, about = str(image.get("src", "")), str(image.get("alt") or "").strip()
        if source == _EMPTY:
            image.replace_with(f"[an image is missing from the notebook{': ' if about else ''}{about}]")
        elif not source.startswith("data:"):
            image.replace_with(_new(soup, "a", about or source, href=source))


def _link(soup: BeautifulSoup, known: Collection[str]) -> None:
    """Links lead to chapters of this page or to the web; of all others only the words stay."""
    for link in soup.find_all("a"):
        target = str(link.get("href", ""))
        notebook = re.fullmatch(r"(?:\./)?([\w.-]+)\.ipynb(?:#.*)?", target)
        if notebook and notebook[1] in known:
            link["href"] = f"#{notebook[1]}"
        elif not re.match(r"https?://|mailto:", target):
            link.unwrap()


def _number_headings(soup: BeautifulSoup, anchor: str) -> list[tuple[str, str]]:
    """Move headings one level down, below the page's own, and number them; returns those of the first level."""
    sections = []
    for number, heading in enumerate(soup.find_all(re.compile(r"^h[1-6]$")), 1):
        top = heading.name in ("h1", "h2")
        heading.name = f"h{min(6, max(3, int(heading.name[1]) + 1))}"
        heading["id"] = place = f"{anchor}.{number}"
        if top:
            sections.append((place, heading.decode_contents()))
    return sections


def _describe(soup: BeautifulSoup, title: str) -> None:
    """Give every image without words some: that it is a figure of its section."""
    for image in soup.find_all("img"):
        if not image.get("alt") or image["alt"] == _NO_WORDS:
            heading = image.find_previous(re.compile(r"^h[2-6]$"))
            image["alt"] = f"Figure of {heading.get_text()}, {title}" if heading else f"Figure of {title}"
        image["alt"] = drop_math(str(image["alt"]))


def break_headings(html: str) -> str:
    """``html`` whose column names may break behind an underscore: ``products_before`` in two lines."""
    return re.sub(r"<th>[^<]*</th>", lambda heading: heading[0].replace("_", "_<wbr>"), html)


def _frame_tables(soup: BeautifulSoup) -> None:
    """A wide table scrolls by itself, not with the page; a long one is folded away."""
    for table in soup.find_all("table"):
        framed = table.wrap(_new(soup, "div", **{"class": "table", "tabindex": "0"}))
        if (rows := len(table.find_all("tr")) - 1) > _LONG:
            framed.wrap(soup.new_tag("details")).insert(0, _new(soup, "summary", f"{rows} rows"))


def _new(soup: BeautifulSoup, name: str, text: str | None = None, **attributes: Any) -> Tag:
    tag = soup.new_tag(name, attrs=attributes)
    if text:
        tag.string = text
    return tag
