"""What ``benchmarks.scales`` compares: options of ``red_plus_plus``, by group and in words."""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

# One step a layer, the largest weight on the largest code, each weight to its nearest code: nothing else.
PLAIN: Options = {
    "scale": "none",
    "clip": "max",
    "budget": "even",
    "rounding": "nearest",
    "correct_bias": "none",
}
ALL: Options = {
    "scale": "row",
    "clip": "mse",
    "budget": "products",
    "rounding": "balanced",
    "correct_bias": "batchnorm",
}
# The defaults before there were scales.
ONE_GRID: Options = {
    "rule": "uniform",
    "scale": "none",
    "clip": "max",
    "max_error": 0.15,
    "budget": "products",
    "rounding": "balanced",
}
PARTS_ERROR = 0.15
_WORDS = {
    "scale": "a scale a row",
    "clip": "clipping",
    "budget": "the budget",
    "rounding": "balanced rounding",
    "correct_bias": "bias correction",
}
_HOW = {
    "nearest": {},
    "balanced (SQuant)": {"rounding": "balanced"},
    "clipped (MSE)": {"clip": "mse"},
    "clipped, balanced": {"clip": "mse", "rounding": "balanced"},
}


def _parts() -> dict[str, Options]:
    """Each part alone, all together, and all without each, at an equal error."""
    base = PLAIN | {"max_error": PARTS_ERROR}
    alone = {f"{words} alone": base | {name: ALL[name]} for name, words in _WORDS.items()}
    without = {f"all without {words}": base | ALL | {name: PLAIN[name]} for name, words in _WORDS.items()}
    return {"none of them": base, **alone, **without, "all": base | ALL}


def _textbook() -> dict[str, Options]:
    """Arguments of ``textbook.quantised``; in the order of use, since all of them take hours."""
    asked = [(count, how, "batchnorm") for count in (5, 4, 6) for how in ("clipped, balanced", "nearest")]
    asked += [(count, "balanced (SQuant)", "batchnorm") for count in (5, 4, 6)]
    asked += [(count, how, "none") for count in (5, 4, 6) for how in ("nearest", "balanced (SQuant)")]
    asked += [(count, "clipped (MSE)", "batchnorm") for count in (5, 4, 6)]
    asked += [(count, "clipped, balanced", "batchnorm") for count in (8, 3)]
    made = {}
    for count, how, biases in asked:
        for per in ("row", "layer"):
            words = f"{count} bits a {per}, {how}" + (", biases corrected" if biases != "none" else "")
            made[words] = {"bits": count, "per": per, "correct_bias": biases, **_HOW[how]}
    return made


def _k_means() -> dict[str, Options]:
    """k-means beside uniform codes, by the bytes of the folder, which is entropy-coded alike."""
    own = {"budget": "even", "rounding": "nearest", "max_error": None, "scale": "row"}
    means = {f"k-means, {count} values": own | {"rule": "lloyd", "levels": count} for count in (7, 15, 23, 31)}
    even = {f"uniform, {count} values": PLAIN | own | {"clip": "mse", "levels": count} for count in (7, 15, 23, 31)}
    corrected = {"correct_bias": "batchnorm"}
    return {words: options | corrected for words, options in (means | even).items()}


GROUPS: dict[str, dict[str, Options]] = {
    "defaults": {"defaults": {}, "one grid a layer, error 0.15": ONE_GRID},
    "published": {
        f"{name}{words}": method | options
        for name, method in (("RED", {"method": "red"}), ("RED++", {"as_published": True}))
        for words, options in (("", {}), (", a scale a row", {"scale": "row"}))
    },
    "parts": _parts(),
    "textbook": _textbook(),
    "k-means": _k_means(),
}
SAYS = {
    "defaults": "`red_plus_plus` with its defaults, and with those of before.",
    "published": "The papers' modes: RED, which separates kernels, and RED++; a scale a row is our reading.",
    "parts": "An error of 0.15 in all: each part alone, all together, and all without one.",
    "textbook": "Uniform codes of so many bits in every layer, split and counted as RED++'s are: see `textbook.py`.",
    "k-means": "One codebook a layer and a scale a row, biases corrected; bytes of the folder, entropy-coded.",
}
SIZED = ("defaults", "k-means")  # groups in which MiniLM-L6 is saved too, which takes half a minute
