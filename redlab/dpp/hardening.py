"""From trained masks to an ordinary network: ``harden``."""

from __future__ import annotations

from math import lgamma, log

import pandas as pd
import torch
from torch import nn
from torch.nn.utils import parametrize

from redlab.channels.apply import apply_plan
from redlab.channels.plan import make_plan
from redlab.channels.table import channel_table
from redlab.dpp.draws import largest
from redlab.dpp.masks import Mask, MaskedWeight, Sparsity, begin_pass, end_pass, sparsity_of
from redlab.dpp.quantization import RoundedInput, round_input
from redlab.network.cost import measure_cost
from redlab.network.example import Example, remember_example
from redlab.network.layers import copy_network, unwrap, weight_layers
from redlab.network.recipe import append_step
from redlab.network.result import Result, with_others
from redlab.pruning.weights import weight_table


@torch.inference_mode(False)
@torch.no_grad()
def harden(network: nn.Module, example: Example | None = None) -> Result:
    """The ordinary network that computes what ``network``, made by ``sparsify``, computes in eval mode.

    Weights that no mask keeps are zero; with granularity "filter" the channels are removed (``apply_plan``). Weights of
    8 or 1 bits have their rounded values. Inputs are no longer rounded, since no ordinary layer does that.

    Arguments:
        network: left untouched.
        example: a tensor, tuple or dict that it takes, batch first, to count multiplications for "filter"; by default
            what ``sparsify`` was given, else ``example_input(network)``.

    Returns:
        ``layers`` as of ``prune_weights``, or with "filter" of ``prune_channels``, and for every layer: ``k`` and ``n``
        (of a row of its own mask; 0 and 0 without one), ``sparsity`` (the share of its weights that are zero, or were
        removed), ``bits`` of a kept weight, and ``bits_per_weight`` of all original weights: those bits, and for zeros
        that stay log2 C(n, k) a row for their places (our convention).

    Raises:
        ValueError: a network that ``sparsify`` did not make.

    Example:
        >>> masked = sparsify(load_network("digits/mlp"), keep=0.25)
        >>> harden(masked).layers[["layer", "k", "n", "sparsity"]]
                     layer   k    n  sparsity
        0  hidden.0.linear  16   64      0.75
        1  hidden.1.linear  64  256      0.75
        2       classifier  32  128      0.75
    """
    network = unwrap(network)
    sparsity = sparsity_of(network)
    before, after = (_plain(network, masked) for masked in (False, True))
    if sparsity.of_channels:
        return _without_channels(sparsity, before, after, sparsity.example if example is None else example)
    table = weight_table(before, after, sparsity.skipped)
    append_step(after, {"step": "prune_weights"})
    table["sparsity"] = table["zeros"] / table["weights"].clip(lower=1)
    table = _with_bits(table, before, sparsity)
    achieved = _means(table)
    table = with_others(table, before, after)
    return Result(after, table, {"step": "harden", "options": sparsity.options, "achieved": achieved})


def _without_channels(sparsity: Sparsity, before: nn.Module, after: nn.Module, example: Example | None) -> Result:
    destinations = {name: _destinations(mask) for name, mask in sparsity.masks.items()}
    plan = make_plan(sparsity.groups, destinations)
    smaller = apply_plan(after, plan)
    remember_example(smaller, example)
    cost = measure_cost(before, example)
    table = channel_table(before, smaller, list(sparsity.groups), destinations, example, cost)
    table = table.rename(columns={"dead": "removed"})
    left = [layer.weight.numel() for layer in weight_layers(smaller)]
    table["sparsity"] = 1 - left / table["weights"].clip(lower=1)
    table = _with_bits(table, before, sparsity)
    products = measure_cost(smaller, example).attrs["products"] / max(cost.attrs["products"], 1)
    removed = sum(where.count(-1) for where in destinations.values()) / sum(map(len, destinations.values()))
    achieved = {"ratio": round(removed, 6), "products": round(products, 6), **_means(table)}
    table = with_others(table, before, smaller)
    return Result(smaller, table, plan | {"options": sparsity.options, "achieved": achieved})


def _destinations(mask: Mask) -> list[int]:
    kept = largest(mask.logits.detach(), mask.k)[0]
    return torch.where(kept, kept.cumsum(0) - 1, -1).tolist()


def _plain(network: nn.Module, masked: bool) -> nn.Module:
    """A copy in ordinary layers: with the weights of eval mode if ``masked``, else with those before the mask."""
    plain = copy_network(network).eval()
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module, "weight") and isinstance(
            module.parametrizations.weight[0], MaskedWeight
        ):
            _unmask(module, masked)
        if isinstance(getattr(module, "rounded_input", None), RoundedInput):
            del module.rounded_input
            _unhook(module)
    _unhook(plain)
    del plain.dpp
    return plain.train(network.training)


def _unmask(layer: nn.Module, masked: bool) -> None:
    # Not remove_parametrizations: copies share one class, and it would remove the weight of all of them.
    original = layer.parametrizations.weight.original
    weight = layer.weight if masked else original
    kind = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer.__class__ = kind
    layer.weight = nn.Parameter(weight.detach().clone(), original.requires_grad)
    others = {name: layer._parameters.pop(name) for name in list(layer._parameters) if name != "weight"}
    layer._parameters.update(others)  # after the weight again


def _unhook(module: nn.Module) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (begin_pass, end_pass, round_input)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def _with_bits(table: pd.DataFrame, before: nn.Module, sparsity: Sparsity) -> pd.DataFrame:
    """The table with k, n, and the bits that a layer's weights take."""
    rows = []
    for layer, share in zip(weight_layers(before), 1 - table["sparsity"], strict=True):
        k, n = sparsity.count(layer.name)
        masked = layer.name in sparsity.layers and sparsity.options["weight_bits"] < 32
        bits = sparsity.options["weight_bits"] if masked else 8 * layer.weight.dtype.itemsize
        places = len(sparsity.masks[layer.name].logits) * place_bits(n, k) / layer.weight.numel() if n else 0.0
        rows.append({"k": k, "n": n, "bits": bits, "bits_per_weight": bits * share + places})
    return pd.concat([table, pd.DataFrame(rows)], axis=1)


def place_bits(n: int, k: int) -> float:
    """log2 C(n, k): the bits that say which k of n are kept."""
    return (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2)


def _means(table: pd.DataFrame) -> dict[str, float]:
    """Over all weights that the network had."""
    share = table["weights"] / max(table["weights"].sum(), 1)
    names = {"sparsity": "sparsity", "bits per weight": "bits_per_weight"}
    return {name: round(float((table[column] * share).sum()), 6) for name, column in names.items()}
