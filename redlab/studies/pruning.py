"""Comparisons of pruning that several notebooks draw: one network, many criteria, one tidy frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from redlab.channels.coupling import couple
from redlab.network.evaluation import evaluate
from redlab.network.example import Example
from redlab.network.layers import copy_network, unwrap
from redlab.network.samples import Labelled, as_dataset, example_of
from redlab.network.training import train
from redlab.options import plain_options
from redlab.progress import progress
from redlab.pruning.channels import prune_channels
from redlab.pruning.criteria.oracle import mean_square, removal_changes
from redlab.pruning.scores import score_channels, score_weights
from redlab.pruning.selection import check_share
from redlab.pruning.subject import Subject
from redlab.pruning.weights import prune_weights, sparse_bytes
from redlab.studies.accuracy import Reference
from redlab.studies.methods import SCORE_IMAGES, draws, left_of, prune_by_method


def compare_criteria(
    network: nn.Module,
    test: Dataset,
    training: Dataset,
    methods: Mapping[str, dict[str, Any]],
    keeps: Sequence[float],
    seeds: Sequence[int] = (0,),
    fine_tune: Mapping[str, Any] | None = None,
    before: float | None = None,
) -> pd.DataFrame:
    """Prune ``network`` by several methods to several shares of its multiplications, and measure what is left.

    Arguments:
        test: the images of the accuracy; ``training``: those that criteria see and fine-tuning learns from.
        methods: by name the ``criterion``, its options, and ``scope``, ``round_to``, ``compensation``; or, with a
            ``step`` among them, arguments of ``iterative_prune``; or, with the criterion "dpp", of ``prune_by_masks``.
        keeps: shares of the multiplications to keep.
        seeds: of the images that a criterion sees, of the random criterion and of fine-tuning. A method that draws
            nothing is run with the first seed only.
        fine_tune: arguments of ``train`` after each pruning; by default nothing is trained.
        before: the accuracy of the network before, if known; measured otherwise.

    Returns:
        A row a method, share, seed and stage ("pruned", "fine-tuned"): these; ``products``, ``macs`` and
        ``parameters``, the shares left; ``channels``, the share of the scored ones left; the accuracy
        (``Reference.columns``). ``attrs["before"]`` holds the accuracy of the network before.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", "train", limit=64)
        >>> methods = {"magnitude": {"criterion": "magnitude"}, "Taylor": {"criterion": "taylor"}}
        >>> compare_criteria(network, images, images, methods, keeps=[0.5])[["method", "stage", "products"]]
              method   stage  products
        0  magnitude  pruned  0.497462
        1     Taylor  pruned  0.499306
    """
    rows, reference = [], Reference(network, test, before)
    drawn = {name: fine_tune is not None or draws(method) for name, method in methods.items()}
    jobs = [(name, seed) for name in methods for seed in (seeds if drawn[name] else seeds[:1])]
    for name, seed in progress(jobs, "methods"):
        for keep, result in prune_by_method(network, training, methods[name], keeps, seed):
            own = {"method": name, "keep": keep, "seed": seed, **left_of(result)}
            rows.append(own | {"stage": "pruned", **reference.columns(result.network)})
            if fine_tune is not None:
                tuned = train(result.network, training, seed=seed, **fine_tune).network
                rows.append(own | {"stage": "fine-tuned", **reference.columns(tuned)})
    return reference.frame(rows)


@plain_options
def sensitivity(
    network: nn.Module,
    criterion: str,
    dataset: Labelled,
    ratios: Sequence[float],
    *,
    scored_on: Labelled | None = None,
    compensation: str | None = None,
    example: Example | None = None,
    **options: Any,
) -> pd.DataFrame:
    """What it costs to prune one coupled group alone.

    Arguments:
        criterion: decides which channels are removed first, with its ``options``.
        dataset: the images of accuracy and loss.
        ratios: shares of the group's channels to remove, each in [0, 1].
        scored_on: the images that the criterion sees; by default ``dataset``.
        compensation: as in ``prune_channels``.

    Returns:
        A row a group with removable channels, and ratio: group, ratio, channels (of the group), ``removed``, the share
        of the network's ``products`` left, the accuracy (``Evaluation.columns``), loss in nats. ``attrs["before"]`` is
        the accuracy before.

    Raises:
        ValueError: as ``score_channels`` and ``prune_channels``.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> frame = sensitivity(network, "magnitude", images, ratios=[0.5])
        >>> frame[["group", "channels", "removed"]]
                     group  channels  removed
        0  hidden.0.linear       256      128
        1  hidden.1.linear       128       64
    """
    for ratio in ratios:
        check_share("each of ratios", ratio)
    example = example_of(network, example, dataset)
    scores = score_channels(network, criterion, dataset if scored_on is None else scored_on, example=example, **options)
    jobs = [(name, ratio) for name in scores.values for ratio in ratios]
    rows = []
    for name, ratio in progress(jobs, "sensitivity"):
        alone = replace(scores, values={name: scores.values[name]})
        result = prune_channels(network, alone, ratio, compensation=compensation, example=example)
        found = evaluate(result.network, dataset)
        size, left = len(scores.values[name]), left_of(result)
        row = {"group": name, "ratio": ratio, "channels": size, "removed": round(size * (1 - left["channels"]))}
        rows.append(row | {"products": left["products"], **found.columns(), "loss": found.loss})
    frame = pd.DataFrame(rows)
    frame.attrs["before"] = evaluate(network, dataset).accuracy
    return frame


def inner_groups(network: nn.Module, example: Example | None = None) -> list[str]:
    """The groups with one producer layer and one consumer layer: no part of a residual stream.

    Where there is none, all groups whose channels may be removed.

    Example:
        >>> inner_groups(load_network("digits/resnet"))
        ['layer1.0.conv1', 'layer2.0.conv1', 'layer3.0.conv1', 'layer3.0.conv2']
    """
    network = unwrap(network)
    weights = network.named_parameters(remove_duplicate=False)
    kernels = {name for name, own in weights if name.endswith("weight") and own.ndim > 1}
    free = [group for group in couple(network, example) if not group.frozen]
    single = [group for group in free if len(group.consumers) == 1]
    inner = [group.name for group in single if sum(member.tensor in kernels for member in group.producers) == 1]
    return inner or [group.name for group in free]


def oracle_agreement(
    network: nn.Module, dataset: Dataset, methods: Mapping[str, dict[str, Any]], groups: Sequence[str]
) -> pd.DataFrame:
    """Scores beside what removing each channel does to the loss, on the same images.

    Arguments:
        methods: by name the ``criterion`` and its options.
        groups: whose channels are compared.

    Returns:
        A row a method and channel: method, group, channel, score; ``oracle``, the squared change of the loss over all
        images; ``oracle_minibatch``, over minibatches of the method's ``batch_size`` (64), averaged after squaring.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", "train", limit=64)
        >>> frame = oracle_agreement(network, images, {"Taylor": {"criterion": "taylor"}}, inner_groups(network)[-1:])
        >>> frame.columns.tolist(), len(frame)
        (['group', 'channel', 'score', 'method', 'oracle', 'oracle_minibatch'], 128)
    """
    subject = Subject(copy_network(unwrap(network)).eval(), as_dataset(dataset))
    changes = removal_changes(subject, groups)
    joined = torch.cat([changes[group] for group in groups])
    frames = []
    for name, method in progress(list(methods.items()), "criteria"):
        scores = score_channels(network, dataset=dataset, **method)
        own = replace(scores, values={group: scores.values[group] for group in groups}).frame()
        truth = {"oracle": None, "oracle_minibatch": method.get("batch_size", 64)}
        columns = {column: mean_square(joined, size).numpy() for column, size in truth.items()}
        frames.append(own.assign(method=name, **columns))
    return pd.concat(frames, ignore_index=True)


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Of ``oracle_agreement``: method, and the correlations of score and oracle over all its channels: ``pearson`` and
    ``spearman`` with the change over all images, ``pearson_minibatch`` with that over minibatches.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", "train", limit=64)
        >>> frame = oracle_agreement(network, images, {"oracle": {"criterion": "oracle"}}, inner_groups(network)[-1:])
        >>> correlations(frame)[["method", "spearman"]].round(2)
           method  spearman
        0  oracle       1.0
    """
    rows = []
    for method, part in frame.groupby("method", sort=False):
        row = {"method": method, "channels": len(part)}
        row |= {name: part["score"].corr(part["oracle"], name) for name in ("pearson", "spearman")}
        rows.append(row | {"pearson_minibatch": part["score"].corr(part["oracle_minibatch"])})
    return pd.DataFrame(rows)


