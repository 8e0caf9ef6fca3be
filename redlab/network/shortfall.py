"""Shortfall: what a step was asked to take away and did not, said in a warning and in the result's plan."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from redlab.network.reasons import told_once

_NEAR = 0.1  # of what was to be taken away may be missing without a word: widths are whole numbers


def told_short(what: str, asked: float, reached: float, left: Mapping[str, str], round_to: int = 1) -> dict[str, str]:
    """A warning, and the entry of a plan that says the same, where more than a tenth of what was asked for is missing.

    Arguments:
        what: of which ``asked`` is the share that was to go, and ``reached`` the share that went.
        left: by name, why what stays does.
        round_to: of the widths.
    """
    if asked - reached <= _NEAR * asked:
        return {}
    why = [told_once(left, left.values())] if left else []
    why += [f"widths stay multiples of {round_to}"] if round_to > 1 else []
    text = f"{asked:.1%} of the {what} were to go, and {reached:.1%} went"
    text += f". What stays: {'; '.join(why)}" if why else ": no more can"
    warnings.warn(text, stacklevel=3)
    return {"short": text}
