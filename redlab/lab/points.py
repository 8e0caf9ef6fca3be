"""The points of a sweep, in words."""

from __future__ import annotations

from typing import Any


def describe(point: dict[str, Any]) -> str:
    """A point in a line."""
    return ", ".join(f"{name}={value}" for name, value in point.items()) or "default parameters"
