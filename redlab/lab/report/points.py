"""What notebooks record, brought to one form: accuracy against what is left, and the points that stand for the others.

Frames differ by notebook; the names of their columns are common words (CONTRIBUTING.md), and by these they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

TOLERANCE = 1.0  # points of accuracy that a point may lose and still stand for its method
LEFT = ("products", "parameters", "channels", "weights", "values")  # shares in [0, 1] of the network as it came
# What "least" is counted in: the first of these that a notebook recorded.
_RANKS = ("products", "kilobytes", "bits", "parameters", "weights", "channels", "values")
# What ``share`` is a share of, in the words of ``frame.attrs["of"]``.
_SHARES = {"products": "products", "channels": "channels", "distinct weight values": "values"}
_SETTINGS: tuple[str, ...] = ("strategy", "linkage", "start", "unit", "relevance", "rule", "representative")
_SETTINGS += ("bandwidth", "contrast", "max_error", "alpha", "keep", "ratio", "budget", "rounding")
_SETTINGS += ("correct_bias", "signed", "as_published")


@dataclass(frozen=True)
class Recorded:
    """The frame that a run recorded: of which ``notebook``, and the ``command`` that makes it again."""

    frame: pd.DataFrame
    notebook: str
    command: str


def points_of(recorded: Recorded) -> pd.DataFrame:
    """The points of a frame: network, notebook, method, setting, command; accuracy and before in percent; the columns
    of ``LEFT``, bits and kilobytes, NaN where not recorded; ``rank``, what counts as left. Seeds are averaged.

    A frame without a column ``accuracy`` has no points.
    """
    frame = recorded.frame
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
    return points.assign(rank=rank, notebook=recorded.notebook, command=recorded.command)


def best_of_each(points: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One point of each group: the least that is left among those that lose at most ``TOLERANCE`` points of accuracy;
    where all lose more, the one of highest accuracy. Groups come by network, in the order of their first points.
    """
    found = [_best(group) for _, group in points.groupby(list(by), sort=False)]
    networks = list(dict.fromkeys(points["network"]))
    found.sort(key=lambda point: networks.index(point["network"]))  # stable
    return pd.DataFrame(found).reset_index(drop=True)


def _best(group: pd.DataFrame) -> pd.Series:
    kept = group[group["before"] - group["accuracy"] <= TOLERANCE]
    if kept.empty:
        return group.loc[group["accuracy"].idxmax()]
    return kept.sort_values(["rank", "accuracy"], ascending=[True, False], kind="stable").iloc[0]


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    names = ("accuracy", "before", *LEFT, "bits", "kilobytes")
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
