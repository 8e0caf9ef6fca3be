"""The tables of the report: the summary of what all runs recorded, whole frames, and the commands behind them.

Frames differ by notebook. The names of their columns are common words (CONTRIBUTING.md), and by these they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from redlab.lab.report.html import break_headings
from redlab.lab.report.sources import Source

TOLERANCE = 1.0  # points of accuracy; a larger loss is in italics
LEFT = ("products", "parameters", "channels", "weights", "values")  # shares in [0, 1] of the original network
# What "left" is ordered by: the first of these that a notebook recorded.
_RANKS = ("products", "kilobytes", "bits", "parameters", "weights", "channels", "values")
# What ``share`` is a share of, in the words of ``frame.attrs["of"]``.
_SHARES = {"products": "products", "channels": "channels", "distinct weight values": "values"}
_SETTINGS: tuple[str, ...] = ("strategy", "linkage", "start", "unit", "relevance", "rule", "representative")
_SETTINGS += ("bandwidth", "contrast", "max_error", "alpha", "keep", "ratio", "budget", "rounding")
_SETTINGS += ("correct_bias", "signed", "as_published")
_MEASURED = ("accuracy", "before", "images", "accuracy_low", "accuracy_high")
_UNITS = {"products": "multiplications", "values": "distinct values", "bits": "bits a weight", "kilobytes": "kB"}
_ROWS = 500  # of a whole frame


def points_of(frame: pd.DataFrame, notebook: str, command: str) -> pd.DataFrame:
    """The points of a frame that a run of ``notebook`` recorded, which ``command`` makes again.

    Those are: network, notebook, method, setting, command; accuracy, its interval and before in percent; the columns of
    ``LEFT``, bits and kilobytes, NaN where not recorded; ``rank``, what counts as left. Seeds are averaged.

    A frame without a column ``accuracy`` has no points.
    """
    if "accuracy" not in frame:
        return pd.DataFrame()
    numbers = _numbers(frame)
    words = pd.DataFrame({"network": frame.get("network", ""), "method": _methods(frame)}, index=frame.index)
    words = words.map(lambda name: "" if pd.isna(name) else str(name))  # a row without a name is a row
    words["setting"] = _setting(frame, words["method"])
    points = pd.concat([words, numbers], axis=1).dropna(subset=["accuracy"])
    if "seed" in frame:
        points = points.groupby(list(words), sort=False, as_index=False, dropna=False).mean()
    rank = next((points[name] for name in _RANKS if points[name].notna().all()), 0.0)
    return points.assign(rank=rank, notebook=notebook, command=command)


def middle_of_each(points: pd.DataFrame) -> pd.DataFrame:
    """One point for each method of each notebook with each network: the middle one, ordered by what is left.

    Of an even number it is the one of the middle two that leaves more. Accuracy plays no part. Rows of a network stand
    together, in the order of its first point.
    """
    ordered = points.sort_values("rank", kind="stable")
    groups = ordered.groupby(["network", "notebook", "method"], sort=False)
    middle = ordered[groups.cumcount() == groups["rank"].transform("size") // 2].sort_index()
    return middle.sort_values("network", kind="stable", key=lambda names: pd.factorize(names)[0])


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    names = (*_MEASURED, *LEFT, "bits", "kilobytes")
    numbers = pd.DataFrame({name: frame.get(name, np.nan) for name in names}, index=frame.index)
    numbers = numbers.apply(pd.to_numeric, errors="coerce").astype(float)
    numbers["before"] = numbers["before"].fillna(frame.attrs.get("before", np.nan))
    if {"products_before", "products_after"} <= set(frame):
        numbers["products"] = frame["products_after"] / frame["products_before"]
    elif "share" in frame and (of := _SHARES.get(frame.attrs.get("of"))):
        numbers[of] = frame["share"]
    if "sparsity" in frame:
        numbers["weights"] = 1 - frame["sparsity"]
    return numbers


def _methods(frame: pd.DataFrame) -> pd.Series:
    """What the rows are named by: their method, and its stage where there are several; else their unit, and so on."""
    if "method" in frame:
        several = "stage" in frame and len(set(frame["stage"])) > 1
        return frame["method"].astype(str) + (", " + frame["stage"].astype(str) if several else "")
    named = next((name for name in ("unit", "rule", "bandwidth") if name in frame), None)
    return f"{named} " + frame[named].astype(str) if named else pd.Series("", frame.index)


def _setting(frame: pd.DataFrame, methods: pd.Series) -> pd.Series:
    """Those settings, in words, that a method has several of."""
    several = [
        name for name in _SETTINGS if name in frame and frame[name].astype(str).groupby(methods).nunique().max() > 1
    ]
    return frame.apply(
        lambda row: ", ".join(_said(name, row[name]) for name in several if _said(name, row[name])), axis=1
    )


def _said(name: str, value: object) -> str:
    if value is None or value != value:  # NaN
        return ""
    word = name.replace("_", " ")
    if isinstance(value, bool | np.bool_):
        return word if value else f"not {word}"
    return f"{word} {value:g}" if isinstance(value, float) else f"{word} {value}"


def summary(points: Sequence[pd.DataFrame], titles: Mapping[str, str]) -> str | None:
    """The middle point of each method in each notebook with each network, as HTML; None where there are no points.

    Arguments:
        points: of each frame (``points_of``).
        titles: those of the notebooks, by name, as HTML.
    """
    if not (some := [own for own in points if len(own)]):
        return None
    middle = middle_of_each(pd.concat(some, ignore_index=True))
    frame = pd.DataFrame([_row(point, titles) for point in middle.to_dict("records")])
    new = frame["network"] != frame["network"].shift()
    frame["notebook"] = frame["notebook"].where(new | (frame["notebook"] != frame["notebook"].shift()), "")
    frame["network"] = frame["network"].where(new, "")
    return _html(frame, classes="words", escape=False)


def _row(point: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, str]:
    """A row of the summary, its cells as HTML."""
    name = escape(point["notebook"])
    setting = f' <span class="soft">{escape(point["setting"])}</span>' if point["setting"] else ""
    left, *also = _left(point)
    return {
        "network": escape(point["network"]),
        "notebook": f'<a href="#{name}">{titles[point["notebook"]]}</a>' if point["notebook"] in titles else name,
        "method": escape(point["method"]) + setting,
        "accuracy": _accuracy(point),
        "left": left,
        "also left": ", ".join(also),
        "command": f"<code>{escape(point['command'])}</code>",
    }


def _accuracy(point: Mapping[str, float]) -> str:
    after, before = f"{point['accuracy']:.2f}", ""
    if not pd.isna(point["before"]):
        before = f"{point['before']:.2f} → "
        after = after if point["before"] - point["accuracy"] <= TOLERANCE else f"<em>{after}</em>"
    if pd.isna(point["accuracy_low"]) or pd.isna(point["images"]):
        return before + after
    interval = f"{point['accuracy_low']:.1f} to {point['accuracy_high']:.1f}, n&nbsp;=&nbsp;{point['images']:,.0f}"
    return f'{before}{after} <span class="soft">({interval})</span>'


def _left(point: Mapping[str, float]) -> list[str]:
    """What is left in words, what it is ordered by first."""
    found = {}
    for name in (*LEFT, "bits", "kilobytes"):
        if not pd.isna(value := point[name]):
            number = f"{100 * value:.3g} % of " if name in LEFT else f"{value:.3g} "
            found[name] = (number + _UNITS.get(name, name)).replace(" ", "&nbsp;")
    first = next((name for name in found if point[name] == point["rank"]), "")
    return [found.pop(first, ""), *found.values()]


def whole_frame(frame: pd.DataFrame, source: Source) -> dict[str, Any]:
    """A frame that a run recorded, for the page: the command, the number of rows, and its first rows as HTML."""
    file = f"runs/{source.run.name}/{source.run.folder.name}/results.parquet"
    table = _html(frame.head(_ROWS), float_format="{:.5g}".format, na_rep="")
    return {"command": source.command, "rows": len(frame), "shown": _ROWS, "table": table, "file": file}


def made(runs: Sequence[Source]) -> str:
    """The command, seconds and commit of every run, as HTML."""
    rows = [
        (f"<code>{escape(source.command)}</code>", f"{source.run.seconds:.1f}", _commit(source.facts.get("commit")))
        for source in runs
    ]
    return _html(pd.DataFrame(rows, columns=["command", "seconds", "commit"]), classes="words", escape=False)


def _commit(name: str | None) -> str:
    changed = ", with changes" if (name or "").endswith("-dirty") else ""
    return f"<code>{escape(name.removesuffix('-dirty')[:12])}</code>{changed}" if name else ""


def installed(runs: Sequence[Source]) -> list[str]:
    """A sentence for each machine and set of packages that runs were made with."""
    sentences = []
    for facts in (source.facts for source in runs if "python" in source.facts):
        packages = ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())
        threads = f"{facts.get('threads')} thread{'s' * (facts.get('threads') != 1)}"
        sentences.append(f"Python {facts.get('python')} on {facts.get('platform')}, {threads}: {packages}.")
    return list(dict.fromkeys(sentences))


def _html(frame: pd.DataFrame, **options: Any) -> str:
    table = frame.to_html(index=False, border=0, **options)
    return break_headings(table.replace(' border="0"', ""))  # pandas can't leave it out
