"""Quantization that learns with the masks: 8-bit and binary weights, 8-bit inputs.

They are rounded forward. Backward the rounding is a hard tanh, whose gradient passes within the range
(Gonzalez-Carabarin et al., arXiv 2105.12686).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WEIGHT_BITS = (32, 8, 1)
ACTIVATION_BITS = (32, 8)
_HALF = 127.5
_KEPT = 0.9  # of the running peak at each minibatch, as batch norm keeps its statistics


def round_to_grid(values: Tensor, peak: Tensor) -> Tensor:
    """round(S v) / S, S = 127.5 / ``peak``, of 256 levels: -128 ... 127 (our choice: round(127.5) has no place).

    The gradient is 1 within [-peak, peak] and 0 beyond.
    """
    step = torch.where(peak > 0, peak, 1) / _HALF
    within = values * (values.detach().abs() <= peak)
    return _straight_through((values.detach() / step).round().clamp(-128, 127) * step, within)


def signs(values: Tensor) -> Tensor:
    """1 where a value is 0 or more, else -1; the gradient is that of a hard tanh, 1 within [-1, 1] and 0 beyond."""
    within = values * (values.detach().abs() <= 1)
    return _straight_through(torch.where(values >= 0, 1.0, -1.0).to(values.dtype), within)


def _straight_through(value: Tensor, gradient_of: Tensor) -> Tensor:
    """``value``, exactly, with the gradient of the other."""
    return value + (gradient_of - gradient_of.detach())


def masked_weight(weight: Tensor, factor: Tensor, bits: int) -> Tensor:
    """A W with 32, 8 or 1 bits a kept weight: as it is; on 256 levels; or sign(W) A. The factor A may broadcast."""
    if bits == 1:
        return signs(weight) * factor
    masked = weight * factor
    return masked if bits == 32 else round_to_grid(masked, masked.detach().abs().amax())


class RoundedInput(nn.Module):
    """A layer's input on 256 levels up to its peak: the minibatch's in training, their running mean in eval mode."""

    peak: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("peak", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        own = values.detach().abs().amax()
        if self.training:
            self.peak.copy_(torch.where(self.peak > 0, _KEPT * self.peak + (1 - _KEPT) * own, own))
            return round_to_grid(values, own)
        return round_to_grid(values, torch.where(self.peak > 0, self.peak, own).to(values.dtype))


def round_input(layer: nn.Module, given: tuple) -> tuple:
    """A hook before the forward pass of a layer that owns a ``RoundedInput`` as ``rounded_input``."""
    return (layer.rounded_input(given[0]), *given[1:])
