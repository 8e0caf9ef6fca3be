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
# What is chosen part by part; the budget decides on its own how many codes there are, and else there are 31.
ALL: Options = {
    "scale": "auto",
    "clip": "mse",
    "budget": "noise",
    "rounding": "balanced",
    "correct_bias": "batchnorm",
}
# The defaults before there were scales.
ONE_GRID: Options = {"rule": "uniform", "max_error": 0.15, "budget": "products", "rounding": "balanced"}
_WORDS = {
    "scale": "scales",
    "clip": "clipping",
    "budget": "the budget of noise",
    "rounding": "balanced rounding",
    "correct_bias": "bias correction",
}
_HOW = {
    "nearest": {},
    "balanced (SQuant)": {"rounding": "balanced"},
    "clipped (MSE)": {"clip": "mse"},
    "clipped, balanced": {"clip": "mse", "rounding": "balanced"},
}


def bits(count: int) -> Options:
    """Codes from -K to K, K = 2^(count - 1) - 1, in every layer."""
    return {"levels": 2**count - 1, "max_error": None, "budget": "even"}


def _parts() -> dict[str, Options]:
    """Each part alone, all together, and all without each."""
    alone = {f"{words} alone": PLAIN | {name: ALL[name]} for name, words in _WORDS.items()}
    without = {f"all without {words}": ALL | {name: PLAIN[name]} for name, words in _WORDS.items()}
    made = {"none of them": PLAIN, **alone, **without, "all": ALL}
    return {words: _with_codes(options) for words, options in made.items()}


def _with_codes(options: Options) -> Options:
    if options["budget"] == "noise":
        return options
    return options | bits(5) | ({"scale": "row"} if options["scale"] == "auto" else {})


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
    "defaults": {"defaults": {}},
    "before": {
        "one grid a layer, error 0.15": ONE_GRID,
        "as published": {"as_published": True},
        "as published, a scale a row": {"as_published": True, "scale": "row"},
    },
    "noise": {f"noise {most}": {"max_noise": most} for most in (0.04, 0.06, 0.1, 0.15, 0.3, 0.6)},
    "parts": _parts(),
    "textbook": _textbook(),
    "k-means": _k_means(),
}
SAYS = {
    "defaults": "`red_plus_plus(network)`.",
    "before": "The defaults before there were scales, and the papers' method, also with a scale a row.",
    "noise": "The defaults but for `max_noise`, which is 0.075 there. `noise` in scales.csv is what was predicted.",
    "parts": "Each part alone, all together, and all without one. Where no budget decides there are 31 codes a layer. "
    "MiniLM-L6 has no batch norm: its biases are never corrected.",
    "textbook": "Uniform codes of so many bits in every layer, split and counted as RED++'s are: see `textbook.py`.",
    "k-means": "One codebook a layer and a scale a row, biases corrected; bytes of the folder, entropy-coded.",
}
SIZED = ("defaults", "k-means")  # groups in which MiniLM-L6 is saved too, which takes half a minute
