"""What redlab's functions take of the parameters that a notebook hands to them: read in the source."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial, reduce
from pathlib import Path

import redlab
from redlab.lab.kinds import Items, Kind, kind_named, meet
from redlab.paths import PACKAGE
from redlab.studies import plots

_Place = tuple[str, str]  # a module of redlab, and a name in it
# Functions that take the options of another one as dicts.
_HASH = ("hashing.networks", "hash_network")
_SETTINGS: dict[str, _Place] = {"compare_hashes": _HASH, "compare_splits": _HASH}


@lru_cache(32)  # a sweep asks again for each of its points
def kinds_taken(sources: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Kind]:
    """By parameter what every function takes that it is handed to; those that no known function gets are left out.

    Arguments:
        sources: of the notebook's code cells.
        names: the parameters.
    """
    nodes = _nodes(sources)
    loops = _loops(nodes)
    taken: dict[str, list[Kind]] = defaultdict(list)
    for argument_kinds, arguments in _handed(nodes):
        for argument, handed in arguments:
            kind = argument_kinds.get(argument, ())
            for name, whole in _names(handed):
                item = not whole or name in loops
                if kind and (own := loops.get(name, name)) in names:
                    taken[own].append((Items(kind),) if item else kind)
    return {name: kind for name, kinds in taken.items() if (kind := reduce(meet, kinds))}


def _handed(nodes: Sequence[ast.AST]) -> Iterator[tuple[dict[str, Kind], list[tuple[str, ast.expr]]]]:
    """For each call of a function of redlab the kinds of its arguments, and (argument, what is handed to it)."""
    names = _imported(nodes)
    called = {name for _, name in _used(nodes)}
    settings = [_annotations(*place) for name, place in _SETTINGS.items() if name in called]
    for node in nodes:
        if isinstance(node, ast.Call) and (place := _place(_dotted(node.func, names))):
            kinds = _annotations(*place)
            words = [(word.arg or "", word.value) for word in node.keywords]
            yield kinds, [*zip(kinds, node.args, strict=False), *words]
        if isinstance(node, ast.Dict):
            options = [(str(getattr(k, "value", "")), v) for k, v in zip(node.keys, node.values, strict=True)]
            yield from ((kinds, options) for kinds in settings)


def _nodes(sources: Iterable[str]) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for source in sources:
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):  # a line of IPython's own, say
            nodes += ast.walk(ast.parse(source))
    return nodes


def _imported(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """What the notebook calls redlab, its modules and functions, by their full names.

    ``import redlab as rl`` makes {"rl": "redlab"}; ``from redlab.studies import hashing`` makes {"hashing":
    "redlab.studies.hashing"}.
    """
    found = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]  # import a.b binds a; import a.b as c binds c to a.b
                found[alias.asname or first] = alias.name if alias.asname else first
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {local: full for local, full in found.items() if full.split(".")[0] == "redlab"}


def _dotted(expression: ast.expr, names: Mapping[str, str]) -> str:
    """``rl.studies.hashing`` in full; "" for what is not redlab's."""
    match expression:
        case ast.Name(id=name):
            return names.get(name, "")
        case ast.Attribute(value=inner, attr=attribute) if above := _dotted(inner, names):
            return f"{above}.{attribute}"
    return ""


def _place(dotted: str) -> _Place | None:
    """Where the function of that full name is; None for redlab itself, one of its rooms, or nothing of redlab's."""
    module, _, name = dotted.removeprefix("redlab").removeprefix(".").rpartition(".")
    if module == "plots" and name in plots._HOME:
        module = f"studies.plots.{plots._HOME[name]}"
    module = module or redlab._HOME.get(name, "")
    return (module, name) if module else None


def _used(nodes: Sequence[ast.AST]) -> set[_Place]:
    """The functions of redlab that the notebook imports or names."""
    names = _imported(nodes)
    parts = [node for node in nodes if isinstance(node, ast.Name | ast.Attribute)]
    found = [_place(full) for full in (*names.values(), *(_dotted(part, names) for part in parts))]
    return {place for place in found if place}


def _loops(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """The variables that run over one list alone, and the name of that."""
    over: dict[str, set[str]] = defaultdict(set)
    for node in nodes:
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Name):
            over[node.target.id] |= {name if whole else "" for name, whole in _names(node.iter)} or {""}
    return {variable: min(lists) for variable, lists in over.items() if len(lists) == 1}


def _names(handed: ast.expr) -> Iterator[tuple[str, bool]]:
    """The names whose value an expression may be, as in ``a if quick else b`` or ``a[:2]``; False: an item of it."""
    match handed:
        case ast.Name(id=name):
            yield name, True
        case ast.IfExp(body=one, orelse=other) | ast.BoolOp(values=[one, other]):
            yield from (*_names(one), *_names(other))
        case ast.Subscript(value=ast.Name(id=name), slice=index):
            yield name, isinstance(index, ast.Slice)


@lru_cache(32)
def benchmarks_read(sources: tuple[str, ...]) -> tuple[str, ...]:
    """The files in ``benchmarks/`` that are named by the notebook, by a function of redlab that it uses, or by one
    that such a function calls.
    """
    nodes = _nodes(sources)
    left = _used(nodes)
    seen, named = set(left), _benchmarks_in(nodes)
    while left:
        module, node = _found(*left.pop())
        parts = list(ast.walk(node)) if isinstance(node, ast.FunctionDef) else []
        named |= _benchmarks_in(parts)
        called = {(module, part.func.id) for part in parts if isinstance(part, ast.Call) and hasattr(part.func, "id")}
        left |= called - seen
        seen |= called
    return tuple(sorted(named))


def _benchmarks_in(nodes: Iterable[ast.AST]) -> set[str]:
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    parts = {part for text in texts if len(text) < 200 for part in text.split("/")}
    return {part for part in parts if "benchmarks" in parts and part.endswith((".csv", ".parquet"))}


def names_written(sources: Iterable[str]) -> set[str]:
    """The names of what the notebook itself opens for writing: ``open(log, "a")``."""
    found = set()
    for node in _nodes(sources):
        match node:
            case ast.Call(func=ast.Name(id="open"), args=[ast.Name(id=name), ast.Constant(value=str(mode))]):
                found |= {name} if set(mode) & set("wax+") else set()
    return found


@cache
def _annotations(module: str, function: str) -> dict[str, Kind]:
    """By argument, in order, the kind that its annotation says."""
    place, node = _found(module, function)
    if not isinstance(node, ast.FunctionDef):
        return {}
    own, said = node.args, partial(_alias, place)
    return {a.arg: kind_named(a.annotation, said) for a in (*own.posonlyargs, *own.args, *own.kwonlyargs)}


def _alias(module: str, name: str) -> Kind:
    """What a name for a type stands for, such as ``Keep = float | int``."""
    place, node = _found(module, name)
    return kind_named(node.value, partial(_alias, place)) if isinstance(node, ast.Assign) else ()


def _found(module: str, name: str) -> tuple[str, ast.stmt | None]:
    """The statement at the top of a module that makes ``name``, and the module; imports are followed."""
    file = PACKAGE / module.replace(".", "/")
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    for node in _statements(file) if file.is_file() else ():
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return _found((node.module or "").removeprefix("redlab."), name)
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        if name in (getattr(target, "id", getattr(target, "name", None)) for target in targets):
            return module, node
    return module, None


@cache
def _statements(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body
