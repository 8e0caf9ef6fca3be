"""Data-free hashing of one tensor: every weight becomes the mode of the density that it belongs to.

RED (NeurIPS 2021, arXiv 2105.14797) and RED++ (TPAMI 2022, arXiv 2110.01397).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from numpy import ndarray

from redlab.hashing.cells import Cells
from redlab.hashing.row_scales import Precision
from redlab.hashing.rules import Rule
from redlab.hashing.vector import Vector, as_vector, binary_scale, error_of, in_parts
from redlab.options import plain_options

_FEW = 256  # a layer of so few distinct values, and at least four weights to each, was hashed before


@dataclass(frozen=True, eq=False)
class Hashed:
    """A hashed tensor.

    Attributes:
        values: the tensor with every weight replaced; shape, dtype, device and container of the one passed in.
        codebook: (m,) the distinct values, ascending; of the codes, where rows have scales.
        modes: how many cells of the rule hold weights (exact zeros have no cell: they stay zero).
        unchanged: why the weights were left as they are, or "".
        scales: (rows,) with ``scale="row"``, a row's values over the codebook's; 1 for zero rows and rows left alone.
        step: what all values of the codebook are whole multiples of, of the rule "uniform" with its own values.

    Example:
        >>> hashed = hash_weights(torch.tensor([0.1, 0.1, 0.1, 0.5]), bandwidth=0.05)
        >>> hashed.codes.tolist(), len(hashed.codebook)
        ([0, 0, 0, 1], 2)
        >>> torch.equal(hashed.codebook[hashed.codes.long()], hashed.values)
        True
    """

    values: torch.Tensor | ndarray
    codebook: torch.Tensor | ndarray
    modes: int
    unchanged: str = ""
    scales: torch.Tensor | ndarray | None = None
    step: float | None = None

    @cached_property
    def codes(self) -> torch.Tensor | ndarray:
        """The index of each value in the codebook, in the smallest unsigned dtype; ``codebook[codes] == values``.

        With scales ``codebook[codes] * scales == values``, row by row: bit for bit.
        """
        values = as_numpy(self.values)
        if self.scales is not None:
            values = (values.reshape(len(self.scales), -1) / as_numpy(self.scales)[:, None]).reshape(values.shape)
        found = np.searchsorted(as_numpy(self.codebook), values)
        found = np.asarray(found, np.min_scalar_type(max(len(self.codebook) - 1, 0)))  # a scalar's, too
        return torch.from_numpy(found).to(self.values.device) if isinstance(self.values, torch.Tensor) else found

    def frame(self) -> pd.DataFrame:
        """A tidy frame for ``plot_values``: each value of the codebook, and how many ``weights`` took it."""
        counts = np.bincount(as_numpy(self.codes).ravel(), minlength=len(self.codebook))
        return pd.DataFrame({"value": as_numpy(self.codebook), "weights": counts})


@plain_options
def hash_weights(
    weights: torch.Tensor | ndarray,
    rule: str = "kde",
    bandwidth: str | float = "silverman/8",
    max_error: float | None = None,
    levels: int | None = None,
    contrast: float = 0.0,
    representative: str = "mode",
    force: bool = False,
    rounding: str = "nearest",
    scale: str = "none",
    clip: str = "max",
) -> Hashed:
    """Replace each weight by the value of its cell: hash(w) = M_k for w in [m_{k-1}, m_k).

    Exact zeros stay zero. They belong to no cell and change nothing for the others: neither bandwidth nor ``levels``.
    A cell with a single distinct weight keeps it exactly. Nothing changes where all weights are equal, or where they
    look hashed already (at most 256 distinct values, and at most a quarter as many as weights).

    Arguments:
        weights: float8, float16, bfloat16, float32 or float64 of any shape.
        rule: "kde" (the papers: modes and cuts of ``estimate_density``), "uniform" (round(w / step) step), "lloyd"
            (1-D k-means), "power" (PowerQuant, arXiv 2301.09858) or "residual" (REx, arXiv 2203.14645).
        bandwidth, contrast: see ``estimate_density``. The other rules take as many values as it has modes.
        max_error: instead of a bandwidth, the largest relative L2 error ||hash(W) - W|| / ||W||. The coarsest cells
            within it are searched (to half a per cent of the bandwidth or step). Our choice.
        levels: for all rules but kde: the most values for the weights that are not zero; of "residual", for each of
            its two levels.
        representative: "mode" (the papers; docs/defaults.md), or "mean" of the cell's own weights (our choice), which
            never has a larger L2 error in the same cells. lloyd's values are means anyway.
        force: hash even what looks hashed.
        rounding: "nearest": each weight takes the value of its own cell (the papers). "balanced": some take that of
            the cell on their other side, so that the errors of each kernel, then of each row, cancel (SQuant's idea,
            our choice: see ``balancing``). The error stays within ``max_error``.
        scale: "none": all weights share the codebook's values. "row": W[o] = s_o C[o] for each row o along the first
            axis; the codes C are hashed in place of W, with one codebook for all rows. s_o is the root mean square of
            the row; of uniform, power and residual, what puts its largest weight on the largest code. Errors are
            those of W, a bandwidth that is a number is in units of s_o, and ``levels`` are (L - 1) // 2 values on
            either side of zero, at least one. Our choice: see ``row_scales`` for how exact it is. Where codes cannot
            keep ``max_error``, the scales are 1.
        clip: of the rule uniform, which values its grid covers. "max": all weights. "mse": the grid of so many values
            with the smallest squared error, of the layer or with ``scale="row"`` of each row; what lies beyond
            takes its last value. Our choice, as is the search.

    Raises:
        TypeError: integer, bool or complex weights, or neither tensor nor array; an option of another kind.
        ValueError: no weights, NaN or inf among them, an unknown or contradictory option.

    Example:
        >>> weights = torch.tensor([0.10, 0.11, 0.12, -0.30, -0.31])
        >>> hashed = hash_weights(weights, bandwidth=0.05, representative="mean")
        >>> hashed.codebook, hashed.codes.tolist()
        (tensor([-0.3050,  0.1100]), [1, 1, 1, 0, 0])
    """
    options = (rule, bandwidth, max_error, levels, contrast, representative, rounding, scale, clip)
    return hash_vector(as_vector(weights), weights, Rule(*options), force)


def relative_error(before: ndarray, after: ndarray) -> float:
    """||after - before|| / ||before|| of two vectors in float64; 0 where ``before`` is zero and nothing changed."""
    return error_of(zip(in_parts(before), in_parts(after), strict=True), float(max(-before.min(), before.max())))


def hash_vector(vector: Vector, weights: torch.Tensor | ndarray, rule: Rule, force: bool = False) -> Hashed:
    """``hash_weights`` with options that are checked, of weights whose ``vector`` is known."""
    small, rule, exponent = in_range(vector, rule)
    if reason := why_unchanged(small, force):
        return left_alone(vector, weights, reason, _ones(vector, weights) if rule.scale == "row" else None)
    cells = rule.cells(small)
    values = representatives(cells, weights)
    used = values[cells.holds]
    found, codebook = cells.assign(values), _with_zero(used, small)
    own = _ones(vector, weights) if rule.scale == "row" else None
    codebook, step = np.unique(codebook), cells.step if rule.rule == "uniform" else None
    if (rows := cells.vector.rows) is not None:
        scales = _within(rows.scales, small.precision, found)
        found = (found.reshape(len(scales), -1) * scales.astype(found.dtype)[:, None]).ravel()
        own = _like(np.where(np.diff(rows.ends) > 0, np.ldexp(scales, exponent), 1.0), weights)
    else:
        codebook, step = np.ldexp(codebook, exponent), step and float(np.ldexp(step, exponent))
    found = np.ldexp(found, exponent) if exponent else found
    return Hashed(_like(found, weights).reshape(weights.shape), _like(codebook, weights), len(used), "", own, step)


def _ones(vector: Vector, weights: torch.Tensor | ndarray) -> torch.Tensor | ndarray:
    """The scales of rows that have none."""
    return _like(np.ones(len(vector.ends) - 1), weights)


def left_alone(
    vector: Vector, weights: torch.Tensor | ndarray, reason: str, scales: torch.Tensor | ndarray | None = None
) -> Hashed:
    """Weights that stay as they are, and why; ``vector`` holds their codes, where their rows have scales."""
    codebook = np.unique(vector.weights)
    kept = weights.detach().clone() if isinstance(weights, torch.Tensor) else np.array(weights)
    return Hashed(kept, _like(_with_zero(codebook, vector), weights), len(codebook), reason, scales)


def _within(scales: ndarray, precision: Precision, codes: ndarray) -> ndarray:
    """The scales (rows,), smaller where a product with the codes would leave the range of the weights' type."""
    if scales.max() * max(-codes.min(), codes.max()) <= precision.largest:
        return scales
    tops = np.abs(codes.reshape(len(scales), -1)).max(axis=1)
    over = tops * scales > precision.largest
    return np.where(over, precision.round(precision.largest / np.where(over, tops, 1.0), np.floor), scales)


