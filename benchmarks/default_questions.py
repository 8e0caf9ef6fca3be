"""What ``benchmarks.defaults`` asks: the settings between which a default chooses, and what is measured of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset

from benchmarks import pruning
from redlab import (
    as_dense,
    compare_masks,
    default_dataset,
    evaluate,
    fold_batchnorm,
    hash_network,
    load_dataset,
    load_network,
    merge_neurons,
    prune_weights,
    red_plus_plus,
    score_weights,
    separate_kernels,
    split_inputs,
)
from redlab.baselines import CRITERIA
from redlab.merging import merge_each
from redlab.pruning_studies import SCORE_IMAGES, prune_by_method

RESNETS, MOBILENET = ("cifar10/resnet20", "cifar10/resnet56"), "imagenet/mobilenet_v1_0.75"
HASHED = (*RESNETS, MOBILENET)
PLAIN = {"max_error": None, "budget": "even", "rounding": "nearest", "correct_bias": "none", "signed": False}
BOUNDS = (0.1, 0.15)
# Of the channels, dead ones among them, and by way of merging the alphas that are tried to come near.
GONE = (0.05, 0.1)
ALPHAS = {"share": np.linspace(0, 0.4, 41), "pairs": np.geomspace(1e-4, 0.1, 31)}

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        says: what the settings have in common, for the table.
        networks: on which it is asked.
        settings: by name.
        measure: of a network's name, a setting and the test images: rows, each with the columns that it fills.
        shown: the columns of the table, beside the accuracy.
        coarse: whether settings are points apart, so that 2,000 images tell them apart.
    """

    says: str
    networks: tuple[str, ...]
    settings: dict[str, Any]
    measure: Callable[[str, Any, Dataset], Iterator[Row]]
    shown: tuple[str, ...] = ("products",)
    coarse: bool = False


@cache
def images_of(name: str, limit: int | None = None) -> Dataset:
    return load_dataset(default_dataset(name), limit=limit)


@cache
def training_of(name: str) -> Dataset:
    return load_dataset(default_dataset(name), "train", limit=pruning.FINE_TUNE_IMAGES)


@cache
def before(name: str, limit: int | None = None) -> float:
    return evaluate(load_network(name), images_of(name, limit)).accuracy


def limit_of(name: str, title: str) -> int | None:
    """How many test images: all of them, but where a look at them takes minutes or points decide, not tenths."""
    if name == "cifar10/resnet56" or (name in RESNETS and QUESTIONS[title].coarse):
        return 2_000
    return None


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
    total = result.layers.sum(numeric_only=True)
    row = {"products": total["products_after"] / total["products_before"], "distinct": int(total["distinct"])}
    row |= {"unsigned": total["products_unsigned"] / total["products_before"], "error": result.layers["error"].mean()}
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
    return int(hash_network(folded(name), **options).layers["distinct"].sum())


def shared(name: str, setting: tuple[str, str], images: Dataset) -> Iterator[Row]:
    """The products that a unit leaves, of the same hashed network: no accuracy, since the function stays."""
    hashing, unit = setting
    network = hash_network(folded(name), **({} if hashing == "kde" else {"rule": "uniform", "max_error": 0.15})).network
    scale = unit == "kernel, up to scale"
    layers = (separate_kernels(network, scale) if unit.startswith("kernel") else split_inputs(network, unit)).layers
    yield {"products": layers["products_after"].sum() / layers["products_before"].sum()}


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
    total = result.layers.sum(numeric_only=True)
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


def masked(name: str, setting: tuple[Row, Row], images: Dataset) -> Iterator[Row]:
    """DPP as in ``benchmarks.dpp``, a fifth of the weights, three seeds."""
    options, tuning = setting
    epochs = {"digits/mlp": 60, "digits/resnet": 30}[name]
    frame = compare_masks(
        *(load_network(name), images, training_of(name), {"": options}, [0.2], (0, 1, 2), before(name)),
        **{"epochs": epochs, "smoothing": 0.1, "shift": 1} | tuning,
    )
    yield from ({"keep": 0.2, "seed": row.seed, "accuracy": row.accuracy} for row in frame.itertuples())


KEEPS = pruning.KEEPS | {MOBILENET: (0.75,)}
_KDE = PLAIN | {"rule": "kde"}
_BY = ("scott", "mean_gap", "median_gap", "max_error", "contrast 0.05")
_WAYS = {
    "constant (default)": {},
    "ascending": {"strategy": "ascending"},
    "descending": {"strategy": "descending"},
    "block": {"strategy": "block"},
    "constant, single linkage": {"linkage": "single"},
    "constant, alpha of pairs": {"alpha_of": "pairs"},
}
_TAYLOR = {"criterion": "taylor"}