def compare_weights(
    network: nn.Module,
    test: Dataset,
    training: Dataset,
    methods: Mapping[str, dict[str, Any]],
    ratios: Sequence[float],
) -> pd.DataFrame:
    """Set weights of ``network`` to zero by several methods, and measure what is left of it; no fine-tuning.

    Arguments:
        test, training: as in ``compare_criteria``.
        methods: by name the ``criterion``, its options, and ``scope``.
        ratios: shares of the weights to set to zero.

    Returns:
        A row a method and ratio: these; ``kilobytes`` (1,000 bytes, ``sparse_bytes``); the accuracy
        (``Reference.columns``). ``attrs["before"]`` holds the accuracy of the network before.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> methods = {"magnitude": {"criterion": "magnitude"}}
        >>> compare_weights(network, images, images, methods, ratios=[0.0, 0.9])[["ratio", "kilobytes"]].round(1)
           ratio  kilobytes
        0    0.0      207.9
        1    0.9       32.7
    """
    training, reference = as_dataset(training), Reference(network, test)
    rows, seen = [], Subset(training, range(min(SCORE_IMAGES, len(training))))
    for name, method in progress(list(methods.items()), "methods"):
        options = dict(method)
        scope = options.pop("scope", "global")
        scores = score_weights(network, dataset=seen, **options)
        for ratio in ratios:
            pruned = prune_weights(network, scores, ratio, scope).network
            row = {"method": name, "ratio": ratio, "kilobytes": sparse_bytes(pruned) / 1000}
            rows.append(row | reference.columns(pruned))
    return reference.frame(rows)


def sizes_at(frame: pd.DataFrame, accuracy: float) -> pd.Series:
    """By method, the fewest kilobytes of ``compare_weights`` at which the accuracy is still reached.

    Between two measured points the curve is a straight line; NaN where no point reaches ``accuracy``.

    Example:
        >>> frame = pd.DataFrame({"method": "Taylor", "kilobytes": [10.0, 20.0], "accuracy": [90.0, 100.0]})
        >>> sizes_at(frame, accuracy=95)
        method
        Taylor    15.0
        dtype: float64
    """
    return frame.groupby("method", sort=False)[["kilobytes", "accuracy"]].apply(lambda own: _size_at(own, accuracy))


def _size_at(points: pd.DataFrame, accuracy: float) -> float:
    sizes, found = points.sort_values("kilobytes").to_numpy().T
    if not (found >= accuracy).any():
        return float("nan")
    first = int((found >= accuracy).argmax())
    around = slice(max(first - 1, 0), first + 1)
    return float(np.interp(accuracy, found[around], sizes[around]))
