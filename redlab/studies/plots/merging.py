"""Figures of merging: a tidy frame in, Axes out."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from redlab.network.result import of_layers
from redlab.studies.plots.style import BLUE, RED, axes, bare, draw_lost, finish, framed, rows_of, styled

# The longest row of filters, in their own widths, before the next cluster starts a new row.
_LINE = 16
# Rows that a filter has at least, or the numbers below it would stand far away: those of few channels are repeated.
_TALL = 8


@styled
def plot_merges(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``Result.layers`` of merging: the share of each layer's channels that is removed, and why some layers stay.

    Example:
        >>> plot_merges(merge_neurons(load_network("digits/mlp"), alpha=0.1).layers).get_title()
        'Merging keeps 357 of 394 channels (90.6%)'
    """
    frame = of_layers(frame)
    ax = ax or axes(7, 0.26 * len(frame) + 1.4)
    rows, size = np.arange(len(frame)), frame["channels_before"].clip(lower=1)
    merged, dead = 100 * frame["merged"] / size, 100 * frame["dead"] / size
    ax.barh(rows, merged, color=BLUE, height=0.7, label="merged")
    if dead.any():
        ax.barh(rows, dead, left=merged, color=RED, height=0.7, label="dead")
    for row, reason in zip(rows, frame["skipped"], strict=True):
        if reason:
            ax.annotate(f" stays: {reason}", (0, row), va="center", fontsize=9, color="#555555")
    rows_of(ax, frame["layer"])
    before, after = frame["channels_before"].sum(), frame["channels_after"].sum()
    title = f"Merging keeps {after:,} of {before:,} channels ({after / before:.1%})"
    return finish(ax, xlabel="channels removed (%)", title=title, xlim=(0, max(5, 1.05 * (merged + dead).max())))


