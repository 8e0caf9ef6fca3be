"""Tables as Markdown has them."""

from __future__ import annotations

import re


def markdown(heads: list[str], body: list[list[str]]) -> str:
    """A table; empty cells stay empty.

    Example:
        >>> print(markdown(["a", "b"], [["1", ""]]))
        | a | b |
        |---|---|
        | 1 | |
    """
    rows = [heads, ["---"] * len(heads), *body]
    text = "\n".join(f"| {' | '.join(row)} |".replace("| --- ", "|---") for row in rows)
    return re.sub(r"\|  (?=\|)", "| ", text)
