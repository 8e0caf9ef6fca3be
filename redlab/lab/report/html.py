"""A notebook as a chapter of the report, and other markdown as its sections: HTML that asks the network for nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

from redlab.lab.report.mathml import drop_math, hide_math, show_math
from redlab.lab.report.outputs import SHOWN, drop_scripts, say_left_out, say_missing
from redlab.paths import PACKAGE

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from nbconvert import HTMLExporter
    from nbformat import NotebookNode

_NO_WORDS = "No description has been provided for this image"  # nbconvert's
_LONG = 30  # rows of a table that is not folded away
_FORMULAS = ("text/markdown", "text/latex")  # outputs that hold some


@dataclass(frozen=True)
class Chapter:
    """A part of the report.

    Attributes:
        anchor: the id of its section in the page.
        title: HTML, as everything here.
        body: what stands below the title.
        sections: (id, title) of each heading below its own.
    """

    anchor: str
    title: str
    body: str
    sections: list[tuple[str, str]] = field(default_factory=list)

    def html(self) -> str:
        """The whole ``<section>``."""
        return f'<section id="{self.anchor}">\n<h2>{self.title}</h2>\n{self.body}\n</section>'


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
    from nbconvert.filters.markdown import markdown2html

    formulas: list[str] = []
    return _chapter(markdown2html(hide_math(markdown, formulas)), formulas, anchor, known)


@cache
def _exporter() -> HTMLExporter:
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    # It warns of pictures without words, which get theirs after it.
    logging.getLogger("redlab.report").setLevel(logging.ERROR)
    return HTMLExporter(
        log=logging.getLogger("redlab.report"),
        config=Config({"NbConvertBase": {"display_data_priority": list(SHOWN)}}),
        template_name="basic",
        raw_template=(PACKAGE / "lab" / "report" / "report_cells.html.j2").read_text(encoding="utf-8"),
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        embed_images=True,
    )


def _chapter(html: str, formulas: list[str], anchor: str, known: Collection[str]) -> Chapter:
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    _disarm(soup)
    _link(soup, known)
    first = soup.find("h1")
    _describe(soup, first.get_text() if first else anchor)
    title = first.extract().decode_contents() if first else escape(anchor)
    sections = _number_headings(soup, anchor)
    _frame_tables(soup)
    done = [(id_, show_math(text, formulas)) for id_, text in sections]
    return Chapter(anchor, show_math(title, formulas), show_math(str(soup), formulas), done)


def _disarm(soup: BeautifulSoup) -> None:
    """Take out whatever runs, or styles or names more than its own place in the page; pictures from afar are linked."""
    drop_scripts(soup)
    say_missing(soup)
    for tag in soup.find_all("a", class_="anchor-link"):
        tag.decompose()
    for tag in soup.find_all(True):
        for name in [n for n in tag.attrs if n.startswith("on") or n in ("id", "border", "srcset", "name")]:
            del tag[name]
    for image in soup.find_all("img"):
        source = str(image.get("src", ""))
        if not source.startswith("data:"):
            image.replace_with(_new(soup, "a", str(image.get("alt") or source), href=source))


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
    """Headings one level lower, below the page's own, with an id each; those of the first level are returned."""
    sections = []
    for number, heading in enumerate(soup.find_all(re.compile(r"^h[1-6]$")), 1):
        top = heading.name in ("h1", "h2")
        heading.name = f"h{min(6, max(3, int(heading.name[1]) + 1))}"
        heading["id"] = place = f"{anchor}.{number}"
        if top:
            sections.append((place, heading.decode_contents()))
    return sections


def _describe(soup: BeautifulSoup, title: str) -> None:
    """Every picture that has no words of its own is said to be one of its section."""
    for image in soup.find_all("img"):
        if not image.get("alt") or image["alt"] == _NO_WORDS:
            heading = image.find_previous(re.compile(r"^h[2-6]$"))
            image["alt"] = f"Figure of {heading.get_text()}, {title}" if heading else f"Figure of {title}"
        image["alt"] = drop_math(str(image["alt"]))


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
