"""How redundant the tensors of any checkpoint are, one after the other, without the network that they belong to."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from redlab.compression.similarity import count_duplicates
from redlab.files.checkpoint import groups_beside, list_checkpoint, warn_left_out
from redlab.files.entries import BESIDE, Entry
from redlab.hashing.values import count_products, measure_values
from redlab.hashing.vector import NotFinite
from redlab.network.layers import OUT_SCALE
from redlab.progress import progress

_NUMBERS = {
    **dict.fromkeys(["weights", "zeros", "distinct_before", "modes", "distinct"], "int64"),
    **{"error": "float64", "duplicates": "int64", "expected": "float64", "measured": "int64", "entropy": "float64"},
}
COLUMNS = ["tensor", "shape", "dtype", *_NUMBERS, "unhashed", "shares", "file", "skipped"]


def inspect_checkpoint(path: str | Path) -> pd.DataFrame:
    """What hashing would find in each tensor of a checkpoint of any architecture: the network is not built.

    One tensor is in memory at a time. Beyond what Python, torch and the libraries take, the peak is four copies of
    the largest tensor in float32 at most, and 0.3 GB in the rare case that a tensor's values spread over 300,000
    bandwidths. Nothing is sampled.

    Arguments:
        path: a file of safetensors or of ``torch.save``, whatever its name, the index of a sharded one
            (``model.safetensors.index.json``), or the folder that holds it. Nothing in a pickle is ever called, and
            what it says of sizes is checked before it is believed.

    Returns:
        One row a tensor, in the file's order (of ``.safetensors``, by name); every cell is filled.

        - ``tensor``, ``shape`` ("64x3x7x7"), ``dtype``, ``file``; ``weights``: how many elements, 0 for what is no
          weight of the network (an optimizer's tensors, say), which is ``skipped``; ``zeros``: how many are exactly
          zero (they need no multiplication, and no other number of hashing counts them).
        - ``distinct_before``: how many values they take. ``distinct``: how many after ``hash_weights`` with its
          defaults (the modes of the density at bandwidth "silverman/8"); ``error``: its relative L2 error.
        - ``modes``: those of ``estimate_density``, whether or not the tensor is hashed.
        - ``duplicates``: rows along the first axis that equal a row before them, not hashed; 0 for one axis.
        - ``expected``, ``measured``: multiplications left when each input channel is multiplied once by each distinct
          weight that it meets (RED++'s unit "channel"), summed over the channels: by chance (``expected_unique`` of
          the hashed weights without replacement), and counted. Without splitting there are ``weights``. A tensor of
          two or more axes is taken as (out, in, \\*kernel). A file does not say whether a layer is grouped or
          transposed: a depthwise weight counts as one input channel. 0 for one axis.
        - Of a weight beside which the file holds the scales of its rows (``conv1.out_scale``, see ``hash_network``),
          all numbers but ``duplicates`` are those of its codes: the weight over its row's scale.
        - ``entropy``: Shannon's, in bits a weight, of the hashed values, or of the values where none are hashed.
        - ``unhashed``: why a tensor is measured but not hashed: it has one axis (biases and norms are left alone by
          ``hash_network`` too), is constant, or looks hashed already; or it has more than a million weights and so
          narrow a bandwidth that more than a sixteenth of them would be modes; the modes are then the gaps wider
          than 2.5 bandwidths. Its ``error`` is 0, ``distinct`` as before.
        - ``shares``: the tensor before it whose bytes it shares (tied weights), or "".
        - ``skipped``: why a tensor is not measured (integers, a scalar, nothing in it, NaN), or ""; its numbers are 0.

        ``frame.attrs["left_out"]`` holds by name what is no tensor (an argparse.Namespace, say; there is a warning),
        ``frame.attrs["beside"]`` how many tensors and bytes are an optimizer's or another network's.

        What is measured how is our choice, as are the names; the method is RED's and RED++'s (arXiv 2105.14797,
        2110.01397).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, a folder without an index, truncated, lies about its tensors, or wants to run
            code, which is named and not run; the message says where and what would be right.
        OSError: it cannot be read.

    Example:
        >>> from redlab.paths import shipped
        >>> frame = inspect_checkpoint(shipped("digits/mlp.safetensors"))
        >>> frame.loc[frame["shape"] == "10x128", ["tensor", "weights"]].to_numpy().tolist()
        [['classifier.weight', 1280]]
    """
    listing = list_checkpoint(path)
    scales = {entry.name: entry for entry in listing.entries if entry.name.endswith(OUT_SCALE) and not entry.skipped}
    rows = [_row(entry, scales.get(_scale_name(entry.name))) for entry in progress(listing.entries, "inspecting")]
    frame = pd.DataFrame(rows, columns=COLUMNS).astype(_NUMBERS)
    warn_left_out(path, listing.left_out)
    frame.attrs["left_out"] = listing.left_out
    frame.attrs["beside"] = groups_beside(listing.entries)
    return frame


def _scale_name(name: str) -> str:
    """What the scales of a weight's rows are called: conv1.weight -> conv1.out_scale."""
    return name.removesuffix("weight") + OUT_SCALE if name.endswith("weight") else ""


def _row(entry: Entry, scales: Entry | None) -> dict:
    row = {
        "tensor": entry.name,
        "shape": "x".join(map(str, entry.shape)) or "scalar",
        "dtype": str(entry.dtype).removeprefix("torch."),
        **dict.fromkeys(_NUMBERS, 0),
        "weights": 0 if entry.role == BESIDE else entry.size,
        "unhashed": "",
        "shares": entry.shares,
        "file": entry.file.name,
        "skipped": entry.skipped or _why_skipped(entry),
    }
    if row["skipped"]:
        return row
    try:
        return row | _measure(entry, scales)
    except NotFinite as bad:
        return row | {"skipped": f"it holds {bad.nan:,} NaN and {bad.infinite:,} infinite values"}


def _why_skipped(entry: Entry) -> str:
    if not entry.dtype.is_floating_point:
        return "no real floating-point numbers"
    if "_x2" in str(entry.dtype):
        return "packed: two numbers an element"
    if not entry.shape:
        return "a scalar"
    return "" if entry.size else "empty"


def _measure(entry: Entry, scales: Entry | None) -> dict:
    weight = entry.read()
    found = measure_values(weight if scales is None else _codes(weight, scales))
    names = ("zeros", "distinct_before", "modes", "distinct", "error", "entropy", "unhashed")
    row = {name: getattr(found, name) for name in names}
    if weight.ndim < 2:
        return row
    inputs = entry.shape[1]
    row |= {"duplicates": count_duplicates(weight), "measured": count_products(found.hashed)}
    return row | {"expected": inputs * found.expected(entry.size // inputs)}


def _codes(weight: Tensor, scales: Entry) -> Tensor:
    """The weight over the scales of its outputs, first axis or second (transposed); itself where they do not fit."""
    fits = weight.ndim > 1 and len(scales.shape) == 1 and scales.shape[0] in weight.shape[:2]
    if not (fits and scales.dtype.is_floating_point):
        return weight
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    axis = int(len(weight) != scales.shape[0])
    own = scales.read().to(wide).reshape(*[1] * axis, -1, *[1] * (weight.ndim - 1 - axis))
    return (weight.to(wide) / own).to(weight.dtype) if (own.isfinite() & (own != 0)).all() else weight


def wide_tensors(frame: pd.DataFrame) -> pd.Series:
    """Which rows of ``inspect_checkpoint`` were measured and have input channels: two axes or more."""
    return (frame["skipped"] == "") & frame["shape"].str.contains("x", regex=False)


def summarise(frame: pd.DataFrame) -> list[str]:
    """``inspect_checkpoint`` in a few lines: what was hashed, what is left, what was not measured and why."""
    hashed = frame[(frame["unhashed"] == "") & (frame["skipped"] == "")]
    wide = frame[wide_tensors(frame)]
    lines = [f"{len(frame)} tensor{'s' * (len(frame) != 1)}, {frame['weights'].sum():,} weights; {len(hashed)} hashed"]
    if len(hashed):
        before, after, error = hashed["distinct_before"].sum(), hashed["distinct"].sum(), hashed["error"]
        lines.append(f"distinct values of those hashed: {before:,} -> {after:,}")
        lines.append(f"their relative error: {error.mean():.3g} on average, {error.max():.3g} at most")
    if len(wide):
        weights, repeated = wide["weights"].sum(), wide["duplicates"].sum()
        products = max(weights - wide["zeros"].sum(), 1)
        measured, expected = (wide[name].sum() / products for name in ("measured", "expected"))
        bits = (wide["entropy"] * wide["weights"]).sum() / weights
        lines.append(
            f"multiplications left, each distinct one of a channel once: {measured:.2%}, by chance {expected:.2%}"
        )
        lines.append(f"duplicate rows: {repeated:,}; entropy: {bits:.2f} bits a weight")
    for column, what in (("unhashed", "measured, not hashed"), ("skipped", "skipped")):
        for reason, rows in frame[frame[column] != ""].groupby(column, sort=False):
            lines.append(f"{what}: {_named(rows['tensor'])} ({reason})")
    lines += [f"not counted: {printable(name)} ({what})" for name, what in frame.attrs.get("beside", {}).items()]
    lines += [f"left out: {printable(name)} ({what})" for name, what in frame.attrs.get("left_out", {}).items()]
    return lines


def printable(name: str) -> str:
    """A tensor's name for people: what a terminal would obey or no font has stands as its escape, \\x1b say."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def _named(names: pd.Series) -> str:
    names = names.map(printable)
    return ", ".join(names) if len(names) <= 3 else f"{names.iloc[0]}, {names.iloc[1]} and {len(names) - 2} others"
