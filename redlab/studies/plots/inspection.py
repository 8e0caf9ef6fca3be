"""Figures of an inspected checkpoint: the frame of ``inspect_checkpoint`` in, Axes out.

Up to forty tensors have a row each. If there are more, those of one role share a row: "layers.*.mlp.weight" holds every
layer's, a dot each, the first layer's above and the last one's below.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from redlab.studies.inspection import printable, wide_tensors
from redlab.studies.plots.save import save_figure
from redlab.studies.plots.style import COLOURS, GREY, INK, RED, axes, figure_of, finish, rows_of, styled

_MOST_ROWS, _MOST_LETTERS = 40, 56


def save_figures(frame: pd.DataFrame, folder: Path) -> None:
    """Every figure of this file as PNG and PDF; none where no tensor has two axes."""
    plots = (plot_tensor_values, plot_tensor_error, plot_tensor_products, plot_tensor_entropy)
    for plot in plots if wide_tensors(frame).any() else ():
        figure = figure_of(plot(frame))
        save_figure(figure, plot.__name__.removeprefix("plot_tensor_"), folder)
        plt.close(figure)


@styled
def plot_tensor_values(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Distinct values of each tensor of two axes or more, before and after hashing (log scale).

    Example:
        >>> from redlab.paths import shipped
        >>> plot_tensor_values(inspect_checkpoint(shipped("digits/mlp.safetensors"))).get_xlabel()
        'distinct values (log)'
    """
    ax, part, place = _stage(frame, ax)
    _dots(ax, part["distinct_before"], place, GREY, "o", "before")
    _dots(ax, part["distinct"], place, RED, "s", "after hashing")
    share = part["distinct"].sum() / part["distinct_before"].sum()
    title = f"Hashing keeps {share:.2%} of the distinct values"
    return finish(ax, xscale="log", xlabel="distinct values (log)", title=title)


@styled
def plot_tensor_error(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Relative L2 error of hashing each tensor of two axes or more.

    Example:
        >>> from redlab.paths import shipped
        >>> plot_tensor_error(inspect_checkpoint(shipped("digits/mlp.safetensors"))).get_xlabel()
        'relative L2 error of hashing (%)'
    """
    ax, part, place = _stage(frame, ax)
    _dots(ax, 100 * part["error"], place, COLOURS[0], "o", "")
    title = f"Hashing moves a tensor by {100 * part['error'].mean():.2g} % on average"
    return finish(ax, xlabel="relative L2 error of hashing (%)", title=title, xlim=(0, None))


@styled
def plot_tensor_products(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Multiplications left of each tensor of two axes or more, each distinct one of an input channel done once.

    Example:
        >>> from redlab.paths import shipped
        >>> plot_tensor_products(inspect_checkpoint(shipped("digits/mlp.safetensors"))).get_xlabel()
        'multiplications left (%)'
    """
    ax, part, place = _stage(frame, ax)
    products = (part["weights"] - part["zeros"]).clip(lower=1)  # by zero there is none
    _dots(ax, 100 * part["measured"] / products, place, COLOURS[1], "D", "counted")
    _dots(ax, 100 * part["expected"] / products, place, INK, "|", "by chance")
    title = f"{part['measured'].sum() / products.sum():.2%} of all multiplications are distinct"
    return finish(ax, xlabel="multiplications left (%)", title=title, xlim=(0, None))


@styled
def plot_tensor_entropy(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Bits a weight of each tensor of two axes or more: as stored, and the entropy of its hashed values.

    Example:
        >>> from redlab.paths import shipped
        >>> plot_tensor_entropy(inspect_checkpoint(shipped("digits/mlp.safetensors"))).get_xlabel()
        'bits a weight'
    """
    ax, part, place = _stage(frame, ax)
    stored = part["dtype"].str.extract(r"([0-9]+)")[0].astype(int)  # float8_e4m3fn: 8
    _dots(ax, stored, place, GREY, "|", "as stored")
    _dots(ax, part["entropy"], place, COLOURS[3], "^", "entropy")
    mean, was = (np.average(bits, weights=part["weights"]) for bits in (part["entropy"], stored))
    title = f"{mean:.2f} bits a weight on average, stored in {was:.3g}"
    return finish(ax, xlabel="bits a weight", title=title, xlim=(0, None))


def _stage(frame: pd.DataFrame, ax: Axes | None) -> tuple[Axes, pd.DataFrame, np.ndarray]:
    """Axes with a row a tensor or role, the rows of the frame to draw, and the height of each."""
    part = frame[wide_tensors(frame)]
    labels = _labels(part["tensor"], part["weights"])
    names = list(dict.fromkeys(labels))
    counts = labels.value_counts()
    shared = len(names) < len(labels)
    shown = [_short(name) + (f"  ({counts[name]})" if shared else "") for name in names]
    ax = ax or axes(5.5 + 0.07 * max(map(len, shown)), 0.25 * len(names) + 1.4)
    rows_of(ax, shown)
    ax.set_ylabel("tensors of a role,\nthe first above the last" if shared else "")
    nth = labels.groupby(labels).cumcount() / (labels.map(counts) - 1).clip(lower=1)
    spread = np.where(labels.map(counts) > 1, 0.6 * (nth - 0.5), 0)
    return ax, part, labels.map(names.index).to_numpy() + spread


def _labels(names: pd.Series, weights: pd.Series) -> pd.Series:
    """What row each tensor belongs to: its name, or its role where there are too many."""
    for pattern in (None, r"(?<![^.])[0-9]+(?![^.])", r"[0-9]+"):  # nothing, whole numbers between dots, any number
        labels = names.str.replace(pattern, "*", regex=True) if pattern else names
        if labels.nunique() <= _MOST_ROWS:
            return labels
    largest = weights.groupby(labels).sum().nlargest(_MOST_ROWS - 1).index
    return labels.where(labels.isin(largest), "all others")


def _short(name: str) -> str:
    half, name = _MOST_LETTERS // 2, printable(name)
    short = name if len(name) <= _MOST_LETTERS else f"{name[:half]}...{name[-half:]}"
    return short.replace("$", r"\$")  # two of them would begin and end a formula


def _dots(ax: Axes, values: pd.Series, place: np.ndarray, colour: str, marker: str, label: str) -> None:
    many = len(place) > _MOST_ROWS
    size = (3 if many else 5) * (1.8 if marker == "|" else 1)  # a tick shows where it lies on a dot
    ax.plot(values, place, marker, color=colour, markersize=size, alpha=0.7 if many else 1, label=label)
