"""Comparisons of learnt masks with other ways to as many zeros, at the same training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset

from redlab.dpp.hardening import harden, place_bits
from redlab.dpp.metrics import inclusion_probabilities, mask_metrics
from redlab.dpp.sparsifying import sparsify
from redlab.dpp.training import adam, train_masks
from redlab.network.result import of_layers
from redlab.network.training import train
from redlab.progress import progress
from redlab.pruning.scores import score_weights
from redlab.pruning.weights import hold_zeros, prune_weights
from redlab.studies.accuracy import Reference

_OF_MASKS = ("mu", "temperatures", "noises", "logit_rate", "draws", "watch", "learning_rate")


def compare_masks(
    network: nn.Module,
    test: Dataset,
    training: Dataset,
    methods: Mapping[str, Mapping[str, Any]],
    keeps: Sequence[float],
    seeds: Sequence[int] = (0,),
    before: float | None = None,
    **tuning: Any,
) -> pd.DataFrame:
    """Train ``network`` with few of its weights by several methods, equally long, and measure its accuracy.

    Arguments:
        test: what accuracy is measured on, and ``training`` what is learnt from.
        methods: by name, options of ``sparsify``; or a data-free ``criterion`` of single weights and its ``scope``.
            The zeros of a criterion are chosen once. The other weights are then trained with the same optimizer.
        keeps: shares to keep, of what the granularity counts.
        seeds: of random logits, noise and the order of images.
        before: the accuracy of the network before, if known; measured otherwise.
        tuning: arguments of ``train_masks``.

    Returns:
        A row a method, share and seed: these; ``sparsity``, the share of the conv and linear weights that are zero or
        removed; ``bits`` a weight, as ``harden`` reports; the accuracy (``Reference.columns``), inputs rounded where
        the method does so. ``attrs["before"]`` holds the accuracy of the network before.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", "train", limit=64)
        >>> methods = {"DPP": {"granularity": "weight"}, "magnitude": {"criterion": "magnitude"}}
        >>> frame = compare_masks(network, images, images, methods, keeps=[0.5], epochs=1)
        >>> frame[["method", "keep", "sparsity"]]
              method  keep  sparsity
        0        DPP   0.5       0.5
        1  magnitude   0.5       0.5
    """
    jobs = [(name, keep, seed) for name in methods for keep in keeps for seed in seeds]
    rows, reference = [], Reference(network, test, before)
    for name, keep, seed in progress(jobs, "masks"):
        run = _chosen_once if "criterion" in methods[name] else _learnt
        trained, left = run(network, training, methods[name], keep, seed, tuning)
        rows.append({"method": name, "keep": keep, "seed": seed, **left, **reference.columns(trained)})
    return reference.frame(rows)


_Tuning = Mapping[str, Any]


def _learnt(
    network: nn.Module, training: Dataset, method: _Tuning, keep: float, seed: int, tuning: _Tuning
) -> tuple[nn.Module, dict[str, float]]:
    trained = train_masks(sparsify(network, keep, **method, seed=seed), training, seed=seed, **tuning).network
    achieved = harden(trained).plan["achieved"]
    return trained, {"sparsity": achieved["sparsity"], "bits": achieved["bits per weight"]}


def _chosen_once(
    network: nn.Module, training: Dataset, method: _Tuning, keep: float, seed: int, tuning: _Tuning
) -> tuple[nn.Module, dict[str, float]]:
    scores = score_weights(network, method["criterion"])
    pruned = prune_weights(network, scores, 1 - keep, method.get("scope", "global"))
    hold, plain = hold_zeros(pruned.network), {name: own for name, own in tuning.items() if name not in _OF_MASKS}
    make = adam(tuning.get("learning_rate", 2e-3))
    trained = train(pruned.network, training, seed=seed, on_batch=hold, optimizer=make, **plain).network
    hold(trained)
    layers = of_layers(pruned.layers)
    counts = layers[["weights", "parameters_after"]].itertuples(index=False)
    total = layers["weights"].sum()
    bits = sum(32 * kept + place_bits(weights, kept) for weights, kept in counts) / total
    return trained, {"sparsity": layers["zeros"].sum() / total, "bits": bits}


def known_masks(n: int = 16, k: int = 4, draws: int = 4096) -> pd.DataFrame:
    """Four rows of logits whose entropies can be computed by hand, and what their masks do.

    Returns:
        A row a case and entry: ``case``, ``entry``, ``p`` (softmax of the logits), ``pi`` (the probability that the
        entry is among the ``k`` drawn), and of the case ``entropy`` H(p), ``inclusion_entropy`` H(pi / k), in nats,
        ``log_k``, ``log_n``.

    Example:
        >>> known_masks(draws=64).groupby("case", sort=False)["entropy"].first().round(2).tolist()
        [2.77, 1.39, 0.0, 0.02]
    """
    wins = torch.arange(n) < k
    logits = {
        "all alike": torch.zeros(n),
        "k alike, the rest far below": torch.where(wins, 12.0, 0.0),
        "one far above, the rest alike": torch.where(torch.arange(n) < 1, 12.0, 0.0),
        "each far above the next": -6.0 * torch.arange(n),
    }
    frames = []
    for case, own in logits.items():
        network = sparsify(nn.Linear(n, 1), k)
        mask = network.dpp.masks["Linear"]
        mask.logits = nn.Parameter(own[None], requires_grad=False)
        pi = inclusion_probabilities(mask, draws, torch.Generator().manual_seed(0)).mean(0)[0]
        found = mask_metrics(network, draws)[["entropy", "inclusion_entropy", "log_k", "log_n"]].iloc[0]
        columns = {"case": case, "entry": range(1, n + 1), "p": own.softmax(0).numpy(), "pi": pi.numpy()}
        frames.append(pd.DataFrame(columns).assign(**found))
    return pd.concat(frames, ignore_index=True)
