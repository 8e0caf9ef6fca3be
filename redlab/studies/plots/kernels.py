"""Kernels as small images, and which weights of a unit share a multiplication: a tidy frame in, Axes out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D
from numpy import ndarray

from redlab.studies.plots.style import COLOURS, INK, axes, bare, framed, outline, styled

_COLOURS = COLOURS[:-1]  # grey is taken
_BOLD = FontProperties(family="DejaVu Sans", weight="bold")
_MOST = 99  # percent of the weights that the greys tell apart; few large ones would leave the rest alike
_MOST_ROWS = 20  # of a unit whose counts are printed
_INSET = 0.07  # of a kernel, by which an outline stays within it, so that neighbours do not touch


@styled
def plot_kernels(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A row of small images for each filter, a column for each input channel; columns of ``kernel_frame``.

    Weights are grey, so that colours are left for groups: what belongs together has an outline of one colour and, since
    five colours come again, the group's number: beside the row of a filter, or in the corner of a kernel, where it
    counts the groups of that input channel.

    Example:
        >>> from redlab.studies.kernels import kernel_frame, kernels_of
        >>> kernels = kernels_of(next(weight_layers(load_network("digits/resnet"))))
        >>> frame = kernel_frame(kernels, np.zeros(16, int), filters=np.arange(4), channels=np.arange(1))
        >>> plot_kernels(frame).get_xlabel()
        'input channel'
    """
    ax = ax or axes(9.5, 5.6)
    filters, channels = frame["filter"].unique(), frame["channel"].unique()
    height, width = frame["row"].max() + 1, frame["column"].max() + 1
    images = frame["value"].to_numpy().reshape(len(filters), len(channels), height, width)
    groups = frame["group"].to_numpy().reshape(images.shape)[:, :, 0, 0]
    canvas = images.transpose(0, 2, 1, 3).reshape(len(filters) * height, -1)
    top = float(np.percentile(np.abs(canvas), _MOST)) or 1.0
    # In units of kernels, which are drawn as squares whatever their shape.
    place = (-0.5, len(channels) - 0.5, len(filters) - 0.5, -0.5)
    picture = ax.imshow(canvas, "gray", vmin=-top, vmax=top, interpolation="nearest", extent=place, rasterized=True)
    middle = (0.5, 0.5)  # where a narrow page stands
    ax.figure.colorbar(picture, ax=ax, panchor=middle, label="weight", shrink=0.8, extend="both", ticks=MaxNLocator(4))
    _part(ax, *groups.shape)
    (_outline_filters if frame.attrs["of"] == "filters" else _outline_kernels)(ax, groups)
    _name(ax, filters, channels)
    return ax


def _part(ax: Axes, rows: int, columns: int) -> None:
    """White lines between the kernels."""
    lines = [((x, -0.5), (x, rows - 0.5)) for x in np.arange(columns - 1) + 0.5]
    lines += [((-0.5, y), (columns - 0.5, y)) for y in np.arange(rows - 1) + 0.5]
    ax.add_collection(LineCollection(lines, colors="white", linewidths=2.0), autolim=False)


def _outline_filters(ax: Axes, groups: ndarray) -> None:
    rows, last = np.flatnonzero(groups[:, 0]), groups.shape[1] - 1
    numbers = groups[rows, 0]
    _outline(ax, np.zeros(len(rows)), np.full(len(rows), last), rows, numbers)
    _number(ax, np.full(len(rows), last + 0.65), rows + 0.15, numbers)
    ax.set_xlim(-0.5, last + (1.6 if len(rows) else 0.5))  # room for the numbers


def _outline_kernels(ax: Axes, groups: ndarray) -> None:
    rows, columns = np.nonzero(groups)
    _outline(ax, columns, columns, rows, groups[rows, columns])
    _number(ax, columns - 0.41, rows - 0.01, groups[rows, columns])


def _outline(ax: Axes, left: ndarray, right: ndarray, rows: ndarray, numbers: ndarray) -> None:
    """A rectangle around the kernels from ``left`` to ``right`` of each of ``rows``."""
    reach, colours = 0.5 - _INSET, [colour_of(number) for number in numbers]
    outline(ax, left - reach, rows - reach, right - left + 2 * reach, 2 * reach, colors=colours, linewidths=1.8)


def _number(ax: Axes, x: ndarray, y: ndarray, numbers: ndarray) -> None:
    """At their lower left corners; as one collection, since hundreds of texts would take a second."""
    if not len(numbers):
        return
    made = PathCollection(
        [_digits(number) for number in numbers.tolist()],
        offsets=np.column_stack([x, y]),
        offset_transform=ax.transData,
        facecolors=[colour_of(number) for number in numbers],
        linewidths=0,
    )
    made.set_transform(Affine2D().scale(1 / 72) + ax.figure.dpi_scale_trans)  # paths are in points
    made.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    ax.add_collection(made, autolim=False)


