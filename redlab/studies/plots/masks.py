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
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from redlab.dpp.draws import largest
from redlab.studies.plots.style import BLUE, INK, ORANGE, RED, VIOLET, axes, finish, legend, look, styled

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
    size = (3.6 * len(logits), 5.2)
    figure, grid = plt.subplots(2, len(logits), figsize=size, squeeze=False, sharex=True, sharey=True)
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
    _picture(right, change, colours, -1, 1, how)
    for ax, title in zip((left, middle, right), ("logits", f"mask: {k} of {logits.shape[1]} a row", name), strict=True):
        ax.set(title=title, xlabel="input")
    left.set_ylabel("output unit")
    legend(right, [Patch(facecolor=VIOLET, label="came in"), Patch(facecolor=ORANGE, label="went out")])
    return figure


def _logits(ax: Axes, own: Tensor, k: int, how: str = "auto") -> None:
    """From each row's k-th largest up and down: what lies above it is kept."""
    own = own.float()
    centred = own - own.topk(k).values[:, -1:]
    reach = np.percentile(centred.abs().numpy(), 98)
    picture = _picture(ax, centred, "cividis", -reach, reach, how)
    ax.figure.colorbar(picture, ax=ax, label="logit above the row's k-th")


def _mask(ax: Axes, own: Tensor, k: int, how: str = "auto") -> None:
    _picture(ax, largest(own.float(), k), "Greys", 0, 1, how)


def _picture(ax: Axes, own: Tensor, colours: str | ListedColormap, low: float, high: float, how: str) -> AxesImage:
    ax.grid(False)
    return ax.imshow(own.numpy(), colours, aspect="auto", vmin=low, vmax=high, interpolation=how, rasterized=True)


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
    title = f"H(p) = {first['entropy']:.2f}, H(pi / k) = {first['inclusion_entropy']:.2f} nats"
    return finish(ax, xlabel="entry", ylabel="probability (%)", title=title, ylim=(0, 105))


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
    about: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 9}
    about["path_effects"] = [withStroke(linewidth=3, foreground="white")]
    for (name, place), side, above in zip(marks.items(), ("bottom", "top"), (2, -2), strict=True):
        ax.axhline(place, color=INK, linewidth=0.9, linestyle=":")
        ax.annotate(f"{name} = {place:.2f}", (1, place), (0, above), ha="right", va=side, **about)
    ax.plot(frame["epoch"], frame["entropy"], "o-", color=BLUE, markersize=3, label="logits, H(softmax)")
    if "inclusion_entropy" in frame:
        own = frame["inclusion_entropy"]
        ax.plot(frame["epoch"], own, "s--", color=RED, markersize=3, label="inclusion, H(pi / k)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends = (-0.1 * marks["log n"], 1.2 * marks["log n"])
    return finish(ax, xlabel="epoch", ylabel="entropy (nats)", ylim=ends)


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
    return finish(ax, xlabel="epoch", ylabel=label, title=title, ylim=(0, None))


def _share(own: pd.DataFrame, what: str) -> pd.Series:
    if what == "hamming":
        random = 2 * own["k"] * (1 - own["k"] / own["n"])
        return own["hamming"] / random.where(random > 0, 1)
    most = np.minimum(own["log_n"], own["rows"].map(log))
    return own["diversity"] / most.where(most > 0, 1)
