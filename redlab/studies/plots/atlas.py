"""Figures of the atlas: frames of ``studies.atlas`` in, Axes out.

Trained networks are red, random initial weights blue. A band is the 95 % interval of a bootstrap over networks.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from redlab.studies.atlas import by_bins
from redlab.studies.plots.style import BLUE, DASHES, INK, ORANGE, PURPLE, RED, axes, framed, plain_log, rows_of, styled
from redlab.studies.redundancy import KINDS

_STATES = ((False, BLUE, "s", "random"), (True, RED, "o", "trained"))
_DEPTHS = 10  # bins of depth
_FEW = 5  # layers, below which a median is not drawn


@styled
def plot_atlas_values(layers: pd.DataFrame, noise: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``compared_layers``: distinct values after hashing against weights, medians by size over a density of all layers.

    The black lines are what hashing leaves of random numbers (``measure_noise``).

    Example:
        >>> layers = compared_layers(measure_atlas(["digits/mlp"]))
        >>> plot_atlas_values(layers, measure_noise((100, 1000))).get_xlabel()
        'weights of a layer (log)'
    """
    ax = ax or axes(7.2, 4.8)
    _medians(ax, layers, "weights", layers["distinct"])
    for dash, (shape, part) in zip(DASHES, noise.groupby("shape", sort=False), strict=False):
        ax.plot(part["weights"], part["distinct"], linestyle=dash, color=INK, linewidth=1.2, label=f"{shape} noise")
    share = layers["distinct"].sum() / layers["weights"].sum()
    title = f"Hashing leaves one value for every {1 / share:,.0f} weights"
    labels = {"xlabel": "weights of a layer (log)", "ylabel": "distinct values after hashing (log)"}
    return _end(ax, layers, title, "upper left", **labels)


