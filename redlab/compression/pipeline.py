"""RED and RED++ from end to end: fold, hash, merge, then separate (RED) or split (RED++), without data.

RED: Yvinec et al., NeurIPS 2021, arXiv 2105.14797. RED++: Yvinec et al., TPAMI 2022, arXiv 2110.01397.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from torch import nn

from redlab.compression.bias import Mean, as_means, correct_biases
from redlab.compression.budget import BUDGETS, share_error
from redlab.compression.folding import fold_batchnorm
from redlab.compression.merging import Options, merge_neurons
from redlab.compression.splitting import as_dense, check_unit, separate_kernels, split_inputs
from redlab.hashing.networks import hash_network
from redlab.network.cost import by_module, measure_cost
from redlab.network.example import Example
from redlab.network.layers import count_distinct, unwrap, weight_layers
from redlab.network.remainder import with_others
from redlab.network.result import Result
from redlab.network.samples import Labelled, example_of
from redlab.options import fitted, plain_options

# What red_plus_plus adds to the papers; each part is an argument.
MAX_ERROR = 0.15
_COLUMNS = ["layer", "kind", "weights", "distinct", "modes", "error", "channels_before", "channels_after"]
_COLUMNS += ["products_before", "products_after", "products_unsigned", "macs_before", "macs_after"]
_COLUMNS += ["additions_before", "additions_after", "lookups"]
_COLUMNS += ["parameters_before", "parameters_after", "skipped"]
# What a reader calls the steps that leave a layer as it is.
_VERBS = {"fold": "fold", "hash": "hash", "correct_biases": "correct bias", "plan": "merge", "split": "split"}
_VERBS |= {"separate": "separate"}


@dataclass(frozen=True)
class Step:
    """One step of a recipe: what a reader calls it, and the function from a network to a Result."""

    title: str
    take: Callable[[nn.Module], Result]


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

    Defaults:
        alpha, strategy, up_to_scale, hashing: those of the steps, whose docstrings say why. Together ResNet-20 keeps
            91.69 of 91.73 % at 94.0 % of the products, ResNet-56 93.45 of 93.39 at 94.3, MobileNetV1 25.2 of 80.4 at
            32.0 (benchmarks/real.csv; `python -m benchmarks.real`).

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
        products: 537,280 -> 463,426 (86.254% left)
        operations (multiplications + additions): 1,074,560 -> 998,251 (92.899% left)
        relative error per layer: 0.0457 on average, 0.0659 at most
        conv and linear weights: 99.347% of all 75,002 parameters
        8 layers, 1 skipped: linear (merge: network output)
    """
    options = {"alpha": alpha, "strategy": strategy, "up_to_scale": up_to_scale, **fitted(hash_network, hashing)}
    return _run("red", network, red_steps(**options, example=example), options, example)


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

    The papers hash by the modes of a density. The defaults here go further, each by an argument of its own: evenly
    spaced values with zero among them; rounding in which the errors of each kernel cancel; one error budget, spent
    where it saves most products; w and -w sharing a product; biases corrected for what hashing adds to the mean.

    Arguments:
        network: left untouched.
        alpha, strategy: as in ``merge_neurons``.
        rule, rounding: as in ``hash_network``.
        max_error: relative L2 error of the layers' weights: their root mean square under the budget "products"
            (``share_error``), each layer's own bound under "even" or as a dict by layer name. None: the bandwidth.
        unit, signed: as in ``split_inputs``.
        correct_bias: "batchnorm" (no data), a dataset (of which the first 500 images give the means), or "none".
        as_published: the papers' way: rule "kde" under ``bandwidth``, rounding to the mode, w and -w apart, biases as
            they are, whatever the arguments before say.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        input_mean: for correct_bias "batchnorm", as in ``correct_biases``: without it, and without a recipe that tells
            it, the first layer's bias stays, and its row says so.
        hashing: further arguments of ``hash_network`` (bandwidth, contrast, representative, levels).

    Defaults:
        max_error: ResNet-20 keeps 91.49 of 91.73 % at 2.85 % of the products, ResNet-56 93.37 of 93.39 at 2.79; at
            0.3 they lose 1.71 and 0.49 points. MobileNetV1 wants less: of 80.4 % it keeps 78.4 at 0.05, 74.8 at 0.1 and
            67.2 at 0.15 (benchmarks/real.csv; `python -m benchmarks.real`).
        rule: evenly spaced values go further than the papers' modes: alone they leave 7.1 % of ResNet-20's products at
            91.00 %, modes (silverman/4) 12 % at 87.58 (figures/resnet20_frontier.png, benchmarks/defaults.md,
            "bandwidth").
        budget, rounding, correct_bias: each is needed on MobileNetV1, whose 67.2 % become 0.0 with "even", 58.4 with
            "nearest" and 2.0 with "none" (benchmarks/defaults.md, "red_plus_plus"; `python -m benchmarks.defaults`);
            what each brings on ResNet-20: figures/resnet20_ladder.png (`redlab run 05 -p network cifar10/resnet20`).
            The means of images bring 0.11 points more on ResNet-20; at 0.3 0.46, on ResNet-56 0.02
            (benchmarks/real.csv), and make it a method with data.
        unit, signed, alpha, strategy: see ``split_inputs`` and ``merge_neurons``.

    Returns, raises: as ``red``; ``products_unsigned`` counts w and -w apart.

    Example:
        >>> result = red_plus_plus(load_network("digits/resnet"))
        >>> left = result.layers["products_after"].sum() / result.layers["products_before"].sum()
        >>> f"{left:.0%} of the products are left"
        '4% of the products are left'
    """
    options: dict[str, Any] = {"alpha": alpha, "strategy": strategy, "unit": unit, "as_published": as_published}
    options |= fitted(hash_network, hashing)
    if not as_published:
        options |= {"rule": rule, "max_error": max_error, "budget": budget, "rounding": rounding, "signed": signed}
        options |= {"correct_bias": correct_bias} | ({} if input_mean is None else {"input_mean": as_means(input_mean)})
    example = example if isinstance(correct_bias, str) else example_of(network, example, correct_bias)
    steps = red_plus_plus_steps(**options, example=example)
    if not isinstance(correct_bias, str) and not as_published:
        options["correct_bias"] = type(correct_bias).__name__
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
    Options(alpha, strategy, round_to=round_to)  # refused before anything is done
    return [
        Step("fold batch norms", partial(fold_batchnorm, example=example)),
        Step("hash weights", partial(hash_network, **hashing)),
        Step(
            "merge neurons", partial(merge_neurons, alpha=alpha, strategy=strategy, round_to=round_to, example=example)
        ),
        Step("separate kernels", partial(separate_kernels, up_to_scale=up_to_scale, example=example)),
    ]


@plain_options
def red_plus_plus_steps(
    alpha: float = 0.0,
    strategy: str = "constant",
    rule: str = "uniform",
    max_error: float | dict[str, float] | None = MAX_ERROR,
    budget: str = "products",
    rounding: str = "balanced",
    unit: str = "channel",
    signed: bool = True,
    correct_bias: str | Labelled = "batchnorm",
    as_published: bool = False,
    round_to: int = 1,
    example: Example | None = None,
    input_mean: Mean | None = None,
    **hashing: Any,
) -> list[Step]:
    """The steps of ``red_plus_plus``, to be taken one after another.

    Raises:
        ValueError: an unknown budget or ``correct_bias``.

    Example:
        >>> [step.title for step in red_plus_plus_steps(max_error=0.1)]
        ['fold batch norms', 'hash weights', 'correct biases', 'merge neurons', 'split inputs']
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, not {budget!r}")
    if correct_bias is None or (isinstance(correct_bias, str) and correct_bias not in ("none", "batchnorm")):
        raise ValueError(f"correct_bias must be 'none', 'batchnorm' or a dataset, not {correct_bias!r}")
    Options(alpha, strategy, round_to=round_to)  # refused before anything is done
    check_unit(unit)
    if not as_published:
        hashing |= {"rule": rule, "max_error": max_error, "rounding": rounding}
    shared = None if as_published or budget != "products" or isinstance(max_error, dict) else max_error
    folded: list[nn.Module] = []

    def fold(network: nn.Module) -> Result:
        result = fold_batchnorm(network, example)
        folded[:] = [result.network]  # what the biases are corrected towards
        return result

    def hashed(network: nn.Module) -> Result:
        errors = {} if shared is None else {"max_error": share_error(network, shared, example)}
        return hash_network(network, **hashing | errors)

    def correct(network: nn.Module) -> Result:
        return correct_biases(network, folded[0], correct_bias, example, input_mean)

    merging = partial(merge_neurons, alpha=alpha, strategy=strategy, round_to=round_to, example=example)
    splitting = partial(split_inputs, unit=unit, signed=signed and not as_published, example=example)
    correcting = [] if as_published or correct_bias == "none" else [Step("correct biases", correct)]
    first = [Step("fold batch norms", fold), Step("hash weights", hashed), *correcting]
    return [*first, Step("merge neurons", merging), Step("split inputs", splitting)]


