"""Scores: a criterion gives one number to every channel or weight, the lowest to the least important."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from scipy.stats import rankdata
from torch import nn
from torch.nn.parameter import is_lazy

from redlab.channels.groups import Group
from redlab.network.evaluating import in_eval_mode
from redlab.network.example import Example
from redlab.network.layers import copy_network, unwrap, weight_layers
from redlab.network.recipe import fingerprint
from redlab.network.result import report_once
from redlab.network.samples import Labelled, as_dataset, example_of
from redlab.options import check_one_of, fitted, plain_options
from redlab.pruning.criteria.registry import find_criterion
from redlab.pruning.subject import Subject

NORMS = ("mean", "max", "rank")


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

    __repr__ = __str__

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


def _normalised(values: ndarray, by: str) -> ndarray:
    if by == "rank":
        return rankdata(values, "ordinal").reshape(values.shape) / values.size
    scale = np.abs(values).mean() if by == "mean" else np.abs(values).max(initial=0)
    return values / scale if scale > 0 else values


@plain_options
@torch.inference_mode(False)  # whatever the caller's mode: its tensors have no gradients
def score_channels(
    network: nn.Module,
    criterion: str,
    dataset: Labelled | None = None,
    *,
    example: Example | None = None,
    **options: Any,
) -> Scores:
    """How important each channel of ``network`` is. Channels that must stay in step get one score.

    Arguments:
        network: left untouched; it is scored in eval mode, on its own device.
        criterion: "random", "magnitude", "taylor", ...; ``CRITERIA`` in ``redlab/pruning/criteria/registry.py`` lists
            them. The files next to it say what each computes and which ``options`` it takes (docs/defaults.md).
        dataset: of (inputs, label), as for ``evaluate``, read in its own order; ignored by criteria that need none.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``, or
            for a network without a recipe the first inputs of ``dataset``.

    Raises:
        ValueError: an unknown criterion or option, no dataset where one is needed, NaN or inf weights, no tracing.

    Example:
        >>> scores = score_channels(load_network("digits/resnet"), "magnitude", p=2)
        >>> scores.frame().nsmallest(2, "score")[["group", "channel"]]
                      group  channel
        164  layer3.0.conv2       20
        162  layer3.0.conv2       18
    """
    return _score(network, criterion, "channels", dataset, example, options)


@plain_options
@torch.inference_mode(False)
def score_weights(
    network: nn.Module,
    criterion: str,
    dataset: Labelled | None = None,
    *,
    example: Example | None = None,
    **options: Any,
) -> Scores:
    """How important each weight of every conv and linear layer is. Arguments and errors as in ``score_channels``.

    Example:
        >>> scores = score_weights(load_network("digits/mlp"), "magnitude")
        >>> {name: values.shape for name, values in scores.values.items()}
        {'hidden.0.linear': (256, 64), 'hidden.1.linear': (128, 256), 'classifier': (10, 128)}
    """
    return _score(network, criterion, "weights", dataset, example, options)


def _score(
    network: nn.Module, criterion: str, of: str, dataset: Any, example: Example | None, options: dict[str, Any]
) -> Scores:
    network, found = unwrap(network), find_criterion(criterion, of, options)
    options = fitted(found.scorer(of), options)
    samples = as_dataset(dataset) if found.data and dataset is not None else None
    if found.data and not samples:
        raise ValueError(f"{criterion} needs images: pass a dataset that holds some")
    for layer in weight_layers(network):
        if not layer.skipped and not bool(torch.isfinite(layer.weight).all()):
            raise ValueError(f"layer {layer.name}: NaN or inf among its weights")
    own = copy_network(network)  # a criterion may switch on gradients
    for parameter in own.parameters():
        if not is_lazy(parameter) and parameter.is_floating_point():
            parameter.requires_grad_()
    subject = Subject(own, samples, example_of(network, example, dataset))
    with in_eval_mode(own):
        scored = found.scorer(of)(subject, **options)
    mark = fingerprint(network, training=False)
    if of == "weights":
        skipped = {layer.name: layer.skipped for layer in weight_layers(network) if layer.skipped}
        return Scores(criterion, options, of, scored, skipped=skipped, network=mark)
    free = {group.name for group in subject.free}
    unread = "none of its layers' weights can be rewritten"
    skipped = {group.name: group.frozen or unread for group in subject.groups if group.name not in free}
    parts = (scored.values, scored.heirs, scored.errors, skipped | dict(scored.skipped), tuple(subject.groups))
    return Scores(criterion, options, of, *parts, mark)
