"""The choices that several explorers offer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from redlab.explorer import Choice
from redlab.shelf import Shelf

_DIVISORS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)
_ALPHAS = tuple(round(0.02 * k, 2) for k in range(36))
_CONTRASTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def menu(name: str, label: str, options: Collection[Any], slider: bool = False) -> Choice:
    """Always the same options."""
    fixed = {f"{option:g}" if isinstance(option, float) else str(option): option for option in options}
    return Choice(name, label, lambda _: fixed, slider)


def network(shelf: Shelf) -> Choice:
    """One of the networks on the shelf."""
    return menu("network", "network", shelf.names)


def layer(shelf: Shelf) -> Choice:
    """One of the network's layers; that of most weights is preferred."""
    return Choice(
        "layer",
        "layer",
        lambda at: {name: name for name in shelf.layers(at["network"])},
        prefer=lambda at: shelf.largest(at["network"]),
    )


def bandwidth(start: str | float) -> Choice:
    """From wide to narrow; ``start`` comes first where it is none of the usual ones."""
    usual = {f"Silverman's / {divisor}": f"silverman/{divisor}" for divisor in _DIVISORS}
    start = "silverman/1" if start == "silverman" else start
    own = {} if start in usual.values() else {str(start): start}
    return Choice("bandwidth", "bandwidth of the density", lambda _: own | usual, slider=True)


def contrast(start: float) -> Choice:
    """How much of its height a mode must rise above its valley."""
    return menu("contrast", "contrast (share of a mode's height)", _with_start(start, _CONTRASTS), slider=True)


def alpha(start: float, of: str = "share of filters gone") -> Choice:
    """The share of a group's filters that is merged away."""
    return menu("alpha", f"alpha ({of})", _with_start(start, _ALPHAS), slider=True)


def _with_start(start: float, usual: Collection[float]) -> list[float]:
    """The usual numbers and the one to begin with, in order."""
    return sorted({*usual, float(start)})
