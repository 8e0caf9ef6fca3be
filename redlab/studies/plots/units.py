"""Figures of one unit of a split layer: which weights are multiplied, and which share a multiplication."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from redlab.studies.plots.style import INK, axes, outline, styled

_MOST_ROWS = 20  # of a unit whose counts are printed


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
    figure.suptitle(title, fontsize=12)
    return figure


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
