"""Figures of real networks: many methods side by side, and the idea that opens README and notebooks."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from redlab.names import unknown
from redlab.studies.plots.style import BLUE, GREY, INK, ORANGE, PURPLE, RED, band, finish, mark_cut, rows_of, styled
from redlab.studies.real import NEEDS, title_of

if TYPE_CHECKING:
    from IPython.display import Image

_NAMES = dict(zip(NEEDS, ("no data", "data, no fine-tuning", "short fine-tuning"), strict=True))
_COLOURS = dict(zip(NEEDS, (BLUE, PURPLE, ORANGE), strict=True)) | {"": GREY}
_DOTS = {"products": ("accuracy", "accuracy (%)"), "time_ratio": ("time", "time of one image over the original's")}
_LEFT = {"parameters": "parameters left (%, log)", "bytes": "bytes on disk left (%, log)"}
_MOST = 12.0  # points of accuracy lost, of the figures that show what is left
_WORDS = {
    "near filters": "filters nearer than half the median",
    "dead channels": "multiplications of dead channels",
    "bytes at equal accuracy": "bytes left at equal accuracy",
}


@styled
def draw_real(
    summary: pd.DataFrame, x: str = "products", published: pd.DataFrame | None = None, title: str = ""
) -> Figure:
    """Many methods on each network.

    "products" and "time_ratio": a row a method. At the left those that prune to two budgets, sorted by what the larger
    one leaves of the accuracy, or of the time. At the right all others; their rows name the share of the
    multiplications left. A bar is the 95 % interval of the accuracy over all seeds, or the range of the times.

    "parameters" and "bytes": accuracy lost against what is left, a dot a method and setting, a panel a network.

    Arguments:
        summary: of ``summarise_real``.
        x: "products", "time_ratio", "parameters" or "bytes".
        published: of ``published_figures``: for "products", those of the same networks get a star and a row.

    Raises:
        ValueError: another ``x``.

    Example:
        >>> from redlab.studies.real import read_real, summarise_real
        >>> figure = draw_real(summarise_real(read_real().query("network == 'cifar10/resnet20'")))
        >>> [ax.get_title() for ax in figure.axes]
        ['pruned to a budget', 'RED++, RED, merging and hashing']
    """
    if x not in _DOTS | _LEFT:
        raise ValueError(unknown("x", x, [*_DOTS, *_LEFT]))
    draw = _draw_dots if x in _DOTS else _draw_left
    figure = draw(summary.dropna(subset=x), x, published)
    figure.suptitle(title, fontsize=12)
    return figure


@styled
def show_compact(figure: Figure) -> Image:
    """``figure`` as a notebook shows it, in 128 colours: a third of the bytes, and to the eye the same.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> show_compact(plt.figure(figsize=(1, 1))).data[1:4]
        b'PNG'
    """
    from IPython.display import Image

    full, small = BytesIO(), BytesIO()
    figure.savefig(full, format="png", dpi=figure.dpi)
    plt.close(figure)  # or the notebook would show it a second time
    PIL.Image.open(full).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return Image(small.getvalue(), format="png")


def _draw_dots(summary: pd.DataFrame, x: str, published: pd.DataFrame | None) -> Figure:
    column, label = _DOTS[x]
    rows = summary.assign(time=summary["time_ratio"], title=_titles(summary), star=False)
    if published is not None and x == "products":
        rows = pd.concat([rows, _stars(published[published["network"].isin(rows["network"])])], ignore_index=True)
    parts = []
    for network in dict.fromkeys(summary["network"]):
        own = rows[rows["network"] == network]
        budget = own["setting"].str.endswith("of products") | own["star"]
        parts.append((network, _sorted(own[budget], column), own[~budget]))
    heights = [max(pruned["title"].nunique(), len(others)) + 4 for _, pruned, others in parts]
    size = (13, 0.19 * sum(heights) + 1.2)
    figure, grid = plt.subplots(len(parts), 2, figsize=size, squeeze=False, height_ratios=heights)
    for axes, (network, pruned, others) in zip(grid, parts, strict=True):
        _panel(axes[0], pruned, column)
        _panel(axes[1], others.assign(title=_with_products(others)), column)
        before, images = summary.loc[summary["network"] == network, ["before", "images"]].iloc[0]
        for ax, what in zip(axes, ("pruned to a budget", "RED++, RED, merging and hashing"), strict=True):
            ax.axvline(before if x == "products" else 1, color=INK, linewidth=0.9)
            ax.set_title(what)
        axes[0].set_ylabel(f"{network}\n(before: {before:.2f} %, n = {images:,.0f})")
        if x == "time_ratio":
            finish(axes[1], [], xscale="log")
    for ax in grid[-1]:
        ax.set_xlabel(label)
    entries = [_entry(name, color=_COLOURS[needs]) for needs, name in _NAMES.items()]
    entries += [_entry("larger budget", color=INK), _entry("smaller budget", color=INK, markerfacecolor="white")]
    entries.append(Line2D([], [], color=INK, linewidth=0.9, label="the original"))
    if rows["star"].any():
        star: dict[str, Any] = {"marker": "*", "markersize": 9, "color": INK, "markerfacecolor": "white"}
        entries.append(_entry("published, of macs, another protocol", **star))
    figure.legend(handles=entries, loc="outside lower center", ncols=4)
    return figure


def _titles(rows: pd.DataFrame) -> pd.Series:
    """What a row is called, in as few words as fit; what was fine-tuned has a row of its own."""
    tuned = rows["needs"] == "fine-tuning"
    short = rows["method"].map(title_of).str.replace(" (uniform codes)", "")
    return short + tuned.map({True: ", fine-tuned", False: ""})


def _stars(published: pd.DataFrame) -> pd.DataFrame:
    own = published[published["needs"] != ""]
    left = own["products"].map("{:.0%}".format)
    return own.assign(title=_titles(own) + ", " + left + " left (published)", star=True)


def _with_products(rows: pd.DataFrame) -> pd.Series:
    return rows["title"] + ", " + rows["setting"] + rows["products"].map(": {:.1%} left".format)


def _sorted(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """By what each needs, then by its value at its larger budget, the best first; columns ``rank`` 0 and 1, budgets."""
    rows = rows.assign(rank=rows["setting"].map(_budget).rank(method="dense", ascending=False).fillna(1))
    best = rows.groupby("title")[column].transform("max" if column == "accuracy" else "min")
    order = rows["needs"].map(NEEDS.index) * 1000 + (-best if column == "accuracy" else best)
    return rows.assign(order=order).sort_values(["order", "title"], kind="stable")


def _budget(setting: Any) -> float:
    return float(setting.split("%")[0]) if isinstance(setting, str) and "%" in setting else np.nan


def _panel(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    """A row a title: dots filled at the larger budget, open at the smaller one, with their intervals."""
    titles = list(dict.fromkeys(rows["title"]))
    for row in rows.itertuples():
        place, value, colour = titles.index(row.title), getattr(row, column), _COLOURS[row.needs]
        ax.hlines(place, getattr(row, f"{column}_low"), getattr(row, f"{column}_high"), color=colour, linewidth=1.4)
        face = "white" if getattr(row, "rank", 1) > 1 or row.star else colour
        look: dict[str, Any] = {"marker": "*", "markersize": 9} if row.star else {"marker": "o", "markersize": 5}
        ax.plot(value, place, **look, color=colour, markerfacecolor=face, zorder=3)
    rows_of(ax, titles)


def _draw_left(summary: pd.DataFrame, x: str, published: pd.DataFrame | None) -> Figure:
    networks = list(dict.fromkeys(summary["network"]))
    columns = len(networks) if len(networks) <= 3 else 2
    lines = -(-len(networks) // columns)
    size = (4.1 * columns, 0.8 + 3.8 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    for ax in grid.flat[len(networks) :]:
        ax.remove()
    kinds = {"RED++ and RED": (RED, "s"), "merging": (GREY, "D"), "hashing or folding alone": (INK, "x")}
    kinds |= {f"pruned, {_NAMES[needs]}": (_COLOURS[needs], marker) for needs, marker in zip(NEEDS, "o^P", strict=True)}
    for ax, network in zip(grid.flat, networks, strict=False):
        own = summary[summary["network"] == network]
        before, images = own["before"].iloc[0], int(own["images"].iloc[0])
        band(ax, before, own)
        kind = _kind(own)
        for name, (colour, marker) in kinds.items():
            part = own[kind == name]
            lost, share = before - part["accuracy"], 100 * part[x]
            bars = np.clip([part["accuracy_high"] - part["accuracy"], part["accuracy"] - part["accuracy_low"]], 0, None)
            inside = (lost <= _MOST).to_numpy()
            look: dict[str, Any] = {"color": colour, "fmt": marker, "markersize": 5, "elinewidth": 1}
            ax.errorbar(share[inside], lost[inside], yerr=bars[:, inside], **look)
            mark_cut(ax, share[~inside], _MOST, colour)
        title = f"{network}\n{before:.2f} % before, n = {images:,}"
        finish(ax, [], xscale="log", ylim=(_MOST, -1.5), xlabel=_LEFT[x], title=title)
    for ax in grid[:, 0]:
        ax.set_ylabel("accuracy lost (points)")
    entries = [_entry(name, color=colour, marker=marker) for name, (colour, marker) in kinds.items()]
    entries.append(_entry(f"at the frame: loses more than {_MOST:g} points", color=INK, marker="v"))
    figure.legend(handles=entries, loc="outside lower center", ncols=3)
    return figure


def _kind(own: pd.DataFrame) -> pd.Series:
    """Of each row, which entry of the legend it belongs to."""
    kind = "pruned, " + own["needs"].map(_NAMES)
    kind = kind.mask(own["method"].isin(["hashing", "batch norm folded"]), "hashing or folding alone")
    return kind.mask(own["method"] == "output merging", "merging").mask(own["split"], "RED++ and RED")


def _entry(label: str, **look: Any) -> Line2D:
    usual: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 5}
    return Line2D([], [], **(usual | look), label=label)


@styled
def draw_idea(chance: pd.DataFrame, beyond: pd.DataFrame, title: str = "") -> Figure:
    """Two panels: what hashing leaves of trained and of random weights, and what only trained networks have.

    Arguments:
        chance: ``compare_with_random`` of one network.
        beyond: ``beyond_chance``, of stored rows of several.

    Example:
        >>> from redlab.studies.real import beyond_chance, read_real, summarise_real
        >>> beyond = beyond_chance(summarise_real(read_real()), read_atlas())
        >>> figure = draw_idea(compare_with_random(load_network("digits/mlp")), beyond)
        >>> figure.axes[0].get_xlabel()
        'distinct weight values of each layer (log)'
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.6))
    _draw_values(left, chance)
    _draw_beyond(right, beyond)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(title, fontsize=13)
    return figure


