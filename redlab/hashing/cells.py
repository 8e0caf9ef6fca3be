"""Cells of the real line, a value each: where hashing sends the weights of one layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from redlab.hashing import passes
from redlab.hashing.balancing import balance
from redlab.hashing.vector import Vector, error_of, in_parts


@dataclass(frozen=True, eq=False)
class Filling:
    """Which cell each weight is in, and what is in each cell.

    Attributes:
        weights: (N,) what was sorted into cells.
        codes: (N,) the cell of each weight.
        member: (c,) one of the weights in each cell, NaN in an empty one.
        lone: (c,) whether all weights of the cell are equal.
    """

    weights: ndarray
    codes: ndarray
    member: ndarray
    lone: ndarray

    @cached_property
    def tally(self) -> tuple[ndarray, ndarray]:
        """Count and sum of each cell's weights."""
        return passes.sums(self.weights, self.codes, len(self.member))


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of the real line, a value each, filled with the weights of one layer.

    The weights 1 1 2 7 9 with the edges 1.5 and 4 have the codes 0 0 1 2 2. With the centres 1.2, 2.1 and 8.5 they
    become 1.2 1.2 2.1 8.5 8.5; ``at_lone_weights`` makes the centres 1, 2 and 8.5, ``at_means`` 1, 2 and 8.

    Attributes:
        vector: the N weights, exact zeros not among them.
        edges: (c - 1,) ascending, of the same dtype: cell k holds the weights in [edges[k-1], edges[k]).
        centres: (c,) float64, the value of each cell.
        filling: which weights are in which cell.
        step: what the centres are whole multiples of, if they are.
    """

    vector: Vector
    edges: ndarray
    centres: Float64[ndarray, " c"]
    filling: Filling
    step: float | None = None

    @classmethod
    def of(cls, vector: Vector, edges: ndarray, centres: ndarray, step: float | None = None) -> Cells:
        """Cells filled with the weights of ``vector``."""
        sorted_in = passes.assort(vector.weights, vector.low, vector.high, edges)
        return cls(vector, edges, centres, Filling(vector.weights, *sorted_in), step)

    @property
    def holds(self) -> ndarray:
        """(c,) which cells hold weights."""
        return ~np.isnan(self.filling.member)

    @property
    def used(self) -> int:
        """How many cells hold weights."""
        return int(self.holds.sum())

    def error(self) -> float:
        """Relative L2 error ||hash(W) - W|| / ||W||, of weights, not of codes; exact zeros would add nothing to it."""
        exact = self.filling.lone & (self.filling.member == self.centres)
        if (exact | ~self.holds).all():
            return 0.0  # every weight keeps its value; below, digits cancel near 1e-8
        rows, filling = self.vector.rows, self.filling
        count, total = rows.sums(filling.weights, filling.codes, len(self.centres)) if rows else filling.tally
        energy = self.vector.energy
        squares = energy - float((2 * self.centres * total - count * self.centres**2).sum())
        return float(np.sqrt(max(squares, 0.0) / energy)) if energy else 0.0

    def error_at(self, values: ndarray) -> float:
        """The error where cell k takes the value ``values[k]``, to the last digit."""
        parts = zip(in_parts(self.vector.weights), in_parts(self.filling.codes), strict=True)
        scale = max(-self.vector.low, self.vector.high)
        return error_of(((weights, values[codes]) for weights, codes in parts), scale)

    def at_means(self) -> Cells:
        """The same cells, each with the mean of its own weights as its value."""
        count, total = self.filling.tally
        return replace(self, centres=np.divide(total, count, out=self.centres.copy(), where=count > 0), step=None)

    def at_lone_weights(self) -> Cells:
        """The same cells; a cell with a single distinct weight keeps it exactly."""
        filling = self.filling
        return replace(self, centres=np.where(filling.lone, filling.member.astype(np.float64), self.centres))

    def as_codes(self) -> Cells:
        """The same cells, with values that codes may have where their rows have scales."""
        return self if self.vector.rows is None else replace(self, centres=self.vector.rows.rounded(self.centres))

    def balanced(self) -> Cells:
        """The same cells, some weights in the one on their other side: see ``balancing``."""
        vector, old, beyond = self.vector, self.filling, len(self.centres)
        places = vector.whole(vector.weights), vector.whole(old.codes, beyond)  # zeros keep their places in the rows
        codes = balance(*places, self.centres, self.holds, vector.shape)
        codes = codes if vector.live is None else codes[vector.live]
        count = np.bincount(codes, minlength=beyond)
        member = np.where(count > 0, old.member, np.nan).astype(old.member.dtype)
        lone = old.lone & (count == np.bincount(old.codes, minlength=beyond))
        return replace(self, filling=Filling(vector.weights, codes, member, lone))

    def assign(self, values: ndarray) -> ndarray:
        """Each weight's value out of ``values`` (c,), in the order of the tensor; exact zeros stay zero."""
        codes, live = self.filling.codes, self.vector.live
        if live is None:
            return passes.take(values, codes)
        found, taken = np.zeros(live.size, values.dtype), 0
        for part, own in zip(in_parts(found), in_parts(live), strict=True):  # no copy of all values
            count = int(np.count_nonzero(own))
            part[own] = values[codes[taken : taken + count]]
            taken += count
        return found


def round_up(cuts: ndarray, dtype: np.dtype) -> ndarray:
    """Cuts in the weights' dtype such that w >= cut says the same as in float64."""
    edges = cuts.astype(dtype)
    return np.where(edges.astype(np.float64) < cuts, np.nextafter(edges, dtype.type(np.inf)), edges)
