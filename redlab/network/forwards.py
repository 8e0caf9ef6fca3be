"""Whose forward a layer or batch norm runs: PyTorch's, or one of its own."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from redlab.network.layers import TO_PREPARE

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLVES = {getattr(kind, "_conv_forward", None) for kind in _LAYERS}
# A subclass with a forward of its own may do more than its name says: an activation after the norm, for example.
_FORWARDS = {_BatchNorm.forward, nn.SyncBatchNorm.forward, *(kind.forward for kind in _LAYERS)}


def has_own_forward(module: nn.Module) -> bool:
    """Whether a layer or batch norm does more than PyTorch's class, by a forward of its own or by a hook."""
    return runs_own_forward(module) or bool(module._forward_hooks or module._forward_pre_hooks)


def runs_own_forward(module: nn.Module) -> bool:
    """Whether a layer or batch norm has another forward than PyTorch's class, whatever its hooks do."""
    plain = getattr(module.forward, "__func__", None) in _FORWARDS
    return not plain or getattr(type(module), "_conv_forward", None) not in _CONVOLVES


def why_own_forward(module: nn.Module) -> str:
    """Why a step that replaces a layer, or adds to what it puts out, leaves one that isn't plain; or ""."""
    own = "its class or a hook gives it a forward of its own"
    return f"{own}: {TO_PREPARE}" if runs_own_forward(module) else own if has_own_forward(module) else ""


def operation_of(module: nn.Module) -> str:
    """The operation that a layer of PyTorch's classes runs as."""
    if isinstance(module, nn.Linear):
        return "linear"
    return f"conv{'_transpose' if module.transposed else ''}{module.weight.ndim - 2}d"


def groups_of(module: nn.Module) -> int:
    """In how many groups a layer takes its channels."""
    return getattr(module, "groups", 1)  # a linear layer has one
