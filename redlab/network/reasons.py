"""Reports of what a step left as it was, and why: each reason once, and a warning if less was removed than asked."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

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
    texts = [f"{_first(by_reason[reason])} ({reason})" for reason in by_reason if reason in frequent]
    others = [len(own) for reason, own in by_reason.items() if reason not in frequent]
    return "; ".join([*texts, f"{sum(others)} more for {len(others)} other reasons"] if others else texts)


def _first(names: list[str]) -> str:
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
