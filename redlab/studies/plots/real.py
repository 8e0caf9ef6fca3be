"""Pictures of real networks by many methods: rows are networks, and what a method needs has a panel of its own."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from redlab.studies.plots.style import COLOURS, DASHES, INK, MARKERS, STYLE, styled
from redlab.studies.real import NEEDS

if TYPE_CHECKING:
    from IPython.display import Image

_PANELS = dict(zip(NEEDS, ("no data", "data, no fine-tuning", "short fine-tuning"), strict=True))
# What stands across, by column, and what its numbers are multiplied by.
_ACROSS = {
    "products": ("products left (%)", 100),
    "parameters": ("parameters left (%)", 100),
    "bytes": ("bytes on disk left (%)", 100),
    "time_ratio": ("time of one image, the original's = 1", 1),
}
_OPEN = {
    "products": "open: split layers, distinct products; additions stay",
    "parameters": "open: split layers, distinct values; no look-ups",
    "bytes": "open: split layers, stored as codes",
}
_TOP = 1.5  # of the axis of times, so that right of plain networks there is room to name the split ones


class _Look(NamedTuple):
    colour: str
    dash: Any
    marker: str


@styled
def draw_real(
    summary: pd.DataFrame, x: str = "products", published: pd.DataFrame | None = None, title: str = ""
) -> Figure:
    """Accuracy against what is left: a row of panels a network, a panel for each of ``NEEDS``.

    Panels are not to be mixed: those that saw data, or learnt, had more than those that didn't. A line joins the
    settings of one method; a bar is one standard deviation over the seeds; a thin line the accuracy before. Split
    layers save products, not additions: their marks are open. On the axis of times they are not drawn but named, for
    they take ten times as long and more.

    Arguments:
        summary: of ``summarise_real``.
        x: "products", "parameters", "bytes" or "time_ratio".
        published: of ``published_figures``: those of the same networks get a star, where they say what is left.

    Example:
        >>> from redlab import read_real, summarise_real
        >>> figure = draw_real(summarise_real(read_real().query("network == 'cifar10/resnet20'")))
        >>> [ax.get_title() for ax in figure.axes]
        ['no data', 'data, no fine-tuning', 'short fine-tuning']
    """
    networks = list(dict.fromkeys(summary["network"]))
    looks = _looks(list(dict.fromkeys(summary["method"])))
    figure, grid = plt.subplots(len(networks), len(NEEDS), figsize=(10.5, 2.6 * len(networks) + 2.2), squeeze=False)
    for row, network in zip(grid, networks, strict=True):
        own = summary[summary["network"] == network]
        for ax, needs in zip(row, NEEDS, strict=True):
            stars = None if published is None else published.query("network == @network and needs == @needs")
            _panel(ax, own[own["needs"] == needs], x, looks, stars)
            ax.set_title(_PANELS[needs])
        _scale(row, own, x)
        row[0].set_ylabel(f"{network}\naccuracy (%)")
    for ax in grid[-1]:
        ax.set_xlabel(_ACROSS[x][0])
    figure.legend(handles=_legend_of(summary, x, looks, published), loc="outside lower center", ncols=3)
    figure.suptitle(title, fontsize=12)
    return figure


def show_compact(figure: Figure) -> Image:
    """``figure`` as a notebook shows it, in 128 colours: a third of the bytes, and to the eye the same picture.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> show_compact(plt.figure(figsize=(1, 1))).data[1:4]
        b'PNG'
    """
    from IPython.display import Image

    full, small = BytesIO(), BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(full, format="png", dpi=figure.dpi)
    plt.close(figure)  # or the notebook would show it a second time
    PIL.Image.open(full).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return Image(small.getvalue(), format="png")


def _looks(methods: list[str]) -> dict[str, _Look]:
    """The same look for a method in every panel."""
    return {
        method: _Look(*(cycle[k % len(cycle)] for cycle in (COLOURS, DASHES, MARKERS)))
        for k, method in enumerate(methods)
    }


def _panel(ax: Axes, own: pd.DataFrame, x: str, looks: dict[str, _Look], stars: pd.DataFrame | None) -> None:
    own = own.dropna(subset=x)
    if own.empty:
        ax.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    shown = own[~own["split"]] if x == "time_ratio" else own
    for (method, split), part in shown.groupby(["method", "split"], sort=False):
        _line(ax, part.sort_values(x), x, looks[method], split)
    ax.axhline(own["before"].iloc[0], color=INK, linewidth=0.8)
    if stars is not None and x == "products":
        ax.plot(100 * stars[x], stars["accuracy"], "*", color=INK, markersize=9, markerfacecolor="white", zorder=4)
    if x == "time_ratio" and own["split"].any():
        times = own.loc[own["split"], "time_ratio"]
        least, most = f"{times.min():.0f}", f"{times.max():.0f}"
        text = f"split:\n{least}{f' to {most}' if most != least else ''}\ntimes →"
        ax.annotate(text, (0.98, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=9)


def _line(ax: Axes, part: pd.DataFrame, x: str, look: _Look, split: bool) -> None:
    ax.errorbar(
        _ACROSS[x][1] * part[x],
        part["accuracy"],
        yerr=part["sd"].where(part["seeds"] > 1, np.nan),
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markerfacecolor="white" if split else look.colour,
        markersize=5,
        linewidth=1.2,
        elinewidth=1,
        capsize=2.5,
    )


def _scale(row: np.ndarray, own: pd.DataFrame, x: str) -> None:
    """One axis across for the panels of a network, and one up for the two without training; what was trained lies
    closer together and has a scale of its own.
    """
    times = own.loc[~own["split"], "time_ratio"].dropna()
    across = (min([0.5, *0.95 * times]), max([_TOP, *1.05 * times])) if x == "time_ratio" else (-3, 104)
    for ax in row:
        ax.set_xlim(across)
    for ax in row[:2]:
        ax.set_ylim(-3, 1.06 * own["before"].max())
    if not row[2].containers:
        row[2].set_ylim(row[0].get_ylim())


def _legend_of(summary: pd.DataFrame, x: str, looks: dict[str, _Look], published: pd.DataFrame | None) -> list[Line2D]:
    shown = summary.dropna(subset=x)
    shown = shown[~shown["split"]] if x == "time_ratio" else shown
    split = shown.groupby("method", sort=False)["split"].first()
    lines = [_sample(method, looks[method], split[method]) for method in split.index]
    lines.append(Line2D([], [], color=INK, linewidth=0.8, label="before"))
    if x == "products" and published is not None:
        star = Line2D(
            [], [], color=INK, label="published, of macs, another protocol (see the table)", linestyle="", marker="*"
        )
        star.set(markersize=9, markerfacecolor="white")
        lines.append(star)
    notes = [_OPEN[x]] if split.any() else []
    old = shown.loc[(shown["count"] == "old") & (x == "products"), "needs"]
    whose = "trained networks" if (old == NEEDS[-1]).all() else "trained networks and some others"
    notes += [f"{whose}: old count, padding included"] if len(old) else []
    return lines + [Line2D([], [], linestyle="", label=note) for note in notes]


def _sample(method: str, look: _Look, split: bool) -> Line2D:
    face = "white" if split else look.colour
    return Line2D(
        [], [], color=look.colour, linestyle=look.dash, marker=look.marker, markerfacecolor=face, label=method
    )
