"""Networks whose rows are hashed up to a scale, made by hand: W[o] = out_scale[o] C[o], to the bit."""

from __future__ import annotations

import torch
from torch import nn

from redlab.network.layers import weight_layers
from redlab.network.recipe import append_step
from redlab.network.row_scales import rows_first


def scale_rows(network: nn.Module, levels: int = 7) -> nn.Module:
    """The network, in place: each weight the nearest of ``levels`` codes to a side, its row scaled by its own rms."""
    with torch.no_grad():
        for layer in [layer for layer in weight_layers(network) if not layer.skipped]:
            rows = rows_first(layer.weight, layer.module)
            along = (-1, *[1] * (rows.ndim - 1))
            scales = short(rows.float().flatten(1).square().mean(1).sqrt())
            scales = torch.where(scales > 0, scales, 1)
            codes = (rows.float() / scales.view(along) * levels / 2).round().clamp(-levels, levels) / 16 + 0.0
            scales = scales.to(rows.dtype)
            layer.weight.copy_(rows_first(codes.to(rows.dtype) * scales.view(along), layer.module))
            layer.module.register_buffer(layer.scale_name, scales)
    return network


def hashed_by_row(network: nn.Module, levels: int = 7) -> nn.Module:
    """The same, with what hashing records of it."""
    names = [layer.name for layer in weight_layers(network) if not layer.skipped]
    append_step(scale_rows(network, levels), {"step": "hash", "options": {"scale": "row"}, "scaled": names})
    return network


def short(values: torch.Tensor) -> torch.Tensor:
    """The nearest numbers of eight significant bits."""
    return values.bfloat16().float()


def without_scales(network: nn.Module) -> nn.Module:
    """The network, in place, without what it knows of scales."""
    for module in network.modules():
        for name in [name for name in module._buffers if name.endswith("out_scale")]:
            del module._buffers[name]
    return network
