"""The choices that several explorers offer."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Real
from typing import Any

import numpy as np

from redlab.hashing.density import estimate_density
from redlab.lab.explore.explorer import Choice
from redlab.lab.explore.shelf import Shelf

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
    """From wide to narrow; ``start`` comes first where it is none of the usual ones, and is checked."""
    check_bandwidth(start)
    usual = {f"Silverman's / {divisor}": f"silverman/{divisor}" for divisor in _DIVISORS}
    start = "silverman/1" if start == "silverman" else start
    own = {} if start in usual.values() else {str(start): start}
    return Choice("bandwidth", "bandwidth of the density", lambda _: own | usual, slider=True)


def contrast(start: float) -> Choice:
    """How much of its height a mode must rise above its valley."""
    _check_share("contrast", start)
    return menu("contrast", "contrast (share of a mode's height)", _with_start(start, _CONTRASTS), slider=True)


def alpha(start: float, of: str = "share of filters gone") -> Choice:
    """The share of a group's filters that is merged away."""
    _check_share("alpha", start)
    return menu("alpha", f"alpha ({of})", _with_start(start, _ALPHAS), slider=True)


def check_bandwidth(start: str | float) -> None:
    """Refuse what ``estimate_density`` would: a ValueError, or a TypeError for neither a rule nor a number."""
    if isinstance(start, bool) or not isinstance(start, str | Real):
        raise TypeError(f"bandwidth must be a rule such as 'silverman/8' or a positive number, not {start!r}")
    estimate_density(np.array([0.0, 1.0, 3.0]), start)


def _check_share(name: str, start: float) -> None:
    if isinstance(start, bool) or not isinstance(start, Real):
        raise TypeError(f"{name} must be a number in [0, 1), not {start!r}")
    if not 0 <= start < 1:  # NaN too
        raise ValueError(f"{name} must lie in [0, 1), not be {start}")


def _with_start(start: float, usual: Collection[float]) -> list[float]:
    """The usual numbers and the one to begin with, in order."""
    return sorted({*usual, float(start)})