QUESTIONS: dict[str, Question] = {
    "bandwidth": Question(
        "Rule kde, mode of a cell; the divisor of Silverman's rule.",
        HASHED,
        {f"silverman/{n}": _KDE | {"bandwidth": f"silverman/{n}"} for n in (4, 6, 8, 10, 16)},
        hashed,
        ("distinct", "error", "products"),
    ),
    "bandwidth, equal values": Question(
        "Rule kde, mode of a cell; each moved until as many distinct values are left as silverman/8 leaves.",
        ("cifar10/resnet20", MOBILENET),
        {f"by {what}": _KDE | {"as many values by": what} for what in _BY},
        hashed,
        ("distinct", "error", "products"),
    ),
    "representative": Question(
        "Rule kde at equal errors in every layer, and at equal cells (silverman/4).",
        (*RESNETS[1:], MOBILENET),
        {
            f"{value}, {key} {bound}": _KDE | {"representative": value, key: bound}
            for key, bounds in (("max_error", BOUNDS), ("bandwidth", ("silverman/4",)))
            for bound in bounds
            for value in ("mode", "mean")
        },
        hashed,
        ("distinct", "error", "products"),
    ),
    "unit": Question(
        "The same hashed network, w and -w apart: kde at silverman/8, and uniform at an error of 0.15.",
        HASHED,
        {
            f"{unit}, {way}": (way, unit)
            for way in ("kde", "uniform")
            for unit in ("channel", "tap", "kernel", "kernel, up to scale")
        },
        shared,
    ),
    "red_plus_plus": Question(
        "`red_plus_plus` with its defaults but for what is named.",
        (*RESNETS[1:], MOBILENET),
        {
            "defaults": {},
            "budget even": {"budget": "even"},
            "rounding nearest": {"rounding": "nearest"},
            "correct_bias none": {"correct_bias": "none"},
            "rule kde, mean": {"rule": "kde", "representative": "mean"},
        },
        hashed,
        ("error", "products", "unsigned"),
    ),
    "merging": Question(
        "Batch norm folded; alpha such that the share of channels left is nearest to 95 and 90 %.",
        RESNETS,
        _WAYS,
        merged,
        ("alpha", "channels", "products"),
        coarse=True,
    ),
    "scope": Question(
        '`prune_channels` with scope="layer"; "global" stands in pruning.md and real.csv.',
        HASHED,
        {
            "reconstruction": {"criterion": "reconstruction", "scope": "layer"},
            "srinivas_babu": {"criterion": "srinivas_babu", "scope": "layer"},
        },
        pruned,
        coarse=True,
    ),
    "scope, with images": Question(
        "The same.",
        RESNETS,
        {"taylor": _TAYLOR | {"scope": "layer"}, "flexrel": {"criterion": "flexrel", "scope": "layer"}},
        pruned,
        coarse=True,
    ),
    "taylor": Question(
        "Options of the criterion, over all layers together; three seeds on the digits, one on ResNet-20.",
        ("digits/resnet", "digits/mobilenet", "cifar10/resnet20"),
        {
            "gate, producers, batch_size 64 (default)": _TAYLOR,
            "joint": _TAYLOR | {"form": "joint"},
            "independent": _TAYLOR | {"form": "independent"},
            "skip_fix mean": _TAYLOR | {"skip_fix": "mean"},
            "skip_fix official": _TAYLOR | {"skip_fix": "official"},
            "batch_size 16": _TAYLOR | {"batch_size": 16},
            "batch_size 256": _TAYLOR | {"batch_size": 256},
        },
        pruned,
        coarse=True,
    ),
    "compensation": Question(
        "What a criterion without one gains by reconstruction, and what the others lose without their own.",
        RESNETS,
        {
            "magnitude L1, layer, reconstructed": {
                "criterion": "magnitude",
                "scope": "layer",
                "compensation": "reconstruct",
            },
            "Srinivas-Babu, none": {"criterion": "srinivas_babu", "compensation": "none"},
            "Srinivas-Babu, reconstructed": {"criterion": "srinivas_babu", "compensation": "reconstruct"},
        },
        pruned,
        coarse=True,
    ),
    "flexrel": Question(
        "`score_weights`, half of the weights set to zero.",
        ("digits/mlp", "digits/mobilenet", "cifar10/resnet20"),
        {
            f"{relevance}, delta {delta}": {"criterion": "flexrel", "delta": delta, "relevance": relevance}
            for relevance in ("lrp", "gradient")
            for delta in (0.0, 0.25, 0.5, 0.75, 1.0)
            if (relevance, delta) != ("gradient", 0.0)
        },
        zeroed,
        (),
        coarse=True,
    ),
    "singe": Question(
        "Options of the criterion; three seeds.",
        ("digits/resnet", "digits/mobilenet"),
        {
            f"path {path}, steps {steps}": {"criterion": "singe", "path": path, "steps": steps}
            for path, steps in (("group", 8), ("group", 4), ("group", 16), ("neuron", 4))
        },
        pruned,
        coarse=True,
    ),
    "masks": Question(
        "DPP with random logits, a fifth of the weights, three seeds, as in dpp.md.",
        ("digits/mlp", "digits/resnet"),
        {
            "smoothing 0.1": ({}, {}),
            "smoothing 0 (default)": ({}, {"smoothing": 0.0}),
            "noise 0.1": ({"noise": 0.1}, {}),
        },
        masked,
        (),
    ),
}
