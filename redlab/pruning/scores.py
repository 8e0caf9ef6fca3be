"""Scores: one number for every channel or weight that may be removed, the lowest for the least important."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray
from torch import nn

from redlab.channels.groups import Group
from redlab.network.recipe import fingerprint
from redlab.network.result import report_once
from redlab.options import check_one_of

NORMS = ("mean", "max", "rank")


@dataclass(frozen=True, eq=False)
class Scored:
    """What a criterion returns: ``values`` as in ``Scores``, and the rest if it has any."""

    values: Mapping[str, ndarray]
    heirs: Mapping[str, ndarray] = field(default_factory=dict)
    errors: Mapping[str, ndarray] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scores:
    """How important every channel of a network is, or every weight.

    Attributes:
        criterion: its name.
        options: those that it was called with.
        of: "channels" or "weights".
        values: float64; by the name of every coupled group that may lose channels (size,), or by the name of every
            conv and linear layer an array of its weight's shape.
        heirs: by group, if the criterion says so: the merge target of each channel, which does its work once it is
            removed; -1 for none. No target has a lower score, and following targets ends at the highest score.
        errors: by group, the standard error of estimated values.
        skipped: by group or layer, why it has no scores.
        groups: all coupled groups of the network, those that must stay too; none for weights.
        network: the fingerprint of the network's parameters; "" fits any network of the same layers.

    Example:
        >>> scores = score_channels(load_network("digits/mlp"), "magnitude")
        >>> {name: values.shape for name, values in scores.values.items()}
        {'hidden.0.linear': (256,), 'hidden.1.linear': (128,)}
        >>> scores.frame().columns.tolist()
        ['group', 'channel', 'score']
        >>> print(scores)
        magnitude(): 384 channels of 2 groups
        scores: 3.22 to 13.54, median 4.276
        1 without: classifier (network output)
    """

    criterion: str
    options: dict[str, Any]
    of: str
    values: Mapping[str, ndarray]
    heirs: Mapping[str, ndarray] = field(default_factory=dict)
    errors: Mapping[str, ndarray] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    groups: Sequence[Group] = ()
    network: str = ""

    def __post_init__(self) -> None:
        for name, values in self.values.items():
            if not np.isfinite(values).all():
                where = "group" if self.of == "channels" else "layer"
                raise ValueError(f"{self.criterion}: NaN or inf among the scores of {where} {name!r}")

    def __len__(self) -> int:
        return sum(values.size for values in self.values.values())

    def check_of(self, of: str) -> None:
        """Raises ValueError where these are not scores ``of`` what is asked for."""
        if self.of != of:
            raise ValueError(f"these are scores of {self.of}, not of {of}: score_{of} makes those")

    def check_network(self, network: nn.Module) -> None:
        """Raises ValueError where the scores are of a network with other weights."""
        if self.network and self.network != fingerprint(network, training=False):
            raise ValueError(
                "the scores are of another network: its layers are the same, and its weights differ. Score this one, "
                'or pass dataclasses.replace(scores, network="") to use the old scores'
            )

    def normalised(self, by: str = "mean") -> Scores:
        """The same order within each group (layer), on a scale that can be compared across them: our choices.

        Arguments:
            by: "mean" or "max", which every score is divided by; "rank": ranks over their number, in (0, 1].

        Raises:
            ValueError: an unknown ``by``.
        """
        check_one_of("by", by, NORMS)
        return replace(self, values={name: _normalised(values, by) for name, values in self.values.items()})

    def __str__(self) -> str:
        return "\n".join(self._report())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        lines = "<br>".join(html.escape(line, quote=False) for line in self._report())
        return f"<p>{lines}</p>{self._table().to_html(index=False, max_rows=12, float_format='{:.4g}'.format)}"

    def _report(self) -> list[str]:
        """What was asked, how much was scored, the range of the scores, and what has none."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        where = "groups" if self.of == "channels" else "layers"
        lines = [f"{self.criterion}({options}): {len(self):,} {self.of} of {len(self.values)} {where}"]
        if len(self):
            every = np.concatenate([own.ravel() for own in self.values.values()])
            low, middle, high = np.quantile(every, [0, 0.5, 1])
            lines.append(f"scores: {low:.4g} to {high:.4g}, median {middle:.4g}")
        lines += [f"a merge target for every channel of {len(self.heirs)} groups"] if self.heirs else []
        lines += [f"a standard error for every channel of {len(self.errors)} groups"] if self.errors else []
        skipped = f"{len(self.skipped)} without: {report_once(self.skipped, self.skipped.values())}"
        return [*lines, skipped if self.skipped else f"no {where} without"]

    def _table(self) -> pd.DataFrame:
        """A row a group or layer."""
        name = "group" if self.of == "channels" else "layer"
        rows = [
            {name: key, self.of: own.size, "lowest": own.min(), "median": np.median(own), "highest": own.max()}
            for key, own in self.values.items()
            if own.size
        ]
        return pd.DataFrame(rows, columns=[name, self.of, "lowest", "median", "highest"])

    def frame(self) -> pd.DataFrame:
        """One row a channel: group, channel, score; or one row a weight: layer, weight (its flat index), score."""
        names = ("group", "channel") if self.of == "channels" else ("layer", "weight")
        columns = {
            names[0]: np.repeat(list(self.values), [values.size for values in self.values.values()]),
            names[1]: np.concatenate([np.arange(values.size) for values in self.values.values()] or [np.zeros(0, int)]),
            "score": np.concatenate([values.ravel() for values in self.values.values()] or [np.zeros(0)]),
        }
        return pd.DataFrame(columns)


def turn(cost: float, last: float) -> float:
    """The score of a channel that is removed at this cost after one that scores ``last``: larger, if above 0.

    Costs may fall from turn to turn, and of equal scores the channel of lower number would be removed first.
    """
    return max(cost, last * (1 + 1e-12))


def last_turn(last: float) -> float:
    """The score of the channel that is left at the end, after one that scores ``last``."""
    return float(last) * (1 + 1e-9) + 1e-38


def _normalised(values: ndarray, by: str) -> ndarray:
    if by == "rank":
        ranks = np.empty(values.size)
        ranks[np.argsort(values, axis=None, kind="stable")] = np.arange(1, values.size + 1) / values.size
        return ranks.reshape(values.shape)
    scale = np.abs(values).mean() if by == "mean" else np.abs(values).max(initial=0)
    return values / scale if scale > 0 else values