def in_range(vector: Vector, rule: Rule) -> tuple[Vector, Rule, int]:
    """The two where squares neither overflow nor vanish, and the exponent of two that leads back: mostly 0."""
    if not (exponent := binary_scale(vector)):
        return vector, rule, 0
    if not isinstance(rule.bandwidth, str) and rule.scale == "none":
        rule = replace(rule, bandwidth=float(np.ldexp(rule.bandwidth, -exponent)))
    return vector.times_two_to(-exponent), rule, exponent


def _with_zero(codebook: ndarray, vector: Vector) -> ndarray:
    """The codebook of the weights, with zero where exact zeros stand beside them."""
    return np.union1d(codebook, codebook.dtype.type(0)) if vector.zeros else codebook


def why_unchanged(vector: Vector, force: bool = False) -> str:
    """Why hashing leaves weights as they are, or ""."""
    if vector.low == vector.high:
        return "all its weights are equal" + (" or zero" if vector.zeros else "")
    # More distinct values in a sample than a hashed layer may have: no need to sort all weights.
    if force or len(np.unique(vector.weights[:: max(1, vector.size // 1024)])) > _FEW:
        return ""
    hashed = vector.distinct <= _FEW and vector.distinct <= vector.size / 4
    zero = " and zero" if vector.zeros else ""
    return f"already hashed: {vector.distinct} distinct values{zero}" if hashed else ""


def representatives(cells: Cells, weights: torch.Tensor | ndarray) -> ndarray:
    """The cells' values as the weights' dtype holds them, in the dtype of the cells' edges.

    Where rounding would carry a value out of its cell, one of the cell's own weights stands for it.
    """
    rounded = as_numpy(_like(cells.centres, weights)).astype(cells.edges.dtype)
    if cells.vector.rows is not None:
        return rounded + 0  # one of the cell's weights would be no code; no -0
    home = np.searchsorted(cells.edges, rounded, side="right") == np.arange(len(rounded))
    home &= np.isfinite(rounded)  # the last multiple of a step may be more than the dtype holds
    return np.where(home | ~cells.holds, rounded, cells.filling.member)


def _like(array: ndarray, weights: torch.Tensor | ndarray) -> torch.Tensor | ndarray:
    """``array`` in the container, dtype and device of ``weights``."""
    if isinstance(weights, torch.Tensor):
        return torch.from_numpy(np.ascontiguousarray(array)).to(weights.device, weights.dtype)
    return array.astype(weights.dtype, copy=False)


def as_numpy(tensor: torch.Tensor | ndarray) -> ndarray:
    """As a numpy array; bfloat16 and float8, which numpy does not have, as float32."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    tensor = tensor.detach().cpu()
    foreign = tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    return (tensor.float() if foreign else tensor).numpy()
