"""Pruning of channels: scores and a request in, a plan out, which ``apply_plan`` carries out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from torch import nn

from redlab.channels.apply import apply_plan
from redlab.channels.groups import Group
from redlab.channels.plan import make_plan
from redlab.channels.table import channel_table
from redlab.network.cost import by_module, measure_cost, run_once
from redlab.network.example import Example, remember_example
from redlab.network.layers import unwrap, weight_layers
from redlab.network.result import Result, report_short, with_others
from redlab.options import check_one_of, check_whole, count_of, plain_options
from redlab.pruning.compensation import COMPENSATIONS, compensate, merge_target
from redlab.pruning.criteria.registry import CRITERIA, Criterion
from redlab.pruning.scores import Scores
from redlab.pruning.selection import Products, Selector, check_share


@plain_options
@torch.inference_mode(False)
def prune_channels(
    network: nn.Module,
    scores: Scores,
    ratio: float | None = None,
    products: float | None = None,
    scope: str = "global",
    round_to: int = 1,
    compensation: str | None = None,
    example: Example | None = None,
    count: int | None = None,
) -> Result:
    """Remove the channels of lowest scores: exactly as many as asked for, ties in the order of the channels.

    Each coupled group keeps its best channel.

    Arguments:
        network: left untouched; the one that ``scores`` are of.
        ratio: the share of the scored channels to remove, in [0, 1], rounded down.
        products: the share of the network's multiplications to keep, in [0, 1]; the fewest channels are removed that
            reach it.
        scope: "global" (docs/defaults.md), one order over all groups; "layer", the same share of each group.
        round_to: each group keeps a multiple of so many channels, or all; so fewer are removed than asked for. 16 is
            what engines like: odd widths can be slower than the network before.
        compensation: what the consumer layers get in place of a removed channel; by default what the criterion's paper
            does (docs/defaults.md). "none"; "merge", its merge target becomes the mean of both and their input slices
            are summed (RED; fold batch norms first, as for ``merge_neurons``); "absorb", its merge target stays and the
            slices are summed (Srinivas & Babu); "nearest", the kept channel of most similar direction, scaled (Kim et
            al.); "reconstruct", all kept channels of the group by least squares, with a constant for the mean (ours).
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        count: how many of the scored channels to remove, in place of ``ratio``; with ``products``, at most so many.

    Returns:
        ``layers`` has a row per conv and linear layer: layer, kind, weights, group, channels, products, macs, additions
        and parameters before and after, the channels ``merged`` and ``removed``, ``skipped``. ``plan`` holds the
        destination of each channel, ``options`` (what was asked for) and ``achieved``.

    Warns:
        UserWarning: more than a tenth of what was asked for is missing, and why; ``plan["short"]`` has the text.

    Raises:
        ValueError: none of ``ratio``, ``products`` and ``count``, or ``ratio`` with another; an option out of range or
            unknown; scores of weights or of another network.

    Example:
        >>> network = load_network("digits/resnet")
        >>> pruned = prune_channels(network, score_channels(network, "magnitude"), ratio=0.5)
        >>> pruned.plan["achieved"]
        {'ratio': 0.5, 'products': 0.107936}
    """
    network = unwrap(network)
    scores.check_of("channels")
    _check_groups(network, scores)
    scores.check_network(network)
    kind = _compensation_of(scores, compensation)
    selector, cost = Selector(scores.values, scope, round_to), measure_cost(network, example)
    kept = _kept(selector, ratio, products, count, lambda: products_of(network, scores.groups, cost, example))
    groups = [replace(group, frozen=scores.skipped.get(group.name, "")) for group in scores.groups]
    destinations = {name: _destination(mask, scores, name, kind) for name, mask in kept.items() if not mask.all()}
    filled, with_biases, without = compensate(network, groups, kept, scores.heirs, kind, example)
    smaller = apply_plan(filled, make_plan(with_biases, destinations))
    remember_example(smaller, example)
    table = channel_table(network, smaller, groups, destinations, example, cost).rename(columns={"dead": "removed"})
    options = {"criterion": scores.criterion, **scores.options, "ratio": ratio, "products": products, "scope": scope}
    options |= {"round_to": round_to, "compensation": kind} | ({} if count is None else {"count": count})
    achieved = _achieved(kept, table, cost) | ({"not compensated": without} if without else {})
    table = with_others(table, network, smaller)
    plan = make_plan(groups, destinations) | {"options": options, "achieved": achieved}
    return Result(smaller, table, plan | _short(scores, achieved, ratio, products, count, round_to))


def _short(
    scores: Scores, reached: dict, ratio: float | None, products: float | None, count: int | None, round_to: int
) -> dict[str, str]:
    """Nothing is missing if both a share of products and a count were given: either may end the removal."""
    if products is not None and count is not None:
        return {}
    if products is not None:
        return report_short("products", 1 - products, 1 - reached["products"], scores.skipped, round_to)
    wanted = (count or 0) if ratio is None else count_of(ratio, len(scores))
    asked = wanted / len(scores) if len(scores) else ratio or float(bool(count))
    return report_short("channels with a score", asked, reached["ratio"], scores.skipped, round_to)


def _check_groups(network: nn.Module, scores: Scores) -> None:
    tensors = dict([*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)])
    scored = [group for group in scores.groups if group.name in scores.values]
    for member in [member for group in scored for member in (*group.producers, *group.consumers)]:
        shape = tuple(tensors[member.tensor].shape) if member.tensor in tensors else ()
        if shape[member.dim : member.dim + 1] != (member.width,):
            found = f"has the shape {shape}" if shape else "is not there"
            raise ValueError(f"the scores are of another network: here {member.tensor} {found}")


def _compensation_of(scores: Scores, asked: str | None) -> str:
    kind = CRITERIA.get(scores.criterion, Criterion()).compensation if asked is None else asked
    check_one_of("compensation", kind, COMPENSATIONS)
    if kind in ("merge", "absorb") and not scores.heirs:
        raise ValueError(
            f"{scores.criterion} names no merge targets, and {kind!r} needs them: redundancy and srinivas_babu do"
        )
    return kind


def _kept(
    selector: Selector, ratio: float | None, products: float | None, most: int | None, counts: Callable[[], Products]
) -> dict[str, ndarray]:
    if (ratio is None) == (products is None and most is None):
        raise ValueError(
            "pass ratio (the share of channels to remove), or products (the share of multiplications to keep) and/or "
            "count (how many channels to remove)"
        )
    check_whole("count", most or 0, 0)
    if ratio is not None:
        check_share("ratio", ratio)
        return selector.at(ratio)
    if products is None:
        return selector.without(most or 0)
    check_share("products", products)
    left = counts()
    return selector.down_to(count_of(products, left.total), left, most)


def products_of(
    network: nn.Module, groups: Sequence[Group], cost: pd.DataFrame, example: Example | None = None
) -> Products:
    """Counts the products of ``network`` with fewer channels; ``cost`` is that of ``network`` on ``example``."""
    paths = {module: path for path, module in network.named_modules()}
    costs, shapes, products = by_module(network, cost), {}, {}
    for layer in weight_layers(network):
        path = paths[layer.module]
        if layer.parameter == "weight" and not layer.skipped:
            shapes[f"{path}.weight".lstrip(".")] = tuple(layer.weight.shape)
            products[f"{path}.weight".lstrip(".")] = costs.get(path, Counter())["products"]
    return Products(groups, shapes, products, cost.attrs["products"], _pairs(network, products, example))


def _pairs(network: nn.Module, products: Iterable[str], example: Example | None) -> dict[str, ndarray]:
    """By the name of each weight that has zeros, the products of each kernel."""
    weights = {name: network.get_parameter(name).detach() for name in products}
    sparse = {name: weight for name, weight in weights.items() if not weight.is_meta and not weight.all()}
    if not sparse:
        return {}
    pairs: dict[str, ndarray] = {}
    for use, positions in run_once(network, example)[0].uses.items():
        if use.weight in sparse:
            live = (sparse[use.weight] != 0).cpu().numpy() * positions
            pairs[use.weight] = pairs.get(use.weight, 0) + live.reshape(*live.shape[:2], -1).sum(-1)
    return pairs


def _destination(kept: ndarray, scores: Scores, name: str, kind: str) -> list[int]:
    """The new index of each channel: that of its merge target if it is merged, -1 if it is removed."""
    new = np.where(kept, np.cumsum(kept) - 1, -1)
    if kind == "merge":
        targets = [merge_target(scores.heirs[name], kept, channel) for channel in range(len(kept))]
        new = np.array([new[target] if target >= 0 else -1 for target in targets])
    return new.tolist()


def _achieved(kept: dict[str, ndarray], table: pd.DataFrame, cost: pd.DataFrame) -> dict[str, float]:
    """Products that no layer of the table makes, such as those of attention, stay."""
    total = sum(map(len, kept.values()))
    removed = total - sum(int(mask.sum()) for mask in kept.values())
    products = 1 - int((table["products_before"] - table["products_after"]).sum()) / max(cost.attrs["products"], 1)
    return {"ratio": round(removed / max(total, 1), 6), "products": round(products, 6)}
