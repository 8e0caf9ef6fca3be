"""Two runs of a sweep side by side."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from redlab.lab.explore.explorer import Choice, Explorer, Values, is_live
from redlab.lab.results import last_runs, results_of
from redlab.paths import checkout

_COLUMNS = 5  # of results, whose means are shown
_FINE = 1400  # pixels across, of each figure
_WIDTH = 60  # characters of a title
_HOW = "`redlab sweep notebooks/sweeps/hash_rules.yml` makes some"


def compare_runs(folder: str | Path | None = None) -> RunPair:
    """Choose two runs of one notebook, and see their figures side by side and their results.

    Runs are named by the parameters that differ between them. As the last line of a cell it reads the disk in a live
    notebook only; elsewhere it shows one line.
    ``compare_runs("runs").figure(left="rule=kde", right="rule=lloyd", picture="02_error")`` draws a pair once.

    Arguments:
        folder: of a sweep, or any that holds runs; None: ``runs/`` of the checkout.

    Raises:
        TypeError: ``folder`` is no path. Other errors are raised when the folder is read (``RunPair``).

    Example:
        >>> compare_runs("runs")
        Two runs side by side: live in JupyterLab (redlab lab), where one chooses both and a figure.
    """
    return RunPair(folder)


class RunPair:
    """What ``compare_runs`` returns; it reads ``folder`` when it is shown for the first time."""

    def __init__(self, folder: str | Path | None):
        if not isinstance(folder, str | Path | None):
            raise TypeError(f"folder must be the path of one that holds runs, not {folder!r}")
        self.folder = folder

    @cached_property
    def explorer(self) -> Explorer:
        """Menus of the notebook, the left and the right run, and the figure.

        Raises:
            ValueError: no two runs of one notebook drew the same figure, or a file of a run is damaged.
        """
        return _explorer(_found(checkout() / "runs" if self.folder is None else Path(self.folder)))

    def figure(self, **changes: Any) -> Figure:
        """The figures of both, drawn once.

        Arguments:
            changes: of ``notebook``, ``left``, ``right`` and ``picture``; by default the first two runs, and the first
                figure that both drew.

        Raises:
            ValueError: as ``explorer``; or there is no such run or figure.
        """
        return self.explorer.figure(**changes)

    def __repr__(self) -> str:
        return "Two runs side by side: live in JupyterLab (redlab lab), where one chooses both and a figure."

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        if not is_live():
            return {"text/plain": repr(self)}
        try:
            return self.explorer._repr_mimebundle_(**options)
        except ValueError as error:  # no runs yet: the message says how to make some
            return {"text/plain": str(error)}


@dataclass(frozen=True)
class _Drawn:
    """A finished run that drew something: its folder, its parameters, the names of its figures."""

    folder: Path
    parameters: dict[str, Any]
    pictures: tuple[str, ...]


_Runs = Mapping[str, Mapping[str, _Drawn]]


def _found(folder: Path) -> _Runs:
    """By notebook and label the runs that can be compared with another one."""
    by_notebook, count = defaultdict(list), 0
    for run in last_runs(folder) if folder.is_dir() else []:
        if pictures := tuple(path.stem for path in run.figures if path.suffix == ".png"):
            by_notebook[run.name].append(_Drawn(run.folder, run.params, pictures))
            count += 1
    found = {notebook: labelled(runs) for notebook, runs in sorted(by_notebook.items())}
    paired = {name: {own: runs[own] for own in runs if _partners(runs, own)} for name, runs in found.items()}
    if not any(paired.values()):
        missing = f"{folder} is no folder" if folder.exists() else f"there is no {folder}"
        held = f"{folder} holds {count} finished runs with figures" if folder.is_dir() else missing
        raise ValueError(f"two runs are needed that drew the same, and {held}: {_HOW}")
    return {notebook: runs for notebook, runs in paired.items() if runs}


def _partners(runs: Mapping[str, _Drawn], label: str) -> list[str]:
    """The other runs that drew one of the figures of this one, by label."""
    drawn = set(runs[label].pictures)
    return [other for other, run in runs.items() if other != label and not drawn.isdisjoint(run.pictures)]


def labelled(runs: Sequence[_Drawn]) -> dict[str, _Drawn]:
    """The runs by what differs between any of them, "rule=kde, bandwidth=silverman/4", in that order."""
    names = differing([own.parameters for own in runs])
    seen: Counter[str] = Counter()
    found: dict[str, _Drawn] = {}
    for own in runs:
        label = label_of(own.parameters, names)
        seen[label] += 1  # paths that end alike
        found[f"{label} ({seen[label]})" if seen[label] > 1 else label] = own
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _natural(label: str) -> list[str | float]:
    """Sorts silverman/12 behind silverman/8."""
    return [float(part) if k % 2 else part for k, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", label))]


def differing(parameters: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the parameters that are not the same in all, or that some lack."""
    names = dict.fromkeys(name for own in parameters for name in own)
    return [name for name in names if len({json.dumps([name in own, own.get(name)]) for own in parameters}) > 1]


