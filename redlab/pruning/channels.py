"""Pruning of channels: scores and a request in, a plan out, which ``apply_plan`` carries out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
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
from redlab.network.example import Example
from redlab.network.layers import unwrap, weight_layers
from redlab.network.remainder import with_others
from redlab.network.result import Result
from redlab.network.shortfall import told_short
from redlab.options import plain_options
from redlab.pruning.compensation import COMPENSATIONS, compensate, final_heir
from redlab.pruning.criteria.registry import CRITERIA
from redlab.pruning.scores import Scores
from redlab.pruning.selection import Products, Selector, check_share, count_of


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

    Each coupled group keeps its best channel, whatever is asked for.

    Arguments:
        network: left untouched; the one that ``scores`` are of.
        ratio: the share of the scored channels to remove, in [0, 1], rounded down; or
        products: the share of the network's products to keep, in [0, 1]: the fewest channels go that reach it.
        scope: "global", one order over all groups; "layer", the same share of each group.
        round_to: each group keeps a multiple of so many channels, or all; so fewer go than asked for.
        compensation: what the layers that read a channel get in its place; by default what the criterion says.
            "none"; "merge", its heir becomes the mean of both, the slices that read them are summed (RED; fold batch
            norms first, as for ``merge_neurons``);
            "absorb", its heir stays and the slices are summed (Srinivas & Babu); "nearest", the kept channel of most
            similar direction, scaled (Kim et al.); "reconstruct", all kept channels of the group by least squares,
            with a constant for the mean (ours).
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        count: how many of the scored channels to remove, in place of ``ratio``; beside ``products``, the most that go.

    Defaults:
        compensation: what the criterion's paper does, often nothing, though "reconstruct" keeps more. At 75 % of the
            products Taylor has 66.88 % on ResNet-20 and 86.48 on ResNet-56, reconstructed 80.75 and 90.26; the
            criterion "reconstruction" 83.72 and 92.43, without its own 76.14 and 91.03
            (benchmarks/pruning.md; `python -m benchmarks.pruning`), on MobileNetV1 56.4 and 7.6 (benchmarks/real.csv).
            So do magnitude by layer, 77.00 and 81.30 of 2,000 images, and Srinivas-Babu, 65.40 and 89.05
            (benchmarks/defaults.md, "compensation"), where they have 50.77 and 51.64, 63.27 and 83.60 of all.
        scope: by "layer" reconstruction keeps 70.85 and 80.00 % there, Srinivas-Babu 50.30 and 49.25, Taylor 31.75 and
            67.60, of 2,000 images (benchmarks/defaults.md, "scope" and "scope, with images"); by "global" 83.72 and
            92.43, 63.27 and 83.60, 66.88 and 86.48, of all (benchmarks/pruning.md). Magnitude differs: ResNet-20 50.77
            by layer, 19.01 globally; ResNet-56 51.64, 88.06.

    Returns:
        ``layers`` has a row per conv and linear layer: layer, kind, weights, group, channels, products, macs, additions
        and parameters before and after, the channels ``merged`` and ``removed``, ``skipped``. ``plan`` says where each
        channel goes, under ``options`` what was asked for, and under ``achieved`` what was reached.

    Warns:
        where more than a tenth of what was to go stays, and why: ``plan["short"]`` says so too.

    Raises:
        ValueError: none of ``ratio``, ``products`` and ``count``, or the first beside another; an option out of range
            or unknown; scores of weights or of another network.

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
    kept = _kept(network, scores, selector, cost, ratio, products, count, example)
    groups = [replace(group, frozen=scores.skipped.get(group.name, "")) for group in scores.groups]
    destinations = {name: _destination(mask, scores, name, kind) for name, mask in kept.items() if not mask.all()}
    filled = compensate(network, groups, kept, scores.heirs, kind, example)
    smaller = apply_plan(filled.network, make_plan(filled.groups, destinations))
    table = channel_table(network, smaller, groups, destinations, example, cost).rename(columns={"dead": "removed"})
    options = {"criterion": scores.criterion, **scores.options, "ratio": ratio, "products": products, "scope": scope}
    options |= {"round_to": round_to, "compensation": kind}
    options |= {} if count is None else {"count": count}
    achieved = _achieved(kept, table, cost) | ({"not compensated": dict(filled.without)} if filled.without else {})
    table = with_others(table, network, smaller)
    plan = make_plan(groups, destinations) | {"options": options, "achieved": achieved}
    return Result(smaller, table, plan | _short(scores, achieved, ratio, products, count, round_to))


def _short(
    scores: Scores, reached: dict, ratio: float | None, products: float | None, count: int | None, round_to: int
) -> dict[str, str]:
    """Of a share of products and a count together either may end it: then nothing is missing."""
    if products is not None and count is not None:
        return {}
    if products is not None:
        return told_short("products", 1 - products, 1 - reached["products"], scores.skipped, round_to)
    wanted = (count or 0) if ratio is None else count_of(ratio, len(scores))
    asked = wanted / len(scores) if len(scores) else ratio or float(bool(count))
    return told_short("channels with a score", asked, reached["ratio"], scores.skipped, round_to)


def _check_groups(network: nn.Module, scores: Scores) -> None:
    named = (network.named_parameters, network.named_buffers)
    tensors = {name: tensor for each in named for name, tensor in each(remove_duplicate=False)}
    scored = [group for group in scores.groups if group.name in scores.values]
    for member in [member for group in scored for member in (*group.producers, *group.consumers)]:
        shape = tuple(tensors[member.tensor].shape) if member.tensor in tensors else ()
        if shape[member.dim : member.dim + 1] != (member.width,):
            found = f"has the shape {shape}" if shape else "is not there"
            raise ValueError(f"the scores are of another network: here {member.tensor} {found}")


def _compensation_of(scores: Scores, asked: str | None) -> str:
    kind = (
        CRITERIA[scores.criterion].compensation if asked is None and scores.criterion in CRITERIA else asked or "none"
    )
    if kind not in COMPENSATIONS:
        raise ValueError(f"compensation must be one of {', '.join(COMPENSATIONS)}, not {kind!r}")
    if kind in ("merge", "absorb") and not scores.heirs:
        raise ValueError(
            f"{scores.criterion} names no heirs, so that nothing can {kind}: redundancy and srinivas_babu do"
        )
    return kind


def _kept(
    network: nn.Module,
    scores: Scores,
    selector: Selector,
    cost: pd.DataFrame,
    ratio: float | None,
    products: float | None,
    most: int | None,
    example: Example | None,
) -> dict[str, ndarray]:
    if (ratio is None) == (products is None and most is None):
        raise ValueError(
            "give either ratio, the share of channels to remove, or products, the share to keep, or count, how many go"
        )
    if most is not None and (most < 0 or most != int(most)):
        raise ValueError(f"count must be a whole number of channels, not {most!r}")
    if ratio is not None:
        check_share("ratio", ratio)
        return selector.at(ratio)
    if products is None:
        return selector.without(most or 0)
    check_share("products", products)
    left = products_of(network, scores.groups, cost, example)
    return selector.down_to(count_of(products, cost.attrs["products"]), left, most)


def products_of(
    network: nn.Module, groups: Sequence[Group], cost: pd.DataFrame, example: Example | None = None
) -> Products:
    """The products of ``network`` with fewer channels; ``cost`` is its own, of ``example``."""
    paths = {module: path for path, module in network.named_modules()}
    costs, shapes, products = by_module(network, cost), {}, {}
    for layer in weight_layers(network):
        path = paths[layer.module]
        if layer.parameter == "weight" and not layer.skipped:
            shapes[f"{path}.weight".lstrip(".")] = tuple(layer.weight.shape)
            products[f"{path}.weight".lstrip(".")] = costs.get(path, Counter())["products"]
    return Products(groups, shapes, products, cost.attrs["products"], _pairs(network, products, example))


def _pairs(network: nn.Module, products: Iterable[str], example: Example | None) -> dict[str, ndarray]:
    """By the name of a weight that has zeros, the products of each kernel."""
    weights = {name: network.get_parameter(name).detach() for name in products}
    sparse = {name: weight for name, weight in weights.items() if not weight.is_meta and not weight.all()}
    if not sparse:
        return {}
    pairs: dict[str, ndarray] = {}
    for use, positions in run_once(network, example).multiplied.uses.items():
        if use.weight in sparse:
            live = (sparse[use.weight] != 0).cpu().numpy() * positions
            pairs[use.weight] = pairs.get(use.weight, 0) + live.reshape(*live.shape[:2], -1).sum(-1)
    return pairs


def _destination(kept: ndarray, scores: Scores, name: str, kind: str) -> list[int]:
    """The new index of each channel: -1 for those that go, their heir's for those that merge."""
    new = np.where(kept, np.cumsum(kept) - 1, -1)
    if kind == "merge":
        heirs = [final_heir(scores.heirs[name], kept, channel) for channel in range(len(kept))]
        new = np.array([new[heir] if heir >= 0 else -1 for heir in heirs])
    return new.tolist()


def _achieved(kept: dict[str, ndarray], table: pd.DataFrame, cost: pd.DataFrame) -> dict[str, float]:
    """Products that no layer of the table makes, those of attention, stay."""
    total = sum(map(len, kept.values()))
    gone = total - sum(int(mask.sum()) for mask in kept.values())
    products = 1 - int((table["products_before"] - table["products_after"]).sum()) / max(cost.attrs["products"], 1)
    return {"ratio": round(gone / max(total, 1), 6), "products": round(products, 6)}
