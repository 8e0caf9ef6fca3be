"""The parameters of a notebook: their defaults, what each takes, and the command that sets them."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redlab.lab.kinds import ANY, Kind, absolute, fits, from_text, in_words, join, kind_named, kind_of, plain, to_text
from redlab.lab.notebooks import find_notebook, known_names, read_cells
from redlab.lab.signatures import kinds_taken
from redlab.names import unknown


@dataclass(frozen=True)
class Parameter:
    """A parameter with its default, and the kind that it takes."""

    default: Any
    kind: Kind


def default_parameters(notebook: Path) -> dict[str, Any]:
    """The parameters that a notebook takes, with their defaults: what its cell tagged ``parameters`` assigns.

    The cell is read as Python and never run, so that each default must be a literal.

    Raises:
        ValueError: without exactly one such cell, or where it is no Python, or a default no literal.
    """
    return {name: default for name, (default, _) in _assigned(notebook).items()}


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters, each with the kind that it takes besides that of its default.

    That is what its annotation says (``bandwidth: str | float = "silverman/8"``); without one, what is taken by each
    function of redlab that the notebook hands it to; without such a function, None.

    Raises:
        ValueError: as ``default_parameters``.
    """
    assigned = _assigned(notebook)
    code = (cell["source"] for cell in read_cells(notebook) if cell["cell_type"] == "code")
    taken = kinds_taken(tuple(code), tuple(assigned))
    found = {}
    for name, (default, annotation) in assigned.items():
        said = kind_named(annotation) or taken.get(name, ())
        found[name] = Parameter(default, join([kind_of(default, none=not said), said]))
    return found


def changed_parameters(notebook: Path, params: dict[str, Any]) -> dict[str, Any]:
    """Those of ``params`` that differ from the notebook's defaults, as JSON knows them, and of a kind that is taken.

    Raises:
        ValueError: for an unknown name, with the known ones; for nan and inf, which JSON does not know.
        TypeError: for a value of another kind.
    """
    known = read_parameters(notebook)
    given = {}
    for name, value in params.items():
        if name not in known:
            raise ValueError(unknown(f"parameter of {notebook.stem}", str(name), list(known)))
        given[name] = _checked(f"parameter {name!r} of {notebook.stem}", value, known[name])
    return {name: value for name, value in given.items() if json.dumps(value) != json.dumps(known[name].default)}


def _checked(what: str, value: Any, parameter: Parameter) -> Any:
    given = absolute(plain(value, parameter.kind), parameter.kind)
    if not fits(given, parameter.kind):
        raise TypeError(f"{what} is {in_words(parameter.kind)} like {parameter.default!r}; got {value!r}")
    try:
        json.dumps(given, sort_keys=True, allow_nan=False)
    except ValueError:
        raise ValueError(f"{what} must be finite: JSON, which keeps it, has no nan and no inf; got {value!r}") from None
    except TypeError:  # a date in YAML, where the default is None
        kinds = "numbers, text, lists and dicts of them, true, false or null"
        raise TypeError(f"{what} must be plain data ({kinds}); got {value!r}") from None
    return given


def typed_parameters(notebook: Path, words: Iterable[str]) -> dict[str, Any]:
    """The parameters that a shell sets by words ``NAME=VALUE``, those that differ from the defaults.

    Raises:
        ValueError, TypeError: as ``changed_parameters``; for a word without a value; for an unknown network.
    """
    known = read_parameters(notebook) if words else {}
    params = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"-p takes a name and a value: -p {name} VALUE")
        params[name] = from_text(text, known[name].kind if name in known else ANY)
    return known_names(changed_parameters(notebook, params))


def command_of(notebook: Path, params: dict[str, Any]) -> str:
    """``redlab run 05 -p network cifar10/resnet20``: a notebook, and the parameters that differ from the defaults.

    Pasted into a shell it sets the same parameters, and so finds or makes the same run.

    Raises:
        ValueError, TypeError: as ``changed_parameters``, where the notebook has no such parameters any more.
    """
    words, known = ["redlab", "run", _shortest(notebook)], read_parameters(notebook)
    for name, value in changed_parameters(notebook, params).items():
        words += ["-p", name, to_text(value, known[name].kind)]
    return shlex.join(words)


def _shortest(notebook: Path) -> str:
    """The notebook's number where that means this notebook, its name otherwise."""
    number = re.sub(r"\D.*", "", notebook.stem)
    try:
        return number if find_notebook(number, notebook.parent) == notebook.resolve() else notebook.stem
    except ValueError:
        return notebook.stem


def _assigned(notebook: Path) -> dict[str, tuple[Any, ast.expr | None]]:
    """By parameter its default and its annotation."""
    tagged = [c for c in read_cells(notebook) if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook.name} has {len(tagged)} cells tagged `parameters`; it needs one")
    found = {}
    for statement in _statements(notebook, tagged[0]["source"]):
        single = [statement.target] if isinstance(statement, ast.AnnAssign | ast.AugAssign) else []
        for target in statement.targets if isinstance(statement, ast.Assign) else single:
            if isinstance(target, ast.Name):
                # What n += 1 leaves in n stands nowhere as a literal.
                value = None if isinstance(statement, ast.AugAssign) else getattr(statement, "value", None)
                found[target.id] = _literal(notebook, target.id, value), getattr(statement, "annotation", None)
    return found


def _statements(notebook: Path, source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError as error:
        where = f"line {error.lineno} of the cell tagged `parameters` of {notebook.name}"
        raise ValueError(f"{where} is no Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # half a letter, or a thousand signs before a number
        what = f"{type(error).__name__} {error}".strip()
        raise ValueError(f"the cell tagged `parameters` of {notebook.name} is no Python: {what}") from None


def _literal(notebook: Path, name: str, node: Any) -> Any:
    try:
        value = ast.literal_eval(node)
        json.dumps(value, sort_keys=True, allow_nan=False)
    except (ValueError, TypeError):
        what = f"the default of parameter {name!r} of {notebook.stem}"
        raise ValueError(f"{what} is no literal that JSON can hold") from None
    return plain(value, kind_of(value))