def label_of(parameters: Mapping[str, Any], names: Sequence[str]) -> str:
    """Those parameters in a line."""
    return ", ".join(f"{name}={_said(parameters, name)}" for name in names) or "default parameters"


def _said(parameters: Mapping[str, Any], name: str) -> str:
    """A value in words; of an absolute path the last part: where this machine keeps things is nothing to see."""
    if name not in parameters:
        return "?"  # the notebook had no such parameter yet
    value = parameters[name]
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() else value
    return json.dumps(value)


def _explorer(found: _Runs) -> Explorer:
    def runs(at: Values) -> Mapping[str, _Drawn]:
        return found[at["notebook"]]

    def partners(at: Values) -> dict[str, str]:
        return {label: label for label in _partners(runs(at), at["left"])}

    def pictures(at: Values) -> dict[str, str]:
        right = runs(at)[at["right"]].pictures
        return {name: name for name in runs(at)[at["left"]].pictures if name in right}

    def see(figure: Figure, notebook: str, left: str, right: str, picture: str) -> str:
        return _see_runs(figure, found[notebook][left], found[notebook][right], f"{notebook}, {picture}", picture)

    offered = [
        Choice("notebook", "notebook", lambda _: {name: name for name in found}),
        Choice("left", "left run", lambda at: {label: label for label in runs(at)}),
        Choice("right", "right run", partners),
        Choice("picture", "figure", pictures),
    ]
    return Explorer("Two runs side by side", offered, see, {}, size=(14, 5.2))


def _see_runs(figure: Figure, left: _Drawn, right: _Drawn, title: str, picture: str) -> str:
    names = differing([left.parameters, right.parameters])
    for ax, own in zip(figure.subplots(1, 2), (left, right), strict=True):
        ax.imshow(_image(own.folder / "figures" / f"{picture}.png"))
        ax.set_axis_off()
        ax.set_title(fill(label_of(own.parameters, names), _WIDTH))
    figure.suptitle(title)
    said = [f"{name} {_said(left.parameters, name)} and {_said(right.parameters, name)}" for name in names]
    return f"{'; '.join(said)}. {_means(results_of(left.folder), results_of(right.folder))}"


def _image(path: Path) -> Image.Image:
    """Half as fine as it was saved where that is finer than a screen shows: drawn in less than half the time."""
    image = Image.open(path).convert("RGB")
    return image.reduce(2) if image.width > _FINE else image


def _means(left: pd.DataFrame, right: pd.DataFrame) -> str:
    """The means of the numeric columns that both recorded, those first that differ most in proportion (our choice)."""
    numbers = [frame.select_dtypes("number").mean() for frame in (left, right)]
    means = pd.concat(numbers, axis=1, keys=["left", "right"]).dropna()
    apart = (means["left"] - means["right"]).abs() / means.abs().max(axis=1)
    order = apart[apart > 0].sort_values(ascending=False, kind="stable").index[:_COLUMNS]
    if means.empty:
        return "They recorded no numbers that both have."
    if order.empty:
        return "The means of all that they recorded are equal."
    said = [f"{row.Index} {row.left:.5g} and {row.right:.5g}" for row in means.loc[order].itertuples()]
    return f"Means of {len(left):,} and {len(right):,} rows: {'; '.join(said)}."
