"""RED and RED++ from end to end: fold, hash, merge, then separate (RED) or split (RED++), without data.

RED: Yvinec et al., NeurIPS 2021, arXiv 2105.14797. RED++: Yvinec et al., TPAMI 2022, arXiv 2110.01397.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pandas as pd
from torch import nn

from redlab.compression.bias import Mean, as_means, correct_biases
from redlab.compression.budget import BUDGETS, share_error
from redlab.compression.folding import fold_batchnorm
from redlab.compression.merging import Options, merge_after
from redlab.compression.splitting import as_dense, separate_kernels, split_inputs
from redlab.compression.units import UNITS
from redlab.hashing.networks import hash_network
from redlab.network.cost import by_module, measure_cost
from redlab.network.example import Example
from redlab.network.layers import count_distinct, unwrap, weight_layers
from redlab.network.result import Result, with_others
from redlab.network.samples import Labelled, example_of
from redlab.network.trace import trace
from redlab.options import check_one_of, fitted, plain_options

# What red_plus_plus adds to the papers; each part is an argument.
MAX_ERROR = 0.15
_COLUMNS = ["layer", "kind", "weights", "distinct", "modes", "error", "channels_before", "channels_after"]
_COLUMNS += ["products_before", "products_after", "products_unsigned", "macs_before", "macs_after"]
_COLUMNS += ["additions_before", "additions_after", "lookups"]
_COLUMNS += ["parameters_before", "parameters_after", "skipped"]
# Of these the last step that measured them has the word; of what was before, the first one, or the cost.
_LAST = ["modes", "error", "channels_after", "products_after", "products_unsigned", "macs_after", "additions_after"]
_LAST += ["lookups", "parameters_after"]
_FIRST, _COSTS = ("channels", "parameters"), ("products", "macs", "additions")
# What a table calls the steps that leave a layer as it is.
_VERBS = {"fold": "fold", "hash": "hash", "correct_biases": "correct bias", "plan": "merge", "split": "split"}
_VERBS |= {"separate": "separate"}


@dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Attributes:
        title: what a person calls it.
        take: the function from a network to a Result.
        looks_back: whether ``take`` wants the result of folding too, as its second argument: biases are corrected to
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
    """RED: fold batch norms, hash the weights, merge neurons, separate the kernels. No data, no fine-tuning.

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
_OURS = ("rule", "max_error", "budget", "rounding", "signed", "correct_bias", "input_mean")


@plain_options
def red_plus_plus(
    network: nn.Module,
    alpha: float = 0.0,
    rule: str = "uniform",
    max_error: float | dict[str, float] | None = MAX_ERROR,
    budget: str = "products",
    rounding: str = "balanced",
    unit: str = "channel",
    signed: bool = True,
    correct_bias: str | Labelled = "batchnorm",
    as_published: bool = False,
    strategy: str = "constant",
    example: Example | None = None,
    input_mean: Mean | None = None,
    **hashing: Any,
) -> Result:
    """RED++: fold batch norms, hash the weights, merge neurons, split the inputs. No data, no fine-tuning.

    The papers hash by the modes of a density. The defaults here go further, each by an argument of its own. Values are
    evenly spaced, zero among them. Rounding lets the errors of each kernel cancel. One error budget is spent where it
    saves most multiplications. w and -w share one. Biases are corrected for what hashing adds to the mean.

    Arguments:
        network: left untouched.
        alpha, strategy: as in ``merge_neurons``.
        rule, rounding: as in ``hash_network``.
        max_error: relative L2 error of the layers' weights (docs/defaults.md). Under the budget "products" it is their
            root mean square (``share_error``); under "even", or as a dict by layer name, each layer's own bound.
            None: the bandwidth decides.
        unit, signed: as in ``split_inputs``.
        correct_bias: "batchnorm" (no data), a dataset (the means come from its first 500 images), or "none".
        as_published: the papers' method: rule "kde" with ``bandwidth``, rounding to the mode, w and -w apart, biases
            unchanged. It overrides the arguments above.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        input_mean: for correct_bias "batchnorm", as in ``correct_biases``. Where neither it nor the recipe gives a
            mean, the first layer's bias stays and its row says so.
        hashing: further arguments of ``hash_network`` (bandwidth, contrast, representative, levels).

    Returns, raises: as ``red``; ``products_unsigned`` counts w and -w apart.

    Example:
        >>> result = red_plus_plus(load_network("digits/resnet"))
        >>> left = result.layers["products_after"].sum() / result.layers["products_before"].sum()
        >>> f"{left:.0%} of the products are left"
        '4% of the products are left'
    """
    asked = dict(locals())
    example = example if isinstance(correct_bias, str) else example_of(network, example, correct_bias)
    names = _PUBLISHED if as_published else _PUBLISHED + _OURS
    steps = red_plus_plus_steps(**{name: asked[name] for name in names}, **hashing, example=example)
    options = {name: asked[name] for name in _PUBLISHED} | fitted(hash_network, hashing)
    if not as_published:
        options |= {name: asked[name] for name in names if name != "input_mean"}
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
        Step("fold batch norms", partial(_fold, example=example)),
        Step("hash weights", partial(hash_network, **hashing)),
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
    check_one_of("budget", asked.budget, BUDGETS)
    check_one_of("unit", asked.unit, UNITS)
    statistics = asked.correct_bias
    if statistics is None or (isinstance(statistics, str) and statistics not in ("none", "batchnorm")):
        raise ValueError(f"correct_bias must be 'none', 'batchnorm' or a dataset, not {statistics!r}")
    merging = Options(asked.alpha, asked.strategy, round_to=round_to)
    example, hashing = asked.example, dict(asked.hashing)
    if not asked.as_published:
        hashing |= {"rule": asked.rule, "max_error": asked.max_error, "rounding": asked.rounding}
    shared = not asked.as_published and asked.budget == "products" and isinstance(asked.max_error, float | int)
    hashed = partial(_hash_within, example=example, **hashing) if shared else partial(hash_network, **hashing)
    correct = partial(correct_biases, statistics=statistics, example=example, input_mean=asked.input_mean)
    split = partial(split_inputs, unit=asked.unit, signed=asked.signed and not asked.as_published, example=example)
    corrected = not asked.as_published and statistics != "none"
    return [
        Step("fold batch norms", partial(_fold, example=example)),
        Step("hash weights", hashed),
        *([Step("correct biases", correct, looks_back=True)] if corrected else []),
        Step("merge neurons", partial(merge_after, options=merging, example=example), looks_back=True),
        Step("split inputs", split),
    ]


