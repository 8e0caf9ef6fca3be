"""How ``benchmarks.defaults`` measures a setting: rows of what a network keeps, and of what is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset

from benchmarks import pruning
from redlab import (
    as_dense,
    default_dataset,
    evaluate,
    fold_batchnorm,
    hash_network,
    load_dataset,
    load_network,
    measure_cost,
    merge_neurons,
    prune_weights,
    red_plus_plus,
    score_weights,
    separate_kernels,
    split_inputs,
)
from redlab.compression.merging import merge_each
from redlab.network.result import of_layers
from redlab.pruning.criteria.registry import CRITERIA
from redlab.studies.methods import SCORE_IMAGES, prune_by_method

MOBILENET = "imagenet/mobilenet_v1_0.75"
# Of the channels, dead ones among them, and by way of merging the alphas that are tried to come near.
GONE = (0.05, 0.1)
ALPHAS = {"share": np.linspace(0.01, 0.25, 25), "pairs": np.geomspace(1e-4, 0.1, 16)}
KEEPS = pruning.KEEPS | {MOBILENET: (0.75,)}

Row = dict[str, Any]


@cache
def images_of(name: str, limit: int | None = None) -> Dataset:
    return load_dataset(default_dataset(name), limit=limit)


@cache
def training_of(name: str) -> Dataset:
    if name == MOBILENET:
        return Subset(images_of(name), ())  # there are none here
    return load_dataset(default_dataset(name), "train", limit=pruning.FINE_TUNE_IMAGES)


@cache
def before(name: str, limit: int | None = None) -> float:
    return evaluate(load_network(name), images_of(name, limit)).accuracy


def _accuracy(network: nn.Module, images: Dataset) -> float:
    return evaluate(as_dense(network), images).accuracy


@cache
def folded(name: str) -> nn.Module:
    return fold_batchnorm(load_network(name)).network


def hashed(name: str, setting: Row, images: Dataset) -> Iterator[Row]:
    """``red_plus_plus``, by the bandwidth or bound in ``setting``, or by one that leaves as many values as silverman/8
    does, where it names what is to be moved until that is so.
    """
    options = dict(setting)
    if (moved := options.pop("as many values by", None)) is not None:
        options |= as_many(name, moved)
    result = red_plus_plus(load_network(name), **options)
    layers = of_layers(result.layers)
    total = layers.sum(numeric_only=True)
    row = {"products": total["products_after"] / total["products_before"], "distinct": int(total["distinct"])}
    row |= {"unsigned": total["products_unsigned"] / total["products_before"], "error": layers["error"].mean()}
    yield row | {"accuracy": _accuracy(result.network, images)}


def as_many(name: str, moved: str) -> Row:
    """Options of ``hash_network`` under which a network has as many distinct values as under silverman/8."""
    wanted, low, high = _distinct(name, {}), 1e-3, 1e3
    for _ in range(16):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if _distinct(name, _moved(moved, middle)) < wanted else (low, middle)
    return _moved(moved, high)


def _moved(what: str, finer: float) -> Row:
    if what == "max_error":
        return {"max_error": 1 / finer}
    if what.startswith("contrast"):
        return {"bandwidth": f"silverman/{finer:.5g}", "contrast": float(what.split()[1])}
    return {"bandwidth": f"{what}/{finer:.5g}"}


def _distinct(name: str, options: Row) -> int:
    return int(of_layers(hash_network(folded(name), **options).layers)["distinct"].sum())


def shared(name: str, setting: tuple[str, str], images: Dataset) -> Iterator[Row]:
    """The products that a unit leaves, of the same hashed network, as a share of those as trained: no accuracy, since
    the function stays.
    """
    hashing, unit = setting
    network = hash_network(folded(name), **({} if hashing == "kde" else {"rule": "uniform", "max_error": 0.15})).network
    scale = unit == "kernel, up to scale"
    layers = (separate_kernels(network, scale) if unit.startswith("kernel") else split_inputs(network, unit)).layers
    yield {"products": layers["products_after"].sum() / measure_cost(folded(name)).attrs["products"]}


def merged(name: str, setting: Row, images: Dataset) -> Iterator[Row]:
    """Merging by the alpha that takes the share of the channels nearest to each of ``GONE``."""
    alphas = ALPHAS[setting.get("alpha_of", "share")]
    left = [_left(result) for result in merge_each(folded(name), [setting | {"alpha": float(a)} for a in alphas])]
    for gone in GONE:
        alpha = float(alphas[np.argmin([abs(1 - gone - own) for own, _ in left])])
        result = merge_neurons(folded(name), **setting, alpha=alpha)
        channels, products = _left(result)
        row = {"keep": 1 - gone, "channels": channels, "products": products, "alpha": alpha}
        yield row | {"accuracy": _accuracy(result.network, images)}


def _left(result: Any) -> tuple[float, float]:
    total = of_layers(result.layers).sum(numeric_only=True)
    return (
        total["channels_after"] / total["channels_before"],
        total["products_after"] / total["products_before"],
    )


def pruned(name: str, setting: Row, images: Dataset) -> Iterator[Row]:
    """Pruning to each share of the products, as in ``benchmarks.pruning``."""
    for seed in range(3 if name.startswith("digits/") and CRITERIA[setting["criterion"]].data else 1):
        made = prune_by_method(load_network(name), training_of(name), setting, KEEPS.get(name, (0.75, 0.5)), seed)
        for keep, result in made:
            channels, products = _left(result)
            row = {"keep": round(keep, 4), "seed": seed, "channels": channels, "products": products}
            yield row | {"accuracy": _accuracy(result.network, images)}


def zeroed(name: str, setting: Row, images: Dataset) -> Iterator[Row]:
    """Half of the weights set to zero, over all layers together."""
    options = {name: value for name, value in setting.items() if name != "criterion"}
    seen = Subset(training_of(name), range(SCORE_IMAGES))
    scores = score_weights(load_network(name), setting["criterion"], seen, **options)
    yield {"keep": 0.5, "accuracy": _accuracy(prune_weights(load_network(name), scores, 0.5).network, images)}
