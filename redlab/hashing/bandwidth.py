"""How wide the kernel of a density estimate is: rules of thumb, or a number."""

from __future__ import annotations

import re

import numpy as np

from redlab.hashing import passes
from redlab.hashing.vector import Vector

_BANDWIDTH = re.compile(r"(median_gap|mean_gap|scott|silverman)(?:/([0-9.eE+-]+))?")


def resolve_bandwidth(vector: Vector, bandwidth: str | float) -> float:
    """The bandwidth h that a rule or number means for these weights; 0.0 where all are equal and a rule was given."""
    rule, number = parse_bandwidth(bandwidth)
    return _rule_of_thumb(vector, rule) / number if rule else number


def parse_bandwidth(bandwidth: str | float) -> tuple[str, float]:
    """("silverman", 8.0) for "silverman/8"; ("", 0.05) for 0.05.

    Raises:
        ValueError: neither a known rule nor a positive number.
    """
    if not isinstance(bandwidth, str):
        if not 0 < bandwidth < np.inf:
            raise ValueError(f"bandwidth must be a positive finite number, not {bandwidth}")
        return "", float(bandwidth)
    match = _BANDWIDTH.fullmatch(bandwidth)
    divisor = _positive(match[2] or "1") if match else None
    if match is None or divisor is None:
        raise ValueError(
            f"unknown bandwidth {bandwidth!r}: use median_gap, mean_gap, scott or silverman, any of them over a "
            "positive number (silverman/8), or a positive number"
        )
    return match[1], divisor


def _positive(text: str) -> float | None:
    try:
        return number if 0 < (number := float(text)) < np.inf else None
    except ValueError:
        return None


def _rule_of_thumb(vector: Vector, rule: str) -> float:
    if rule.endswith("_gap"):
        gaps = np.diff(np.unique(vector.weights).astype(np.float64))
        return 0.0 if gaps.size == 0 else float(np.median(gaps) if rule == "median_gap" else gaps.mean())
    if vector.low == vector.high:
        return 0.0
    if rule == "scott":
        return 1.06 * vector.spread * vector.size**-0.2
    first, third = passes.quartiles(vector.weights)
    return 0.9 * min(vector.spread, (third - first) / 1.34 or vector.spread) * vector.size**-0.2
