"""Hash rules: how each one parts the line of weights into cells, and the value of each cell.

Every rule turns one number, its *coarseness*, into cells: the bandwidth, the step, or the range over the levels. A
larger number makes fewer cells. ``coarsest`` searches the number for a bound on the error or the number of values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy import ndarray

from redlab.hashing.cells import Cells, round_up
from redlab.hashing.density import density_of, parse_bandwidth, resolve_bandwidth
from redlab.hashing.power import MOST as power_most
from redlab.hashing.power import power
from redlab.hashing.residual import MOST as residual_most
from redlab.hashing.residual import residual
from redlab.hashing.row_scales import SCALES
from redlab.hashing.spaced import Spaced
from redlab.hashing.uniform import CLIPS, Grid, fewest, uniform
from redlab.hashing.vector import Vector
from redlab.options import check_number

RULES = ("kde", "uniform", "lloyd", "power", "residual")
# Of rules whose values one whole number makes, the function and the largest number.
_SPACED = {"power": (power, power_most), "residual": (residual, residual_most)}
_FINER = dict.fromkeys(_SPACED, "uniform")  # where these can't keep a bound
ROUNDINGS = ("nearest", "balanced")


@dataclass(frozen=True)
class Rule:
    """The options of ``hash_weights``, checked once; ``cells`` applies them to a layer."""

    rule: str = "kde"
    bandwidth: str | float = "silverman/8"
    max_error: float | None = None
    levels: int | None = None
    contrast: float = 0.0
    representative: str = "mode"
    rounding: str = "nearest"
    scale: str = "none"
    clip: str = "max"

    def __post_init__(self) -> None:
        parse_bandwidth(self.bandwidth)
        check_number("contrast", self.contrast, below=1)
        if self.rule not in RULES:
            raise ValueError(f"unknown rule {self.rule!r}: use one of {', '.join(RULES)}")
        if self.representative not in ("mode", "mean"):
            raise ValueError(f"unknown representative {self.representative!r}: use mode or mean")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"unknown rounding {self.rounding!r}: use one of {', '.join(ROUNDINGS)}")
        if self.scale not in SCALES:
            raise ValueError(f"unknown scale {self.scale!r}: use one of {', '.join(SCALES)}")
        if self.clip not in CLIPS:
            raise ValueError(f"unknown clip {self.clip!r}: use one of {', '.join(CLIPS)}")
        if self.clip == "mse" and self.rule != "uniform":
            raise ValueError(f"clip 'mse' belongs to the rule uniform, not to {self.rule}")
        if self.max_error is not None and not 0 < self.max_error < np.inf:
            raise ValueError(f"max_error must be a positive number (0.05 is 5 %), not {self.max_error}")
        if self.levels is not None and (self.rule == "kde" or self.levels < 1):
            raise ValueError(
                f"levels must be at least 1 and belongs to rules other than kde, not be {self.levels} with the "
                f"rule {self.rule}"
            )

    def options(self) -> dict:
        """What differs from the defaults, the rule always: plain data."""
        default = asdict(Rule())
        return {name: value for name, value in asdict(self).items() if name == "rule" or value != default[name]}

    def cells(self, vector: Vector) -> Cells:
        """The cells for a layer's weights, which are not all equal; for codes where its rows get scales."""
        if self.rule in _SPACED:
            made: Cells | None = self._of_grid(Spaced(vector, self.scale == "row", *_SPACED[self.rule]))
        elif self.rule == "uniform" and (self.scale, self.clip) != ("none", "max"):
            made = self._of_grid(Grid(vector, self.scale == "row", self.clip == "mse"))
        elif self.scale == "row":
            made = self._of_codes(vector.by_size())
        else:
            return self._searched(vector)
        if made is None or (self.bound is not None and made.error() > self.bound):
            return replace(self, scale="none", clip="max", rule=_FINER.get(self.rule, self.rule)).cells(
                vector
            )  # finer than codes of few bits can be
        return made

    @property
    def bound(self) -> float | None:
        """The largest error, where that decides."""
        return self.max_error if self.levels is None else None

    def _of_grid(self, grid: Grid | Spaced) -> Cells:
        """The fewest values that keep the bound, or as many as there may be."""
        make = lambda k: self._finished(grid.cells(k))  # noqa: E731
        if self.bound is None:
            levels = self.levels or self._modes(grid.vector.by_size() if grid.by_row else grid.vector)
            return make(max(1, min(grid.most, (levels - 1) // 2)))
        k = fewest(grid.error, self.bound, grid.start(self.bound), grid.most)
        if (self.representative, self.rounding) != ("mode", "nearest"):  # searched from there, since it takes time
            k = fewest(lambda k: make(k).error(), self.bound, k, grid.most)
        return make(k)

    def _of_codes(self, codes: Vector) -> Cells | None:
        """The cells of codes; None where no codes of so few bits keep the bound."""
        if codes.low == codes.high:  # the weights of a row are equal
            return Cells.of(codes, codes.weights[:0], np.array([codes.low])).as_codes()
        hopeless = self.bound is not None and self.bound < 2 * codes.least_error
        return None if hopeless else self._searched(codes)

    def _modes(self, vector: Vector) -> int:
        return cells_of(vector, "kde", resolve_bandwidth(vector, self.bandwidth), self.contrast).used

    def _searched(self, vector: Vector) -> Cells:
        if self.bound is not None:
            bound = self.bound
            start = bound * vector.spread  # where sampling noise dominates, a KDE errs by 2h/sd
            fits = lambda made: made.error() <= bound  # noqa: E731
            cells, h = coarsest(lambda h: self._at(vector, h), start, fits)
            if self.rounding == "balanced":  # searched from there, since balancing takes time
                cells, _ = coarsest(lambda h: self._at(vector, h).balanced(), h, fits, 1.1)
            return cells
        cells = self._of_size(vector)
        return cells.balanced() if self.rounding == "balanced" else cells

    def _of_size(self, vector: Vector) -> Cells:
        """The cells of ``bandwidth``, or as many as there may be levels."""
        if self.rule == "kde":
            return self._at(vector, resolve_bandwidth(vector, self.bandwidth))
        levels = self.levels or self._modes(vector)
        if self.rule == "lloyd":
            return lloyd(vector, levels).as_codes()
        # The finest step that needs no more values than allowed: the search runs over reciprocals of the step.
        fits = lambda made: made.used <= levels  # noqa: E731
        return coarsest(lambda finer: self._at(vector, 1 / finer), 1 / vector.spread, fits)[0]

    def _at(self, vector: Vector, coarseness: float) -> Cells:
        return self._represented(cells_of(vector, self.rule, coarseness, self.contrast))

    def _represented(self, made: Cells) -> Cells:
        return (made.at_means() if self.representative == "mean" else made).as_codes()

    def _finished(self, made: Cells) -> Cells:
        made = self._represented(made)
        return made.balanced() if self.rounding == "balanced" else made


def cells_of(vector: Vector, rule: str, coarseness: float, contrast: float = 0.0) -> Cells:
    """The cells of ``rule`` at a coarseness: the bandwidth (kde), the step (uniform), range / levels (lloyd)."""
    if rule == "kde":
        density = density_of(vector, coarseness, contrast)
        return Cells.of(vector, round_up(density.cuts, vector.weights.dtype), density.modes).at_lone_weights()
    if rule == "uniform":
        return uniform(vector, coarseness)
    return lloyd(vector, max(1, round((vector.high - vector.low) / coarseness)))


def lloyd(vector: Vector, levels: int) -> Cells:
    """One-dimensional k-means by Lloyd's iteration (1982): the better of two starts, each carried to its local optimum.

    One start spreads levels in proportion to the cube root of the density, as an optimal fine quantizer does (Panter &
    Dite 1951), the other evenly, as the uniform rule does: small layers need it. The starts are our choice.
    """
    ordered = np.sort(vector.weights)
    low, high = map(float, ordered[[0, -1]])  # in float32 their difference may overflow
    even = np.linspace(low, high, 2 * levels + 1)[1::2]
    centres = (_iterate(ordered, start) for start in (_panter_dite(ordered, levels), even))
    return min((Cells.of(vector, _between(c, ordered.dtype), c).at_means() for c in centres), key=Cells.error)


def _iterate(ordered: ndarray, centres: ndarray, rounds: int = 300) -> ndarray:
    """Centres to means of their cells, until no edge passes a weight; sorted weights make a round O(levels log N)."""
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
    ends = None
    for _ in range(rounds):
        moved = np.concatenate([[0], np.searchsorted(ordered, _between(centres, ordered.dtype)), [ordered.size]])
        if ends is not None and np.array_equal(moved, ends):
            break
        ends = moved[np.concatenate([[True], np.diff(moved) > 0])]  # an empty cell is removed
        centres = np.diff(sums[ends]) / np.diff(ends)
    return centres


def _between(centres: ndarray, dtype: np.dtype) -> ndarray:
    return round_up(0.5 * (centres[1:] + centres[:-1]), dtype)


def _panter_dite(ordered: ndarray, levels: int) -> ndarray:
    counts, places = np.histogram(ordered.astype(np.float64), bins=4096)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    return np.interp((np.arange(levels) + 0.5) / levels * share[-1], share, places)


def coarsest(
    make: Callable[[float], Cells], start: float, fits: Callable[[Cells], bool], factor: float = 2.0
) -> tuple[Cells, float]:
    """``make`` of the largest number that fits, to half a per cent, and that number.

    The number is doubled or halved from ``start`` (or by another factor), then bisected. A larger one may fit as well,
    since the condition may change back and forth. Where nothing within 2^60 fits, the smallest number tried is taken.
    """
    good, bad, best, number = 0.0, np.inf, None, start
    while bad > 1.005 * good and 2.0**-60 < number / start < 2.0**60:
        made = make(number)
        if fits(made):
            good, best = number, made
        else:
            bad = number
        number = good * factor if bad == np.inf else bad / factor if good == 0.0 else float(np.sqrt(good * bad))
    return (best, good) if best is not None else (made, bad)
