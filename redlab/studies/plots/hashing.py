"""Figures of densities and hashing: a tidy frame in, Axes out."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from redlab.network.result import of_layers
from redlab.studies.plots.lost import draw_lost
from redlab.studies.plots.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    MARKERS,
    RED,
    axes,
    legend,
    look,
    plain_log,
    rows_of,
    styled,
)


@styled
def plot_density(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A ``Density.frame()``: the curve, a dot on each mode, a tick below for each cut.

    Example:
        >>> density = estimate_density(torch.tensor([0.0, 0.0, 1.0]), bandwidth=0.1)
        >>> plot_density(density.frame()).get_xlabel()
        'weight'
    """
    ax = ax or axes(7, 3.5)
    curve, modes, cuts = (frame[frame["mark"] == mark] for mark in ("", "mode", "cut"))
    ax.fill_between(curve["weight"], curve["density"], color=BLUE, alpha=0.18, linewidth=0, rasterized=True)
    ax.plot(curve["weight"], curve["density"], color=BLUE, linewidth=1.0, rasterized=True)
    # A thousand dots would hide the curve that they sit on.
    ax.plot(
        modes["weight"], modes["density"], ".", color=RED, markersize=3.5 if len(modes) < 400 else 0.6, label="mode"
    )
    top = float(frame["density"].replace(np.inf, np.nan).max() or 1.0)
    ax.vlines(
        cuts["weight"], -0.09 * top, -0.02 * top, color=INK, linewidth=min(0.5, 60 / (len(cuts) + 1)), label="cut"
    )
    ax.axhline(0, color="#777777", linewidth=0.6)
    ax.set(xlabel="weight", ylabel="density", title=f"{len(modes):,} mode{'s' * (len(modes) != 1)}")
    return ax


@styled
def plot_modes(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Modes against bandwidth, one line a layer; columns bandwidth (a share of Silverman's), modes, layer.

    Example:
        >>> frame = pd.DataFrame({"bandwidth": [0.5, 0.1], "modes": [1, 9], "layer": "conv1"})
        >>> plot_modes(frame).get_ylabel()
        'modes (log)'
    """
    ax = ax or axes(7, 4)
    for k, (layer, part) in enumerate(frame.sort_values("bandwidth").groupby("layer", sort=False)):
        ax.plot(part["bandwidth"], part["modes"], **look(k), label=layer)
    legend(ax)
    ax.set(xscale="log", yscale="log", xlabel="bandwidth, in units of Silverman's (log)", ylabel="modes (log)")
    widths = sorted(set(frame["bandwidth"]))
    ax.set_xticks(widths, [f"{width:.3g}" if width >= 1 else f"1/{1 / width:.3g}" for width in widths])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,g}"))
    ax.set_title("A narrower kernel sees more modes")
    return ax


@styled
def plot_codebooks(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The values that each rule keeps for one layer, a row of ticks a rule; columns rule, value.

    Example:
        >>> weights = torch.linspace(-1, 1, 99)
        >>> values = {rule: hash_weights(weights, rule, levels=5).codebook for rule in ("uniform", "lloyd")}
        >>> frame = pd.concat(pd.DataFrame({"rule": rule, "value": own}) for rule, own in values.items())
        >>> plot_codebooks(frame).get_xlabel()
        'weight'
    """
    ax = ax or axes(7, 2.2)
    rules = list(dict.fromkeys(frame["rule"]))
    for row, rule in enumerate(rules):
        values = frame.loc[frame["rule"] == rule, "value"]
        ax.vlines(values, row - 0.38, row + 0.38, color=COLOURS[row], linewidth=0.9)
    ax.set_yticks(range(len(rules)), [f"{rule}\n{(frame['rule'] == rule).sum()} values" for rule in rules])
    ax.invert_yaxis()
    ax.grid(False)
    ax.set(xlabel="weight", title="Where each rule puts its values")
    return ax


@styled
def plot_values(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``Hashed.frame()``: a line at each value, as high as the share of the weights that took it.

    Example:
        >>> hashed = hash_weights(torch.tensor([0.1, 0.1, 0.1, 0.5]), bandwidth=0.05)
        >>> plot_values(hashed.frame()).get_xlabel()
        'weight'
    """
    ax = ax or axes(7, 2.6)
    share = 100 * frame["weights"] / frame["weights"].sum()
    ax.vlines(frame["value"], 0, share, color=RED, linewidth=max(0.5, min(2.0, 200 / len(frame))))
    ax.axhline(0, color="#777777", linewidth=0.6)
    ax.set(xlabel="weight", ylabel="weights (%)", title=f"{len(frame):,} value{'s' * (len(frame) != 1)}")
    ax.set_ylim(bottom=0)
    return ax


@styled
def plot_collapse(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``Result.layers`` of hashing: distinct values of each layer before and after, joined by a line (log scale).

    Example:
        >>> plot_collapse(hash_network(load_network("digits/mlp")).layers).get_xlabel()
        'distinct weight values (log)'
    """
    frame = of_layers(frame)
    ax = ax or axes(7, 0.24 * len(frame) + 1.3)
    rows = np.arange(len(frame))
    before, after = frame["distinct_before"].clip(lower=1), frame["distinct"].clip(lower=1)
    ax.hlines(rows, after, before, color="#cccccc", linewidth=2)
    ax.plot(before, rows, "o", color=GREY, markersize=5, label="before")
    ax.plot(after, rows, "s", color=RED, markersize=5, label="after")
    share = frame["distinct"].sum() / max(frame["distinct_before"].sum(), 1)
    rows_of(ax, frame["layer"])
    title = f"Hashing keeps {share:.1%} of the distinct values"
    ax.set(xscale="log", xlabel="distinct weight values (log)", title=title)
    plain_log(ax.xaxis)
    legend(ax)
    return ax


@styled
def plot_error(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The relative L2 error of each layer, one colour a column ``rule``; columns layer, error, rule.

    Example:
        >>> network = load_network("digits/mlp")
        >>> frame = pd.concat(hash_network(network, rule).layers.assign(rule=rule) for rule in ("kde", "lloyd"))
        >>> plot_error(frame).get_xlabel()
        'relative L2 error of the weights (%)'
    """
    frame = of_layers(frame)
    ax = ax or axes(7, 0.24 * frame["layer"].nunique() + 1.3)
    layers = list(dict.fromkeys(frame["layer"]))
    for k, (rule, part) in enumerate(frame.groupby("rule", sort=False)):
        rows = [layers.index(layer) for layer in part["layer"]]
        ax.plot(100 * part["error"], rows, MARKERS[k], color=COLOURS[k], markersize=5, label=rule)
    rows_of(ax, layers)
    ax.set(xlabel="relative L2 error of the weights (%)", title="How far hashing moves each layer")
    ax.set_xlim(left=0)
    legend(ax)
    return ax


@styled
def plot_frontier(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy lost against what is left, a line a ``method``, as ``draw_lost`` has it.

    Columns share, accuracy, images, method; ``frame.attrs["of"]`` says what ``share`` is a share of.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> frame = compare_hashes(network, images, [{"bandwidth": 0.1}, {"bandwidth": 0.2}])
        >>> plot_frontier(frame.assign(method="kde")).get_xlabel()
        'distinct weight values left (%, log)'
    """
    ax = ax or axes(7, 4.5)
    legend(ax, draw_lost(ax, frame.assign(share=100 * frame["share"]), "share"))
    ax.set(xscale="log", xlabel=f"{frame.attrs.get('of', 'share')} left (%, log)")
    plain_log(ax.xaxis)
    return ax
