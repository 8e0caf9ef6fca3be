"""Specifications of sweeps: YAML in, the points in it out, every one checked before anything runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from redlab.lab.notebooks import find_notebook, known_networks
from redlab.lab.parameters import changed_parameters, default_parameters
from redlab.names import unknown

KEYS = ("notebook", "grid", "points", "seeds")
MOST = 100_000  # values in a specification, and points of it


@dataclass(frozen=True)
class Spec:
    """A sweep that was checked.

    Attributes:
        notebook: the file.
        points: the parameters of each point that differ from the notebook's defaults; no two alike.
    """

    notebook: Path
    points: tuple[dict[str, Any], ...]


def read_spec(spec: str | Path | Mapping[str, Any], notebooks: Path | None = None) -> Spec:
    """The points of a sweep: each of ``points`` with each combination of ``grid`` and each seed.

    Arguments:
        spec: a YAML file, or what it would hold:
            notebook: its number, name, or a part of it;
            grid: by parameter a list of values, all combinations of which are taken;
            points: a list of parameter sets;
            seeds: a list, or how many (0, 1, ...); the notebook's parameter ``seed`` or ``seeds`` gets each of them.
        notebooks: the folder of the notebooks; default the checkout's.

    Raises:
        FileNotFoundError, ValueError, TypeError: what is wrong and what would be right; nothing has run.
        OSError: a file cannot be read.
    """
    content, where = (dict(spec), "the sweep") if isinstance(spec, Mapping) else (_read(Path(spec)), str(spec))
    try:
        return _checked(content, notebooks)
    except (ValueError, TypeError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            seen = set()
            for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
                if key.value in seen:  # YAML itself would take the last, without a word
                    raise ValueError(f"{key.value!r} is set twice: again in line {key.start_mark.line + 1}")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a key that is set twice, or a date that there is not
        raise ValueError(f"{path}: {error}") from None
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        # PyYAML's own, where a value does not fit its tag (!!bool x), or of a thousand brackets.
        raise ValueError(f"{path} is no YAML that can be read ({type(error).__name__}: {error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold the keys {', '.join(KEYS)}")
    return content


def _checked(content: dict[str, Any], notebooks: Path | None) -> Spec:
    for key in content:
        if key not in KEYS:
            raise ValueError(unknown("key", str(key), list(KEYS)))
    if _exceeds(content, MOST):  # a few aliases of aliases stand for billions, and one in itself for no end of them
        raise ValueError(f"it holds more than {MOST:,} values, with its aliases written out")
    if content.get("notebook") in (None, ""):  # 00 is a number, too
        raise ValueError("it must name a notebook")
    notebook = find_notebook(str(content["notebook"]), notebooks)
    defaults = default_parameters(notebook)
    distinct: dict[str, dict[str, Any]] = {}
    for point in _points(content, defaults):
        changed = known_networks(changed_parameters(notebook, point))
        distinct[json.dumps(changed, sort_keys=True)] = changed
    return Spec(notebook, tuple(distinct.values()))


def _exceeds(content: Any, most: int) -> bool:
    """Whether plain data holds more than ``most`` values, those that stand in several places counted in each."""
    left = [content]
    for _ in range(most + 1):
        if not left:
            return False
        value = left.pop()
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return True


def _points(content: dict[str, Any], defaults: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each of ``points`` with each combination of ``grid`` and each seed.

    ``{points: [{rule: kde}], grid: {alpha: [0.1, 0.2]}, seeds: 2}`` has the axes [{rule: kde}], [{alpha: 0.1}, {alpha:
    0.2}] and [{seed: 0}, {seed: 1}], and so the four points {rule: kde, alpha: 0.1, seed: 0}, {rule: kde, alpha: 0.1,
    seed: 1}, {rule: kde, alpha: 0.2, seed: 0} and {rule: kde, alpha: 0.2, seed: 1}.
    """
    given = {key: value for key, value in content.items() if value is not None}
    grid, points = given.get("grid", {}), given.get("points", [{}])
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ValueError("grid must give each parameter a list of values")
    if not isinstance(points, list) or not points or not all(isinstance(point, dict) for point in points):
        raise ValueError("points must be a list of parameter sets")
    seeds = _seeds(given["seeds"], defaults) if "seeds" in given else [{}]
    axes = [points, *([{name: value} for value in values] for name, values in grid.items()), seeds]
    _check_axes(axes)
    for parts in product(*axes):
        yield {name: value for part in parts for name, value in part.items()}


def _check_axes(axes: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Refuse a parameter that two axes set, and more than ``MOST`` points."""
    names = Counter(name for axis in axes for name in {name for part in axis for name in part})
    if twice := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"{twice[0]!r} is set twice: in grid, in points, or by seeds")
    if (wanted := math.prod(map(len, axes))) > MOST:
        raise ValueError(f"it has {wanted:,} points or more, and a sweep may have {MOST:,}: leave values out")


def _seeds(given: Any, defaults: dict[str, Any]) -> list[dict[str, Any]]:
    seeds = list(range(min(given, MOST + 1))) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(seeds, list) or not seeds or any(not isinstance(s, int) or isinstance(s, bool) for s in seeds):
        raise ValueError(f"seeds must be a list of whole numbers, or how many, not {given!r}")
    if "seed" in defaults:
        return [{"seed": seed} for seed in seeds]
    if "seeds" in defaults:
        return [{"seeds": [seed]} for seed in seeds]
    raise ValueError("the notebook has no parameter `seed` or `seeds`: leave seeds out")


def describe(point: dict[str, Any]) -> str:
    """A point in a line."""
    return ", ".join(f"{name}={value}" for name, value in point.items()) or "default parameters"
