"""What is wrapped around a network: ``torch.compile``, ``DataParallel``, ``DistributedDataParallel``."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def innermost(module: nn.Module) -> nn.Module:
    """The module without what is wrapped around it."""
    while (own := inside(module)) is not None:
        module = own
    return module


def inside(module: nn.Module) -> nn.Module | None:
    """The module that this one wraps, or None."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return module.module
    # Of torch.compile: by name, since importing the class takes a second.
    return module._orig_mod if type(module).__name__ == "OptimizedModule" else None
