"""Pictures of the atlas: frames of ``atlas_studies`` in, Axes out, and the poster that holds them all.

Colour and marker stand for the kind of a layer, or for trained (red) against random initial weights (blue).
"""

from __future__ import annotations

from typing import Any, cast

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from redlab.studies.atlas import compared_layers, twin_layers
from redlab.studies.plots.style import BLUE, DASHES, GREY, INK, MARKERS, ORANGE, PURPLE, RED, VIOLET, axes, styled
from redlab.studies.redundancy import KINDS

_COLOUR = dict(zip(KINDS, (BLUE, VIOLET, RED, INK, ORANGE, PURPLE, GREY), strict=True))
_MARKER = dict(zip(KINDS, MARKERS, strict=True))
_STATES = ((False, BLUE, "s", "untrained"), (True, RED, "o", "trained"))
_BINS = 10  # of depth


@styled
def draw_atlas(atlas: pd.DataFrame, noise: pd.DataFrame, explained: pd.DataFrame, title: str = "") -> Figure:
    """The poster: an atlas (``read_atlas``), ``measure_noise`` and ``explain_atlas`` in six pictures.

    Example:
        >>> atlas = measure_atlas(["digits/mlp"])
        >>> figure = draw_atlas(atlas, measure_noise((100, 1000)), explain_atlas(atlas, resamples=10), "one network")
        >>> figure.get_suptitle()
        'one network'
    """
    figure = plt.figure(figsize=(11.5, 12))
    grid = figure.add_gridspec(3, 2)
    layers, filters = compared_layers(atlas), compared_layers(atlas, filters=True)
    plot_atlas_values(layers, noise, figure.add_subplot(grid[0, 0]))
    plot_atlas_products(layers, figure.add_subplot(grid[0, 1]))
    plot_atlas_filters(filters, figure.add_subplot(grid[1, 0]))
    plot_atlas_kinds(layers, figure.add_subplot(grid[1, 1]))
    _draw_twins(twin_layers(atlas), figure, grid[2, 0])
    plot_predictors(explained, figure.add_subplot(grid[2, 1]))
    figure.legend(handles=_kinds_of(layers), loc="outside lower center", ncols=9)
    figure.suptitle(title, fontsize=13)
    return figure


