"""Figures of densities, hashing and its guarantees: a tidy frame in, Axes out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from redlab.network.result import of_layers
from redlab.studies.plots.style import BLUE, GREY, INK, RED, axes, dots, draw_lost, finish, look, rows_of, styled


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
    size = 3.5 if len(modes) < 400 else 0.6  # a thousand dots would hide the curve that they sit on
    ax.plot(modes["weight"], modes["density"], ".", color=RED, markersize=size, label="mode")
    top, width = float(frame["density"].replace(np.inf, np.nan).max() or 1.0), min(0.5, 60 / (len(cuts) + 1))
    ax.vlines(cuts["weight"], -0.09 * top, -0.02 * top, color=INK, linewidth=width, label="cut")
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
    ax.set(xlabel="bandwidth, in units of Silverman's (log)", ylabel="modes (log)")
    finish(ax, xscale="log", yscale="log", title="A narrower kernel sees more modes")
    widths = sorted(set(frame["bandwidth"]))
    ax.set_xticks(widths, [f"{width:.3g}" if width >= 1 else f"1/{1 / width:.3g}" for width in widths])
    ax.minorticks_off()
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
        ax.vlines(values, row - 0.38, row + 0.38, color=look(row)["color"], linewidth=0.9)
    ax.set_yticks(range(len(rules)), [f"{rule}\n{(frame['rule'] == rule).sum()} values" for rule in rules])
    ax.invert_yaxis()
    ax.grid(False)
    return finish(ax, xlabel="weight", title="Where each rule puts its values")


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
    title = f"{len(frame):,} value{'s' * (len(frame) != 1)}"
    return finish(ax, xlabel="weight", ylabel="weights (%)", title=title, ylim=(0, None))


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
    dots(ax, after, rows, 1, "after")
    share = frame["distinct"].sum() / max(frame["distinct_before"].sum(), 1)
    rows_of(ax, frame["layer"])
    title = f"Hashing keeps {share:.1%} of the distinct values"
    return finish(ax, xscale="log", xlabel="distinct weight values (log)", title=title)


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
        dots(ax, 100 * part["error"], part["layer"].map(layers.index), k, rule)
    rows_of(ax, layers)
    title = "How far hashing moves each layer"
    return finish(ax, xlabel="relative L2 error of the weights (%)", title=title, xlim=(0, None))


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
    entries = draw_lost(ax, frame.assign(share=100 * frame["share"]), "share")
    return finish(ax, entries, xscale="log", xlabel=f"{frame.attrs.get('of', 'share')} left (%, log)")


@styled
def plot_bound(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """An ``error_bound``: the bound and the measured error after each layer, relative to the layer's output (log).

    Zeros have no place on a logarithmic axis and are left out.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=20)
        >>> plot_bound(error_bound(network, hash_network(network), images)).get_xscale()
        'log'
    """
    ax = ax or axes(7, 0.24 * len(frame) + 1.6)
    rows = np.arange(len(frame))
    bound, measured = (frame[name].where(frame[name] > 0) for name in ("bound", "measured"))
    ax.hlines(rows, measured, bound, color="#cccccc", linewidth=2)
    dots(ax, bound, rows, 1, "bound")
    dots(ax, measured, rows, 0, "measured")
    rows_of(ax, frame["layer"])
    if bound.notna().any():  # from one power of ten to another, however few of them the values span
        low, high = np.floor(np.log10(np.fmin(bound.min(), measured.min()))), np.ceil(np.log10(bound.max()))
        ax.set(xscale="log", xlim=(10 ** (low - 0.15), 10 ** (high + 0.15)))
    label = "L2 error, relative to the layer's output (median over the images, log)"
    return finish(ax, xlabel=label, ylabel="layer", title=_bound_title(frame))


def _bound_title(frame: pd.DataFrame) -> str:
    facts = frame.attrs
    first = "No error at the output"
    if facts["bound"]:
        exponent = facts["log10_ratio"]
        times = f"{10**exponent:.2g}" if exponent < 3 else f"10^{exponent:.1f}"
        first = f"At the output, the bound is {times} times the measured error"
    second = f"{facts['certain']:.1%} of {facts['images']:,} predictions are certain to stay; {facts['same']:.1%} stay"
    return f"{first}\n{second}"
