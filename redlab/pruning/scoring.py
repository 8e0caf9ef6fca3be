"""Scoring: a criterion by its name, asked about every channel or every weight of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from redlab.channels.groups import Group
from redlab.network.evaluation import in_eval_mode
from redlab.network.example import Example
from redlab.network.fingerprint import fingerprint
from redlab.network.layers import copy_network, unwrap, weight_layers
from redlab.network.samples import Labelled, as_dataset, example_of
from redlab.options import fitted, plain_options
from redlab.pruning.criteria.registry import find_criterion
from redlab.pruning.scores import Scored, Scores
from redlab.pruning.subject import Subject


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
    """How important each channel of ``network`` is, one score for what must stay in step.

    Arguments:
        network: left untouched; it is scored in eval mode, wherever it lies.
        criterion: "random", "magnitude", "taylor", ...; ``CRITERIA`` in ``redlab/pruning/criteria/registry.py`` has
            them all, the files beside it say what each computes and what options it takes.
        dataset: of (inputs, label), as for ``evaluate``, read in its own order; ignored by criteria that need none.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``, or
            for a network without a recipe the first inputs of ``dataset``.

    Defaults:
        options: the criterion's, mostly its paper's: the files of ``redlab/pruning/criteria`` say what was measured of
            Taylor's form, FlexRel's delta and SInGE's path. README.md, "What pruning does to a real network", has
            the criteria side by side.

    Raises:
        ValueError: an unknown criterion or option, no dataset where one is needed, NaN or inf weights, no tracing.

    Example:
        >>> scores = score_channels(load_network("digits/resnet"), "magnitude", p=2)
        >>> scores.frame().nsmallest(2, "score")[["group", "channel"]]
                      group  channel
        164  layer3.0.conv2       20
        162  layer3.0.conv2       18
    """
    found = find_criterion(criterion, "channels", options)
    network = unwrap(network)
    options = fitted(found.scorer("channels"), options)
    example = example_of(network, example, dataset)
    subject = _subject(network, criterion, dataset if found.data else None, found.data, example)
    with in_eval_mode(subject.network):
        scored = found.scorer("channels")(subject, **options)
    unread = {group.name: "none of its layers' weights can be rewritten" for group in subject.groups}
    unread = {name: why for name, why in unread.items() if name not in {group.name for group in subject.free}}
    frozen = {group.name: group.frozen for group in subject.groups if group.frozen}
    skipped = unread | frozen | dict(scored.skipped)
    return _scores(network, criterion, options, "channels", scored, skipped, subject.groups)


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
    found = find_criterion(criterion, "weights", options)
    network = unwrap(network)
    options = fitted(found.scorer("weights"), options)
    example = example_of(network, example, dataset)
    subject = _subject(network, criterion, dataset if found.data else None, found.data, example)
    with in_eval_mode(subject.network):
        scored = Scored(found.scorer("weights")(subject, **options))
    skipped = {layer.name: layer.skipped for layer in weight_layers(network) if layer.skipped}
    return _scores(network, criterion, options, "weights", scored, skipped, ())


def _scores(
    network: nn.Module,
    criterion: str,
    options: dict,
    of: str,
    scored: Scored,
    skipped: dict[str, str],
    groups: Sequence[Group],
) -> Scores:
    own = fingerprint(network, training=False)
    return Scores(criterion, options, of, scored.values, scored.heirs, scored.errors, skipped, tuple(groups), own)


def _subject(network: nn.Module, criterion: str, dataset: Any, needs: bool, example: Example | None) -> Subject:
    dataset = None if dataset is None else as_dataset(dataset)
    if needs and (dataset is None or len(dataset) == 0):
        raise ValueError(f"{criterion} needs images: pass a dataset that holds some")
    for layer in weight_layers(network):
        if not layer.skipped and not bool(torch.isfinite(layer.weight).all()):
            raise ValueError(f"layer {layer.name}: NaN or inf among its weights")
    own = copy_network(network)  # gradients, and what a criterion switches on for them, are not the caller's
    for parameter in own.parameters():
        if not is_lazy(parameter) and parameter.is_floating_point():
            parameter.requires_grad_()
    return Subject(own, dataset, example)
