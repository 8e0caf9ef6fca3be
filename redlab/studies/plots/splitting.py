"""Figures of splitting: a tidy frame in, Axes out."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from redlab.network.result import of_layers
from redlab.studies.plots.style import BLUE, COLOURS, INK, axes, dots, draw_lost, finish, framed, rows_of, styled

_MEASURES = {"products": "multiplications", "additions": "additions", "lookups": "look-ups", "parameters": "parameters"}
_MEASURES |= {"bytes": "bytes on disk", "accuracy": "accuracy", "milliseconds": "time"}


@styled
def plot_channels(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``channel_products``: how many of the multiplications of each input channel are left.

    Example:
        >>> layer = next(weight_layers(hash_network(load_network("digits/resnet")).network))
        >>> plot_channels(channel_products(layer.module, "channel")).get_xlabel()
        'input channel'
    """
    ax = ax or axes(5, 3.8)
    weights = frame["weights"].iloc[0]
    # One outline, however many channels there are: bars take a tenth of a second for 256.
    ax.stairs(frame["products"], np.arange(len(frame) + 1) - 0.5, fill=True, color=BLUE)
    ax.axhline(weights, color=INK, linewidth=0.8)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    ax.annotate(f"{weights} without sharing", (0.99, weights), **place)
    ax.grid(axis="x", visible=False)
    title = f"{frame['products'].sum() / frame['weights'].sum():.1%} of the multiplications are left"
    limits: dict[str, Any] = {"xlim": (-0.5, len(frame) - 0.5), "ylim": (0, 1.12 * weights)}
    ticks = range(0, len(frame), -(-len(frame) // 16))
    return finish(ax, xlabel="input channel", ylabel="multiplications a position", title=title, **limits, xticks=ticks)


@styled
def plot_split(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Multiplications left of each layer, a marker a unit.

    Columns of ``split_inputs(...).layers`` and, for several units, ``unit``.

    Example:
        >>> hashed = hash_network(load_network("digits/mlp")).network
        >>> plot_split(split_inputs(hashed).layers).get_xlabel()
        'multiplications left of those of the ordinary layer (%, log)'
    """
    frame = of_layers(frame if "unit" in frame else frame.assign(unit="multiplications"))
    layers = list(dict.fromkeys(frame["layer"]))
    ax = ax or axes(7, 0.24 * len(layers) + 1.4)
    for k, (unit, part) in enumerate(frame.groupby("unit", sort=False)):
        share = 100 * part["products_after"] / part["products_before"].clip(lower=1)
        total = part["products_after"].sum() / max(part["products_before"].sum(), 1)
        dots(ax, share, part["layer"].map(layers.index), k, f"{unit} ({total:.1%} in all)")
    rows_of(ax, layers)
    label = "multiplications left of those of the ordinary layer (%, log)"
    return finish(ax, xscale="log", xlabel=label, title="Multiplications left by layer")


@styled
def plot_expected(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``distinct_products``: measured against expected, a dot a layer, a colour a unit.

    Chance explains what lies on the line.

    Example:
        >>> hashed = hash_network(load_network("digits/mlp")).network
        >>> plot_expected(distinct_products(hashed)).get_xlabel()
        'expected, weights of the layer shuffled (log)'
    """
    ax = ax or axes(6, 4.5)
    for k, (unit, part) in enumerate(frame.groupby("unit", sort=False)):
        dots(ax, part["expected"], part["measured"], k, f"unit {unit!r}")
    both = frame[["expected", "measured"]].to_numpy()
    ends = [both.min(), both.max()]
    ax.plot(ends, ends, color=INK, linewidth=0.8)
    ax.set(xlabel="expected, weights of the layer shuffled (log)", ylabel="measured (log)")
    return finish(ax, xscale="log", yscale="log", title="Distinct weights of a unit: chance explains nearly all")


@styled
def plot_splits(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``compare_splits`` of one unit: accuracy lost against multiplications left, a line a ``method``.

    Example:
        >>> frame = pd.DataFrame({"share": [0.1, 0.2], "accuracy": [90.0, 95.0], "method": "kde", "unit": "channel"})
        >>> plot_splits(frame).get_xlabel()
        'multiplications left (%, log)'
    """
    ax = ax or axes(8, 4.5)
    return finish(ax, _draw_splits(ax, frame))


@styled
def draw_splits(frame: pd.DataFrame, title: str = "") -> Figure:
    """``compare_splits``, a panel a unit: accuracy lost against multiplications left, a line a ``method``.

    Example:
        >>> frame = pd.DataFrame({"share": [0.1, 0.2], "accuracy": [90.0, 95.0], "method": "kde"})
        >>> [ax.get_title() for ax in draw_splits(frame.assign(unit=["channel", "tap"])).axes]
        ["unit 'channel'", "unit 'tap'"]
    """
    units, methods = list(dict.fromkeys(frame["unit"])), list(dict.fromkeys(frame["method"]))
    figure, grid = plt.subplots(1, len(units), figsize=(3.4 * len(units) + 0.4, 4.4), sharey=True, squeeze=False)
    entries: dict[object, Line2D] = {}
    for ax, unit in zip(grid.flat, units, strict=True):
        found = _draw_splits(ax, frame[frame["unit"] == unit], methods)
        entries |= {entry.get_label(): entry for entry in found}
        ax.set_title(f"unit {unit!r}")
        ax.label_outer()
    return framed(figure, title, [*entries.values()])


def _draw_splits(ax: Axes, part: pd.DataFrame, methods: list[str] | None = None) -> list[Line2D]:
    entries = draw_lost(ax, part.assign(share=100 * part["share"]), "share", methods=methods)
    finish(ax, [], xscale="log", xlabel="multiplications left (%, log)")
    return entries


@styled
def draw_steps(frame: pd.DataFrame, title: str = "") -> Figure:
    """``step_by_step``, a panel a measure in it, a row a step, a dot a method; counts as shares of the original's.

    The bar at an accuracy is its 95 % interval.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> figure = draw_steps(step_by_step(network, images, {"RED": red_steps()}))
        >>> print(figure.axes[0].get_title())
        multiplications
        (% of the original's)
    """
    steps, measures = _order(frame), [measure for measure in _MEASURES if measure in frame]
    columns = min(4, len(measures))
    rows = -(-len(measures) // columns)
    size = (1.6 + 2.4 * columns, rows * (0.27 * len(steps) + 0.9) + 0.6)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    methods = list(frame.groupby("method", sort=False))
    for ax, measure in zip(grid.flat, measures, strict=False):
        for k, (method, part) in enumerate(methods):
            places = np.array([steps.index(step) for step in part["step"]]) + 0.24 * (k - (len(methods) - 1) / 2)
            if measure == "accuracy" and "images" in part:
                ax.hlines(places, part["accuracy_low"], part["accuracy_high"], color=COLOURS[k], linewidth=1)
            dots(ax, _scaled(part, measure), places, k, method)
        ax.set_title(_MEASURES[measure] + _unit(frame, measure))
        if measure != "accuracy":
            ax.set_xlim(left=0)
    rows_of(grid.flat[0], steps)
    for ax in grid.flat[len(measures) :]:
        ax.set_axis_off()
    return framed(figure, title, grid.flat[0].get_legend_handles_labels()[0], columns=3)


def _order(frame: pd.DataFrame) -> list[str]:
    """The steps of all methods, each where the longest method has it."""
    places = frame.assign(place=frame.groupby("method", sort=False).cumcount())
    return places.groupby("step", sort=False)["place"].max().sort_values(kind="stable").index.tolist()


def _scaled(part: pd.DataFrame, measure: str) -> pd.Series:
    if measure in ("accuracy", "milliseconds"):
        return part[measure]
    # Nothing is looked up in an ordinary network: look-ups are compared with its multiplications.
    return 100 * part[measure] / max(part["products" if measure == "lookups" else measure].iloc[0], 1)


def _unit(frame: pd.DataFrame, measure: str) -> str:
    if measure == "accuracy":
        return f"\n(%, n = {frame['images'].iloc[0]:,})" if "images" in frame else "\n(%)"
    if measure == "milliseconds":
        return "\n(ms, batch 1)"
    return "\n(% of the original's" + (" multiplications)" if measure == "lookups" else ")")


@styled
def plot_bits(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``stored_bits``: bits a weight on disk beside the entropy of its values, layer by layer.

    Example:
        >>> import tempfile
        >>> hashed = hash_network(load_network("digits/mlp"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_bits(stored_bits(save_network(hashed, folder))).get_xlabel()
        'bits a weight'
    """
    ax = ax or axes(7, 0.24 * len(frame) + 1.4)
    rows = np.arange(len(frame))
    dots(ax, frame["entropy"], rows, 0, "entropy of the values")
    dots(ax, frame["bits"], rows, 1, "on disk, codebook too")
    mean = float((frame["bits"] * frame["weights"]).sum() / max(frame["weights"].sum(), 1))
    rows_of(ax, frame["layer"])
    title = f"{mean:.2f} bits a weight on average, in place of 32"
    return finish(ax, xlabel="bits a weight", title=title, xlim=(0, None))


@styled
def plot_times(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Rows of benchmarks/results.parquet: how many times as long as the ordinary network; columns contestant, ratio.

    Example:
        >>> plot_times(pd.DataFrame({"contestant": ["ordinary", "split"], "ratio": [1.0, 4.0]})).get_xlabel()
        'time, ordinary layers in their better layout = 1 (log)'
    """
    ax = ax or axes(7, 0.34 * len(frame) + 1.3)
    rows = np.arange(len(frame))
    ax.barh(rows, frame["ratio"], color=np.where(frame["ratio"] > 1, COLOURS[1], COLOURS[0]))
    for row, ratio in zip(rows, frame["ratio"], strict=True):
        ax.annotate(f" {ratio:.3g}x", (ratio, row), va="center", fontsize=9)
    ax.axvline(1, color=INK, linewidth=0.8)
    rows_of(ax, frame["contestant"])
    label, right = "time, ordinary layers in their better layout = 1 (log)", 2.2 * float(frame["ratio"].max())
    return finish(ax, xscale="log", xlabel=label, title="How much longer a split network takes", xlim=(None, right))