def _fold(network: nn.Module, example: Example | None) -> Result:
    """Fold, with the graph for all later steps, even where there was no norm to look for."""
    result = fold_batchnorm(network, example)
    return replace(result, graph=trace(result.network, example)) if result.graph is None else result


def _hash_within(network: nn.Module, max_error: float, example: Example | None, **hashing: Any) -> Result:
    """Hash with one error budget for the whole network."""
    return hash_network(network, max_error=share_error(network, max_error, example), **hashing)


def take_all(network: nn.Module, steps: Iterable[Step]) -> Iterator[Result]:
    """One step after the other: the result of each as soon as it is there."""
    folded = None
    for step in steps:
        result = step.take(network, folded) if step.looks_back else step.take(network)
        yield result
        network = result.network
        folded = result if result.plan["step"] == "fold" else folded


def layer_table(network: nn.Module, results: list[Result], example: Example | None = None) -> pd.DataFrame:
    """One row a conv or linear layer of ``network``: what the steps that gave ``results`` made of it.

    Hashing says modes 27, merging channels_after 12 and products_after 900, splitting products_after 300: the row has
    the modes 27, 12 channels and 300 products. Columns that no step measured are left out; ``distinct`` counts what is
    left at last, and ``skipped`` joins what each step says.
    """
    network = unwrap(network)
    cost, paths = by_module(network, measure_cost(network, example)), {m: p for p, m in network.named_modules()}
    left = {layer.name: layer for layer in weight_layers(as_dense(results[-1].network)) if not layer.lazy}
    steps = [_verb(result.plan) for result in results]
    tables = [result.layers.set_index("layer") for result in results]
    rows = []
    for layer in weight_layers(network):
        parts = [table.loc[layer.name] for table in tables]
        row = {"layer": layer.name, "kind": layer.kind, "weights": parts[0]["weights"]}
        row["distinct"] = count_distinct(left[layer.name].weight) if layer.name in left else 0
        for part in parts:
            row |= {name: part[name] for name in _LAST if name in part}
        for name in (f"{what}_before" for what in _FIRST):
            row[name] = next(int(part[name]) for part in parts if name in part)
        # A module's projections share its cost, which stands with the first of them.
        own = cost.pop(paths[layer.module], Counter())
        row |= {f"{what}_before": own[what] for what in _COSTS}
        reasons = [f"{step}: {part['skipped']}" for step, part in zip(steps, parts, strict=True) if part["skipped"]]
        row["skipped"] = "; ".join(reasons)
        rows.append(row)
    columns = [name for name in _COLUMNS if not rows or name in rows[0]]
    return with_others(pd.DataFrame(rows, columns=columns), network, results[-1].network)


def _verb(plan: dict[str, Any]) -> str:
    """What a table calls the step of this plan: one that scored its channels pruned them."""
    return "prune" if "criterion" in plan.get("options", {}) else _VERBS[plan["step"]]


def _run(name: str, network: nn.Module, steps: list[Step], options: dict, example: Example | None) -> Result:
    network = unwrap(network)
    results = list(take_all(network, steps))
    plan = {"step": name, "options": options, "steps": [result.plan for result in results]}
    if short := [result.plan["short"] for result in results if "short" in result.plan]:
        plan["short"] = "; ".join(short)
    return Result(results[-1].network, layer_table(network, results, example), plan)
