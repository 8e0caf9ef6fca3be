"""What ``benchmarks.real`` tries on each network: the criteria of ``benchmarks.pruning``, and what those lack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset

from benchmarks import pruning
from redlab import fold_batchnorm, hash_network, iterative_prune, merge_neurons, red, red_plus_plus
from redlab.compression.pipeline import MAX_NOISE
from redlab.dpp.training import prune_by_masks
from redlab.network.training import train
from redlab.pruning.criteria.registry import CRITERIA
from redlab.studies.methods import prune_by_method

MOBILENET, LITE = "imagenet/mobilenet_v1_0.75", "imagenet/efficientnet_lite0"
# Shares of the products to keep; the last is fine-tuned too.
KEEPS = pruning.KEEPS | {MOBILENET: (0.75, 0.5), LITE: (0.9, 0.75)}
# Of what learns or sees images and is not in pruning.csv: as many as an hour on two busy cores allows.
SEEDS = {"cifar10/resnet20": (0, 1, 2), "cifar10/resnet56": (0,), MOBILENET: (), LITE: ()}
TUNED_SEEDS = {"cifar10/resnet20": (0, 1, 2), "cifar10/resnet56": (0, 1, 2), MOBILENET: (), LITE: ()}
# What is asked of RED++, of RED++ that sees images, and of merging; of ResNet-56, where a look at all test images takes
# minutes, less.
_ERRORS = (0.05, 0.1, 0.15, 0.3)
ERRORS = {"cifar10/resnet20": _ERRORS, "cifar10/resnet56": _ERRORS, MOBILENET: _ERRORS, LITE: (0.05, 0.15)}
SEEN_ERRORS = {"cifar10/resnet20": (0.15, 0.3), "cifar10/resnet56": (0.3,), MOBILENET: (), LITE: ()}
ALPHAS = {"cifar10/resnet20": (0.0, 0.02, 0.05, 0.1), "cifar10/resnet56": (0.0, 0.05), MOBILENET: (0.0, 0.02, 0.05)}
ALPHAS[LITE] = (0.0, 0.01)
HASH_ERRORS = (0.01, 0.02, 0.05)  # of hashing alone, on EfficientNet-Lite0
# What is tried on EfficientNet-Lite0, of which an evaluation takes half a minute.
_LITE_METHODS = (
    "magnitude L1, same share of each layer",
    "reconstruction (ours)",
    "RED++ as published",
    "RED as published, a scale a row",
    "RED++ as published, a scale a row",
    "RED++ by default",
    "RED++",
    "output merging",
)
BIAS_IMAGES = 500  # as many as correct_biases looks at
# Fine-tuned in pruning.csv on ResNet-20 alone.
_NOT_TUNED = (("cifar10/resnet56", "random"), ("cifar10/resnet56", "Taylor, channels"))

Made = Iterator[tuple[str, nn.Module]]


@dataclass(frozen=True)
class Method:
    """How a method's networks are made.

    Attributes:
        needs: "nothing", "data" or "fine-tuning" (what it makes has learnt already).
        make: of the network, the training images and a seed: each setting in words, and what came out.
        seeds: as many as change anything.
        tuned: the seeds for which the last setting is fine-tuned as well.
    """

    needs: str
    make: Callable[[nn.Module, Dataset, int], Made]
    seeds: tuple[int, ...] = (0,)
    tuned: tuple[int, ...] = ()


def methods(name: str) -> dict[str, Method]:
    """What is tried on the network of that name; without training images, only what needs none."""
    found = {
        title: _criterion(name, title, options)
        for title, options in pruning.METHODS.items()
        if (name, title) not in pruning.LEFT_OUT
    }
    found |= {
        "RED as published": Method("nothing", _red),
        "RED++ as published": Method("nothing", _red_plus_plus),
        "RED as published, a scale a row": Method("nothing", partial(_red, scale="row")),
        "RED++ as published, a scale a row": Method("nothing", partial(_red_plus_plus, scale="row")),
        "RED++ by default": Method("nothing", _by_default),
        "RED++": Method("nothing", partial(_by_error, ERRORS[name])),
        "output merging": Method("nothing", partial(_by_alpha, ALPHAS[name])),
        "RED++, biases from images": Method("data", partial(_by_images, SEEN_ERRORS[name]), SEEDS[name]),
        "DPP": Method("fine-tuning", partial(_dpp, KEEPS[name][-1], 1.0), SEEDS[name]),
        "DPP, a tenth of the noise": Method("fine-tuning", partial(_dpp, KEEPS[name][-1], 0.1), SEEDS[name]),
        "SPP": Method("fine-tuning", partial(_spp, KEEPS[name][-1]), SEEDS[name]),
    }
    if name == LITE:
        alone = {"batch norm folded": Method("nothing", _folded), "hashing": Method("nothing", _hashed)}
        return alone | {title: found[title] for title in _LITE_METHODS}
    return {title: own for title, own in found.items() if name != MOBILENET or own.needs == "nothing"}


def share(keep: float) -> str:
    """A setting, in words."""
    return f"{keep:.0%} of products"


def _criterion(name: str, title: str, options: dict[str, Any]) -> Method:
    sees = CRITERIA[options["criterion"]].data
    draws = (sees or options["criterion"] == "random") and title not in pruning.ONE_SEED
    left_out = any(name == network and title.startswith(start) for network, start in _NOT_TUNED)
    return Method(
        needs="data" if sees else "nothing",
        make=partial(_pruned, KEEPS[name], options),
        seeds=pruning.SEEDS if draws else pruning.SEEDS[:1],
        tuned=TUNED_SEEDS[name] if title in pruning.TUNED and not left_out else (),
    )


def _pruned(
    keeps: tuple[float, ...], options: dict[str, Any], network: nn.Module, training: Dataset, seed: int
) -> Made:
    for keep, result in prune_by_method(network, training, options, keeps, seed):
        yield share(keep), result.network


def _folded(network: nn.Module, *_: Any) -> Made:
    yield "exact", fold_batchnorm(network).network


def _hashed(network: nn.Module, *_: Any) -> Made:
    folded = fold_batchnorm(network).network
    for error in HASH_ERRORS:
        yield f"error {error:g}", hash_network(folded, rule="uniform", max_error=error).network


def _red(network: nn.Module, *_: Any, scale: str = "none") -> Made:
    yield "silverman/8", red(network, scale=scale).network


def _red_plus_plus(network: nn.Module, *_: Any, scale: str = "none") -> Made:
    yield "silverman/8", red_plus_plus(network, as_published=True, scale=scale).network


def _by_default(network: nn.Module, *_: Any) -> Made:
    yield f"noise {MAX_NOISE:g}", red_plus_plus(network).network


def _by_error(errors: tuple[float, ...], network: nn.Module, *_: Any) -> Made:
    for error in errors:
        yield f"error {error:g}", red_plus_plus(network, max_error=error).network


def _by_images(errors: tuple[float, ...], network: nn.Module, training: Dataset, seed: int) -> Made:
    seen = Subset(training, np.random.default_rng(seed).permutation(len(training))[:BIAS_IMAGES].tolist())
    for error in errors:
        yield f"error {error:g}", red_plus_plus(network, max_error=error, correct_bias=seen).network


def _by_alpha(alphas: tuple[float, ...], network: nn.Module, *_: Any) -> Made:
    folded = fold_batchnorm(network).network
    for alpha in alphas:
        yield f"alpha {alpha:g}", merge_neurons(folded, alpha).network


def _dpp(keep: float, noise: float, network: nn.Module, training: Dataset, seed: int) -> Made:
    """Masks and weights learn for the one pass that the others have for fine-tuning."""
    chosen = {key: value for key, value in pruning.FINE_TUNE.items() if key != "learning_rate"}  # Adam has its own
    yield share(keep), prune_by_masks(network, training, keep, noises=(noise, 0.0), seed=seed, **chosen).network


def _spp(keep: float, network: nn.Module, training: Dataset, seed: int) -> Made:
    """An update a minibatch, about half of the one pass; what the shutting leaves of it is plain fine-tuning."""
    chosen = {key: value for key, value in pruning.FINE_TUNE.items() if key != "epochs"}
    result = iterative_prune(network, "spp", training, keep, 1, chosen, seed=seed)
    seen = len(result.plan["history"]) * chosen["batch_size"]
    rest = Subset(training, range(min(seen, len(training)), len(training)))
    yield share(keep), train(result.network, rest, 1, seed=seed, **chosen).network
