"""Figures of masks that learn: their logits, how sure they are, and what they cost."""

from __future__ import annotations

from math import log
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from redlab.dpp.draws import largest
from redlab.studies.plots.style import BLUE, INK, ORANGE, RED, VIOLET, axes, legend, look, styled

_SHARP = 128  # entries of a row, at most, that are drawn one by one


@styled
def plot_masks(logits: dict[str, Tensor], k: int, title: str = "") -> Figure:
    """Logits as heat maps, and under each the mask of the ``k`` largest of every row.

    Arguments:
        logits: by what is written above each, (rows, n); all of one shape, such as before and after training. Rows are
            output units, columns inputs.

    Example:
        >>> start = torch.eye(4)
        >>> figure = plot_masks({"before": start, "after": 2 * start}, k=1)
        >>> [ax.get_title() for ax in figure.axes[:2]]
        ['before', 'after']
    """
    figure, grid = plt.subplots(
        2, len(logits), figsize=(3.6 * len(logits), 5.2), squeeze=False, sharex=True, sharey=True
    )
    for column, (name, own) in zip(grid.T, logits.items(), strict=True):
        _logits(column[0], own, k)
        _mask(column[1], own, k)
        column[0].set_title(name)
        column[1].set_xlabel("input")
    for ax, what in zip(grid[:, 0], ("logits", "mask"), strict=True):
        ax.set_ylabel(f"output unit ({what})")
    figure.suptitle(title, fontsize=10)
    return figure


