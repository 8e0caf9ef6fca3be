"""The shape of a convolution or linear layer without its weights: which inputs each output uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn


@dataclass(frozen=True)
class Geometry:
    """The shape of a conv layer over any number of dimensions; a linear layer is one over none.

    Attributes:
        kind: "Linear", "Conv1d", "Conv2d" or "Conv3d".
        inputs, outputs: channels (features).
        kernel, stride, dilation: one number a dimension.
        padding: (before, after) a dimension, and ``padding_mode`` as PyTorch names it.
    """

    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    padding_mode: str = "zeros"
    groups: int = 1

    @classmethod
    def of(cls, layer: nn.Module) -> Geometry:
        """The geometry of a plain linear or (not transposed) conv layer."""
        if isinstance(layer, nn.Linear):
            return cls("Linear", layer.in_features, layer.out_features)
        sides = layer._reversed_padding_repeated_twice  # the last dimension first; padding="same" is spelt out
        padding = tuple(zip(sides[::2], sides[1::2], strict=True))[::-1]
        kernel, stride, dilation = map(tuple, (layer.kernel_size, layer.stride, layer.dilation))
        kind, channels = f"Conv{len(kernel)}d", (layer.in_channels, layer.out_channels)
        return cls(kind, *channels, kernel, stride, dilation, padding, layer.padding_mode, layer.groups)

    def layer(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """An ordinary layer of this shape with that weight and bias."""
        if self.kind == "Linear":
            made = nn.Linear(self.inputs, self.outputs, bias is not None, device="meta")
        else:
            symmetric = all(before == after for before, after in self.padding)
            padding = tuple(before for before, _ in self.padding) if symmetric else "same"
            options = {"padding": padding, "dilation": self.dilation, "groups": self.groups}
            options |= {"bias": bias is not None, "padding_mode": self.padding_mode, "device": "meta"}
            made = getattr(nn, self.kind)(self.inputs, self.outputs, self.kernel, self.stride, **options)
        made.weight = nn.Parameter(weight, requires_grad=weight.requires_grad)
        if bias is not None:
            made.bias = bias
        return made

    @cached_property
    def taps(self) -> tuple[tuple[int, ...], ...]:
        """The positions in the kernel, in the order of the weight's last dimensions; one, (), for a linear layer."""
        return tuple(product(*map(range, self.kernel)))

    @property
    def per_group(self) -> int:
        """Input channels of each group."""
        return self.inputs // self.groups

    @property
    def padded(self) -> bool:
        return any(before or after for before, after in self.padding)

    def pad(self, x: Tensor) -> Tensor:
        """(a, b, *space) -> (a, b, *padded space)."""
        if not self.padded:
            return x
        sides = [side for pair in reversed(self.padding) for side in pair]
        return F.pad(x, sides, "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def sizes(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """The spatial sizes of the output for those of an input."""
        spans = (dilation * (kernel - 1) + 1 for dilation, kernel in zip(self.dilation, self.kernel, strict=True))
        whole = (size + sum(sides) for size, sides in zip(space, self.padding, strict=True))
        return tuple((size - span) // step + 1 for size, span, step in zip(whole, spans, self.stride, strict=True))

    def at_tap(self, x: Tensor, tap: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        """The part of a padded (a, b, *space) that one tap meets: (a, b, *sizes), a view."""
        steps = zip(tap, self.dilation, self.stride, sizes, strict=True)
        parts = [slice(t * d, t * d + (size - 1) * s + 1, s) for t, d, s, size in steps]
        return x[(slice(None), slice(None), *parts)]

    def reach(self, space: tuple[int, ...]) -> Iterator[tuple[int, ndarray]]:
        """The sets of taps that meet an input position in some output: (how many positions, (taps,) bool)."""
        return _joint([self._reach_along(axis, size) for axis, size in enumerate(space)])

    def views(self, space: tuple[int, ...]) -> Iterator[tuple[int, ndarray]]:
        """The sets of taps that meet an input, not padding, for an output: (how many outputs, (taps,) bool)."""
        return _joint([self._places_along(axis, size) >= 0 for axis, size in enumerate(space)])

    def _places_along(self, axis: int, size: int) -> ndarray:
        """(outputs, kernel) the input that a tap meets, -1 for a zero of the padding."""
        # Padding with other values than zeros repeats input positions.
        numpy_modes: dict[str, Any] = {"zeros": "constant", "replicate": "edge", "circular": "wrap"}
        mode = numpy_modes.get(self.padding_mode, self.padding_mode)
        fill: dict[str, Any] = {"constant_values": -1} if mode == "constant" else {}
        source = np.pad(np.arange(size), self.padding[axis], mode, **fill)
        (outputs,) = Geometry.sizes(self._along(axis), (size,))
        places = np.arange(outputs)[:, None] * self.stride[axis] + np.arange(self.kernel[axis]) * self.dilation[axis]
        return source[places]

    def _reach_along(self, axis: int, size: int) -> ndarray:
        met = np.zeros((size + 1, self.kernel[axis]), bool)  # the last row takes the zeros of the padding
        met[self._places_along(axis, size), np.arange(self.kernel[axis])] = True
        return met[:size]

    def _along(self, axis: int) -> Geometry:
        one = slice(axis, axis + 1)
        return Geometry("", 1, 1, self.kernel[one], self.stride[one], self.dilation[one], self.padding[one])


def _joint(tables: list[ndarray]) -> Iterator[tuple[int, ndarray]]:
    """(positions, kernel) bool along each dimension -> the sets of taps of all together, and how often each occurs."""
    per_dimension = [list(zip(*np.unique(own, axis=0, return_counts=True), strict=True)) for own in tables]
    for sets in product(*per_dimension):
        mask = np.ones((), bool)
        for own, _ in sets:
            mask = np.logical_and.outer(mask, own)
        yield prod(int(count) for _, count in sets), mask.ravel()


def meetings(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> ndarray:
    """(kernel,) along one dimension: at how many of the outputs each tap meets one of ``size`` inputs, not padding.

    Arguments:
        padding: before the first input.
    """
    places = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - padding
    return ((places >= 0) & (places < size)).sum(0)
