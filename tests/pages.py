"""A page of HTML taken apart by the standard library's parser, which none of the code under test uses."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "br", "hr", "input", "col", "wbr", "base", "source"}
_FETCHED = {"src", "srcset", "poster", "data", "background", "xlink:href", "action", "formaction", "ping"}
_VERBATIM = {"code", "pre", "style", "script", "title"}


class Page(HTMLParser):
    """What tests ask of a page.

    Attributes:
        tags: (name, attributes) of every element, in order.
        fetched: what a browser would fetch to show it, data: URIs apart.
        text: its text outside of code.
        open: the elements that were left open, or closed without being open: [] for well-formed HTML.
    """

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.fetched: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.broken: list[str] = []
        self.feed(html)
        self.close()
        self.fetched += re.findall(r"@import[^;]*|url\([^)]*\)", "".join(self.styles(html)))

    @staticmethod
    def styles(html: str) -> list[str]:
        return re.findall(r"<style>(.*?)</style>", html, re.DOTALL) + re.findall(r' style="([^"]*)"', html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.tags.append((tag, own))
        names = _FETCHED | ({"href"} if tag in ("link", "base", "image", "use") else set())
        self.fetched += [own[name] for name in names & set(own) if not own[name].startswith("data:")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag not in _VOID:
            self.broken.append(tag)

    def handle_data(self, data: str) -> None:
        if not _VERBATIM & set(self.open):
            self.text += data

    def all(self, tag: str, name: str) -> list[str]:
        """Attribute ``name`` of each element ``tag`` that has it."""
        return [own[name] for found, own in self.tags if found == tag and name in own]

    @property
    def ids(self) -> list[str]:
        return [own["id"] for _, own in self.tags if "id" in own]
