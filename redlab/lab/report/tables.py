"""The tables of the report: networks by methods, each at the point that stands for it, and whole frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import pandas as pd

from redlab.lab.report.points import LEFT, TOLERANCE, Recorded, best_of_each, points_of

_ROWS = 500  # of a whole frame
_RULE = (
    f"of all points that lose at most {TOLERANCE:g} point of accuracy the one that leaves least; <em>in italics</em>, "
    "where all lose more, the one of highest accuracy. Accuracies are in percent, averaged over seeds where there are "
    "several; shares are of the network as it came"
)


def summary(recorded: Sequence[Recorded], titles: Mapping[str, str]) -> str:
    """Two tables: the best point of each network in each notebook, and that of each method there; HTML.

    ``titles`` are those of the notebooks, by name, as HTML.
    """
    points = [frame for one in recorded if len(frame := points_of(one))]
    if not points:
        return "<p>No run has recorded an accuracy.</p>"
    methods = best_of_each(pd.concat(points, ignore_index=True), ["network", "notebook", "method"])
    notebooks = best_of_each(methods, ["network", "notebook"])
    linked = {name: f'<a href="#{escape(name)}">{title}</a>' for name, title in titles.items()}
    short = [(escape(network), _rows(own, linked)) for network, own in notebooks.groupby("network", sort=False)]
    whole = [
        (f"{escape(network)}: {linked.get(notebook, escape(notebook))}", _rows(own))
        for (network, notebook), own in methods.groupby(["network", "notebook"], sort=False)
    ]
    head = ["method", "accuracy", "left", "", "command"]
    return (
        f"<p>How far each notebook comes with each network: {_RULE}.</p>\n"
        f"{grouped_table(['notebook', *head], short, numbers=[2, 3])}\n"
        '<h3 id="summary.methods">Networks by methods</h3>\n<p>The same for each method of each notebook.</p>\n'
        f"{grouped_table(head, whole, numbers=[1, 2])}"
    )


def _rows(points: pd.DataFrame, titles: Mapping[str, str] | None = None) -> list[list[str]]:
    """A row of cells a point, begun by its notebook where ``titles`` are given."""
    rows = []
    for point in points.to_dict("records"):
        first = [titles.get(point["notebook"], escape(point["notebook"]))] if titles else []
        setting = f' <span class="soft">{escape(point["setting"])}</span>' if point["setting"] else ""
        left = _left(point)
        cells = [escape(point["method"]) + setting, _accuracy(point), left[0], ", ".join(left[1:])]
        rows.append([*first, *cells, f"<code>{escape(point['command'])}</code>"])
    return rows


def _accuracy(point: Mapping[str, float]) -> str:
    after = f"{point['accuracy']:.2f}"
    if pd.isna(point["before"]):
        return after
    kept = point["before"] - point["accuracy"] <= TOLERANCE
    return f"{point['before']:.2f} → {after if kept else f'<em>{after}</em>'}"


def _left(point: Mapping[str, float]) -> list[str]:
    """What is left in words, what counts first."""
    words = {"values": "distinct values", "bits": "bits a weight", "kilobytes": "kB"}
    found = {}
    for name in (*LEFT, "bits", "kilobytes"):
        if not pd.isna(value := point[name]):
            number = f"{100 * value:.3g} % of " if name in LEFT else f"{value:.3g} "
            found[name] = (number + words.get(name, name)).replace(" ", "&nbsp;")
    first = next((name for name in found if point[name] == point["rank"]), "")
    rest = [text for name, text in found.items() if name != first]
    return [found.get(first, ""), *rest]


def whole_frame(frame: pd.DataFrame, title: str, rest: str) -> str:
    """A frame folded away, cut where it is very long; ``rest`` says where the rest is."""
    cut = f"<p>The first {_ROWS:,} of {len(frame):,} rows; all are in {escape(rest)}.</p>" if len(frame) > _ROWS else ""
    rows = frame.head(_ROWS).to_html(index=False, float_format="{:.5g}".format, na_rep="", border=0)
    table = rows.replace(' border="0"', "")  # pandas can't leave it out
    return f'<details><summary>{title}</summary>{cut}<div class="table" tabindex="0">{table}</div></details>'


def grouped_table(
    head: Sequence[str], groups: Iterable[tuple[str, Sequence[Sequence[str]]]], numbers: Iterable[int] = ()
) -> str:
    """An HTML table whose rows come in groups, each below its title ("" for none).

    Titles and cells are HTML; ``numbers`` are the columns that are set to the right.
    """
    marks = [' class="number"' if k in set(numbers) else "" for k in range(len(head))]
    top = _row("th scope='col'", map(escape, head), marks)
    bodies = []
    for title, rows in groups:
        first = f'<tr><th scope="rowgroup" colspan="{len(head)}">{title}</th></tr>\n' if title else ""
        bodies.append("<tbody>\n" + first + "\n".join(_row("td", row, marks) for row in rows) + "\n</tbody>")
    rest = "\n".join(bodies)
    return f'<div class="table" tabindex="0"><table>\n<thead>{top}</thead>\n{rest}\n</table></div>'


def _row(tag: str, cells: Iterable[str], marks: Sequence[str]) -> str:
    end = tag.split()[0]
    return "<tr>" + "".join(f"<{tag}{m}>{cell}</{end}>" for cell, m in zip(cells, marks, strict=True)) + "</tr>"
