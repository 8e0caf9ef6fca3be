"""Accuracy lost against what is left: what the figures of several comparisons have in common."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from redlab.network.evaluation import accuracy_interval
from redlab.studies.plots.style import GREY, INK, look

MOST = 15.0  # points of accuracy; what loses more is marked at the frame


def draw_lost(
    ax: Axes, frame: pd.DataFrame, x: str, point: str | None = None, methods: list[str] | None = None
) -> list[Line2D]:
    """Points of accuracy lost over column ``x``, a line for each ``method``; 0 is on top.

    A band around 0 is the 95 % interval of the accuracy before, ``frame.attrs["before"]``, on the column ``images`` of
    images. Rows of one ``point`` (seeds) are averaged, with a band from the least to the largest. A triangle at the
    frame marks what loses more than ``MOST`` points.

    Arguments:
        methods: in the order of their looks; by default that of the frame.

    Returns:
        The entries of the legend.
    """
    before = frame.attrs.get("before", frame["accuracy"].max())
    lost = before - frame["accuracy"]
    bottom, top = min(MOST, max(2.0, 1.08 * lost.max())), max(1.0, -1.3 * lost.min())
    entries = _band(ax, before, frame)
    methods, frame = methods or list(dict.fromkeys(frame["method"])), frame.assign(lost=lost)
    for k, name in enumerate(methods):
        part = frame[frame["method"] == name]
        points = part.groupby(point or x).agg(
            x=(x, "mean"), lost=("lost", "mean"), low=("lost", "min"), high=("lost", "max")
        )
        points, own = points.sort_values("x"), look(k)
        entries += ax.plot(points["x"], points["lost"], **own, label=name)
        if (points["low"] < points["high"]).any():
            ax.fill_between(points["x"], points["low"], points["high"], color=own["color"], alpha=0.15, linewidth=0)
        mark_cut(ax, points["x"][points["lost"] > bottom], bottom, own["color"])
    if (lost > bottom).any():
        entries.append(Line2D([], [], color=GREY, marker="v", linestyle="", label=f"loses more than {bottom:g} points"))
    ax.set(ylabel="accuracy lost (points)", ylim=(bottom, -top))
    return entries


def mark_cut(ax: Axes, x: pd.Series, bottom: float, colour: str) -> None:
    """Triangles at the frame for what lies below it."""
    if len(x):  # an empty line without clipping would stand in the corner and shift the layout
        ax.plot(x, np.full(len(x), bottom), "v", color=colour, markersize=6, clip_on=False, zorder=5)


def _band(ax: Axes, before: float, frame: pd.DataFrame) -> list[Line2D]:
    """The line at 0, and the interval around it where the number of images is known."""
    label = f"before: {before:.2f} %"
    if "images" in frame:
        images = int(frame["images"].iloc[0])
        low, high = accuracy_interval(before, images)
        ax.axhspan(before - high, before - low, color=INK, alpha=0.08, linewidth=0, zorder=0)
        label += f"\n(band: 95 % interval,\nn = {images:,} images)"
    return [ax.axhline(0, color=INK, linewidth=0.8, label=label)]
