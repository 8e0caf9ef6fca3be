"""What of a notebook a page without scripts can't show: it is said in words, in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from nbformat import NotebookNode, v4

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

# What a page can show without a script, the best first.
SHOWN = ("image/svg+xml", "image/png", "text/html", "text/markdown", "image/jpeg", "text/latex", "text/plain")
_DROPPED = ("script", "style", "link", "base", "meta")  # which show nothing themselves
_PLAYED = ("iframe", "object", "embed", "video", "audio", "canvas")
_SEEN = ("img", "svg", "table", "hr", "progress", "meter")
_EMPTY = "data:image/png;base64,"


def say_left_out(notebook: NotebookNode) -> None:
    """Put a note before each output of which nothing, or the text alone, can be shown. Cells are changed in place."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [part for output in cell.outputs for part in _with_note(output)]
        elif "attachments" in cell or "attachment:" in cell.source:
            cell.attachments = _Attachments(_pictures(cell.get("attachments")))


def _with_note(output: NotebookNode) -> Iterator[NotebookNode]:
    data = output.get("data", {})
    seen = {kind for kind in SHOWN if kind in data and (kind != "text/html" or _shows("".join(data[kind])))}
    left = [kind for kind in data if kind not in seen]
    if not left or seen - {"text/plain"}:
        yield output
        return
    yield v4.new_output(
        "display_data", data={"text/plain": f"[left out, for this page can't show it: {', '.join(left)}]"}
    )
    output.data = {kind: data[kind] for kind in data if kind in seen}
    if seen:
        yield output


def _shows(html: str) -> bool:
    """Whether anything is seen of it without its scripts."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    drop_scripts(soup)
    return bool(soup.get_text().strip() or soup.find(_SEEN))


def drop_scripts(soup: BeautifulSoup) -> None:
    """Take out what runs or loads; of what would have been seen a word stays."""
    for tag in soup.find_all(_DROPPED):
        tag.decompose()
    for tag in soup.find_all(_PLAYED):
        if not tag.decomposed:  # it was inside another one
            tag.replace_with(f"[left out: {tag.name}]")


class _Attachments(NotebookNode):
    """The pictures that a markdown cell holds; one that it lacks is an empty one, instead of the end of the report."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):  # which Python itself looks for, and nodes look for here
            raise KeyError(name)
        return self.get(unquote(name)) or {"image/png": ""}


def _pictures(attachments: Any) -> dict[str, Any]:
    known = attachments if isinstance(attachments, dict) else {}
    return {name: own for name, own in known.items() if isinstance(own, dict) and own}


def say_missing(soup: BeautifulSoup) -> None:
    """Words for the pictures that the notebook lacks."""
    for image in soup.find_all("img", src=_EMPTY):
        about = str(image.get("alt", "")).strip()
        image.replace_with(f"[a picture is missing from the notebook{': ' if about else ''}{about}]")
