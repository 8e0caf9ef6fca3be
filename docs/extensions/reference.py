"""Pages of the public names, a page a room, written into docs/reference/ from their docstrings.

Docstrings are Markdown with Google's sections, so that they are turned into Markdown here and not read as
reStructuredText.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import redlab

FOLDER = Path(__file__).resolve().parent.parent / "reference"
SECTION = re.compile(r"^([A-Z][A-Za-z, ]+):[ ]*(.*)$")
LISTS = {"Arguments", "Args", "Attributes", "Raises", "Defaults", "Columns"}
ITEM = re.compile(r"^(\*{0,2}[\w.][\w., *]*?)(?: \([^)]*\))?: (.*)$", re.DOTALL)


def pages() -> dict[str, str]:
    """{name of the page: its Markdown}: one a room, and an index."""
    rooms: dict[str, dict[str, Any]] = defaultdict(dict)
    for path, thing in public().items():
        rooms[room_of(thing)][path] = thing
    return {room: _page(room, rooms[room]) for room in sorted(rooms)} | {"index": _index(rooms)}


def public() -> dict[str, Any]:
    """{where one takes it from: the object}: the public names of redlab, and those of rarer use in their rooms."""
    found = {f"redlab.{name}": getattr(redlab, name) for name in redlab.__all__}
    for name, home in getattr(redlab, "_ELSEWHERE", {}).items():
        found[f"redlab.{home}.{name}"] = getattr(import_module(f"redlab.{home}"), name)
    plots = [name for name in redlab.plots.__all__ if name not in redlab.__all__]
    return found | {f"redlab.plots.{name}": getattr(redlab.plots, name) for name in plots}


def room_of(thing: Any) -> str:
    """The first package inside redlab that an object lives in; "redlab" for what lies in none."""
    rooms = {found.name for found in pkgutil.iter_modules(redlab.__path__) if found.ispkg}
    parts = thing.__module__.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in rooms else "redlab"


def _lead(room: str) -> str:
    module = redlab if room == "redlab" else import_module(f"redlab.{room}")
    return _markdown(inspect.getdoc(module) or "")


def _index(rooms: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Reference",
        "",
        "The public names, by the room of the package that holds them. `import redlab as rl` serves most of them, "
        "`rl.hash_network`, and the figures as `rl.plots`; the others are imported from the file that their entry "
        "names. [Layout](../layout.md) shows the rooms.",
    ]
    for room in sorted(rooms):
        names = sorted((path.split(".")[-1] for path in rooms[room]), key=str.lower)
        lead = _lead(room).split("\n\n")[0].replace("\n", " ")
        lines += ["", f"**[{room}]({room}.md)**: {lead}", "", ", ".join(f"`{name}`" for name in names)]
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *sorted(rooms), "```", ""])


def _page(room: str, things: dict[str, Any]) -> str:
    first = sorted((path for path in things if path.count(".") == 1), key=str.lower)
    others = sorted(things.keys() - set(first), key=lambda path: path.split(".")[-1].lower())
    parts = [f"# {room}", _lead(room), *(_entry(path, things[path]) for path in first)]
    if others:
        parts += ["## Imported from their file", *(_entry(path, things[path]) for path in others)]
    return "\n\n".join(parts) + "\n"


def _entry(path: str, thing: Any) -> str:
    kind = "class" if inspect.isclass(thing) else "function"
    body = _markdown(inspect.getdoc(thing) or "")
    if kind == "class":
        body += "".join(_member(each, value) for each, value in vars(thing).items() if not each.startswith("_"))
    return f"`````{{py:{kind}}} {path}{_signature(thing)}\n\n{body}\n`````"


def _member(name: str, value: Any) -> str:
    """A method or property of a class, where it says what it does."""
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if not inspect.isfunction(function) or not inspect.getdoc(function):
        return ""
    kind, signature = ("property", "") if isinstance(value, property) else ("method", _signature(function))
    text = _markdown(inspect.getdoc(function) or "")
    return f"\n\n````{{py:{kind}}} {name}{signature}\n\n{text}\n````"


def _signature(thing: Any) -> str:
    """The arguments with their defaults; their types stand in the text, in words and with shapes."""
    try:
        found = inspect.signature(thing)
    except ValueError:
        return "()"
    kept = [each.replace(annotation=each.empty) for each in found.parameters.values() if each.name != "self"]
    shown = [each.replace(default=_Shown(each.default)) if each.default is not each.empty else each for each in kept]
    return str(found.replace(parameters=shown, return_annotation=found.empty))


class _Shown:
    """A default as one writes it: no address in memory."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        text = repr(self.value)
        return getattr(self.value, "__name__", "...") if " at 0x" in text or text.startswith("<") else text


def _markdown(docstring: str) -> str:
    """Google's sections as Markdown: lists of arguments, blocks of examples."""
    return "\n\n".join(_section(head, body) for head, body in _sections(docstring)).strip()


def _sections(docstring: str) -> list[tuple[str, str]]:
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in docstring.splitlines():
        head = SECTION.match(line)
        if head and not line.startswith(" ") and (not head[2] or found[-1][0] or head[1] in LISTS | {"Raises"}):
            found.append((head[1], [f"    {head[2]}"] if head[2] else []))
        else:
            found[-1][1].append(line)
    return [(head, inspect.cleandoc("\n" + "\n".join(lines))) for head, lines in found]


def _section(head: str, body: str) -> str:
    if not head:
        return _prose(body)
    if head == "Example":
        return f"```pycon\n{body}\n```"
    if head in LISTS and (items := _items(body)):
        return f"**{head}**\n\n" + "\n".join(items)
    return f"**{head}**\n\n{_prose(body)}"


def _items(body: str) -> list[str]:
    """An item of a list for each argument: it begins at the margin, and what continues it is indented."""
    whole = re.split(r"\n(?=\S)", body)
    matched = [ITEM.match(each) for each in whole]
    if not all(matched):
        return []
    return [f"- `{item[1]}`: {_prose(' '.join(item[2].split()))}" for item in matched if item]


def _prose(text: str) -> str:
    """Markdown of prose: examples in the middle of it as blocks, arguments named *args as they are."""
    text = re.sub(r"(?m)((?:^>>> .*\n?)(?:^(?!$).*\n?)*)", r"```pycon\n\1\n```\n", text)
    return re.sub(r"(?<![\w`*])(\*{1,2})(\w+)(?![\w*])", r"\\\1\2", text) if "`" not in text else text


def write() -> None:
    """Write the pages, and remove those of rooms that are no more; a page that is the same stays untouched."""
    FOLDER.mkdir(exist_ok=True)
    written = pages()
    for path in FOLDER.glob("*.md"):
        if path.stem not in written:
            path.unlink()
    for name, text in written.items():
        path = FOLDER / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    write()
    return {"parallel_read_safe": True, "parallel_write_safe": True}
