"""What every step returns: a new network, one row a layer, and what was decided."""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from redlab.network.layers import kind_of, weight_layers
from redlab.network.trace import Graph

# (title, columns before, columns after): the totals that a summary shows where a step measured them. Where products are
# shared the additions stay: the sum of both stands beside the products.
_TOTALS = (
    ("distinct values", "distinct_before", "distinct"),
    ("channels", "channels_before", "channels_after"),
    ("parameters", "parameters_before", "parameters_after"),
    ("multiplications", "products_before", "products_after"),
    ("operations (multiplications + additions)", "products_before additions_before", "products_after additions_after"),
)


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of one step; ``network`` feeds the next one, ``layers`` feeds a figure.

    Attributes:
        network: a new network; the one passed in was left untouched.
        layers: one row per conv or linear layer, skipped ones too: ``skipped`` holds the reason, or "". Then one row
            for every other parameter of two or more dimensions, of kind "other", with the reason.
        plan: what was decided, as plain data (JSON): ``step``, its ``options``, and what follows from them.
        chance: what chance alone would reach, one line: its text is made when the result is printed.
        graph: of ``fold_batchnorm``: what ``network`` computes, where it was traced; later steps need not trace it.

    Example:
        >>> result = fold_batchnorm(load_network("digits/mlp"))
        >>> print(result)
        fold()
        parameters: 51,210 -> 50,826 (99.250% left)
        conv and linear weights: 98.481% of all 51,210 parameters
        3 layers, none skipped
        >>> result.plan["step"], len(result.layers)
        ('fold', 3)
    """

    network: nn.Module
    layers: pd.DataFrame
    plan: dict = field(default_factory=dict)
    chance: Any = ""
    graph: Graph | None = None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        asked, *lines = (html.escape(line, quote=False) for line in self._lines())
        text = "<br>".join([f"<b>{asked}</b>", *lines])
        return f"<p>{text}</p>{self.layers.to_html(index=False, max_rows=12, float_format='{:.4g}'.format)}"

    def _lines(self) -> list[str]:
        """What was asked for; the first total, and what chance reaches of it; the other totals; what is left out."""
        plan, rows = self.plan, of_layers(self.layers)
        options = ", ".join(f"{name}={value!r}" for name, value in plan.get("options", {}).items())
        reached = ", ".join(f"{name} {value}" for name, value in plan.get("achieved", {}).items())
        asked = f"{plan.get('step', 'step')}({options})" + (f" reached {reached}" if reached else "")
        totals = totals_of(rows)
        if "error" in rows and len(rows):
            error = rows["error"]
            totals.append(f"relative error per layer: {error.mean():.3g} on average, {error.max():.3g} at most")
        short = f"short: {plan['short']}" if "short" in plan else ""
        of, own = (self.layers.attrs.get(name, 0) for name in ("parameters", "covered"))
        covered = f"conv and linear weights: {own / of:.3%} of all {of:,} parameters" if of else ""
        short = "; ".join(filter(None, [short, plan.get("unfolded", "")]))
        lines = [asked, *totals[:1], str(self.chance), *totals[1:], *_replaced(rows), short, covered]
        lines += self._left_out(rows)
        return [line for line in lines if line]

    def _left_out(self, rows: pd.DataFrame) -> list[str]:
        skipped, others = rows[rows["skipped"] != ""], self.layers.drop(rows.index)
        said = f"{len(skipped)} skipped: {report_once(skipped['layer'], skipped['skipped'])}"
        lines = [f"{len(rows)} layers, {said if len(skipped) else 'none skipped'}"]
        more = f"{len(others)} other parameters: {report_once(others['layer'], others['skipped'])}"
        return [*lines, more] if len(others) else lines


def _replaced(rows: pd.DataFrame) -> list[str]:
    """The layers that ``prepare`` replaced, and by what."""
    made = rows[rows["replaced"] != ""] if "replaced" in rows else rows[:0]
    return [f"{len(made)} replaced: {report_once(made['layer'], made['replaced'])}"] if len(made) else []


def totals_of(layers: pd.DataFrame) -> list[str]:
    """A line a total that a table of layers holds, before and after."""
    lines = []
    for title, *columns in _TOTALS:
        before, after = map(str.split, columns)
        if {*before, *after} <= set(layers):
            was, now = int(layers[before].to_numpy().sum()), int(layers[after].to_numpy().sum())
            lines.append(f"{title}: {was:,} -> {now:,} ({now / was if was else 1:.3%} left)")
    return lines


_NAMES, _REASONS = 3, 6  # so many are reported; the table of the step has them all
_NEAR = 0.1  # of what was asked for may be missing without a report: widths are whole numbers


def report_once(names: Iterable[str], reasons: Iterable[str]) -> str:
    """Every reason once, with the first names and a count: ``a, b, c and 47 more (reason); d (other reason)``.

    Of more than six reasons, the most frequent are reported, and how many others there are.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in zip(names, reasons, strict=True):
        by_reason.setdefault(reason, []).append(name)
    frequent = sorted(by_reason, key=lambda reason: -len(by_reason[reason]))[:_REASONS]
    texts = [f"{first_names(by_reason[reason])} ({reason})" for reason in by_reason if reason in frequent]
    others = [len(own) for reason, own in by_reason.items() if reason not in frequent]
    return "; ".join([*texts, f"{sum(others)} more for {len(others)} other reasons"] if others else texts)


def first_names(names: list[str]) -> str:
    """The first three, and how many more."""
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def report_short(what: str, asked: float, reached: float, left: Mapping[str, str], round_to: int = 1) -> dict[str, str]:
    """A warning, and the entry of a plan that says the same, if more than a tenth of what was asked for is missing.

    Arguments:
        what: the things of which ``asked`` is the share to remove and ``reached`` the share that was removed.
        left: by name, why things stay.
        round_to: of the widths.
    """
    if asked - reached <= _NEAR * asked:
        return {}
    why = [report_once(left, left.values())] if left else []
    why += [f"widths stay multiples of {round_to}"] if round_to > 1 else []
    text = f"asked to remove {asked:.1%} of the {what}, removed {reached:.1%}"
    text += f". What stays: {'; '.join(why)}" if why else ": no more can be removed"
    warnings.warn(text, stacklevel=3)
    return {"short": text}


def report_unfolded(norms: list[str]) -> dict[str, str]:
    """A warning, and the entry of a plan that says the same, where batch norms stand beside weights that changed."""
    if not norms:
        return {}
    what = f"{len(norms)} batch norm{'s are' if len(norms) > 1 else ' is'} not folded"
    text = f"{what}: {first_names(norms)}. Take this step on prepare(network).network, whose weights hold their scale"
    warnings.warn(text, stacklevel=3)
    return {"unfolded": text}


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
