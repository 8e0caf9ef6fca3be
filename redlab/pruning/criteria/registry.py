"""All criteria, one a file. To add one, write a function of a ``Subject`` and a line in ``CRITERIA``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy import ndarray

from redlab.pruning.criteria.flexrel import flexrel, flexrel_of_weights
from redlab.pruning.criteria.magnitude import magnitude, magnitude_of_weights
from redlab.pruning.criteria.neuron_merging import neuron_merging
from redlab.pruning.criteria.oracle import oracle
from redlab.pruning.criteria.random import random, random_weights
from redlab.pruning.criteria.reconstruction import reconstruction
from redlab.pruning.criteria.redundancy import redundancy
from redlab.pruning.criteria.singe import singe
from redlab.pruning.criteria.srinivas_babu import srinivas_babu
from redlab.pruning.criteria.taylor import taylor, taylor_of_weights
from redlab.pruning.subject import Scored


@dataclass(frozen=True)
class Criterion:
    """One way to score.

    Attributes:
        channels, weights: functions of a ``Subject`` and options of their own that return the scores.
        data: whether it needs a dataset.
        compensation: what the consumer layers get in place of a removed channel (see ``prune_channels``).
    """

    channels: Callable[..., Scored] | None = None
    weights: Callable[..., Mapping[str, ndarray]] | None = None
    data: bool = False
    compensation: str = "none"

    def scorer(self, of: str) -> Any:
        """The function that scores ``of``, "channels" or "weights"; None: there is none."""
        return self.channels if of == "channels" else self.weights


CRITERIA: dict[str, Criterion] = {
    "random": Criterion(random, random_weights),
    "magnitude": Criterion(magnitude, magnitude_of_weights),
    "redundancy": Criterion(redundancy, compensation="merge"),
    "srinivas_babu": Criterion(srinivas_babu, compensation="absorb"),
    "neuron_merging": Criterion(neuron_merging, compensation="nearest"),
    "reconstruction": Criterion(reconstruction, compensation="reconstruct"),
    "taylor": Criterion(taylor, taylor_of_weights, data=True),
    "flexrel": Criterion(flexrel, flexrel_of_weights, data=True),
    "singe": Criterion(singe, data=True),
    "oracle": Criterion(oracle, data=True),
}


def find_criterion(name: str, of: str, options: Mapping[str, Any]) -> Criterion:
    """The criterion of this name, which can score ``of`` ("channels" or "weights") and takes these options.

    Raises:
        ValueError: it doesn't; the message says what is known.
    """
    known = [each for each, criterion in CRITERIA.items() if criterion.scorer(of) is not None]
    if name not in known:
        what = "does not score" if name in CRITERIA else "is no criterion for"
        raise ValueError(f"{name!r} {what} {of}.{_guess(name, known)} Known: {', '.join(known)}")
    taken = list(inspect.signature(CRITERIA[name].scorer(of)).parameters)[1:]
    for option in options:
        if option not in taken:
            guess = _guess(option, taken)
            raise ValueError(f"{name} takes no option {option!r}.{guess} It takes {', '.join(taken) or 'none'}")
    return CRITERIA[name]


def _guess(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
