"""RED and RED++ from end to end: prepare, hash, merge, then separate (RED) or split (RED++), without data.

RED: Yvinec et al., NeurIPS 2021, arXiv 2105.14797. RED++: Yvinec et al., TPAMI 2022, arXiv 2110.01397.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any

from torch import nn

from redlab.compression.allocation import SCALES
from redlab.compression.bias import Mean, as_means, correct_biases
from redlab.compression.budgets import BUDGETS, hash_within
from redlab.compression.merging import Options, merge_after
from redlab.compression.preparing import prepare_for
from redlab.compression.splitting import separate_kernels, split_inputs
from redlab.compression.tables import layer_table
from redlab.compression.units import UNITS
from redlab.hashing.networks import hash_layers, hash_network
from redlab.network.example import Example
from redlab.network.layers import unwrap
from redlab.network.result import Result
from redlab.network.samples import Labelled, example_of
from redlab.network.trace import trace
from redlab.options import check_one_of, fitted, plain_options

# What red_plus_plus adds to the papers; each part is an argument.
MAX_NOISE = 0.075
MAX_ERROR = 0.15  # where noise is not what decides


@dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Attributes:
        title: what a person calls it.
        take: the function from a network to a Result.
        looks_back: whether ``take`` wants the result of preparing too, as its second argument: biases are corrected to
            that network, and its graph need not be traced again.
    """

    title: str
    take: Callable[..., Result]
    looks_back: bool = False


@plain_options
def red(
    network: nn.Module,
    alpha: float = 0.0,
    strategy: str = "constant",
    up_to_scale: bool = False,
    example: Example | None = None,
    **hashing: Any,
) -> Result:
    """RED: prepare and fold, hash the weights, merge neurons, separate the kernels. No data, no fine-tuning.

    It begins with ``prepare``: layers with forwards of their own become plain ones, batch norms are folded.

    Arguments:
        network: left untouched.
        alpha, strategy: as in ``merge_neurons``.
        up_to_scale: as in ``separate_kernels``.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        hashing: arguments of ``hash_network``; by default the papers' modes, under our bandwidth.

    Returns:
        ``layers`` has a row per conv and linear layer, from the network passed in to the one that comes out: layer,
        kind, weights, ``distinct`` values, ``modes`` and relative L2 ``error`` of hashing, channels, products,
        additions, lookups, parameters, and what each step ``skipped`` and why. ``plan["steps"]`` holds their plans.

    Raises: as the steps do.

    Example:
        >>> print(red(load_network("digits/resnet"), alpha=0.1))
        red(alpha=0.1, strategy='constant', up_to_scale=False)
        channels: 250 -> 231 (92.400% left)
        parameters: 75,002 -> 63,098 (84.128% left)
        multiplications: 537,280 -> 463,426 (86.254% left)
        operations (multiplications + additions): 1,074,560 -> 998,251 (92.899% left)
        relative error per layer: 0.0457 on average, 0.0659 at most
        conv and linear weights: 99.347% of all 75,002 parameters
        8 layers, 1 skipped: linear (merge: network output)
    """
    options = {"alpha": alpha, "strategy": strategy, "up_to_scale": up_to_scale, **fitted(hash_network, hashing)}
    return _run("red", network, red_steps(**options, example=example), options, example)


# The options of red_plus_plus that a plan records: always, and unless the papers' way is asked for.
_PUBLISHED = ("alpha", "strategy", "unit", "as_published")
_OURS = (
    "rule",
    "max_error",
    "max_noise",
    "budget",
    "rounding",
    "scale",
    "clip",
    "signed",
    "correct_bias",
    "input_mean",
)