@lru_cache(1024)
def _digits(number: int) -> Path:
    return TextPath((0, 0), str(number), size=9, prop=_BOLD)


def colour_of(group: int) -> str:
    """The colour of a group by its number, from 1."""
    return _COLOURS[(group - 1) % len(_COLOURS)]


def _name(ax: Axes, filters: ndarray, channels: ndarray) -> None:
    ax.set_yticks(range(len(filters)), filters)
    step = -(-len(channels) // 6)
    ax.set_xticks(range(0, len(channels), step), channels[::step])
    bare(ax)
    ax.set(xlabel="input channel", ylabel="filter")


@styled
def draw_units(frame: pd.DataFrame, title: str = "") -> Figure:
    """A ``unit_map``, a panel a unit: a colour a value, and an outline around each weight that is multiplied.

    The number in an outline says how many weights share that multiplication, where there are several.

    Example:
        >>> layer = next(weight_layers(hash_network(load_network("digits/resnet")).network))
        >>> print(draw_units(unit_map(layer)).axes[0].get_title())
        unit 'channel':
        24 multiplications for 144 weights
    """
    units = list(frame.groupby("unit", sort=False))
    height = min(8.0, 1.1 + 0.2 * (frame["output"].max() + 1))
    figure, axes = plt.subplots(1, len(units), figsize=(3.3 * len(units), height), sharey=True, squeeze=False)
    for ax, (unit, part) in zip(axes.flat, units, strict=True):
        picture = _draw_unit(ax, part)
        ax.set_title(f"unit {unit!r}:\n{ax.get_title()}")
    axes.flat[0].set_ylabel("output channel")
    _name_values(picture, list(axes.flat), frame)
    return framed(figure, title)


@styled
def plot_unit(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """One unit of a ``unit_map``, as in ``draw_units``.

    Example:
        >>> layer = next(weight_layers(hash_network(load_network("digits/resnet")).network))
        >>> plot_unit(unit_map(layer, units=("channel",))).get_xlabel()
        'place in the kernel'
    """
    ax = ax or axes(4, 3.8)
    picture = _draw_unit(ax, frame)
    ax.set_ylabel("output channel")
    _name_values(picture, [ax], frame)
    return ax


def _draw_unit(ax: Axes, part: pd.DataFrame) -> mpl.image.AxesImage:
    shape = (part["output"].max() + 1, part["tap"].max() + 1)
    values, uses = (part[name].to_numpy().reshape(shape) for name in ("value", "uses"))
    known = np.unique(values)
    colours, codes = mpl.colors.ListedColormap(_value_colours(known)), np.searchsorted(known, values)
    look: dict[str, Any] = {"vmin": -0.5, "vmax": len(known) - 0.5, "aspect": "auto", "interpolation": "nearest"}
    picture = ax.imshow(codes, cmap=colours, **look)
    rows, taps = np.nonzero(uses)
    outline(ax, taps - 0.45, rows - 0.43, 0.9, 0.86, colors=INK, linewidths=1.1)
    for row, tap in zip(rows, taps, strict=True):
        if uses[row, tap] > 1 and shape[0] <= _MOST_ROWS:
            text = ax.annotate(str(uses[row, tap]), (tap, row), ha="center", va="center", fontsize=9)
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    ax.grid(False)
    ax.set_xticks(np.arange(shape[1]))
    ax.set(xlabel="place in the kernel", title=f"{len(rows)} multiplications for {len(part)} weights")
    return picture


def _value_colours(known: np.ndarray) -> np.ndarray:
    """A colour for each of the sorted values: blues below 0, reds above, white for 0; the paler, the nearer to 0."""
    below, above = (known < 0).sum(), (known > 0).sum()
    places = np.concatenate([np.linspace(0, 0.42, below), np.full(int(0 in known), 0.5), np.linspace(0.58, 1, above)])
    return mpl.colormaps["RdBu_r"](places)


def _name_values(picture: mpl.image.AxesImage, axes: list[Axes], frame: pd.DataFrame) -> None:
    known = np.unique(frame["value"])
    shown = np.linspace(0, len(known) - 1, min(len(known), 9)).round().astype(int).tolist()
    bar = axes[0].figure.colorbar(picture, ax=axes, shrink=0.9, label=f"weight ({len(known)} values, a colour each)")
    bar.set_ticks(shown, labels=[f"{known[k]:.3f}" for k in shown])
