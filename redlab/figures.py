"""Every picture: a tidy frame in, Axes out. No global style is changed.

Colours are Petroff's six (arXiv 2107.02270), chosen for colour blindness; lines differ by marker and dash as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, cast

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from redlab.captions import keep_caption
from redlab.figure_pdf import write_pdf
from redlab.paths import checkout
from redlab.remainder import of_layers

BLUE, ORANGE, RED, PURPLE, GREY, VIOLET = "#5790fc", "#f89c20", "#e42536", "#964a8b", "#9c9ca1", "#7a21dd"
INK = "#222222"
COLOURS = (BLUE, RED, PURPLE, ORANGE, VIOLET, GREY)
# Five and seven of them, so that with six colours the 210th line is the first that looks like another one.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)))
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#777777",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 80,  # of the pictures in notebooks, which then stay under 500 KB
    "pdf.fonttype": 42,
}
_DRAWING = RLock()


@contextmanager
def style() -> Iterator[None]:
    """Inside, what is drawn has our style: in one thread at a time, for the style is the process's.

    In a live notebook a slider is heard in one thread while cells run in another.
    """
    with _DRAWING, mpl.rc_context(STYLE):
        yield


styled = style()
# Loads the backend, which in a notebook turns interactive drawing on: within ``styled`` that would be undone after the
# first picture, and the notebook would show no other.
plt.draw_if_interactive()


def figure_of(ax: Axes) -> Figure:
    """The whole figure that ``ax`` stands in, which has a file's functions."""
    return cast(Figure, ax.get_figure(root=True))


def save_figure(figure: Figure, name: str, folder: Path | None = None) -> None:
    """Write ``figure`` as NAME.png (300 dpi) and NAME.pdf: to the run's folder under a runner, else to ``figures/``.

    The same figure gives the same bytes again, on any processor: no dates are stored, and a PDF's coordinates have five
    digits. A runner's folder also gets what it shows in words.

    Arguments:
        folder: where to, instead.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import matplotlib.pyplot as plt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(plt.figure(), "empty", Path(folder))
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['empty.pdf', 'empty.png']
    """
    out = os.environ.get("REDLAB_OUT") if folder is None else None
    folder = folder or (Path(out) / "figures" if out else checkout() / "figures")
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(folder / f"{name}.png", dpi=300, metadata={"Software": None})
        write_pdf(figure, folder / f"{name}.pdf", dpi=100)
    if out:
        keep_caption(Path(out), name, figure)


@styled
def small_multiples(
    frame: pd.DataFrame,
    plot: Callable[[pd.DataFrame, Axes], Axes],
    by: str,
    columns: int = 4,
    title: str = "",
    legend: bool = False,
) -> Figure:
    """One small picture for each value of column ``by``, in the frame's order, axis names on the outer ones only.

    With ``legend``, that of the first picture stands below for all.

    Example:
        >>> layers = weight_layers(load_network("digits/mlp"))
        >>> frame = pd.concat(estimate_density(layer.weight.detach()).frame(layer=layer.name) for layer in layers)
        >>> figure = small_multiples(frame, plot_density, by="layer")
        >>> [ax.get_title().split()[0] for ax in figure.axes if ax.get_visible()]
        ['hidden.0.linear', 'hidden.1.linear', 'classifier']
    """
    groups = list(frame.groupby(by, sort=False))
    columns = min(columns, len(groups))
    rows = -(-len(groups) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.0 * columns, 2.3 * rows + 0.4), squeeze=False)
    for ax in grid.flat[len(groups) :]:
        ax.set_visible(False)
    for k, (ax, (value, part)) in enumerate(zip(grid.flat, groups, strict=False)):
        plot(part, ax)
        ax.set_title(f"{value}\n{ax.get_title()}".strip(), fontsize=9)
        ax.set_xlabel(ax.get_xlabel() if k + columns >= len(groups) else "")
        ax.set_ylabel(ax.get_ylabel() if k % columns == 0 else "")
    if legend:
        figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        for ax in grid.flat[: len(groups)]:
            ax.get_legend().remove()
    figure.suptitle(title, fontsize=12)
    return figure


