"""The remainder: the parameters that are no conv or linear weights, as rows in the table of every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from redlab.network.layers import kind_of, weight_layers

OTHER = "other"  # the kind of their rows
_TEXTS = ("group", "folded")


def with_others(table: pd.DataFrame, before: nn.Module, after: nn.Module) -> pd.DataFrame:
    """The table of a step, with a row for every parameter of two or more dimensions that is in no layer's row.

    Arguments:
        table: a row a conv or linear layer of ``before``.
        before, after: the network before and after the step.

    Returns:
        The same columns. ``layer`` is the parameter's name, ``kind`` "other", ``weights`` and ``distinct`` how many
        numbers it holds, ``skipped`` what it belongs to; products, channels and errors are 0. A layer's weight under
        another name (a tied embedding) counts 0 weights here. ``attrs`` holds how many ``parameters`` the network has,
        and how many of them are conv and linear weights, ``covered``.
    """
    left = dict(after.named_parameters(remove_duplicate=False))
    made = [_row(name, own, left.get(name, own), why, table.columns) for name, own, why in _others(before)]
    rows = pd.DataFrame(made, columns=table.columns)
    table = pd.concat([table, rows], ignore_index=True) if len(table) and made else rows if made else table
    sizes = {id(p): 0 if is_lazy(p) else p.numel() for p in before.parameters()}
    weights = [layer.weight for layer in weight_layers(before) if not layer.lazy]
    covered = {id(weight): weight.numel() for weight in weights}
    table.attrs |= {"parameters": sum(sizes.values()), "covered": sum(covered.values())}
    return table


def of_layers(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers in a step's table."""
    return table[table["kind"] != OTHER] if "kind" in table else table


def _row(name: str, before: Tensor, after: Tensor, why: str, columns: pd.Index) -> dict[str, Any]:
    zeros = int((after == 0).sum()) if "zeros" in columns and before.numel() else 0
    size, left = before.numel(), min(after.numel(), before.numel()) - zeros
    row = dict.fromkeys(columns, 0) | dict.fromkeys(_TEXTS, "") | {"layer": name, "kind": OTHER, "skipped": why}
    row |= dict.fromkeys(("weights", "distinct_before", "distinct", "parameters_before"), size)
    row |= dict.fromkeys(("bits", "bits_per_weight"), 8 * before.dtype.itemsize)
    return row | {"zeros": zeros, "parameters_after": left, "sparsity": 1 - left / max(size, 1)}


def _others(network: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """Name and tensor of each such parameter, and what it belongs to; an empty tensor if a layer's row counts it."""
    layers = {id(layer.weight): layer.name for layer in weight_layers(network) if not layer.skipped}
    own = tuple(_names_of_layers(network))
    seen: dict[int, Tensor] = {}
    for path, module in network.named_modules():
        for name, tensor in module.named_parameters(path, recurse=False):
            if is_lazy(tensor) or tensor.ndim < 2 or id(tensor) in seen or f"{name} ".startswith(own):
                continue
            if id(tensor) in layers:
                yield name, tensor[:0], f"is the weight of {layers[id(tensor)]}: one tensor"
                continue
            seen[id(tensor)] = tensor
            yield name, tensor, f"of {_kind(module)}, no conv or linear layer"


def _names_of_layers(network: nn.Module) -> Iterator[str]:
    """The beginnings of the names of layers' weights and of what they are computed from; a space ends a name."""
    paths = {module: path for path, module in network.named_modules()}
    for layer in weight_layers(network):
        name = f"{paths[layer.module]}.{layer.parameter}".lstrip(".")
        computed = f"{paths[layer.module]}.parametrizations.{layer.parameter}.".lstrip(".")
        yield from (f"{name} ",) if layer.parameter in layer.module._parameters else (f"{name}_", computed)


def _kind(module: nn.Module) -> str:
    return "TorchScript" if isinstance(module, torch.jit.ScriptModule) else kind_of(module)
