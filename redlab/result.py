"""What every step returns: a new network, one row a layer, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
from torch import nn

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
        layers: one row per conv or linear layer, skipped ones too: ``skipped`` holds the reason, or "".
        plan: what was decided, as plain data (JSON): ``step``, its ``options``, and what follows from them.

    Example:
        >>> result = fold_batchnorm(load_network("digits/mlp"))
        >>> print(result)
        fold()
        parameters: 51,210 -> 50,826 (99.250% left)
        3 layers, none skipped
        >>> result.plan["step"], len(result.layers)
        ('fold', 3)
    """

    network: nn.Module
    layers: pd.DataFrame
    plan: dict = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([self._asked(), *self._achieved(), self._left_out()])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        lines = "<br>".join([f"<b>{self._asked()}</b>", *self._achieved(), self._left_out()])
        return f"<p>{lines}</p>{self.layers.to_html(index=False, max_rows=12, float_format='{:.4g}'.format)}"

    def _asked(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.plan.get("options", {}).items())
        reached = ", ".join(f"{name} {value}" for name, value in self.plan.get("achieved", {}).items())
        return f"{self.plan.get('step', 'step')}({options})" + (f" reached {reached}" if reached else "")

    def _achieved(self) -> list[str]:
        lines = totals_of(self.layers)
        if "error" in self.layers and len(self.layers):
            error = self.layers["error"]
            lines.append(f"relative error per layer: {error.mean():.3g} on average, {error.max():.3g} at most")
        return lines

    def _left_out(self) -> str:
        skipped = self.layers[self.layers["skipped"] != ""]
        if skipped.empty:
            return f"{len(self.layers)} layers, none skipped"
        reasons = [f"{', '.join(rows['layer'])} ({reason})" for reason, rows in skipped.groupby("skipped", sort=False)]
        return f"{len(self.layers)} layers, {len(skipped)} skipped: {'; '.join(reasons)}"


def totals_of(layers: pd.DataFrame) -> list[str]:
    """A line a total that a table of layers holds, before and after."""
    lines = []
    for title, before, after in _TOTALS:
        if {*before, *after} <= set(layers):
            was, now = int(layers[before].to_numpy().sum()), int(layers[after].to_numpy().sum())
            lines.append(f"{title}: {was:,} -> {now:,} ({now / was if was else 1:.3%} left)")
    return lines