@styled
def plot_filters(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Filters that merge, the members of a cluster side by side; columns of ``merged_filters``.

    Each filter is a small image, a row for each input channel and a column for each tap; blue is negative.

    Example:
        >>> network = load_network("digits/resnet")
        >>> first, tree = next(weight_layers(network)), merge_trees(network)["conv1"]
        >>> plot_filters(merged_filters(first, tree, merged=4)).get_title()
        'Filters that merge'
    """
    if frame.empty:
        ax = ax or axes(9, 1.5)
        ax.annotate("no filters merge", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center")
        bare(ax)
        return finish(ax, xticks=[], yticks=[])
    clusters = [part for _, part in frame.groupby("cluster", sort=False)]
    places, (rows, columns), (height, width) = _lay_out(clusters)
    ax = ax or axes(9, 0.55 + 1.9 * (1 + max(y for y, _ in places) // (height + _gap(height))))
    canvas = np.full((rows, columns), np.nan)
    for part, (y, x) in zip(clusters, places, strict=True):
        names = list(dict.fromkeys(part["filter"]))
        for k, name in enumerate(names):
            image = part.loc[part["filter"] == name, "value"].to_numpy().reshape(-1, width)
            canvas[y : y + height, x + k * (width + 1) :][:, :width] = image.repeat(height // len(image), axis=0)
        more = f" and {part['size'].iloc[0] - len(names)} more" if part["size"].iloc[0] > len(names) else ""
        below = (x + (len(names) * (width + 1) - 1) / 2, y + height)
        ax.annotate(", ".join(map(str, names)) + more, below, ha="center", va="top", fontsize=9)
    top = float(frame["value"].abs().max()) or 1.0
    picture = ax.imshow(canvas, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    ax.figure.colorbar(picture, ax=ax, label="weight", shrink=0.8)
    bare(ax)
    label = "filters by number; each a row per input channel, a column per tap"
    return finish(ax, xticks=[], yticks=[], xlabel=label, title="Filters that merge")


def _lay_out(clusters: list[pd.DataFrame]) -> tuple[list[tuple[int, int]], tuple[int, int], tuple[int, int]]:
    """The corner (y, x) of each cluster, the shape of the canvas, and that of a filter on it.

    Two clusters of 2 and 3 filters of 9 rows and 9 columns: corners (0, 0) and (0, 29), for the first is 2 * (9 + 1)
    wide and 9 columns part them. A cluster that would make a line longer than ``_LINE`` filters begins the next line.
    """
    height, width = (int(clusters[0][name].max()) + 1 for name in ("row", "column"))
    height *= -(-_TALL // height)
    places, (y, x), on_line = [], (0, 0), 0
    for part in clusters:
        count = part["filter"].nunique()
        if on_line and on_line + count > _LINE:
            (y, x), on_line = (y + height + _gap(height), 0), 0
        places.append((y, x))
        x, on_line = x + count * (width + 1) + max(2, width) - 1, on_line + count
    right = max(x + part["filter"].nunique() * (width + 1) - 1 for (_, x), part in zip(places, clusters, strict=True))
    return places, (y + height + _gap(height) // 2, right), (height, width)


@styled
def draw_pairs(frame: pd.DataFrame, title: str = "") -> Figure:
    """``filter_pairs``: the weights of one filter against those of another, near pairs above or beside random ones.

    A dot is a weight of both. On the line they are equal.

    Example:
        >>> network = load_network("digits/resnet")
        >>> first, tree = next(weight_layers(network)), merge_trees(network)["conv1"]
        >>> [ax.get_title().split(":")[0] for ax in draw_pairs(filter_pairs(first, tree)).axes]
        ['nearest 1', 'random 1']
    """
    pairs = list(frame.groupby("pair", sort=False))
    columns = max(2, -(-len(pairs) // 2))
    rows = -(-len(pairs) // columns)
    size = (3.1 * columns, 3.3 * rows + 0.4)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    reach = 1.05 * float(frame[["value", "other_value"]].abs().to_numpy().max() or 1.0)
    for ax, (name, part) in zip(grid.flat, pairs, strict=True):
        first = part.iloc[0]
        ax.axline((0, 0), slope=1, color="#777777", linewidth=0.8)
        colour = RED if name.startswith("nearest") else BLUE
        ax.plot(part["value"], part["other_value"], "o", color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
        ax.set_title(f"{name}: {first['distance']:.2f} of the\nmedian distance ({len(part):,} weights)")
        ax.set(xlabel=f"weight of filter {first['filter']}", ylabel=f"weight of filter {first['other']}")
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    return framed(figure, title)


@styled
def plot_distances(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Distances between filters as a matrix in the order of the frame; columns filter, other, distance.

    Example:
        >>> trees = merge_trees(load_network("digits/resnet"))
        >>> plot_distances(filter_distances(trees["conv1"])).get_title()
        'Distances, in the order of the dendrogram'
    """
    ax = ax or axes(6, 5)
    n = frame["filter"].nunique()
    matrix = frame["distance"].to_numpy().reshape(n, n)
    picture = ax.imshow(matrix, cmap="viridis", interpolation="nearest", vmin=0)
    ax.figure.colorbar(picture, ax=ax, label="distance (L2 norm of the difference)")
    order = frame["filter"].to_numpy()[::n]
    step = -(-n // 16)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(np.arange(0, n, step), order[::step])
    ax.grid(False)
    return finish(ax, xlabel="filter", ylabel="filter", title="Distances, in the order of the dendrogram")


@styled
def plot_alphas(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy lost against the share of channels removed, a line a ``method``, as ``draw_lost`` has it.

    Columns share (of the channels left), accuracy, images, method.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> frame = compare_merges(network, images, [{"alpha": 0.1}, {"alpha": 0.2}])
        >>> plot_alphas(frame.assign(method="complete")).get_xlabel()
        'channels removed (%)'
    """
    ax = ax or axes(7, 4.5)
    entries = draw_lost(ax, frame.assign(removed=100 * (1 - frame["share"])), "removed")
    return finish(ax, entries, xlabel="channels removed (%)", title="What merging costs")


def _gap(height: int) -> int:
    """Rows between two lines, for the numbers of the filters."""
    return max(2, height // 4)