def take_all(network: nn.Module, steps: Iterable[Step]) -> Iterator[Result]:
    """One step after the other: the result of each as soon as it is there."""
    for step in steps:
        result = step.take(network)
        yield result
        network = result.network


def layer_table(network: nn.Module, results: list[Result], example: Example | None = None) -> pd.DataFrame:
    """One row a conv or linear layer of ``network``: what the steps that gave ``results`` made of it.

    Columns that no step measured are left out; ``distinct`` counts what is left at last, and ``skipped`` joins what
    each step says.
    """
    network = unwrap(network)
    cost, paths = by_module(network, measure_cost(network, example)), {m: p for p, m in network.named_modules()}
    steps = [_verb(result.plan) for result in results]
    tables = [result.layers.set_index("layer") for result in results]
    left = [layer for layer in weight_layers(as_dense(results[-1].network)) if "lazy" not in layer.skipped]
    distinct = {layer.name: count_distinct(layer.weight) for layer in left}
    rows = []
    for layer in weight_layers(network):
        own = [table.loc[layer.name] for table in tables]
        row = {"layer": layer.name, "kind": layer.kind, "weights": own[0]["weights"]}
        row["distinct"] = distinct.get(layer.name, 0)
        for part in own:
            row |= {name: part[name] for name in _COLUMNS[4:-1] if name in part and not name.endswith("_before")}
        row |= {f"{name}_before": _first_of(own, f"{name}_before") for name in ("channels", "parameters")}
        # A module's projections share its cost, which stands with the first of them.
        first = cost.pop(paths[layer.module], Counter())
        row |= {f"{name}_before": first[name] for name in ("products", "macs", "additions")}
        reasons = [f"{step}: {part['skipped']}" for step, part in zip(steps, own, strict=True) if part["skipped"]]
        rows.append(row | {"skipped": "; ".join(reasons)})
    columns = [name for name in _COLUMNS if not rows or name in rows[0]]
    return with_others(pd.DataFrame(rows, columns=columns), network, results[-1].network)


def _verb(plan: dict[str, Any]) -> str:
    """What a reader calls the step of this plan: one that scored its channels pruned them."""
    return "prune" if "criterion" in plan.get("options", {}) else _VERBS[plan["step"]]


def _first_of(rows: list[pd.Series], name: str) -> int:
    """The first value under ``name`` that a step measured."""
    return next(int(row[name]) for row in rows if name in row)


def _run(name: str, network: nn.Module, steps: list[Step], options: dict, example: Example | None) -> Result:
    network = unwrap(network)
    results = list(take_all(network, steps))
    plan = {"step": name, "options": options, "steps": [result.plan for result in results]}
    if short := [result.plan["short"] for result in results if "short" in result.plan]:
        plan["short"] = "; ".join(short)
    return Result(results[-1].network, layer_table(network, results, example), plan)


def take_steps(network: nn.Module, steps: Iterable[Step]) -> Iterator[tuple[Step, Result, float]]:
    """Take one step after the other: each with its result and its seconds, as soon as it is done."""
    for step in steps:
        start = time.perf_counter()
        result = step.take(network)
        yield step, result, time.perf_counter() - start
        network = result.network
