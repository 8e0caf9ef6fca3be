"""Figures of guarantees: a tidy frame in, Axes out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from redlab.studies.plots.style import BLUE, RED, axes, legend, plain_log, styled


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
    ax.plot(bound, rows, "s", color=RED, markersize=5, label="bound")
    ax.plot(measured, rows, "o", color=BLUE, markersize=5, label="measured")
    ax.set_yticks(rows, frame["layer"])
    ax.invert_yaxis()
    ax.set(xlabel="L2 error, relative to the layer's output (median over the images, log)", ylabel="layer")
    if bound.notna().any():
        _whole_decades(ax, np.log10([min(bound.min(), measured.min()), bound.max()]))
    ax.grid(axis="y", visible=False)
    ax.set_title(_title(frame))
    legend(ax)
    return ax


def _whole_decades(ax: Axes, ends: np.ndarray) -> None:
    """A logarithmic axis that reaches from one power of ten to another, however few of them the values span."""
    low, high = np.floor(ends[0]), np.ceil(ends[1])
    ax.set(xscale="log", xlim=(10 ** (low - 0.15), 10 ** (high + 0.15)))
    plain_log(ax.xaxis)


def _title(frame: pd.DataFrame) -> str:
    facts = frame.attrs
    if facts["bound"] == 0:
        first = "No error at the output"
    else:
        first = f"At the output, the bound is {_times(facts['log10_ratio'])} times the measured error"
    second = f"{facts['certain']:.1%} of {facts['images']:,} predictions are certain to stay; {facts['same']:.1%} stay"
    return f"{first}\n{second}"


def _times(exponent: float) -> str:
    return f"{10**exponent:.2g}" if exponent < 3 else f"10^{exponent:.1f}"
