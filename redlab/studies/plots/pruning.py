"""Figures of scores and of pruning: a tidy frame in, Axes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from redlab.studies.plots.style import BLUE, COLOURS, INK, ORANGE, RED, axes, draw_lost, finish, look, rows_of, styled

# What stands on the horizontal axis of a trade-off, by column.
_LEFT = {
    "products": "multiplications left (%)",
    "parameters": "parameters left (%)",
    "milliseconds": "time of one image (ms, batch 1)",
    "ratio": "weights set to zero (%)",
    "kilobytes": "size (kB)",
    "sparsity": "weights left, neither zero nor removed (%, log)",
    "bits": "bits a weight, positions included (log)",
}
_KINDS = {
    "pearson_minibatch": ("-", "Pearson, per minibatch"),
    "pearson": ("--", "Pearson, all images"),
    "spearman": (":", "Spearman, all images"),
}
_SHARES = ("products", "parameters", "ratio", "sparsity")


@styled
def plot_scores(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``Scores.frame()`` of channels: a row of dots a group, a dot a channel (log scale); zeros stand at the left.

    Example:
        >>> plot_scores(score_channels(load_network("digits/mlp"), "magnitude").frame()).get_xscale()
        'log'
    """
    groups = list(dict.fromkeys(frame["group"]))
    ax = ax or axes(7, 0.3 * len(groups) + 1.3)
    floor = frame.loc[frame["score"] > 0, "score"].min() / 3
    rows = frame["group"].map(groups.index) + np.random.default_rng(0).uniform(-0.28, 0.28, len(frame))
    zero = frame["score"] <= 0
    ax.plot(frame["score"].where(~zero), rows, "o", color=BLUE, markersize=3.5, alpha=0.75, markeredgewidth=0)
    if zero.any():
        ax.plot(np.full(zero.sum(), floor), rows[zero], "x", color=RED, markersize=4, label="score 0")
    medians = frame.groupby("group", sort=False)["score"].median().clip(lower=floor)
    ax.plot(medians, range(len(groups)), "|", color=INK, markersize=12, markeredgewidth=1.6)
    rows_of(ax, [f"{group} ({(frame['group'] == group).sum()})" for group in groups])
    title = "Scores of the channels by group; a bar marks the median"
    return finish(ax, xscale="log", xlabel="score (log)", title=title)