@styled
def draw_epoch(logits: Tensor, since: Tensor, k: int, name: str = "since", figure: Figure | None = None) -> Figure:
    """The logits of one epoch, the mask that they stand for, and which of its entries were others at another epoch.

    Arguments:
        logits, since: (rows, n), of this epoch and of the one that it is compared with, which ``name`` says.

    Example:
        >>> figure = draw_epoch(torch.eye(4), torch.eye(4).flip(0), k=1, name="since epoch 0")
        >>> [ax.get_title() for ax in figure.axes[:3]]
        ['logits', 'mask: 1 of 4 a row', 'since epoch 0']
    """
    figure = figure or plt.figure(figsize=(9, 3))
    left, middle, right = figure.subplots(1, 3, sharex=True, sharey=True, width_ratios=(1.25, 1, 1))
    # Where entries are wider than pixels their edges are sharp; else what a pixel shows is the mean of several.
    how = "nearest" if logits.shape[1] <= _SHARP else "auto"
    _logits(left, logits, k, how)
    _mask(middle, logits, k, how)
    # 1 where an entry came in, -1 where it went out; of unlike lightness, so that they differ without colour as well.
    change = largest(logits, k).int() - largest(since, k).int()
    colours = ListedColormap([ORANGE, "white", VIOLET])
    right.imshow(change.numpy(), cmap=colours, aspect="auto", vmin=-1, vmax=1, interpolation=how, rasterized=True)
    right.grid(False)
    for ax, title in zip((left, middle, right), ("logits", f"mask: {k} of {logits.shape[1]} a row", name), strict=True):
        ax.set(title=title, xlabel="input")
    left.set_ylabel("output unit")
    marks = [Patch(facecolor=VIOLET, label="came in"), Patch(facecolor=ORANGE, label="went out")]
    right.legend(handles=marks, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _logits(ax: Axes, own: Tensor, k: int, how: str = "auto") -> None:
    """From each row's k-th largest up and down: what lies above it is kept."""
    own = own.float()
    centred = (own - own.topk(k).values[:, -1:]).numpy()
    reach = np.percentile(np.abs(centred), 98)
    colours: dict[str, Any] = {"cmap": "cividis", "vmin": -reach, "vmax": reach}
    picture = ax.imshow(centred, **colours, aspect="auto", interpolation=how, rasterized=True)
    ax.figure.colorbar(picture, ax=ax, label="logit above the row's k-th")
    ax.grid(False)


def _mask(ax: Axes, own: Tensor, k: int, how: str = "auto") -> None:
    colours: dict[str, Any] = {"cmap": "Greys", "vmin": 0, "vmax": 1}
    ax.imshow(largest(own.float(), k).numpy(), **colours, aspect="auto", interpolation=how, rasterized=True)
    ax.grid(False)


@styled
def plot_inclusion(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """One case of ``known_masks``: how much of p each entry has, and how probable it is that the mask keeps it.

    Example:
        >>> cases = known_masks(draws=64)
        >>> plot_inclusion(cases[cases["case"] == cases["case"][0]]).get_xlabel()
        'entry'
    """
    ax = ax or axes(4.2, 3)
    ax.bar(frame["entry"] - 0.2, 100 * frame["p"], width=0.4, color=BLUE, label="share of p")
    ax.bar(frame["entry"] + 0.2, 100 * frame["pi"], width=0.4, color=RED, label="is in the mask")
    first = frame.iloc[0]
    ax.set(xlabel="entry", ylabel="probability (%)", ylim=(0, 105))
    ax.set_title(f"H(p) = {first['entropy']:.2f}, H(pi / k) = {first['inclusion_entropy']:.2f} nats")
    legend(ax)
    return ax


@styled
def plot_mask_entropy(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``mask_metrics`` of one layer by ``epoch``: its entropy, and that of inclusion where it is there, in nats.

    Lines mark log n, where all entries are alike, and log k, where k of them share everything.

    Example:
        >>> masked = sparsify(load_network("digits/mlp"), keep=0.25)
        >>> frame = mask_metrics(masked, draws=0).assign(epoch=0)
        >>> plot_mask_entropy(frame.head(1)).get_ylabel()
        'entropy (nats)'
    """
    ax = ax or axes(5, 3.4)
    marks = {"log n": frame["log_n"].iloc[0], "log k": frame["log_k"].iloc[0]}
    for (name, place), side in zip(marks.items(), ("bottom", "top"), strict=True):
        ax.axhline(place, color=INK, linewidth=0.9, linestyle=":")
        text = ax.annotate(f"{name} = {place:.2f}", (1, place), xycoords=("axes fraction", "data"),
                           xytext=(0, 2 if side == "bottom" else -2), textcoords="offset points",
                           ha="right", va=side, fontsize=9)  # fmt: skip
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
    ax.plot(frame["epoch"], frame["entropy"], color=BLUE, marker="o", markersize=3, label="logits, H(softmax)")
    if "inclusion_entropy" in frame:
        ax.plot(frame["epoch"], frame["inclusion_entropy"], color=RED, linestyle="--", marker="s", markersize=3,
                label="inclusion, H(pi / k)")  # fmt: skip
    ax.set(xlabel="epoch", ylabel="entropy (nats)", ylim=(-0.1 * marks["log n"], 1.2 * marks["log n"]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(ax)
    return ax


@styled
def plot_diversity(frame: pd.DataFrame, what: str = "diversity", ax: Axes | None = None) -> Axes:
    """How much the masks of a layer's units differ, epoch by epoch, a line a layer.

    Arguments:
        what: "diversity", of the logits, as a share of the log of the number of units or of n, whichever is less: the
            most that there can be; or "hamming", of the masks, as a share of what units of random masks would have.

    Example:
        >>> masked = sparsify(load_network("digits/mlp"), keep=0.25)
        >>> trained = train_masks(masked, load_dataset("digits", "train", limit=64), epochs=1)
        >>> plot_diversity(trained.metrics, "hamming").get_title()
        'Do units keep different inputs?'
    """
    ax = ax or axes(6, 3.4)
    for number, (layer, own) in enumerate(frame.groupby("layer", sort=False)):
        ax.plot(own["epoch"], 100 * _share(own, what), **(look(number) | {"markersize": 3}), label=layer)
    titles = {
        "diversity": ("divergence (% of the most)", "Do units prefer different inputs?"),
        "hamming": ("distance (% of random masks')", "Do units keep different inputs?"),
    }
    label, title = titles[what]
    ax.set(xlabel="epoch", ylabel=label, title=title, ylim=(0, None))
    legend(ax)
    return ax


def _share(own: pd.DataFrame, what: str) -> pd.Series:
    if what == "hamming":
        random = 2 * own["k"] * (1 - own["k"] / own["n"])
        return own["hamming"] / random.where(random > 0, 1)
    most = np.minimum(own["log_n"], own["rows"].map(log))
    return own["diversity"] / most.where(most > 0, 1)
