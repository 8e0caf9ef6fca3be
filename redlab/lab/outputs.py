"""Outputs of notebooks, compared: what a new execution shows that the committed one does not."""

from __future__ import annotations

import base64
import struct
from typing import Any


def changed_cells(committed: dict, fresh: dict) -> list[str]:
    """A line for each code cell whose outputs differ between two executions, both scrubbed; [] where none do.

    Outputs must be equal; those of cells tagged ``unstable`` (training in front of the reader), which differ from
    processor to processor, must have the same shape: as many of the same kinds, pictures of the same size.
    """
    pairs = zip(_code(committed), _code(fresh), strict=False)
    lines = [line for number, (old, new) in enumerate(pairs, 1) if (line := _difference(number, old, new))]
    counts = len(_code(committed)), len(_code(fresh))
    return lines + ([f"{counts[0]} code cells are {counts[1]} now"] if counts[0] != counts[1] else [])


def _code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _difference(number: int, old: dict, new: dict) -> str:
    first = next(iter(str("".join(new["source"])).strip().splitlines()), "")
    where = f"cell {number} ({first})"
    if "".join(old["source"]) != "".join(new["source"]):
        return f"{where}: another source"
    if "unstable" in new["metadata"].get("tags", []):
        return "" if _shapes(old) == _shapes(new) else f"{where}: outputs of another shape"
    return "" if old["outputs"] == new["outputs"] else f"{where}: other outputs"


def _shapes(cell: dict) -> list[Any]:
    return [(output["output_type"], _shape(output.get("data", {}))) for output in cell["outputs"]]


def _shape(data: dict) -> list[Any]:
    """The kinds of one output; of a picture its width and height too, which stand in a PNG's first bytes."""
    png = "".join(data.get("image/png", ""))
    return [sorted(data), struct.unpack(">II", base64.b64decode(png[:32])[16:24]) if png else None]