@plain_options
def red_plus_plus(
    network: nn.Module,
    alpha: float = 0.0,
    rule: str = "uniform",
    max_error: float | dict[str, float] | None = None,
    max_noise: float = MAX_NOISE,
    budget: str | None = None,
    rounding: str = "balanced",
    scale: str = "auto",
    clip: str = "max",
    unit: str = "channel",
    signed: bool = True,
    correct_bias: str | Labelled = "batchnorm",
    as_published: bool = False,
    strategy: str = "constant",
    example: Example | None = None,
    input_mean: Mean | None = None,
    **hashing: Any,
) -> Result:
    """RED++: prepare and fold, hash the weights, merge neurons, split the inputs. No data, no fine-tuning.

    The papers hash by the modes of a density. The defaults here go further, each by an argument of its own. Values are
    evenly spaced, zero among them: hashing by them is data-free uniform quantization. Rounding lets the errors of each
    kernel cancel. One budget is spent where it saves most multiplications, and decides which layers' rows get scales.
    w and -w share one. Biases are corrected for what hashing adds to the mean.

    Arguments:
        network: left untouched.
        alpha, strategy: as in ``merge_neurons``.
        rule, rounding, clip: as in ``hash_network``.
        max_error: relative L2 error of the layers' weights, instead of ``max_noise``. Under the budget "products" it is
            their root mean square (``share_error``); under "even", or as a dict by layer name, each layer's own bound.
            None under "even": the bandwidth decides, or ``levels``.
        max_noise: the noise that the errors of all layers are planned to make, as a share of the signal's variance
            (``noise``). What they then make, ``plan["noise"]``, may be a little more.
        budget: what is shared among the layers: "noise" (``allocate``; the default), "products" (the default where
            ``max_error`` is given; it takes every error for equally harmful) or "even": nothing (the default where
            ``bandwidth`` or ``levels`` is given).
        scale: as in ``hash_network``, or "auto": the budget "noise" decides layer by layer; with any other, "none".
        unit, signed: as in ``split_inputs``.
        correct_bias: "batchnorm" (no data), a dataset (the means come from its first 500 images), or "none".
        as_published: the papers' method: rule "kde" with ``bandwidth``, rounding to the mode, w and -w apart, biases
            unchanged. It overrides the arguments above, but for scale="row": our reading of a scale for each row.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        input_mean: for correct_bias "batchnorm", as in ``correct_biases``. Where neither it nor the recipe gives a
            mean, the first layer's bias stays and its row says so.
        hashing: further arguments of ``hash_network`` (bandwidth, contrast, representative, levels).

    Returns, raises: as ``red``; ``products_unsigned`` counts w and -w apart, ``plan["noise"]`` is the noise that the
    weights' errors are expected to make, ``plan["noise_unknown"]`` the layers of which it is a guess (``hash_within``).

    Warns:
        that so much noise is expected that networks have lost accuracy by it (docs/defaults.md).

    Example:
        >>> result = red_plus_plus(load_network("digits/resnet"))
        >>> left = result.layers["products_after"].sum() / result.layers["products_before"].sum()
        >>> f"{left:.0%} of the products are left"
        '3% of the products are left'
    """
    asked = dict(locals())
    example = example if isinstance(correct_bias, str) else example_of(network, example, correct_bias)
    names = (*_PUBLISHED, "scale") if as_published else _PUBLISHED + _OURS
    steps = red_plus_plus_steps(**{name: asked[name] for name in names}, **hashing, example=example)
    options = {name: asked[name] for name in _PUBLISHED} | fitted(hash_network, hashing)
    options |= {"scale": scale} if as_published and scale != "auto" else {}
    if not as_published:
        budget = _budget_of(budget, max_error, hashing)
        hidden = {"input_mean", "max_error" if budget == "noise" else "max_noise"}
        hidden |= {"scale"} if budget != "noise" and scale == "auto" else set()
        options |= {name: asked[name] for name in names if name not in hidden} | {"budget": budget}
        options |= {} if isinstance(correct_bias, str) else {"correct_bias": type(correct_bias).__name__}
        options |= {} if input_mean is None else {"input_mean": as_means(input_mean)}
    return _run("red++", network, steps, options, example)


@plain_options
def red_steps(
    alpha: float = 0.0,
    strategy: str = "constant",
    up_to_scale: bool = False,
    round_to: int = 1,
    example: Example | None = None,
    **hashing: Any,
) -> list[Step]:
    """The steps of ``red``, to be taken one after another.

    Example:
        >>> [step.title for step in red_steps()]
        ['fold batch norms', 'hash weights', 'merge neurons', 'separate kernels']
    """
    merge = partial(merge_after, options=Options(alpha, strategy, round_to=round_to), example=example)
    return [
        Step("fold batch norms", partial(_prepare, example=example)),
        Step("hash weights", partial(hash_layers, **hashing)),
        Step("merge neurons", merge, looks_back=True),
        Step("separate kernels", partial(separate_kernels, up_to_scale=up_to_scale, example=example)),
    ]


