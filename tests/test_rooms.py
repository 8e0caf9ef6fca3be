"""The rooms of the package: docs/layout.md and pyproject.toml list them alike, and imports go down only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import networkx
import pytest

import redlab

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "redlab").rglob("*.py"))
HOUSE = [file.parent for file in FILES if file.name == "__init__.py"]
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
ROOMS = [room.strip() for layer in LAYERS for room in re.split(r"[|:]", layer)][:-4]


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(file: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that ``file`` takes from redlab, but for what only annotations name."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    unseen = {id(inner) for node in typing for inner in ast.walk(node)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and id(node) not in unseen]
    found = [node for node in nodes if (node.module or "").startswith("redlab")]
    return [(str(node.module), alias.name) for node in found for alias in node.names]


def test_an_import_goes_down_only():
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_rooms_are_those_of_the_layout_page_and_are_served_by_the_package():
    page = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "redlab").glob("*/__init__.py")}
    assert set(rows) == folders == set(ROOMS) == set(redlab._ROOMS)
    assert all(getattr(redlab, room).__name__ == f"redlab.{room}" for room in ROOMS)


def test_no_two_test_files_have_one_name():
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]  # pytest imports each by its name alone
    assert [name for name in set(names) if names.count(name) > 1] == []


@pytest.mark.parametrize(
    "room", [path.parent for path in FILES if path.name == "__init__.py"], ids=lambda path: path.name
)
def test_a_room_says_what_it_is_for_and_which_file_to_open_first(room):
    if room.name == "redlab":
        return
    body = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    first = (ast.get_docstring(body) or "").splitlines()[0]
    if others := [path for path in room.iterdir() if path.suffix == ".py" and path.stem != "__init__"]:
        assert re.search(r"[Ss]tart with `(\w+)`", first)[1] in {path.stem for path in others}


def test_no_file_takes_a_private_name_of_another():
    taken = [(_module(file), module, name) for file in FILES for module, name in _imports(file)]
    assert not [each for each in taken if re.match(r"_(?!_)", each[2])]


def test_no_two_files_import_each_other_in_a_circle():
    modules = {_module(file) for file in FILES}
    graph = networkx.DiGraph()
    for file in FILES:
        for module, name in _imports(file):
            full = f"{module}.{name}"
            graph.add_edge(_module(file), full if full in modules else module)
    graph.remove_nodes_from([room for room in list(graph) if "." not in room])
    assert not [circle for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]


def test_no_public_function_is_shadowed_by_a_file_of_its_name():
    assert not [name for name in redlab.__all__ if not callable(getattr(redlab, name))]


def test_every_public_name_says_where_it_lives():
    for name, home in redlab._HOME.items():
        assert getattr(import_module(f"redlab.{home}"), name) is getattr(redlab, name)


def test_the_layout_page_names_files_that_exist():
    page = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:redlab|tests|notebooks)/[\w/]*(?:\.py)?)`", page)
    assert len(named) > 8
    assert not [path for path in named if not (ROOT / path).exists()]
