"""Shares of a whole as counts."""

from __future__ import annotations


def count_of(share: float, n: int) -> int:
    """``share`` of n, rounded down."""
    return int(share * n * (1 + 1e-12))  # 0.29 * 100 is a little less than 29 in binary
