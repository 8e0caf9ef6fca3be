"""torchvision classifiers with random numbers wherever torchvision leaves values that hide errors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from redlab.network.recipe import Recipe
from redlab.zoo import torchvision_networks as torchvision_zoo


def randomised(name: str) -> nn.Module:
    """Random weights and batch norms, with scales of both signs, layer scales near 1, and a head for ViTs, whose own is
    zero; in eval mode, stamped.
    """
    torch.manual_seed(0)
    network = torchvision_zoo.build(name).eval()
    randomise(network)
    with torch.no_grad():
        if isinstance(head := getattr(getattr(network, "heads", None), "head", None), nn.Linear):
            head.weight.normal_(0, 0.02)
    network.redlab = Recipe(f"torchvision/{name}", torchvision_zoo.input_shape(name))
    return network


@torch.no_grad()
def randomise(network: nn.Module) -> nn.Module:
    """The network itself, its batch norms and layer scales random."""
    for module in network.modules():
        _randomise(module)
    return network


def _randomise(module: nn.Module) -> None:
    if isinstance(module, _BatchNorm):
        module.running_mean.normal_(0, 0.3)
        module.running_var.uniform_(0.5, 2)
        module.weight.uniform_(0.7, 1.3).mul_(torch.randn_like(module.weight).sign())
        module.bias.normal_(0, 0.3)
    if isinstance(getattr(module, "layer_scale", None), nn.Parameter):
        module.layer_scale.normal_(1, 0.3)
