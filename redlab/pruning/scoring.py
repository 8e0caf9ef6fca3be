"""Scoring: a criterion by its name gives a score to every channel or every weight of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from redlab.network.evaluating import in_eval_mode
from redlab.network.example import Example
from redlab.network.layers import copy_network, unwrap, weight_layers
from redlab.network.recipe import fingerprint
from redlab.network.samples import Labelled, as_dataset, example_of
from redlab.options import fitted, plain_options
from redlab.pruning.criteria.registry import find_criterion
from redlab.pruning.scores import Scores
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
    network = unwrap(network)
    options, subject, scored = _ask(network, criterion, "channels", dataset, example, options)
    free = {group.name for group in subject.free}
    unread = "none of its layers' weights can be rewritten"
    skipped = {group.name: group.frozen or unread for group in subject.groups if group.name not in free}
    parts = (scored.values, scored.heirs, scored.errors, skipped | dict(scored.skipped), tuple(subject.groups))
    return Scores(criterion, options, "channels", *parts, fingerprint(network, training=False))


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
    network = unwrap(network)
    options, _, values = _ask(network, criterion, "weights", dataset, example, options)
    skipped = {layer.name: layer.skipped for layer in weight_layers(network) if layer.skipped}
    own = fingerprint(network, training=False)
    return Scores(criterion, options, "weights", values, skipped=skipped, network=own)


def _ask(
    network: nn.Module, criterion: str, of: str, dataset: Any, example: Example | None, options: dict[str, Any]
) -> tuple[dict[str, Any], Subject, Any]:
    """The options as the criterion takes them, what it looked at, and its scores."""
    found = find_criterion(criterion, of, options)
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
        return options, subject, found.scorer(of)(subject, **options)
