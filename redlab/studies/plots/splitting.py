"""Pictures of splitting: a tidy frame in, Axes out."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from redlab.network.remainder import of_layers
from redlab.studies.plots.style import BLUE, COLOURS, DASHES, INK, MARKERS, axes, legend, plain_log, styled

_MEASURES = {"products": "products", "additions": "additions", "lookups": "look-ups", "parameters": "parameters"}
_MEASURES |= {"bytes": "bytes on disk", "accuracy": "accuracy (%)", "milliseconds": "time (ms, batch 1)"}
_PALE = "weight (pale: looked up)"


@styled
def draw_units(frame: pd.DataFrame, title: str = "") -> Figure:
    """A ``unit_map``, a panel a unit: weights that are multiplied in colour, those that look a product up pale.

    Example:
        >>> layer = next(weight_layers(hash_network(load_network("digits/resnet")).network))
        >>> print(draw_units(unit_map(layer)).axes[0].get_title())
        unit 'channel':
        24 products for 144 weights
    """
    units = list(dict.fromkeys(frame["unit"]))
    figure, axes = plt.subplots(1, len(units), figsize=(3.1 * len(units), 3.8), sharey=True, squeeze=False)
    top = float(frame["value"].abs().max()) or 1.0
    for ax, unit in zip(axes.flat, units, strict=True):
        picture = _draw_unit(ax, frame[frame["unit"] == unit], top)
        ax.set_title(f"unit {unit!r}:\n{ax.get_title()}")
    axes.flat[0].set_ylabel("output channel")
    figure.colorbar(picture, ax=axes, label=_PALE, shrink=0.9)
    figure.suptitle(title, fontsize=12)
    return figure


@styled
def plot_unit(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """One unit of a ``unit_map``: weights that are multiplied in colour, those that look a product up pale.

    Example:
        >>> layer = next(weight_layers(hash_network(load_network("digits/resnet")).network))
        >>> plot_unit(unit_map(layer, units=("channel",))).get_xlabel()
        'place in the kernel'
    """
    ax = ax or axes(4, 3.8)
    picture = _draw_unit(ax, frame, float(frame["value"].abs().max()) or 1.0)
    ax.set_ylabel("output channel")
    ax.figure.colorbar(picture, ax=ax, label=_PALE, shrink=0.9)
    return ax


def _draw_unit(ax: Axes, part: pd.DataFrame, top: float) -> mpl.image.AxesImage:
    shape = (part["output"].max() + 1, part["tap"].max() + 1)
    values, multiplies = (part[name].to_numpy().reshape(shape) for name in ("value", "multiplies"))
    picture = ax.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    veil = np.zeros((*shape, 4))
    veil[~multiplies] = (1, 1, 1, 0.82)
    ax.imshow(veil, aspect="auto", interpolation="nearest")
    ax.grid(False)
    ax.set_xticks(np.arange(shape[1]))
    ax.set(xlabel="place in the kernel", title=f"{int(multiplies.sum())} products for {len(part)} weights")
    return picture


@styled
def plot_channels(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``channel_products``: how many of the products of each input channel are left.

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
    ax.set(xlabel="input channel", ylabel="products a position")
    ax.set(xlim=(-0.5, len(frame) - 0.5), ylim=(0, 1.12 * weights))
    ax.annotate(
        f"{weights} without sharing", (0.99, weights), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    ax.set_title(f"{frame['products'].sum() / frame['weights'].sum():.1%} of the products are left")
    ax.grid(axis="x", visible=False)
    ax.set_xticks(range(0, len(frame), -(-len(frame) // 16)))
    return ax


@styled
def plot_split(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Products left of each layer, a marker a unit; columns of ``split_inputs(...).layers`` and, for several, unit.

    Example:
        >>> hashed = hash_network(load_network("digits/mlp")).network
        >>> plot_split(split_inputs(hashed).layers).get_xlabel()
        'products left of those of the ordinary layer (%, log)'
    """
    frame = of_layers(frame if "unit" in frame else frame.assign(unit="products"))
    layers = list(dict.fromkeys(frame["layer"]))
    ax = ax or axes(7, 0.24 * len(layers) + 1.4)
    for k, (unit, part) in enumerate(frame.groupby("unit", sort=False)):
        share = 100 * part["products_after"] / part["products_before"].clip(lower=1)
        rows = [layers.index(layer) for layer in part["layer"]]
        total = part["products_after"].sum() / max(part["products_before"].sum(), 1)
        ax.plot(share, rows, MARKERS[k], color=COLOURS[k], markersize=5, label=f"{unit} ({total:.1%} in all)")
    ax.set_yticks(range(len(layers)), layers)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="products left of those of the ordinary layer (%, log)", title="Products left by layer")
    plain_log(ax.xaxis)
    ax.grid(axis="y", visible=False)
    legend(ax)
    return ax


