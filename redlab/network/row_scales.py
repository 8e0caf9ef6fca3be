"""Rows of a weight as scale times codes: W[o] = s_o C[o], with one codebook for the codes of all rows.

Hashing with ``scale="row"`` leaves the scales in a buffer beside the weight. Later steps may change the weight, so the
buffer is a hint: a row is taken apart only where scale times codes gives it back to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from redlab.network.layers import Layer, as_floats, count_distinct, out_scale, rows_of


def rows_first(weight: Tensor, module: nn.Module) -> Tensor:
    """A weight with its outputs along the first axis, and back again; transposed convolutions alone differ in it."""
    if not getattr(module, "transposed", False):
        return weight
    return weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)


def factor_rows(rows: Tensor, scales: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Codes and scales with ``codes * scales == rows`` to the bit, on the CPU.

    Arguments:
        rows: (n_out, ...), of any floating dtype.
        scales: (n_out,), what each row is thought to be a multiple of, or None.

    A code is a number short enough that its product with a scale of 8 bits is exact; in 16 bits and fewer any is.

    Returns:
        The codes, like ``rows``, and the scales (n_out,) with 1 for each row that keeps its own values, as its scale
        doesn't give it back, or it is all zero; None where that is every row.
    """
    rows = rows.detach().cpu()
    if scales is None or scales.shape != rows.shape[:1]:
        return rows, None
    wide, scales = as_floats(rows), scales.detach().cpu().to(rows.dtype)
    factors = as_floats(scales)
    factors = torch.where(factors.isfinite() & (factors > 0), factors, 1)
    along = factors.view(-1, *[1] * (rows.ndim - 1))
    codes = (wide / along).to(rows.dtype)
    found = as_floats(codes)
    same = (as_floats((found * along).to(rows.dtype)) == wide) & _is_short(found)
    fits = (factors != 1) & same.flatten(1).all(1) & (wide != 0).flatten(1).any(1)
    if not fits.any():
        return rows, None
    return torch.where(fits.view(along.shape), codes, rows), torch.where(fits, factors, 1).to(rows.dtype)


def _is_short(codes: Tensor) -> Tensor:
    """Whether the last 8 bits of a code's significand are 0, as hashing leaves them for the scale.

    Rounding gives most quotients of any two numbers back, but only to long ones.
    """
    far = codes * 257  # Veltkamp's split
    return far - (far - codes) == codes


def multiply_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """The rows that ``factor_rows`` took apart, to the bit; whatever has the scale 1 stays as it is."""
    along = scales.view(-1, *[1] * (codes.ndim - 1))
    return torch.where(along == 1, codes, (as_floats(codes) * as_floats(along)).to(codes.dtype))


def count_codes(layer: Layer) -> dict[str, int]:
    """What tables say of a layer: ``distinct`` values of its codes, and how many rows have ``scales`` other than 1."""
    if not layer.size:
        return {"distinct": 0, "scales": 0}
    codes, scales = factor_rows(rows_of(layer, layer.weight), out_scale(layer))
    return {"distinct": count_distinct(codes), "scales": 0 if scales is None else int((scales != 1).sum())}
