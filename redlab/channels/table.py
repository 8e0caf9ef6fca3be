"""What removing channels did to each layer: the table of every step that ends in a plan."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
from torch import nn

from redlab.channels.coupling import Group
from redlab.network.cost import COUNTED, by_module, measure_cost
from redlab.network.example import Example
from redlab.network.layers import Layer, row_parameters, weight_layers

_COLUMNS = ["layer", "kind", "weights", "group", "channels_before", "channels_after"]
_COLUMNS += [f"{what}_{when}" for what in (*COUNTED, "parameters") for when in ("before", "after")]
_COLUMNS += ["merged", "dead", "skipped"]


def channel_table(
    before: nn.Module,
    after: nn.Module,
    groups: list[Group],
    destinations: dict[str, list[int]],
    example: Example | None = None,
    cost: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per conv or linear layer. Layers that stay as they were have the reason in ``skipped``.

    Arguments:
        before, after: the network before and after the plan.
        groups: those of ``before``.
        destinations: by group name, as in ``make_plan``; groups left out stay.
        cost: ``measure_cost`` of ``before``, if known.

    Returns:
        layer, kind, weights (before), group (all groups of its outputs), channels, products, macs, additions and
        parameters before and after, and how many channels were ``merged`` into another or removed (``dead``).
    """
    paths = {module: path for path, module in before.named_modules()}
    cost = measure_cost(before, example) if cost is None else cost
    costs = {"before": by_module(before, cost), "after": by_module(after, measure_cost(after, example))}
    parameters = [("before", row_parameters(weight_layers(before))), ("after", row_parameters(weight_layers(after)))]
    rows = []
    for old, new in zip(weight_layers(before), weight_layers(after), strict=True):
        path = paths[old.module]
        row = {"layer": old.name, "kind": old.kind, "weights": old.size}
        row |= _counts(old, f"{path}.{old.parameter}".lstrip("."), groups, destinations)
        row |= {"channels_before": _channels(old), "channels_after": _channels(new)}
        row |= {f"parameters_{when}": counts[old.name] for when, counts in parameters}
        for when, own in costs.items():
            # The projections of an attention are one module: the first row has its cost.
            count = own.pop(path, Counter())
            row |= {f"{what}_{when}": count[what] for what in COUNTED}
        rows.append(row)
    return pd.DataFrame(rows, columns=_COLUMNS)


def _counts(layer: Layer, tensor: str, groups: list[Group], destinations: dict[str, list[int]]) -> dict:
    """The groups of a layer's outputs, how many of its channels are merged or removed, and why others stay."""
    own = [(group, member) for group in groups for member in group.producers if member.tensor == tensor]
    counts = {"group": ", ".join(dict.fromkeys(group.name for group, _ in own)), "merged": 0, "dead": 0}
    for group, member in own:
        where = destinations.get(group.name, range(group.size))
        dead = sum(new < 0 for new in where)
        each = np.asarray(member.index).shape[1]
        counts["dead"] += each * dead
        counts["merged"] += each * (group.size - dead - (max(where) + 1))
    reasons = [layer.skipped, *(group.frozen for group, _ in own)]
    reasons += [] if own else ["its outputs are in no coupled group"]
    return counts | {"skipped": "; ".join(dict.fromkeys(filter(None, reasons)))}


def _channels(layer: Layer) -> int:
    """How many outputs the layer has."""
    if getattr(layer.module, "transposed", False):
        return layer.module.out_channels
    return 0 if layer.lazy else len(layer.weight)
