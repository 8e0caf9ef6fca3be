"""Fingerprints: a few letters that show whether a network is the one that something was measured on."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.nn.parameter import is_lazy


def fingerprint(network: nn.Module, training: bool = True) -> str:
    """16 hex digits for the tensors of a network: names, shapes, dtypes and values, whatever the device.

    Arguments:
        training: also count its buffers and which parameters would be trained.
    """
    digest = hashlib.sha256()
    named = [*network.named_parameters(), *(network.named_buffers() if training else ())]
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad or not training}
    for name, tensor in named:
        shape = None if is_lazy(tensor) else tuple(tensor.shape)
        digest.update(f"\0{name} {shape} {tensor.dtype} {name in trained}\0".encode())
        if shape is not None and not tensor.is_meta:
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