def _draw_values(ax: Axes, chance: pd.DataFrame) -> None:
    parts = {drawn: part.reset_index(drop=True) for drawn, part in chance.groupby("drawn", sort=False)}
    trained, random = parts["trained"], parts["random"]
    rows = trained.index.to_numpy()
    ax.hlines(rows, trained["distinct"], trained["distinct_before"], color="#cccccc", linewidth=2)
    ax.plot(trained["distinct_before"], rows, "D", color=GREY, markersize=5, label="before hashing")
    ax.plot(random["distinct"], rows - 0.14, "s", color=BLUE, markersize=6, label="random weights")
    ax.plot(trained["distinct"], rows + 0.14, "o", color=RED, markersize=6, label="trained weights")
    rows_of(ax, list(trained["layer"]))
    share = chance.attrs["share"]
    what = f"{share['trained']:.2%} of the values are left,\n{share['random']:.2%} of those of random weights"
    finish(ax, [], xscale="log", xlabel="distinct weight values of each layer (log)", title=f"Chance: {what}")


def _draw_beyond(ax: Axes, beyond: pd.DataFrame) -> None:
    """Networks by measure, a bar each; the number stands at its end."""
    names: list[str] = []
    for measure, part in beyond.groupby("measure", sort=False):
        ax.annotate(_WORDS[measure], (0, len(names) - 0.95), va="center", weight="bold")
        for row in part.itertuples():
            note = f"{row.trained:.1f} %" + (f" (random: {row.random:.1f} %)" if row.random == row.random else "")
            note += f" (n = {row.images:,.0f} images)" if row.images == row.images else ""
            ax.barh(len(names), row.trained, height=0.62, color=RED)
            ax.annotate(f" {note}", (row.trained, len(names)), va="center")
            names.append(row.network.split("/")[-1])
        names.append("")
    rows_of(ax, names[:-1])
    ax.tick_params(axis="y", length=0)
    ends = {"xlim": (0, 2.1 * beyond["trained"].max()), "ylim": (len(names) - 1.4, -1.5)}
    title = "Not chance: what only\ntrained networks have"
    ax.set(xlabel="% of the filters, multiplications, bytes", title=title, **ends)
