"""Figures of times: accuracy against latency, engines beside one another, gains in three units, and a roofline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from redlab.studies.plots.style import COLOURS, GREY, INK, MARKERS, finish, framed, rows_of, styled
from redlab.studies.runtimes import LANES, fastest, sharing_limits

_ENGINES = ("torch", "onnxruntime", "openvino")
_UNITS = {"median": "time", "bytes": "bytes", "products": "multiplications"}
_NAMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def _titles(rows: pd.DataFrame) -> pd.Series:
    """The variants; the network itself in bfloat16 is one of its own, and that of others is left out."""
    short = rows["precision"] == "bf16"
    kept = rows[~short | (rows["variant"] == "float32")]
    return kept["variant"].mask(short[kept.index], "bf16")


@styled
def draw_latency(rows: pd.DataFrame, batch: int = 1, threads: int = 1) -> Figure:
    """Score against latency, a panel a network, each variant in its fastest engine, with 95 % intervals.

    Arguments:
        rows: as ``read_runtimes`` returns them.

    Example:
        >>> figure = draw_latency(read_runtimes())
        >>> figure.axes[0].get_xlabel()
        'latency (ms)'
    """
    best = fastest(rows, batch, threads).dropna(subset="score")
    best = best.assign(title=_titles(best)).dropna(subset="title")
    titles, networks = list(dict.fromkeys(best["title"])), list(dict.fromkeys(best["network"]))
    columns = min(3, len(networks))
    lines = -(-len(networks) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(4.4 * columns, 3.1 * lines + 1.0), squeeze=False)
    for ax in grid.flat[len(networks) :]:
        ax.set_visible(False)
    for ax, network in zip(grid.flat, networks, strict=False):
        own = best[best["network"] == network]
        _draw_scores(ax, own, titles)
        of_words = own["count"].isna().all() or "MiniLM" in network
        ax.set_title(f"{network} (n = {own['count'].iloc[0]:,.0f})")
        finish(ax, [], xscale="log", xlabel="latency (ms)", ylabel="Spearman x 100" if of_words else "accuracy (%)")
    entries = [_marker(title, k) for k, title in enumerate(titles)]
    title = f"Score against latency: batch {batch}, {threads} thread, the fastest engine of each"
    return framed(figure, title, entries, 4)


def _draw_scores(ax: Axes, rows: pd.DataFrame, titles: Sequence[str]) -> None:
    low = rows["score"].max() - 6
    for row in rows.itertuples():
        k = titles.index(row.title)
        score = max(row.score, low)
        ax.vlines(row.median, max(row.low, low), max(row.high, low), color=COLOURS[k % 6], linewidth=1, alpha=0.6)
        ax.plot(row.median, score, MARKERS[k % 7], color=COLOURS[k % 6], markersize=7, clip_on=False, zorder=3)
    ax.axhline(rows["before"].iloc[0], color=GREY, linewidth=0.9, zorder=1)


def _marker(label: str, k: int, **look: Any) -> Line2D:
    own: dict[str, Any] = {"marker": MARKERS[k % 7], "color": COLOURS[k % 6], "linestyle": "", "markersize": 7}
    return Line2D([], [], label=label, **own | look)


@styled
def draw_engines(rows: pd.DataFrame, batch: int = 1, threads: int = 1) -> Figure:
    """How much faster than the best float32 each variant is in each engine, a panel a network, quartiles as bars.

    Example:
        >>> figure = draw_engines(read_runtimes())
        >>> "best float32" in figure.axes[0].get_xlabel()
        True
    """
    rows = rows[(rows["batch"] == batch) & (rows["threads"] == threads) & rows["speedup"].notna()]
    rows = rows.assign(title=_titles(rows)).dropna(subset="title")
    networks, titles = list(dict.fromkeys(rows["network"])), list(dict.fromkeys(rows["title"]))
    size = (2.7 * len(networks) + 1.5, 0.3 * len(titles) + 1.8)
    figure, grid = plt.subplots(1, len(networks), figsize=size, squeeze=False, sharey=True)
    for ax, network in zip(grid.flat, networks, strict=True):
        own = rows[rows["network"] == network]
        for row in own.itertuples():
            k = _ENGINES.index(row.engine)
            place = titles.index(row.title) + 0.22 * (k - 1)
            ax.hlines(place, row.speedup_q25, row.speedup_q75, color=COLOURS[k], linewidth=1.4)
            ax.plot(row.speedup, place, MARKERS[k], color=COLOURS[k], markersize=4.5)
        ax.axvline(1, color=INK, linewidth=0.9)
        ax.set_title(network.split("/")[-1])
        finish(ax, [], xscale="log", xlabel="times the best float32")
        rows_of(ax, titles)
    entries = [_marker(_NAMES[name], k) for k, name in enumerate(_ENGINES)]
    return framed(figure, f"Speed, batch {batch}, {threads} thread (above 1: faster)", entries)


@styled
def draw_gains(rows: pd.DataFrame, variants: Sequence[str]) -> Figure:
    """What is left of time, bytes and multiplications, relative to the float32 file; a row a network.

    Arguments:
        variants: those that are drawn; each in its fastest engine.

    Example:
        >>> figure = draw_gains(read_runtimes(), ["hashed, int8", "split, channel"])
        >>> [ax.get_title() for ax in figure.axes]
        ['time', 'bytes', 'multiplications']
    """
    best = fastest(rows)
    networks = list(dict.fromkeys(best["network"]))
    whole = best[(best["variant"] == "float32") & (best["precision"] == "float32")].set_index("network")
    figure, grid = plt.subplots(1, 3, figsize=(12, 0.42 * len(networks) + 1.9), sharey=True)
    for ax, (column, title) in zip(grid, _UNITS.items(), strict=True):
        for k, variant in enumerate(variants):
            own = best[best["variant"] == variant].drop_duplicates("network").set_index("network")[column]
            places = [networks.index(name) + 0.18 * (k - (len(variants) - 1) / 2) for name in own.index]
            ax.plot(own / whole[column].reindex(own.index), places, MARKERS[k], color=COLOURS[k], markersize=6)
        ax.axvline(1, color=INK, linewidth=0.9)
        ax.set_title(title)
        finish(ax, [], xscale="log", xlabel="share of the float32 file's (1: as before)")
        rows_of(ax, networks)
    entries = [_marker(variant, k) for k, variant in enumerate(variants)]
    return framed(figure, "What is left: one image, one thread, the fastest engine of each", entries)


@styled
def draw_roofline(rows: pd.DataFrame) -> Figure:
    """What sharing multiplications can reach on a CPU with AVX-512 at most, and what was measured.

    Example:
        >>> draw_roofline(read_runtimes()).axes[0].get_xscale()
        'log'
    """
    figure, ax = plt.subplots(figsize=(8.6, 4.8))
    shares = pd.Series(np.geomspace(0.005, 1, 200))
    for k, (way, own) in enumerate(sharing_limits(shares).groupby("way", sort=False)):
        ax.plot(own["share"], own["speedup"], color=COLOURS[k], linestyle=("-", "--", "-.")[k], label=f"limit: {way}")
    for name in ("int8", "bf16"):
        level = LANES[name] / LANES["float32"]
        ax.axhline(level, color=GREY, linewidth=1)
        ax.text(0.0052, level * 1.05, f"dense {name}, limit: {level:g}x", color=INK, fontsize=9)
    best = fastest(rows)
    points = {"split, channel": ("o", COLOURS[0]), "split, kernel": ("s", COLOURS[2]), "int8": ("^", INK)}
    for variant, (marker, colour) in points.items():
        own = best[best["variant"] == variant]
        ax.plot(own["products"], own["speedup"], marker, color=colour, label=f"measured: {variant}", markersize=6)
    entries = ax.get_legend_handles_labels()[0]
    finish(ax, entries, xscale="log", yscale="log", xlabel="share of the multiplications left")
    ax.set(ylabel="times dense float32", title="Sharing multiplications: its limits, and what was measured")
    return figure