@styled
def plot_agreement(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``oracle_agreement`` of one method: each channel's score against what removing it does to the loss, log-log.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", "train", limit=64)
        >>> frame = oracle_agreement(network, images, {"Taylor": {"criterion": "taylor"}}, inner_groups(network)[-1:])
        >>> plot_agreement(frame).get_xscale()
        'log'
    """
    ax = ax or axes(4, 3.6)
    shown = frame[(frame["score"] > 0) & (frame["oracle"] > 0)]
    ax.plot(shown["oracle"], shown["score"], "o", color=BLUE, markersize=3.5, alpha=0.6, markeredgewidth=0)
    both = frame[["score", "oracle"]]
    title = f"Pearson {both.corr().iloc[0, 1]:.2f}, Spearman {both.rank().corr().iloc[0, 1]:.2f}"
    labels: dict[str, Any] = {"xlabel": "squared loss change (nats², log)", "ylabel": "score (log)"}
    return finish(ax, xscale="log", yscale="log", title=title, **labels)


@styled
def plot_correlations(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Correlation with the oracle against minibatch size: columns of ``correlations``, batch, and images (which).

    Example:
        >>> frame = pd.DataFrame({"batch": [1, 8, 64], "images": "test", "pearson": [0.5, 0.7, 0.8]})
        >>> frame = frame.assign(spearman=frame["pearson"], pearson_minibatch=0.9)
        >>> plot_correlations(frame).get_xlabel()
        'images in a minibatch (log)'
    """
    ax = ax or axes(9, 4)
    for k, (images, part) in enumerate(frame.groupby("images", sort=False)):
        for which, (dash, title) in _KINDS.items():
            own = look(k) | {"linestyle": dash, "label": f"{images}: {title}"}
            ax.plot(part["batch"], part[which], **own)
    ax.axhline(0, color="#777777", linewidth=0.8)
    labels: dict[str, Any] = {"xlabel": "images in a minibatch (log)", "ylabel": "correlation with the oracle"}
    finish(ax, xscale="log", title="The minibatch is part of the criterion", ylim=(None, 1.02), **labels)
    ax.set_xticks(sorted(frame["batch"].unique()), [f"{batch:g}" for batch in sorted(frame["batch"].unique())])
    ax.minorticks_off()
    return ax


@styled
def plot_tradeoff(frame: pd.DataFrame, x: str = "products", ax: Axes | None = None) -> Axes:
    """Accuracy lost against what is left, a line a ``method``, as ``draw_lost`` has it; rows of one ``keep`` are seeds.

    Arguments:
        frame: with columns method, keep, accuracy, images, and ``x``.
        x: "products", "parameters" or "ratio" (shares), "sparsity" (drawn as weights left), "milliseconds",
            "kilobytes" or "bits".

    Example:
        >>> frame = pd.DataFrame({"method": "Taylor", "keep": [0.5, 0.9], "accuracy": [90.0, 97.0]})
        >>> plot_tradeoff(frame.assign(products=frame["keep"])).get_xlabel()
        'multiplications left (%)'
    """
    ax = ax or axes(8, 4.5)
    shown = 100 * frame[x] if x in _SHARES else frame[x]
    shown = 100 - shown if x == "sparsity" else shown
    entries = draw_lost(ax, frame.assign(shown=shown), "shown", point="keep")
    finish(ax, entries, xlabel=_LEFT[x], xscale="log" if "log" in _LEFT[x] else "linear")
    ax.minorticks_off()
    return ax


@styled
def plot_latency(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``with_latency``: the time of one image over that of the network before, a row a method and share kept.

    A bar reaches from the first quartile to the third; the numbers at the right are points of accuracy lost. Of a
    network that was not timed there are no rows: the axes say so.

    Example:
        >>> frame = pd.DataFrame({"method": "Srinivas-Babu", "keep": [0.75, 0.6], "accuracy": [97.8, 71.1]})
        >>> plot_latency(with_latency(frame, "digits/resnet")).get_xlabel()
        'time of one image over that before (batch 1, bars: middle half)'
    """
    means = frame.groupby(["method", "keep"], sort=False).mean(numeric_only=True).reset_index()
    ax = ax or axes(8, 0.26 * len(means) + 1.5)
    xlabel = "time of one image over that before (batch 1, bars: middle half)"
    if means.empty:
        ax.annotate("not timed by make bench", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center")
        return finish(ax, xlabel=xlabel, xlim=(0.0, 1.1), yticks=[])
    methods = list(dict.fromkeys(means["method"]))
    colours = [COLOURS[methods.index(method) % len(COLOURS)] for method in means["method"]]
    rows = range(len(means))
    ax.hlines(rows, means["time_low"], means["time_high"], color=colours, linewidth=3, alpha=0.5)
    ax.scatter(means["time_ratio"], rows, color=colours, s=26, zorder=3)
    ax.axvline(1, color=INK, linewidth=0.9)
    before = frame.attrs.get("before", frame["accuracy"].max())
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "ha": "right", "fontsize": 9}
    for row, accuracy in enumerate(means["accuracy"]):
        ax.annotate(f"{before - accuracy:.1f}", (1.1, row), **place)
    ax.annotate("points\nlost", (1.1, 1.0), xycoords="axes fraction", ha="right", va="bottom", fontsize=9)
    rows_of(ax, [f"{method}, {keep:.0%} left" for method, keep in zip(means["method"], means["keep"], strict=True)])
    ends = means["time_low"].min() - 0.02, max(1.03, means["time_high"].max() + 0.02)
    return finish(ax, xlabel=xlabel, xlim=ends)


@styled
def plot_sensitivity(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``sensitivity``: accuracy by group and by the share of its channels removed, as a heat map with numbers.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> frame = sensitivity(network, "magnitude", images, ratios=[0.5, 0.9])
        >>> [label.get_text() for label in plot_sensitivity(frame).get_yticklabels()]
        ['hidden.0.linear', 'hidden.1.linear']
    """
    table = frame.pivot_table(index="group", columns="ratio", values="accuracy", sort=False)
    ax = ax or axes(1.0 * len(table.columns) + 3.2, 0.32 * len(table) + 1.4)
    picture = ax.imshow(table, cmap="cividis", aspect="auto", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        colour = "white" if value < 55 else INK
        ax.annotate(f"{value:.0f}", (column, row), ha="center", va="center", fontsize=9, color=colour)
    ax.set_xticks(range(len(table.columns)), [f"{100 * ratio:g}" for ratio in table.columns])
    ax.set_yticks(range(len(table)), table.index)
    ax.grid(False)
    ax.figure.colorbar(picture, ax=ax, label="accuracy (%)")
    return finish(ax, xlabel="channels of this group removed (%)", title="One group pruned, all others whole")


@styled
def plot_relevance(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Magnitude against relevance of single weights, both over their layer's range; columns magnitude, relevance.

    Example:
        >>> frame = pd.DataFrame({"magnitude": [0.1, 0.2, 0.3], "relevance": [0.1, 0.3, 0.2]})
        >>> plot_relevance(frame).get_title()
        '3 weights, Spearman 0.50'
    """
    ax = ax or axes(4.2, 3.6)
    ax.plot(frame["magnitude"], frame["relevance"], ".", color=BLUE, markersize=2, alpha=0.5, rasterized=True)
    rank = frame[["magnitude", "relevance"]].rank().corr().iloc[0, 1]
    title = f"{len(frame):,} weights, Spearman {rank:.2f}"
    return finish(ax, xlabel="magnitude (share of range)", ylabel="relevance (share of range)", title=title)


@styled
def plot_savings(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Kilobytes that each ``delta`` needs for an accuracy, a bar each; columns delta, kilobytes (NaN: not reached).

    Example:
        >>> frame = pd.DataFrame({"delta": [0.0, 0.5, 1.0], "kilobytes": [20.0, 15.0, 25.0]})
        >>> plot_savings(frame).get_title()
        'the best mixture saves 25.0 %'
    """
    ax = ax or axes(6, 3.2)
    sizes = frame["kilobytes"].to_numpy(float)
    ax.barh(range(len(frame)), sizes, color=np.where(sizes == frame["kilobytes"].min(), ORANGE, BLUE), height=0.7)
    for place, size in enumerate(sizes):
        text = f" {size:.1f}" if np.isfinite(size) else " not reached"
        ax.annotate(text, (np.nan_to_num(size), place), va="center", fontsize=9)
    names = {0.0: "0 (magnitude)", 1.0: "1 (relevance)"}
    rows_of(ax, [names.get(delta, f"{delta:g}") for delta in frame["delta"]])
    right = 1.25 * (np.nan_to_num(frame["kilobytes"].max()) or 1)
    return finish(ax, xlabel="size (kB)", ylabel="delta", title=_saving(frame), xlim=(0, right))


def _saving(frame: pd.DataFrame) -> str:
    """What the best mixture needs less than the better of magnitude and relevance."""
    ends = frame["delta"].isin((0, 1))
    alone, mixed = frame.loc[ends, "kilobytes"].min(), frame.loc[~ends, "kilobytes"].min()
    if not (np.isfinite(alone) and np.isfinite(mixed)):
        return ""
    saved = 100 * (1 - mixed / alone)
    return f"the best mixture saves {saved:.1f} %" if saved > 0 else f"the best mixture takes {-saved:.1f} % more"
