"""One table of what several steps made of each layer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
from torch import nn
from torch.nn.parameter import is_lazy

from redlab.compression.splitting import as_dense
from redlab.network.cost import by_module, measure_cost
from redlab.network.example import Example
from redlab.network.layers import unwrap, weight_layers
from redlab.network.result import Result, with_others
from redlab.network.row_scales import count_codes

_COLUMNS = ["layer", "kind", "weights", "distinct", "scales", "modes", "error", "channels_before", "channels_after"]
_COLUMNS += ["products_before", "products_after", "products_unsigned", "macs_before", "macs_after"]
_COLUMNS += ["additions_before", "additions_after", "lookups"]
_COLUMNS += ["parameters_before", "parameters_after", "skipped"]
# Of these the last step that measured them has the word; of what was before, the first one, or the cost.
_LAST = ["modes", "error", "channels_after", "products_after", "products_unsigned", "macs_after", "additions_after"]
_LAST += ["lookups", "parameters_after"]
_FIRST, _COSTS = ("channels", "parameters"), ("products", "macs", "additions")
# What a table calls the steps that leave a layer as it is.
_VERBS = {
    "prepare": "prepare",
    "fold": "fold",
    "hash": "hash",
    "correct_biases": "correct bias",
    "plan": "merge",
    "split": "split",
}
_VERBS |= {"separate": "separate"}


def layer_table(network: nn.Module, results: list[Result], example: Example | None = None) -> pd.DataFrame:
    """One row a conv or linear layer of ``network``: what the steps that gave ``results`` made of it.

    Hashing says modes 27, merging channels_after 12 and products_after 900, splitting products_after 300: the row has
    the modes 27, 12 channels and 300 products. Columns that no step measured are left out; ``distinct`` counts the
    values (of the codes, where rows have ``scales``) that are left at last, and ``skipped`` joins what each step says.
    """
    network = unwrap(network)
    cost, plain = by_module(network, measure_cost(network, example)), _prepared(network, results[0])
    paths = {module: path for path, module in plain.named_modules()}
    places = _places(results[0].plan)
    left = {layer.name: layer for layer in weight_layers(as_dense(results[-1].network)) if not layer.lazy}
    steps = [_verb(result.plan) for result in results]
    tables = [result.layers.set_index("layer") for result in results]
    rows = []
    for layer in weight_layers(plain):
        parts = [table.loc[layer.name] for table in tables]
        row = {"layer": layer.name, "kind": layer.kind, "weights": parts[0]["weights"]}
        row |= count_codes(left[layer.name]) if layer.name in left else {"distinct": 0, "scales": 0}
        for part in parts:
            row |= {name: part[name] for name in _LAST if name in part}
        for name in (f"{what}_before" for what in _FIRST):
            row[name] = next(int(part[name]) for part in parts if name in part)
        # A module's projections share its cost, which stands with the first of them.
        own = cost.pop(places.get(paths[layer.module], paths[layer.module]), Counter())
        row |= {f"{what}_before": own[what] for what in _COSTS}
        reasons = [f"{step}: {part['skipped']}" for step, part in zip(steps, parts, strict=True) if part["skipped"]]
        row["skipped"] = "; ".join(reasons)
        rows.append(row)
    columns = [name for name in _COLUMNS if not rows or name in rows[0]]
    table = with_others(pd.DataFrame(rows, columns=columns), plain, results[-1].network)
    table.attrs["parameters"] = sum(own.numel() for own in network.parameters() if not is_lazy(own))
    return table


def _prepared(network: nn.Module, first: Result) -> nn.Module:
    """The network whose layers the tables name: the prepared one, if the first step prepared it."""
    return first.network if first.plan.get("modules") else network


def _places(plan: dict[str, Any]) -> dict[str, str]:
    """By the path of a layer behind a padding, that of the module that both replace."""
    padded = [path for path, spec in plan.get("modules", {}).items() if "pad" in spec]
    return {f"{path}.1".lstrip("."): path for path in padded}


def _verb(plan: dict[str, Any]) -> str:
    """What a table calls the step of this plan: one that scored its channels pruned them."""
    return "prune" if "criterion" in plan.get("options", {}) else _VERBS[plan["step"]]