@styled
def plot_expected(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``distinct_products``: measured against expected, a dot a layer, a colour a unit; on the line chance explains.

    Example:
        >>> hashed = hash_network(load_network("digits/mlp")).network
        >>> plot_expected(distinct_products(hashed)).get_xlabel()
        'expected, weights of the layer shuffled (log)'
    """
    ax = ax or axes(6, 4.5)
    for k, (unit, part) in enumerate(frame.groupby("unit", sort=False)):
        ax.plot(part["expected"], part["measured"], MARKERS[k], color=COLOURS[k], markersize=5, label=f"unit {unit!r}")
    ends = [frame[["expected", "measured"]].to_numpy().min(), frame[["expected", "measured"]].to_numpy().max()]
    ax.plot(ends, ends, color=INK, linewidth=0.8)
    ax.set(xscale="log", yscale="log", title="Distinct products of a unit: chance explains nearly all of them")
    ax.set(xlabel="expected, weights of the layer shuffled (log)", ylabel="measured (log)")
    for axis in (ax.xaxis, ax.yaxis):
        plain_log(axis)
    legend(ax)
    return ax


@styled
def plot_splits(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """``compare_splits``: accuracy against products left, a colour and marker a ``method``, a dash a ``unit``.

    What lies more than 15 points below the accuracy before is cut off.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> frame = compare_splits(network, images, [{"max_error": 0.1}], units=("channel",))
        >>> plot_splits(frame.assign(method="RED++")).get_xlabel()
        'products left (%, log)'
    """
    ax = ax or axes(7.5, 4.5)
    methods, units = (list(dict.fromkeys(frame[name])) for name in ("method", "unit"))
    for (method, unit), part in frame.groupby(["method", "unit"], sort=False):
        part = part.sort_values("share")
        look = _look(methods.index(method), units.index(unit) if len(units) > 1 else methods.index(method))
        ax.plot(100 * part["share"], part["accuracy"], **look, linewidth=1.4)
    before = frame.attrs["before"]
    ax.axhline(before, color=INK, linewidth=0.8)
    ax.set(xscale="log", xlabel="products left (%, log)", ylabel="accuracy (%)", title="What splitting costs")
    ax.set_ylim(max(before - 15, frame["accuracy"].min() - 1), max(before, frame["accuracy"].max()) + 1)
    plain_log(ax.xaxis)
    entries = [mpl.lines.Line2D([], [], color=INK, linewidth=0.8, label=f"before: {before:.2f} %")]
    for k, name in enumerate(methods):
        entries.append(mpl.lines.Line2D([], [], **_look(k, k if len(units) == 1 else 0), label=name))
    for k, name in enumerate(units if len(units) > 1 else []):
        entries.append(mpl.lines.Line2D([], [], color=INK, linestyle=DASHES[k], label=f"unit {name!r}"))
    ax.legend(handles=entries, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def _look(method: int, dash: int) -> dict:
    """Colour and marker of a method, dash of a unit."""
    colour, marker = COLOURS[method % len(COLOURS)], MARKERS[method % len(MARKERS)]
    return {"color": colour, "linestyle": DASHES[dash % len(DASHES)], "marker": marker, "markersize": 4.5}


@styled
def draw_steps(frame: pd.DataFrame, title: str = "") -> Figure:
    """``step_by_step``, a panel a measure in it, a line a method; counts as shares of the network as trained.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> figure = draw_steps(step_by_step(network, images, {"RED": red_steps()}))
        >>> print(figure.axes[0].get_title())
        products
        (% of those as trained)
    """
    steps, measures = _order(frame), [measure for measure in _MEASURES if measure in frame]
    rows = len(measures) // 4 + 1  # a place is left for the legend
    figure, axes = plt.subplots(rows, 4, figsize=(13, 3.1 * rows), sharex=True, squeeze=False)
    for ax, measure in zip(axes.flat, measures, strict=False):
        for k, (method, part) in enumerate(frame.groupby("method", sort=False)):
            places = [steps.index(step) for step in part["step"]]
            ax.plot(places, _scaled(part, measure), DASHES[k], marker=MARKERS[k], color=COLOURS[k], label=method)
        ax.set_title(_MEASURES[measure] + _unit(measure))
        ax.set_xticks(range(len(steps)), steps, rotation=40, ha="right")
        ax.margins(y=0.12)
        if measure == "accuracy":  # an image or two more or less is no slope
            ax.set_ylim(frame[measure].min() - 0.5, frame[measure].max() + 0.5)
        else:
            ax.set_ylim(bottom=0)
    for ax in axes.flat[len(measures) :]:
        ax.set_axis_off()
    for ax in axes.flat[max(len(measures) - 4, 0) : len(measures)]:  # nothing below it to share its axis with
        ax.tick_params(labelbottom=True)
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    figure.suptitle(title, fontsize=12)
    return figure


def _order(frame: pd.DataFrame) -> list[str]:
    """The steps of all methods, each where the longest method has it."""
    place = (
        frame.assign(place=frame.groupby("method", sort=False).cumcount()).groupby("step", sort=False)["place"].max()
    )
    return place.sort_values(kind="stable").index.tolist()


def _scaled(part: pd.DataFrame, measure: str) -> pd.Series:
    if measure in ("accuracy", "milliseconds"):
        return part[measure]
    # Nothing is looked up in an ordinary network: look-ups stand beside its products.
    return 100 * part[measure] / max(part["products" if measure == "lookups" else measure].iloc[0], 1)


def _unit(measure: str) -> str:
    if measure in ("accuracy", "milliseconds"):
        return ""
    return "\n(% of the products as trained)" if measure == "lookups" else "\n(% of those as trained)"


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
    ax.plot(frame["entropy"], rows, MARKERS[0], color=COLOURS[0], markersize=5, label="entropy of the values")
    ax.plot(frame["bits"], rows, MARKERS[1], color=COLOURS[1], markersize=5, label="on disk, codebook too")
    mean = float((frame["bits"] * frame["weights"]).sum() / max(frame["weights"].sum(), 1))
    ax.set_yticks(rows, frame["layer"])
    ax.invert_yaxis()
    ax.set(xlabel="bits a weight", title=f"{mean:.2f} bits a weight on average, in place of 32")
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
    legend(ax)
    return ax


@styled
def plot_times(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Rows of benchmarks/results.parquet: how many times as long as the ordinary network; columns contestant, ratio.

    Example:
        >>> plot_times(pd.DataFrame({"contestant": ["ordinary", "split"], "ratio": [1.0, 4.0]})).get_xlabel()
        'time, ordinary layers in their better layout = 1 (log)'
    """
    ax = ax or axes(7, 0.34 * len(frame) + 1.3)
    rows = np.arange(len(frame))
    ax.barh(rows, frame["ratio"], color=[COLOURS[1] if ratio > 1 else COLOURS[0] for ratio in frame["ratio"]])
    for row, ratio in zip(rows, frame["ratio"], strict=True):
        ax.annotate(f" {ratio:.3g}x", (ratio, row), va="center", fontsize=9)
    ax.axvline(1, color=INK, linewidth=0.8)
    ax.set_yticks(rows, frame["contestant"])
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="time, ordinary layers in their better layout = 1 (log)", title="What splitting takes")
    ax.set_xlim(right=2.2 * float(frame["ratio"].max()))
    ax.grid(axis="y", visible=False)
    plain_log(ax.xaxis)
    return ax