@styled
def plot_atlas_values(layers: pd.DataFrame, noise: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``compared_layers``: distinct values that hashing leaves against weights, a dot a layer (trained ones edged).

    The lines are what it leaves of random numbers (``measure_noise``).

    Example:
        >>> layers = compared_layers(measure_atlas(["digits/mlp"]))
        >>> plot_atlas_values(layers, measure_noise((100, 1000))).get_xlabel()
        'weights of a layer (log)'
    """
    ax = ax or axes(6, 4.3)
    _scatter(ax, layers, "weights", layers["distinct"])
    for dash, (shape, part) in zip(DASHES, noise.groupby("shape", sort=False), strict=False):
        ax.plot(part["weights"], part["distinct"], linestyle=dash, color=INK, linewidth=1.2, label=f"{shape} noise")
    share = layers["distinct"].sum() / layers["weights"].sum()
    ax.set(xscale="log", yscale="log", xlabel="weights of a layer (log)", ylabel="distinct values after hashing (log)")
    ax.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    _plain(ax.yaxis)
    ax.set_title(f"Values: hashing leaves one for every {1 / share:,.0f} weights")
    ax.legend(loc="lower right")
    return ax


@styled
def plot_atlas_products(layers: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``compared_layers``: products left against the weights that an input channel meets (trained ones edged).

    The line is what chance leaves of the median layer of that size.

    Example:
        >>> plot_atlas_products(compared_layers(measure_atlas(["digits/mlp"]))).get_ylabel()
        'products left (%, log)'
    """
    ax = ax or axes(6, 4.3)
    _scatter(ax, layers, "unit", 100 * layers["products_measured"])
    bins = np.round(np.log2(layers["unit"]))
    chance = layers.groupby(bins)[["unit", "products_expected"]].median()
    ax.plot(chance["unit"], 100 * chance["products_expected"], color=INK, linewidth=1, zorder=3, label="by chance")
    ratio = (layers["products_measured"] / layers["products_expected"]).groupby(layers["trained"]).median()
    ax.set(xscale="log", yscale="log", xlabel="weights that an input channel meets (log)")
    ax.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    ax.set_ylabel("products left (%, log)")
    _plain(ax.yaxis)
    words = ", ".join(f"{name} {ratio[state]:.3f}" for state, _, _, name in _STATES if state in ratio)
    ax.set_title(f"Products: over those by chance, in the median\n{words}")
    ax.legend(loc="lower left")
    return ax


@styled
def plot_atlas_filters(layers: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``compared_layers`` with ``filters``: near and alike filters by depth, means over layers, the network trained or
    not.

    Example:
        >>> plot_atlas_filters(compared_layers(measure_atlas(["digits/mlp"]), filters=True)).get_title()
        'Filters: 0 exact duplicates among 788 filters'
    """
    ax = ax or axes(6, 4.3)
    depth = ((layers["depth"] * _BINS).astype(int).clip(upper=_BINS - 1) + 0.5) / _BINS
    for state, colour, marker, name in (state for state in _STATES if (layers["trained"] == state[0]).any()):
        own = layers[layers["trained"] == state]
        networks = own["network"].nunique()
        for column, dash, face in (("near", "-", colour), ("alike", "--", "white")):
            means = 100 * own.groupby(depth)[column].mean()
            look: dict[str, Any] = {"linestyle": dash, "marker": marker, "color": colour, "markerfacecolor": face}
            ax.plot(means.index, means, **look, label=f"{column}, {name} ({networks} network{'s' * (networks != 1)})")
    copies = int(layers["duplicates"].sum())
    ax.set(xlabel="depth (first layer 0, last 1)", ylabel="filters with a near one (%)")
    ax.set_title(f"Filters: {copies:,} exact duplicate{'s' * (copies != 1)} among {layers['outputs'].sum():,} filters")
    ax.set_ylim(bottom=-0.5)
    ax.set_xlim(0, 1)
    ax.legend(loc="best", title="nearer than half the median pair")
    return ax


@styled
def plot_atlas_kinds(layers: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``compared_layers``: by kind, distinct values over those that noise makes; a dot the median, a line the middle
    half, a thin one from the 5th to the 95th hundredth.

    Example:
        >>> ax = plot_atlas_kinds(compared_layers(measure_atlas(["digits/mlp"])))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['linear']
    """
    ax = ax or axes(6, 4.3)
    kinds = [kind for kind in KINDS if (layers["kind"] == kind).any()]
    over = layers["distinct"] / layers["noise"]
    for state, colour, marker, _ in _STATES:
        for row, kind in enumerate(kinds):
            own = over[(layers["kind"] == kind) & (layers["trained"] == state)]
            if own.empty:
                continue
            low, first, middle, third, high = np.quantile(own, [0.05, 0.25, 0.5, 0.75, 0.95])
            at = row + (0.17 if state else -0.17)
            ax.hlines(at, low, high, color=colour, linewidth=1)
            ax.hlines(at, first, third, color=colour, linewidth=4)
            ax.plot(middle, at, marker, color=colour, markeredgecolor="white", markersize=8)
            ax.annotate(f"{len(own):,}", (high, at), (4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.axvline(1, color=INK, linewidth=1)
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set_ylim(len(kinds) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set(xscale="log", xlabel="distinct values over those of uniform noise (log)")
    _plain(ax.xaxis)
    ax.margins(x=0.12)
    ax.set_title("Kinds: values for a layer's size (numbers: layers)")
    ax.legend(handles=_states_of(layers), loc="best")
    return ax


@styled
def plot_twins(twins: pd.DataFrame, measure: str, ax: Axes | None = None) -> Axes:
    """``twin_layers``: one measure of each network, trained against its own random initial weights, joined by a line.

    Arguments:
        measure: "values" (distinct ones over those of uniform noise, geometric mean over layers), "products" (those
            left over those by chance, median over layers), or "near" (share of filters in percent).

    Example:
        >>> plot_twins(twin_layers(measure_atlas(["digits/mlp"])), "near").get_xlabel()
        'near filters\\n(%)'
    """
    ax = ax or axes(4, 3)
    names = list(dict.fromkeys(twins["network"]))
    title, values = _twin_values(twins, measure)
    ax.hlines(range(len(names)), values[" untrained"], values[""], color="#cccccc", linewidth=2)
    for state, colour, marker, name in _STATES:
        ax.plot(values["" if state else " untrained"], range(len(names)), marker, color=colour, label=name)
    ax.set_yticks(range(len(names)), [name.replace("/", "/\n") for name in names])
    ax.invert_yaxis()
    ax.margins(x=0.15, y=0.12)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(title)
    return ax


def _twin_values(twins: pd.DataFrame, measure: str) -> tuple[str, pd.DataFrame]:
    """What the axis says, and the measure by network (rows) and state (columns "" and " untrained")."""
    own = twins[twins["outputs"] > twins["groups"]] if measure == "near" else twins
    by = own["network"]
    both = {}
    for state in ("", " untrained"):
        if measure == "values":
            over = np.log(own[f"distinct{state}"] / own[f"noise{state}"])
            both[state] = np.exp(over.groupby(by, sort=False).mean())
        elif measure == "products":
            over = own[f"products_measured{state}"] / own[f"products_expected{state}"]
            both[state] = over.groupby(by, sort=False).median()
        else:
            filters = own["outputs"].groupby(by, sort=False).sum()
            both[state] = 100 * (own[f"near{state}"] * own["outputs"]).groupby(by, sort=False).sum() / filters
    titles = {"values": "values\nover noise's", "products": "products\nover chance's", "near": "near filters\n(%)"}
    return titles[measure], pd.DataFrame(both)


def _draw_twins(twins: pd.DataFrame, figure: Figure, place: mpl.gridspec.SubplotSpec) -> None:
    axes = cast(np.ndarray, place.subgridspec(1, 3).subplots(sharey=True))
    for ax, measure in zip(axes, ("values", "products", "near"), strict=True):
        plot_twins(twins, measure, ax)
    axes[1].set_title("Twins: trained, and the same network untrained")


@styled
def plot_predictors(explained: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``explain_redundancy``, of one or several responses: the drop in R^2 without each predictor, and its interval.

    Example:
        >>> ax = plot_predictors(explain_atlas(read_atlas(), resamples=10))
        >>> ax.get_yticklabels()[0].get_text()
        'weights (log)'
    """
    ax = ax or axes(6, 4.3)
    names = list(dict.fromkeys(explained["predictor"]))
    for k, (response, part) in enumerate(explained.groupby("response", sort=False)):
        rows = np.array([names.index(name) for name in part["predictor"]]) + 0.22 * (k - 1)
        colour, marker = (INK, ORANGE, PURPLE)[k % 3], MARKERS[2 + k % 3]
        ax.hlines(rows, 100 * part["low"], 100 * part["high"], color=colour, linewidth=1.6)
        ax.plot(100 * part["drop"], rows, marker, color=colour, label=f"{response}: R² {part['r2'].iloc[0]:.2f}")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="drop in R² without it (points of 100), 95 % of resampled networks")
    ax.set_title("Predictors: what each explains that the others cannot")
    ax.legend(loc="best")
    return ax


def _plain(axis: mpl.axis.Axis) -> None:
    """A log axis with ticks at 1, 2, 5, 10 and so on, in plain numbers."""
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def _scatter(ax: Axes, layers: pd.DataFrame, x: str, y: pd.Series) -> None:
    """A dot a layer: kinds by colour and marker, trained layers on top, with a dark edge."""
    for state, _, _, _ in _STATES:
        for kind in KINDS:
            own = (layers["kind"] == kind) & (layers["trained"] == state)
            look: dict[str, Any] = {"markersize": 3, "alpha": 0.35, "rasterized": True}
            if state:
                look |= {"markersize": 4.5, "markeredgecolor": INK, "markeredgewidth": 0.6, "alpha": 0.9}
            ax.plot(layers.loc[own, x], y[own], _MARKER[kind], color=_COLOUR[kind], **look)


def _kinds_of(layers: pd.DataFrame) -> list[Line2D]:
    dots = [
        Line2D([], [], color=_COLOUR[kind], marker=_MARKER[kind], linestyle="", label=kind)
        for kind in KINDS
        if (layers["kind"] == kind).any()
    ]
    edged = Line2D([], [], color="white", marker="o", linestyle="", markeredgecolor=INK, label="edged: trained")
    return [*dots, edged]


def _states_of(layers: pd.DataFrame) -> list[Line2D]:
    return [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
        for state, colour, marker, name in _STATES
        if (layers["trained"] == state).any()
    ]