@styled
def plot_density(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A ``Density.frame()``: the curve, a dot on each mode, a tick below for each cut.

    Example:
        >>> density = estimate_density(torch.tensor([0.0, 0.0, 1.0]), bandwidth=0.1)
        >>> plot_density(density.frame()).get_xlabel()
        'weight'
    """
    ax = ax or _axes(7, 3.5)
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
    ax = ax or _axes(7, 4)
    _lines(ax, frame, "bandwidth", "modes", "layer")
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
    ax = ax or _axes(7, 2.2)
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
    ax = ax or _axes(7, 2.6)
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
    ax = ax or _axes(7, 0.24 * len(frame) + 1.3)
    rows = np.arange(len(frame))
    before, after = frame["distinct_before"].clip(lower=1), frame["distinct"].clip(lower=1)
    ax.hlines(rows, after, before, color="#cccccc", linewidth=2)
    ax.plot(before, rows, "o", color=GREY, markersize=5, label="before")
    ax.plot(after, rows, "s", color=RED, markersize=5, label="after")
    share = frame["distinct"].sum() / max(frame["distinct_before"].sum(), 1)
    ax.set_yticks(rows, frame["layer"])
    ax.invert_yaxis()
    ax.set(
        xscale="log", xlabel="distinct weight values (log)", title=f"Hashing keeps {share:.1%} of the distinct values"
    )
    ax.grid(axis="y", visible=False)
    _plain_log(ax.xaxis)
    _legend(ax)
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
    ax = ax or _axes(7, 0.24 * frame["layer"].nunique() + 1.3)
    layers = list(dict.fromkeys(frame["layer"]))
    for k, (rule, part) in enumerate(frame.groupby("rule", sort=False)):
        rows = [layers.index(layer) for layer in part["layer"]]
        ax.plot(100 * part["error"], rows, MARKERS[k], color=COLOURS[k], markersize=5, label=rule)
    ax.set_yticks(range(len(layers)), layers)
    ax.invert_yaxis()
    ax.set(xlabel="relative L2 error of the weights (%)", title="How far hashing moves each layer")
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
    _legend(ax)
    return ax


@styled
def plot_frontier(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy against what is left, one line a ``method``; columns share, accuracy, method, and what ``share`` is a
    share of in ``frame.attrs["of"]``, the accuracy before in ``frame.attrs["before"]``.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> frame = compare_hashes(network, images, [{"bandwidth": 0.1}, {"bandwidth": 0.2}])
        >>> plot_frontier(frame.assign(method="kde")).get_xlabel()
        'distinct weight values left (%, log)'
    """
    ax = ax or _axes(7, 4.5)
    _lines(ax, frame.assign(share=100 * frame["share"]), "share", "accuracy", "method")
    if (before := frame.attrs.get("before")) is not None:
        ax.axhline(before, color=INK, linewidth=0.8, label=f"before: {before:.2f} %")
        _legend(ax)
    ax.set(xscale="log", xlabel=f"{frame.attrs.get('of', 'share')} left (%, log)", ylabel="accuracy (%)")
    _plain_log(ax.xaxis)
    return ax


def _lines(ax: Axes, frame: pd.DataFrame, x: str, y: str, by: str) -> None:
    for k, (name, part) in enumerate(frame.groupby(by, sort=False)):
        part = part.sort_values(x)
        colour, dash, marker = (cycle[k % len(cycle)] for cycle in (COLOURS, DASHES, MARKERS))
        ax.plot(
            part[x], part[y], color=colour, linestyle=dash, marker=marker, markersize=4.5, linewidth=1.4, label=name
        )
    _legend(ax)


def _plain_log(axis: mpl.axis.Axis) -> None:
    """Plain numbers on a logarithmic axis, once all is drawn on it: exponents of powers would be too small to read."""
    low, high = axis.get_view_interval()
    digits = range(1, 10) if high < 6 * low else (1, 2, 5) if high < 1000 * low else (1,)  # two ticks at least
    axis.set_major_locator(mpl.ticker.LogLocator(subs=digits))
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: _plain_number(value)))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def _plain_number(value: float) -> str:
    """0.001 to 5,000,000 in full; 2e-4 and 1e7 beyond."""
    if 0.0009 < value < 6e6:
        return f"{value:,.10g}"
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}e{int(exponent)}"


def _legend(ax: Axes) -> None:
    """Beside the axes, where it hides nothing."""
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _axes(width: float, height: float) -> Axes:
    return plt.subplots(figsize=(width, height))[1]
