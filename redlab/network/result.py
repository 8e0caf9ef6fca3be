"""What every step returns: a new network, one row a layer, and what was decided."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import nn

from redlab.network.reasons import report_once
from redlab.network.remainder import of_layers

# (title, columns before, columns after): the totals that a summary shows where a step measured them. Where products are
# shared the additions stay: the sum of both stands beside the products.
_TOTALS = (
    ("distinct values", ["distinct_before"], ["distinct"]),
    ("channels", ["channels_before"], ["channels_after"]),
    ("parameters", ["parameters_before"], ["parameters_after"]),
    ("products", ["products_before"], ["products_after"]),
    (
        "operations (multiplications + additions)",
        ["products_before", "additions_before"],
        ["products_after", "additions_after"],
    ),
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

    def __str__(self) -> str:
        return "\n".join([self._asked(), *self._lines()])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        asked, *lines = (html.escape(line, quote=False) for line in [self._asked(), *self._lines()])
        text = "<br>".join([f"<b>{asked}</b>", *lines])
        return f"<p>{text}</p>{self.layers.to_html(index=False, max_rows=12, float_format='{:.4g}'.format)}"

    def _asked(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.plan.get("options", {}).items())
        reached = ", ".join(f"{name} {value}" for name, value in self.plan.get("achieved", {}).items())
        return f"{self.plan.get('step', 'step')}({options})" + (f" reached {reached}" if reached else "")

    def _achieved(self) -> list[str]:
        rows = of_layers(self.layers)
        lines = totals_of(rows)
        if "error" in rows and len(rows):
            error = rows["error"]
            lines.append(f"relative error per layer: {error.mean():.3g} on average, {error.max():.3g} at most")
        return [line for line in (*lines[:1], str(self.chance), *lines[1:]) if line]

    def _lines(self) -> list[str]:
        short = [f"short: {self.plan['short']}"] if "short" in self.plan else []
        return [*self._achieved(), *short, *self._covered(), *self._left_out()]

    def _covered(self) -> list[str]:
        """What all these shares are of."""
        of, own = (self.layers.attrs.get(name, 0) for name in ("parameters", "covered"))
        return [f"conv and linear weights: {own / of:.3%} of all {of:,} parameters"] if of else []

    def _left_out(self) -> list[str]:
        rows, others = of_layers(self.layers), self.layers.drop(of_layers(self.layers).index)
        skipped = rows[rows["skipped"] != ""]
        said = f"{len(skipped)} skipped: {report_once(skipped['layer'], skipped['skipped'])}"
        lines = [f"{len(rows)} layers, {said if len(skipped) else 'none skipped'}"]
        more = f"{len(others)} other parameters: {report_once(others['layer'], others['skipped'])}"
        return [*lines, more] if len(others) else lines


def totals_of(layers: pd.DataFrame) -> list[str]:
    """A line a total that a table of layers holds, before and after."""
    lines = []
    for title, before, after in _TOTALS:
        if {*before, *after} <= set(layers):
            was, now = int(layers[before].to_numpy().sum()), int(layers[after].to_numpy().sum())
            lines.append(f"{title}: {was:,} -> {now:,} ({now / was if was else 1:.3%} left)")
    return lines
