"""What ``benchmarks.defaults`` asks: the settings between which a default chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from benchmarks.default_measures import MOBILENET, Row, hashed, merged, pruned, shared, zeroed
from benchmarks.scale_settings import ONE_GRID

RESNETS = ("cifar10/resnet20", "cifar10/resnet56")
HASHED = (*RESNETS, MOBILENET)
PLAIN = {"max_error": None, "budget": "even", "rounding": "nearest", "correct_bias": "none", "signed": False}
BOUNDS = (0.1, 0.15)


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


def limit_of(name: str, title: str) -> int | None:
    """How many test images: all of them, but where a look at them takes minutes or points decide, not tenths."""
    if name == "cifar10/resnet56" or (name in RESNETS and QUESTIONS[title].coarse):
        return 2_000
    return None


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
        "Rule kde at equal errors in every layer, and at equal cells, those of a bandwidth.",
        (*RESNETS[1:], MOBILENET),
        {
            f"{value}, {key} {bound}": _KDE | {"representative": value, key: bound}
            for key, bounds in (("max_error", BOUNDS), ("bandwidth", ("silverman/4", "silverman/8")))
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
        "`red_plus_plus` with `max_error=0.15`, the default before there were scales, but for what is named.",
        (MOBILENET, *RESNETS[1:]),
        {
            "defaults": ONE_GRID,
            "budget even": ONE_GRID | {"budget": "even"},
            "rounding nearest": ONE_GRID | {"rounding": "nearest"},
            "correct_bias none": ONE_GRID | {"correct_bias": "none"},
            "rule kde, mean": ONE_GRID | {"rule": "kde", "representative": "mean"},
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
            for path, steps in (("group", 8), ("group", 4), ("group", 16))
        },
        pruned,
        coarse=True,
    ),
}
