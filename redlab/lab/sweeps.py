"""Sweeps: one notebook at many points, each a run of its own, here or on a cluster. What is done is not done again.

A specification is YAML; every point in it is checked before anything runs.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlab.lab.notebooks import find_notebook, known_names
from redlab.lab.parameters import changed_parameters, default_parameters
from redlab.lab.runs import Run, RunFailed, give_up, run_notebook
from redlab.lab.workers import Killed, check_engine, map_unordered, threads_each
from redlab.names import unknown
from redlab.paths import checkout
from redlab.progress import progress

if TYPE_CHECKING:
    import pandas as pd

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


def sweep(
    spec: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    jobs: int = 1,
    dask: str | None = None,
    *,
    timeout: float | None = None,
    notebooks: Path | None = None,
) -> pd.DataFrame:
    """Run a notebook at every point of a sweep, and return the results of all as one frame.

    A point is a run as ``run_notebook`` makes it, in a folder named after all that it depends on. Points that are done
    are not run again; those that failed or were killed are. Another sweep may work in the same folder.

    Arguments:
        spec: a YAML file, or a dict, with the keys notebook, grid, points and seeds (``read_spec``).
        out: where run folders are kept, as ``out/NAME/KEY``; default ``runs/`` of the checkout.
        jobs: notebooks side by side, each in a kernel of its own; the cores are divided among them.
        dask: the address of a Dask scheduler, "tcp://host:8786", whose workers run the points instead. They must see
            the same ``out`` and the same checkout.
        timeout: seconds that each cell of a notebook may take.
        notebooks: the folder of the notebooks; default the checkout's.

    Returns:
        As ``load_runs``, of the points of this sweep that are done. Points that failed are named in a warning, and
        stand in ``attrs["failed"]``, one text each.

    Raises:
        ValueError, TypeError, FileNotFoundError: the specification is wrong; nothing has run.
        OSError: the disk is full, or no Dask scheduler answers. What is done stays done. A point at which worker after
            worker dies has failed; the others continue.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nbformat import v4, write
        >>> recorded = "import pandas, redlab; redlab.record(pandas.DataFrame({'share': [1 - alpha]}))"
        >>> cells = [v4.new_code_cell("alpha = 0.1", metadata={"tags": ["parameters"]}), v4.new_code_cell(recorded)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(v4.new_notebook(cells=cells), f"{folder}/00_alpha.ipynb")
        ...     spec = {"notebook": "alpha", "grid": {"alpha": [0.25]}}
        ...     sweep(spec, f"{folder}/runs", notebooks=Path(folder))[["notebook", "alpha", "share"]]
           notebook  alpha  share
        0  00_alpha   0.25   0.75
    """
    from redlab.lab.results import join_runs

    found = read_spec(spec, notebooks)
    bar = lambda done: progress(done, "points", len(found.points))  # noqa: E731
    outcomes = run_sweep(found, bar, out, jobs, dask, timeout, notebooks)
    frame = join_runs([own for own in outcomes if isinstance(own, Run)])
    frame.attrs["failed"] = failed = [str(own) for own in outcomes if isinstance(own, RunFailed)]
    if failed:
        listed = "\n".join(failed)
        warnings.warn(f"{len(failed)} of {len(outcomes)} points failed:\n{listed}", stacklevel=2)
    return frame


def run_sweep(
    spec: Spec,
    watched: Callable[[Iterable], Iterable],
    out: str | Path | None = None,
    jobs: int = 1,
    dask: str | None = None,
    timeout: float | None = None,
    notebooks: Path | None = None,
) -> list[Run | RunFailed]:
    """``sweep`` of a specification that was read: of each point its finished run, or the failure.

    Arguments:
        watched: wraps the iterator over (number of the point, outcome), such as in a bar.
    """
    check_engine(jobs, dask)
    notebooks = (notebooks or checkout() / "notebooks").resolve()
    out = Path(out or notebooks.parent / "runs").resolve()
    options = {"notebooks": notebooks, "timeout": timeout, "threads": threads_each(jobs), "publish": False}
    calls = [(number, spec.notebook, point, out, options) for number, point in enumerate(spec.points)]
    with closing(map_unordered(_run_point, calls, jobs, dask)) as made:
        done = (_given_up(own) if isinstance(own, Killed) else own for own in made)
        found = dict(watched(done))
    return [found[number] for number in range(len(calls))]


def _run_point(number: int, notebook: Path, point: dict, out: Path, options: dict) -> tuple[int, Run | RunFailed]:
    try:
        return number, run_notebook(notebook, point, out, **options)
    except RunFailed as failed:
        return number, failed


def _given_up(killed: Killed) -> tuple[int, Run | RunFailed]:
    number, notebook, point, out, _ = killed.call
    advice = "give the workers more memory or time, or leave the point out: the next call tries it again"
    what = f"worker after worker died at the point {describe(point)} (or at one beside it in the same worker); {advice}"
    return number, give_up(notebook, point, out, "KilledWorker", f"{what}. Dask: {killed.message}")


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
        changed = known_names(changed_parameters(notebook, point))
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
