"""One method of pruning, as the comparisons name it, and what it leaves of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset

from redlab.dpp.training import prune_by_masks
from redlab.network.result import Result
from redlab.network.samples import as_dataset
from redlab.pruning.channels import prune_channels
from redlab.pruning.criteria.registry import CRITERIA
from redlab.pruning.iterative import iterative_prune
from redlab.pruning.scores import score_channels
from redlab.studies.accuracy import shares_left

SCORE_IMAGES = 1024  # images that a criterion sees: 16 minibatches of 64
_SELECTS = ("scope", "round_to", "compensation")  # options of a method that the selection takes, not the criterion


def draws(method: Mapping[str, Any]) -> bool:
    """Whether a seed changes anything."""
    name = method["criterion"]
    return "step" in method or name in ("random", "dpp") or CRITERIA[name].data


def prune_by_method(
    network: nn.Module, training: Dataset, method: Mapping[str, Any], keeps: Sequence[float], seed: int
) -> Iterator[tuple[float, Result]]:
    """Each of ``keeps``, the shares of the multiplications to keep, and ``network`` pruned to it.

    Arguments as in ``compare_criteria``. Scores are computed once for all shares.
    """
    if "step" in method:
        for keep in keeps:
            yield keep, iterative_prune(network, dataset=training, target=keep, seed=seed, **method)
        return
    options = {name: value for name, value in method.items() if name not in ("criterion", *_SELECTS)}
    if method["criterion"] == "dpp":
        for keep in keeps:
            yield keep, prune_by_masks(network, training, keep, seed=seed, **options)
        return
    if method["criterion"] == "random":
        options["seed"] = seed
    training = as_dataset(training)
    images = np.random.default_rng(seed).permutation(len(training))[:SCORE_IMAGES].tolist()
    scores = score_channels(network, method["criterion"], Subset(training, images), **options)
    selects = {name: method[name] for name in _SELECTS if name in method}
    for keep in keeps:
        yield keep, prune_channels(network, scores, products=keep, **selects)


def left_of(result: Result) -> dict[str, float]:
    """The shares of products, macs, parameters and scored channels that ``result`` has left."""
    left = shares_left(result.layers, "products", "macs", "parameters")
    return left | {"channels": 1 - result.plan["achieved"]["ratio"]}
