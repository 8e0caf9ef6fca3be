"""Figures of sweeps: one column over another, a line for each value of a third."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from pandas.api.types import is_numeric_dtype

from redlab.names import unknown
from redlab.studies.plots.style import axes, figure_of, finish, look, style, styled


@styled
def plot_sweep(frame: pd.DataFrame, x: str, y: str, by: str, ax: Axes | None = None) -> Axes:
    """``load_runs``: the mean of column ``y`` over ``x``, a line for each value of ``by``, a band of one deviation.

    What else differs between rows (seeds, say) is averaged. An ``x`` that is no number stands in the order in which its
    values come.

    Raises:
        ValueError: no such column, no rows, or a ``y`` that is no number.

    Example:
        >>> frame = pd.DataFrame({"alpha": [0.1, 0.2], "accuracy": [97.0, 95.0], "network": "digits/mlp"})
        >>> plot_sweep(frame, "alpha", "accuracy", by="network").get_title()
        'accuracy (%) over alpha, a line for each network'
    """
    for column in (x, y, by):
        if column not in frame:
            raise ValueError(unknown("column", column, list(frame)))
    if frame.empty:
        raise ValueError("there are no rows to draw")
    if not is_numeric_dtype(frame[y]):
        raise ValueError(f"column {y!r} holds {frame[y].iloc[0]!r}, no number: it cannot be drawn upwards")
    ax = ax or axes(7, 4)
    order = list(dict.fromkeys(frame[x])) if not is_numeric_dtype(frame[x]) else None
    for number, (value, own) in enumerate(frame.groupby(by, sort=False, dropna=False)):
        points = own.groupby(x, sort=order is None)[y].agg(["mean", "std"]).fillna({"std": 0})
        places = points.index if order is None else [order.index(name) for name in points.index]
        ax.plot(places, points["mean"], **look(number), label=f"{value}")
        low, high = points["mean"] - points["std"], points["mean"] + points["std"]
        ax.fill_between(places, low, high, color=look(number)["color"], alpha=0.15, linewidth=0)
    if order is not None:
        ax.set_xticks(range(len(order)), order, rotation=30, ha="right")
    title = f"{_title(y)} over {_title(x)}, a line for each {_title(by)}"
    return finish(ax, xlabel=_title(x), ylabel=_title(y), title=title)


def rows_where(frame: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The rows in which every ``NAME=VALUE`` holds, values compared as text.

    Raises:
        ValueError: no such column, or no row is left.
    """
    for condition in conditions:
        name, _, value = condition.partition("=")
        if name not in frame:
            raise ValueError(unknown("column", name, list(frame)))
        known = frame[name].astype(str)
        frame = frame[known == value]
        if frame.empty:
            raise ValueError(f"no row has {condition}; {name} is {', '.join(dict.fromkeys(known))}")
    return frame


def draw_sweep(frame: pd.DataFrame, x: str, y: str, by: str, folder: Path) -> Path:
    """Write ``plot_sweep`` into ``folder``, as PNG; returns its path."""
    figure = figure_of(plot_sweep(frame, x, y, by))
    path = folder / f"{y}_over_{x}_by_{by}.png".replace("/", "-")
    with style():
        figure.savefig(path, dpi=300, metadata={"Software": None})
    plt.close(figure)
    return path


def _title(column: str) -> str:
    unit = {"accuracy": " (%)", "seconds": " (s)"}.get(column, "")
    return column.replace("_", " ") + unit
