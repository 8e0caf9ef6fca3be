"""Masks as parts of a network: logits that learn which k of n to keep, where their ones and zeros stand, and which
masks a network has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import mul
from typing import Any

from torch import Tensor, nn

from redlab.channels.groups import Group
from redlab.dpp.draws import draw_mask
from redlab.dpp.quantization import masked_weight
from redlab.pruning.gates import slice_factor

TEMPERATURE = 5.0  # where METHODS' schedule starts


class Mask(nn.Module):
    """Exactly ``k`` ones in each row, drawn anew for every forward pass of the network; in eval mode the k largest.

    Arguments:
        logits: Phi (rows, n).
        estimator: "k_step" or "one_shot".
        noise: c, the scale of the Gumbel noise. Training multiplies it by ``calm``, at first 1.
        tiles: how many rows in turn belong to one unit of the layer.
    """

    def __init__(self, logits: Tensor, k: int, estimator: str, noise: float = 1.0, tiles: int = 1) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.k, self.estimator, self.noise, self.tiles = k, estimator, noise, tiles
        self.temperature, self.calm = TEMPERATURE, 1.0
        self._keeping = False
        self._drawn: Tensor | None = None

    def forward(self) -> Tensor:
        """(rows, n) of zeros and ones."""
        if self._drawn is not None:
            return self._drawn
        noise = self.calm * self.noise if self.training else 0.0
        drawn = draw_mask(self.logits, self.k, self.temperature, noise, self.estimator)
        self._drawn = drawn if self._keeping else None
        return drawn

    def keep(self, keeping: bool) -> None:
        """From now on, the same mask at every call, or a new one at each."""
        self._keeping, self._drawn = keeping, None

    def extra_repr(self) -> str:
        rows, n = self.logits.shape
        return f"{self.k} of {n} in {rows} rows, {self.estimator}, noise={self.noise:g}"


def masks_in(network: nn.Module) -> list[Mask]:
    """Every mask in ``network`` once, in the order of the modules."""
    return [module for module in network.modules() if isinstance(module, Mask)]


def begin_pass(network: nn.Module, _: Any) -> None:
    """A hook before the forward pass: all uses of a mask get the same one until ``end_pass``."""
    for mask in masks_in(network):
        mask.keep(True)


def end_pass(network: nn.Module, *_: Any) -> None:
    """A hook after the forward pass."""
    for mask in masks_in(network):
        mask.keep(False)


@dataclass(frozen=True)
class Units:
    """How the weight of a conv or linear layer is made of output units, inputs and taps.

    Attributes:
        shape: of the weight.
        groups, transposed: of the convolution.
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @classmethod
    def of(cls, layer: nn.Module) -> Units:
        weight = layer.weight
        return cls(tuple(weight.shape), getattr(layer, "groups", 1), getattr(layer, "transposed", False))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Output units, inputs that each reads, taps."""
        first, second = self.shape[:2]
        if self.transposed:
            first, second = second * self.groups, first // self.groups
        return first, second, prod(self.shape[2:])

    def rows(self, weight: Tensor) -> Tensor:
        """(units, inputs, taps)."""
        if self.transposed:
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        return weight.reshape(self.sizes)

    def weight(self, rows: Tensor) -> Tensor:
        """The inverse of ``rows``."""
        if not self.transposed:
            return rows.reshape(self.shape)
        return rows.unflatten(0, (self.groups, -1)).transpose(1, 2).reshape(self.shape)


class UnitMask(nn.Module):
    """A mask of the weights, kernels or tiles of every unit of one layer, as a factor of its weight."""

    def __init__(self, mask: Mask, units: Units) -> None:
        super().__init__()
        self.mask, self.units = mask, units

    def forward(self) -> Tensor:
        """Zeros and ones of the weight's shape."""
        outputs, inputs, taps = self.units.sizes
        drawn = self.mask()
        if drawn.numel() == outputs * inputs:  # a kernel, all its taps together
            return self.units.weight(drawn.reshape(outputs, inputs, 1).expand(-1, -1, taps))
        return self.units.weight(drawn.reshape(outputs, inputs, taps))


class ChannelMask(nn.Module):
    """A mask of the channels of a coupled group, as a factor of the weight of a consumer layer.

    Arguments:
        mask: of one row.
        index: (size, m) the slices along ``dim`` that each channel is, of ``width``; ``ndim`` is the weight's.
    """

    index: Tensor

    def __init__(self, mask: Mask, index: Tensor, width: int, dim: int, ndim: int) -> None:
        super().__init__()
        self.mask, self._shape = mask, (width, dim, ndim)
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        """Zeros and ones that broadcast over the weight."""
        return slice_factor(self.mask()[0], self.index, *self._shape)


class MaskedWeight(nn.Module):
    """What a layer computes with in place of its weight W: A W, rounded if asked for; a parametrization.

    Arguments:
        parts: the factors of A, which broadcast over the weight.
        bits: 32, 8 or 1, of a kept weight.
    """

    def __init__(self, parts: Sequence[nn.Module], bits: int) -> None:
        super().__init__()
        self.parts, self.bits = nn.ModuleList(parts), bits

    def forward(self, weight: Tensor) -> Tensor:
        factor = reduce(mul, (part() for part in self.parts))
        return masked_weight(weight, factor.to(weight.dtype), self.bits)

    def extra_repr(self) -> str:
        return f"{self.bits} bits"


@dataclass(frozen=True, eq=False)
class Sparsity:
    """What ``sparsify`` did to a network, which carries it as ``network.dpp``.

    Attributes:
        options: what was asked for, as plain data.
        masks: by the name of the layer, or of the coupled group (granularity "filter").
        skipped: by the name of the layer or group, why it has no mask.
        layers: the names of those whose weight is masked.
        groups: the coupled groups of the network (granularity "filter").
        example: what the network takes, if ``sparsify`` was given it.
    """

    options: dict[str, Any]
    masks: dict[str, Mask]
    skipped: dict[str, str]
    layers: tuple[str, ...]
    groups: tuple[Group, ...] = ()
    example: Any = None

    @property
    def of_channels(self) -> bool:
        """Whether the masks remove whole channels."""
        return self.options["granularity"] == "filter"

    def count(self, layer: str) -> tuple[int, int]:
        """k and n of a row of the layer's own mask; 0 and 0 if it has none."""
        mask = None if self.of_channels else self.masks.get(layer)
        return (0, 0) if mask is None else (mask.k, mask.logits.shape[1])


def sparsity_of(network: nn.Module) -> Sparsity:
    """The masks that ``network`` has.

    Raises:
        ValueError: it has no masks.
        FloatingPointError: one of them has logits that are NaN or inf (on a GPU, drawing does not look).
    """
    if not isinstance(sparsity := getattr(network, "dpp", None), Sparsity):
        raise ValueError(f"this {type(network).__name__} has no masks: make it with sparsify(network, keep)")
    if bad := [name for name, mask in sparsity.masks.items() if not mask.logits.isfinite().all()]:
        raise FloatingPointError(f"the logits of the mask of {bad[0]} are NaN or inf: try a lower learning rate")
    return sparsity