@styled
def plot_atlas_products(layers: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``compared_layers``: multiplications left against the weights that an input channel meets, medians by size.

    The black line is the median of what chance leaves.

    Example:
        >>> plot_atlas_products(compared_layers(measure_atlas(["digits/mlp"]))).get_ylabel()
        'multiplications left (%, log)'
    """
    ax = ax or axes(7.2, 4.8)
    _medians(ax, layers, "unit", 100 * layers["products_measured"])
    chance = layers.groupby(np.round(np.log2(layers["unit"])))[["unit", "products_expected"]].median()
    ax.plot(chance["unit"], 100 * chance["products_expected"], color=INK, linewidth=1.2, label="by chance")
    ratio = (layers["products_measured"] / layers["products_expected"]).groupby(layers["trained"]).median()
    words = ", ".join(f"{name} {ratio[state]:.3f}" for state, _, _, name in _STATES if state in ratio)
    labels = {"xlabel": "weights that an input channel meets (log)", "ylabel": "multiplications left (%, log)"}
    return _end(ax, layers, f"Multiplications over those by chance, median: {words}", "lower left", **labels)


@styled
def plot_atlas_filters(layers: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``compared_layers`` with ``filters``: near and alike filters by depth, means over layers.

    Example:
        >>> print(plot_atlas_filters(compared_layers(measure_atlas(["digits/mlp"]), filters=True)).get_title())
        0 exact duplicates among 788 filters
        (1 network, 6 layers; near: within half the median distance)
    """
    ax = ax or axes(7.2, 4.4)
    depth = ((layers["depth"] * _DEPTHS).astype(int).clip(upper=_DEPTHS - 1) + 0.5) / _DEPTHS
    for state, colour, marker, name in _STATES:
        own = layers[layers["trained"] == state]
        for column, dash, face in (("near", "-", colour), ("alike", "--", "white")) if len(own) else ():
            found = by_bins(own, depth[own.index], 100 * own[column], "mean")
            look: dict[str, Any] = {"linestyle": dash, "marker": marker, "color": colour, "markerfacecolor": face}
            ax.plot(found.index, found["middle"], **look, label=f"{column}, {name} ({own['network'].nunique()})")
            ax.fill_between(found.index, found["low"], found["high"], color=colour, alpha=0.12, linewidth=0)
    copies = int(layers["duplicates"].sum())
    labels = {"xlabel": "depth (first layer 0, last 1)", "ylabel": "filters with a near one (%)"}
    title = f"{copies:,} exact duplicate{'s' * (copies != 1)} among {layers['outputs'].sum():,} filters"
    _end(ax, layers, title, more="; near: within half the median distance", **labels, xlim=(0, 1), ylim=(0, None))
    ax.legend(loc="best", title="mean (networks)")
    return ax


@styled
def plot_atlas_kinds(layers: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``compared_layers``: by kind, distinct values over those that noise makes.

    A dot is the median, a thick line the middle half, a thin one from the 5th to the 95th percentile.

    Example:
        >>> ax = plot_atlas_kinds(compared_layers(measure_atlas(["digits/mlp"])))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['linear']
    """
    kinds = [kind for kind in KINDS if (layers["kind"] == kind).any()]
    ax = ax or axes(7.2, 0.5 * len(kinds) + 1.5)
    over = layers["distinct"] / layers["noise"]
    for state, colour, marker, name in _STATES:
        for row, kind in enumerate(kinds):
            own = over[(layers["kind"] == kind) & (layers["trained"] == state)]
            if own.empty:
                continue
            low, first, middle, third, high = np.quantile(own, [0.05, 0.25, 0.5, 0.75, 0.95])
            at = row + (0.17 if state else -0.17)
            ax.hlines(at, low, high, color=colour, linewidth=1)
            ax.hlines(at, first, third, color=colour, linewidth=4)
            ax.plot(middle, at, marker, color=colour, markeredgecolor="white", markersize=8)
            ax.annotate(f"n = {len(own):,}", (high, at), (4, 0), textcoords="offset points", va="center", fontsize=9)
        ax.plot([], [], marker, color=colour, label=name)
    ax.axvline(1, color=INK, linewidth=1)
    rows_of(ax, kinds)
    ax.set(xscale="log", xlabel="distinct values over those of uniform noise (log)")
    ax.margins(x=0.14)
    plain_log(ax.xaxis)
    return _end(ax, layers, "Values for a layer's size")


@styled
def draw_twins(twins: pd.DataFrame, title: str = "Trained networks, and the same with random weights") -> Figure:
    """``twin_layers``: three measures of each network, trained beside its own random initial weights.

    Values: distinct ones over those of uniform noise, geometric mean over layers. Multiplications: those left over
    those by chance, median over layers. Near filters: their share.

    Example:
        >>> print(draw_twins(twin_layers(measure_atlas(["digits/mlp"]))).axes[2].get_xlabel())
        near filters
        (%)
    """
    names = list(dict.fromkeys(twins["network"]))
    figure, panels = plt.subplots(1, 3, figsize=(9.5, 0.3 * len(names) + 1.8), sharey=True)
    for ax, (label, measure) in zip(panels, _TWINS.items(), strict=True):
        values = {state: measure(twins, state) for state in (" untrained", "")}
        ax.hlines(range(len(names)), values[" untrained"], values[""], color="#cccccc", linewidth=2)
        for state, colour, marker, name in _STATES:
            ax.plot(values["" if state else " untrained"], range(len(names)), marker, color=colour, label=name)
        ax.margins(x=0.12)
        ax.set_xlabel(label)
        ax.grid(axis="y", visible=False)
    rows_of(panels[0], names)
    return framed(figure, title, panels[0].get_legend_handles_labels()[0], columns=2)


def _values(twins: pd.DataFrame, state: str) -> pd.Series:
    over = np.log(twins[f"distinct{state}"] / twins[f"noise{state}"])
    return np.exp(over.groupby(twins["network"], sort=False).mean())


def _products(twins: pd.DataFrame, state: str) -> pd.Series:
    over = twins[f"products_measured{state}"] / twins[f"products_expected{state}"]
    return over.groupby(twins["network"], sort=False).median()


def _near(twins: pd.DataFrame, state: str) -> pd.Series:
    """Depthwise layers have no filters to compare."""
    filters = twins["outputs"].where(twins["outputs"] > twins["groups"], 0)
    sums = pd.DataFrame({"near": twins[f"near{state}"] * filters, "all": filters})
    sums = sums.groupby(twins["network"], sort=False).sum()
    return 100 * sums["near"] / sums["all"]


_TWINS = {
    "distinct values\nover those of noise": _values,
    "multiplications\nover those by chance": _products,
    "near filters\n(%)": _near,
}


@styled
def plot_predictors(explained: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``explain_redundancy``, of one or several responses: the drop in R^2 without each predictor, and its interval.

    Example:
        >>> ax = plot_predictors(explain_atlas(read_atlas(), resamples=10))
        >>> ax.get_yticklabels()[0].get_text()
        'weights (log)'
    """
    names = list(dict.fromkeys(explained["predictor"]))
    ax = ax or axes(7.2, 0.55 * len(names) + 1.4)
    for k, (response, part) in enumerate(explained.groupby("response", sort=False)):
        rows = np.array([names.index(name) for name in part["predictor"]]) + 0.22 * (k - 1)
        colour, marker = ((INK, "^"), (ORANGE, "D"), (PURPLE, "v"))[k % 3]
        ax.hlines(rows, 100 * part["low"], 100 * part["high"], color=colour, linewidth=1.6)
        ax.plot(100 * part["drop"], rows, marker, color=colour, label=f"{response}: R² {part['r2'].iloc[0]:.2f}")
    rows_of(ax, names)
    title = "What each predictor explains that the others cannot"
    ax.set(xlabel="drop in R² without it (points of 100), 95 % interval over networks", title=title)
    ax.legend(loc="best")
    return ax


def _end(ax: Axes, layers: pd.DataFrame, title: str, place: Any = "best", more: str = "", **settings: Any) -> Axes:
    """The labels, a title that says how many networks and layers there are and ``more``, and a legend at ``place``."""
    networks = layers["network"].nunique()
    size = f"({networks} network{'s' * (networks != 1)}, {len(layers):,} layers{more})"
    ax.set(title=f"{title}\n{size}", **settings)
    ax.legend(loc=place)
    return ax


def _medians(ax: Axes, layers: pd.DataFrame, x: str, y: pd.Series) -> None:
    """Hexagons, the darker the more layers; over them the median by powers of two of ``x``, trained and random."""
    look: dict[str, Any] = {"bins": "log", "gridsize": 40, "mincnt": 1, "linewidths": 0.2, "rasterized": True}
    picture = ax.hexbin(layers[x], y, xscale="log", yscale="log", cmap="Greys", alpha=0.7, **look)
    ax.figure.colorbar(picture, ax=ax, label="layers (log)", shrink=0.8, format="{x:,g}")
    for state, colour, marker, name in _STATES:
        own = layers[layers["trained"] == state]
        if own.empty:
            continue
        found = by_bins(own, np.round(np.log2(own[x])), y[own.index])
        found = found[found["layers"] >= min(_FEW, found["layers"].max())]
        places = 2.0**found.index
        ax.fill_between(places, found["low"], found["high"], color=colour, alpha=0.25, linewidth=0)
        label = f"{name}, median ({own['network'].nunique()} networks)"
        ax.plot(places, found["middle"], f"{marker}-", color=colour, markersize=4.5, label=label)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    plain_log(ax.yaxis)
