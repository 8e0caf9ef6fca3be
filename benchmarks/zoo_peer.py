"""torch-pruning on a network of the zoo: whether it prunes, and whether its output is that of the zeroed network.

What it kept is read off the values: every number of the network is made distinct, in float64, and those that the pruned
network lacks are set to 0 in the original.
"""

from __future__ import annotations

import copy
import signal
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LIMIT, RATIOS = 60, (0.25, 0.4, 0.6, 0.85)
DISTINCT = 1e-9


def measure_peer(network: nn.Module, example: Tensor, target: float) -> dict[str, Any]:
    """Its part of the row: the share of the parameters left, the relative difference, seconds; or its error."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT)  # the stage ends
    whole, example = made_distinct(network), example.double()
    parameters, start = sum(p.numel() for p in whole.parameters()), time.process_time()
    for ratio in RATIOS:
        try:
            pruned = prune(copy.deepcopy(whole), example[:1], ratio)
            with torch.no_grad():
                output = pruned(example)
        except Exception as error:  # whatever it or the network raises
            return {"peer_error": f"{type(error).__name__}: {error}".splitlines()[0][:160], **_seconds(start)}
        left = sum(p.numel() for p in pruned.parameters()) / parameters
        if left <= target or time.process_time() - start > LIMIT:
            break
    with torch.no_grad():
        wanted = zeroed(whole, pruned)(example)
    difference = float((wanted - output).abs().max() / wanted.abs().max()) if wanted.shape == output.shape else 1.0
    return {"peer_left": round(left, 3), "peer_difference": float(f"{difference:.1e}"), **_seconds(start)}


def _seconds(start: float) -> dict[str, float]:
    return {"peer_seconds": round(time.process_time() - start, 1)}


@torch.no_grad()
def made_distinct(network: nn.Module) -> nn.Module:
    """A copy in float64 whose numbers differ from one another."""
    whole = copy.deepcopy(network).double()
    for parameter in whole.parameters():
        parameter.add_(DISTINCT * torch.randn_like(parameter))
    return whole


def prune(network: nn.Module, example: Tensor, ratio: float) -> nn.Module:
    """As its documentation does: by magnitude, this share of every group's channels, the classifier left out."""
    import torch_pruning as tp

    classes = network.default_cfg["num_classes"]
    last = [module for module in network.modules() if getattr(module, "out_features", 0) == classes]
    last += [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.out_channels == classes]
    importance = tp.importance.MagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(
        network, example, importance=importance, pruning_ratio=ratio, ignored_layers=last, global_pruning=False
    )
    pruner.step()
    return network


@torch.no_grad()
def zeroed(whole: nn.Module, pruned: nn.Module) -> nn.Module:
    """A copy of ``whole`` without the numbers that ``pruned`` lacks."""
    own, left = copy.deepcopy(whole), dict(pruned.named_parameters())
    for name, parameter in own.named_parameters():
        if name in left and left[name].shape != parameter.shape:
            kept = np.isin(parameter.numpy(), left[name].numpy())
            parameter.mul_(torch.from_numpy(kept))
    return own
