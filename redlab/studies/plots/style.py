"""The style of all figures, and what they have in common. No global style is changed.

Colours are Petroff's six (arXiv 2107.02270), chosen for colour blindness; lines differ by marker and dash as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any, cast

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from redlab.network.evaluation import accuracy_interval

BLUE, ORANGE, RED, PURPLE, GREY, VIOLET = "#5790fc", "#f89c20", "#e42536", "#964a8b", "#9c9ca1", "#7a21dd"
INK = "#222222"
COLOURS = (BLUE, RED, PURPLE, ORANGE, VIOLET, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)))
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#777777",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 80,  # of the figures in notebooks, which then stay under 500 KB
    "pdf.fonttype": 42,
}
MOST = 15.0  # points of accuracy; what loses more is marked at the frame
_DRAWING = RLock()


@contextmanager
def style() -> Iterator[None]:
    """Inside, what is drawn has our style. One thread at a time: the style belongs to the process.

    In a live notebook sliders are handled in one thread while cells run in another.
    """
    with _DRAWING, mpl.rc_context(STYLE):
        yield


styled = style()
# Loads the backend, which in a notebook turns interactive drawing on. Within ``styled`` that would be undone after the
# first figure, and the notebook would show no other.
plt.draw_if_interactive()


def figure_of(ax: Axes) -> Figure:
    """The whole figure that holds ``ax``; it can be saved."""
    return cast(Figure, ax.get_figure(root=True))


@styled
def small_multiples(
    frame: pd.DataFrame,
    plot: Callable[[pd.DataFrame, Axes], Axes],
    by: str,
    columns: int = 4,
    title: str = "",
    legend: bool = False,
) -> Figure:
    """One small plot for each value of column ``by``, in the frame's order, axis names on the outer ones only.

    With ``legend``, that of the first plot stands below for all.

    Example:
        >>> layers = weight_layers(load_network("digits/mlp"))
        >>> frame = pd.concat(estimate_density(layer.weight.detach()).frame(layer=layer.name) for layer in layers)
        >>> figure = small_multiples(frame, plot_density, by="layer")
        >>> [ax.get_title().split()[0] for ax in figure.axes if ax.get_visible()]
        ['hidden.0.linear', 'hidden.1.linear', 'classifier']
    """
    groups = list(frame.groupby(by, sort=False))
    columns = min(columns, len(groups))
    rows = -(-len(groups) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.0 * columns, 2.3 * rows + 0.4), squeeze=False)
    for ax in grid.flat[len(groups) :]:
        ax.set_visible(False)
    for k, (ax, (value, part)) in enumerate(zip(grid.flat, groups, strict=False)):
        plot(part, ax)
        ax.set_title(f"{value}\n{ax.get_title()}".strip(), fontsize=9)
        ax.set_xlabel(ax.get_xlabel() if k + columns >= len(groups) else "")
        ax.set_ylabel(ax.get_ylabel() if k % columns == 0 else "")
    for ax in grid.flat[: len(groups)] if legend else ():
        ax.get_legend().remove()
    return framed(figure, title, grid.flat[0].get_legend_handles_labels()[0] if legend else None)


def look(k: int) -> dict[str, Any]:
    """Colour, dash and marker of the k-th line; the 210th is the first that looks like another one."""
    colour, dash, marker = (cycle[k % len(cycle)] for cycle in (COLOURS, DASHES, MARKERS))
    return {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4.5, "linewidth": 1.4}


def rows_of(ax: Axes, names: Sequence[str]) -> None:
    """A row for each name, the first on top, without lines between them."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def outline(ax: Axes, x: np.ndarray, y: np.ndarray, width: float | np.ndarray, height: float, **look: Any) -> None:
    """Rectangles from the corners (x, y); one collection, since a thousand patches would take a second."""
    right, below = x + width, y + height
    corners = [np.stack([x, right, right, x, x], 1), np.stack([y, y, below, below, y], 1)]
    ax.add_collection(LineCollection(list(np.stack(corners, 2)), **look), autolim=False)


def plain_log(axis: mpl.axis.Axis) -> None:
    """Plain numbers on a logarithmic axis, once all is drawn on it; exponents would be too small to read."""
    low, high = axis.get_view_interval()
    digits = range(1, 10) if high < 6 * low else (1, 2, 5) if high < 1000 * low else (1,)  # two ticks at least
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain_number(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain_number(value: float) -> str:
    """0.001 to 5,000,000 in full; 2e-4 and 1e7 beyond."""
    if 0.0009 < value < 6e6:
        return f"{value:,.10g}"
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}e{int(exponent)}"


def legend(ax: Axes, entries: list[Any]) -> None:
    """Beside the axes, where it hides nothing."""
    ax.legend(handles=entries, loc="center left", bbox_to_anchor=(1.0, 0.5))


def axes(width: float, height: float) -> Axes:
    """The Axes of a new figure, ``width`` x ``height`` inches."""
    return plt.subplots(figsize=(width, height))[1]


def finish(ax: Axes, entries: list[Any] | None = None, **settings: Any) -> Axes:
    """``ax.set(**settings)`` once all is drawn, plain numbers on logarithmic axes, and a legend where one is due.

    Arguments:
        entries: of the legend; by default all that has a label, and [] for no legend.
    """
    ax.set(**settings)
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            plain_log(axis)
    if entries := ax.get_legend_handles_labels()[0] if entries is None else entries:
        legend(ax, entries)
    return ax


def dots(ax: Axes, values: pd.Series, rows: Sequence[float] | np.ndarray, k: int, label: str | None = None) -> None:
    """The markers of the k-th series, one in each row."""
    ax.plot(values, rows, MARKERS[k], color=COLOURS[k], markersize=5, label=label)


def framed(figure: Figure, title: str, entries: list[Any] | None = None, columns: int = 4) -> Figure:
    """``figure`` with a title above all panels and, where there are ``entries``, a legend below them."""
    if entries:
        figure.legend(handles=entries, loc="outside lower center", ncols=columns)
    figure.suptitle(title, fontsize=12)
    return figure


def bare(ax: Axes) -> None:
    """Without grid, ticks and frame."""
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


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
    entries = band(ax, before, frame)
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


def band(ax: Axes, before: float, frame: pd.DataFrame) -> list[Line2D]:
    """The line at 0, and the interval around it where the number of images is known."""
    label = f"before: {before:.2f} %"
    if "images" in frame:
        images = int(frame["images"].iloc[0])
        low, high = accuracy_interval(before, images)
        ax.axhspan(before - high, before - low, color=INK, alpha=0.08, linewidth=0, zorder=0)
        label += f"\n(band: 95 % interval,\nn = {images:,} images)"
    return [ax.axhline(0, color=INK, linewidth=0.8, label=label)]
