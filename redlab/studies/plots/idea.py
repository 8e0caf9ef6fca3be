"""The figure that opens README and notebooks: what hashing leaves by chance, and what is not chance."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from redlab.studies.plots.style import BLUE, GREY, RED, plain_log, rows_of, styled

_WORDS = {
    "near filters": "filters nearer than half the median",
    "dead channels": "multiplications of dead channels",
    "bytes at equal accuracy": "bytes left at equal accuracy",
}


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
    ax.set_title(f"Chance: {what}")
    ax.set(xscale="log", xlabel="distinct weight values of each layer (log)")
    plain_log(ax.xaxis)


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
    ax.set(xlabel="% of the filters, multiplications, bytes", xlim=(0, 2.1 * beyond["trained"].max()))
    ax.set_ylim(len(names) - 1.4, -1.5)
    ax.tick_params(axis="y", length=0)
    ax.set_title("Not chance: what only\ntrained networks have")
