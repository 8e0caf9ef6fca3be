"""Reasons why something was left as it is, told once each."""

from __future__ import annotations

from collections.abc import Iterable

_NAMES, _REASONS = 3, 6  # so many are told; all stand in the table


def told_once(names: Iterable[str], reasons: Iterable[str]) -> str:
    """Every reason once, with the first names and how many more: ``a, b, c and 47 more (reason); d (other reason)``.

    Of more than six reasons the most frequent are told, and how many there are beside them.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in zip(names, reasons, strict=True):
        by_reason.setdefault(reason, []).append(name)
    frequent = sorted(by_reason, key=lambda reason: -len(by_reason[reason]))[:_REASONS]
    told = [f"{_first(by_reason[reason])} ({reason})" for reason in by_reason if reason in frequent]
    beside = [len(own) for reason, own in by_reason.items() if reason not in frequent]
    return "; ".join([*told, f"{sum(beside)} more for {len(beside)} other reasons"] if beside else told)


def _first(names: list[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")
