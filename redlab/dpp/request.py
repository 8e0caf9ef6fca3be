"""The options of ``sparsify``, checked before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from redlab.dpp.draws import ESTIMATORS
from redlab.dpp.quantization import ACTIVATION_BITS, WEIGHT_BITS
from redlab.options import check_number, check_one_of, check_whole

GRANULARITIES = ("weight", "kernel", "filter", "tile")
STARTS = ("random", "magnitude")
Keep = float | int | Mapping[str, float | int]


@dataclass(frozen=True)
class Request:
    """The arguments of ``sparsify``.

    Raises:
        ValueError: one of them is out of range or unknown; the message says what is right.
    """

    keep: Keep
    granularity: str
    whole: tuple[str, ...]
    estimator: str
    tiles: int
    start: str
    noise: float
    weight_bits: int
    activation_bits: int
    learn: bool
    seed: int

    def __post_init__(self) -> None:
        known: dict[str, tuple] = {"granularity": GRANULARITIES, "estimator": ("auto", *ESTIMATORS), "start": STARTS}
        known |= {"weight_bits": WEIGHT_BITS, "activation_bits": ACTIVATION_BITS}
        for name, values in known.items():
            check_one_of(name, getattr(self, name), values)
        for keep in self.keep.values() if isinstance(self.keep, Mapping) else [self.keep]:
            _check_keep(keep)
        check_number("noise", self.noise)
        check_whole("tiles", self.tiles)

    @property
    def options(self) -> dict[str, Any]:
        """As plain data."""
        own = dict(vars(self))
        keep = self.keep
        own["keep"] = {k: _number(v) for k, v in keep.items()} if isinstance(keep, Mapping) else _number(keep)
        own["whole"] = list(self.whole)
        left_out = {"whole": not self.whole, "tiles": self.granularity != "tile"}
        return {name: value for name, value in own.items() if not left_out.get(name)}

    def count(self, name: str, n: int, tiles: int = 1) -> int | None:
        """k of ``n``, each of so many tiles; None: it stays whole."""
        if name in self.whole:
            return None
        keep = self.keep.get(name) if isinstance(self.keep, Mapping) else self.keep
        if not isinstance(keep, Integral):
            return None if keep is None else max(1, round(keep * n))
        if keep % tiles:
            raise ValueError(f"keep must be a multiple of tiles, {tiles}, not {keep}")
        return min(int(keep) // tiles, n)


def _number(keep: Any) -> int | float:
    """As JSON knows it: numpy has numbers of its own."""
    return int(keep) if isinstance(keep, Integral) else float(keep)


def _check_keep(keep: Any) -> None:
    whole = isinstance(keep, Integral) and not isinstance(keep, bool) and int(keep) >= 1
    if not (whole or (isinstance(keep, Real) and not isinstance(keep, Integral) and 0 < float(keep) <= 1)):
        raise ValueError(f"keep must be a share in (0, 1] or a whole number of at least 1, not {keep!r}")