@plain_options
def red_plus_plus_steps(round_to: int = 1, **options: Any) -> list[Step]:
    """The steps of ``red_plus_plus``, to be taken one after another.

    Arguments:
        round_to: as in ``merge_neurons``.
        options: those of ``red_plus_plus``.

    Raises:
        ValueError: an unknown budget or ``correct_bias``.

    Example:
        >>> [step.title for step in red_plus_plus_steps(max_error=0.1)]
        ['fold batch norms', 'hash weights', 'correct biases', 'merge neurons', 'split inputs']
    """
    given = signature(red_plus_plus).bind(None, **fitted(red_plus_plus, options))
    given.apply_defaults()
    asked = SimpleNamespace(**given.arguments)
    asked.budget = given.arguments["budget"] = _budget_of(asked.budget, asked.max_error, asked.hashing)
    check_one_of("budget", asked.budget, BUDGETS)
    if asked.budget == "products" and asked.max_error is None:
        given.arguments["max_error"] = MAX_ERROR
    check_one_of("unit", asked.unit, UNITS)
    check_one_of("scale", asked.scale, SCALES)
    statistics = asked.correct_bias
    if statistics is None or (isinstance(statistics, str) and statistics not in ("none", "batchnorm")):
        raise ValueError(f"correct_bias must be 'none', 'batchnorm' or a dataset, not {statistics!r}")
    merging = Options(asked.alpha, asked.strategy, round_to=round_to)
    example, hashing = asked.example, dict(asked.hashing)
    names = ["scale", "example"]
    if not asked.as_published:
        names += ["rule", "max_error", "max_noise", "rounding", "budget", "clip"]
        hashing["input_mean"] = None if asked.input_mean is None else as_means(asked.input_mean)
    hashed = partial(hash_within, **{name: given.arguments[name] for name in names}, **hashing)
    correct = partial(correct_biases, statistics=statistics, example=example, input_mean=asked.input_mean)
    split = partial(split_inputs, unit=asked.unit, signed=asked.signed and not asked.as_published, example=example)
    corrected = not asked.as_published and statistics != "none"
    return [
        Step("fold batch norms", partial(_prepare, example=example)),
        Step("hash weights", hashed, looks_back=True),
        *([Step("correct biases", correct, looks_back=True)] if corrected else []),
        Step("merge neurons", partial(merge_after, options=merging, example=example), looks_back=True),
        Step("split inputs", split),
    ]


def _budget_of(budget: str | None, max_error: Any, hashing: dict) -> str:
    """What was asked for, else the budget of what is given: an error, or a number of values; by default noise."""
    if budget is not None:
        return budget
    return "products" if max_error is not None else "even" if hashing.keys() & {"bandwidth", "levels"} else "noise"


def _prepare(network: nn.Module, example: Example | None) -> Result:
    """Prepare and fold, with the graph for all later steps, even where there was no norm to look for."""
    result = prepare_for(network, example)
    return replace(result, graph=trace(result.network, example)) if result.graph is None else result


def take_all(network: nn.Module, steps: Iterable[Step]) -> Iterator[Result]:
    """One step after the other: the result of each as soon as it is there."""
    folded = None
    for step in steps:
        result = step.take(network, folded) if step.looks_back else step.take(network)
        yield result
        network = result.network
        folded = result if result.plan["step"] in ("fold", "prepare") else folded


def _run(name: str, network: nn.Module, steps: list[Step], options: dict, example: Example | None) -> Result:
    network = unwrap(network)
    results = list(take_all(network, steps))
    plan = {"step": name, "options": options, "steps": [result.plan for result in results]}
    if short := [result.plan["short"] for result in results if "short" in result.plan]:
        plan["short"] = "; ".join(short)
    plan |= {key: result.plan[key] for result in results for key in ("noise", "noise_unknown") if key in result.plan}
    return Result(results[-1].network, layer_table(network, results, example), plan)
