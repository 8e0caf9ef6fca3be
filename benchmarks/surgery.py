"""Removing half of ResNet-50's channels, against copying its weights and against torch-pruning.

``python -m benchmarks.surgery``. Both libraries drop the same channels, the second half of every group that both can
change; torch-pruning's graph and its step are timed together and apart, as are redlab's coupling and its plan.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch_pruning as tp
from torch import nn

from benchmarks.timing import interleaved, store
from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.plan import make_plan
from redlab.network.example import example_input
from redlab.zoo import torchvision_networks as torchvision_zoo

ROUNDS = 7


def main() -> None:
    network = torchvision_zoo.build("resnet50").eval()
    groups = couple(network)
    half = {group.name: keep_half(group.size) for group in groups if not group.frozen}
    frame = interleaved(contestants(network, make_plan(groups, half)), ROUNDS, "copy of the weights")
    print(f"\nresnet50, half of the channels\n{frame.to_string(index=False, float_format='{:.3g}'.format)}", flush=True)
    store("surgery, resnet50, half of the channels", frame)


def contestants(network: nn.Module, plan: dict) -> dict[str, Callable[[], object]]:
    """What is timed; torch-pruning works in place, so it gets a copy, and that copy is timed apart."""
    return {
        "copy of the weights": lambda: copy.deepcopy(network.state_dict()),
        "copy of the network": lambda: copy.deepcopy(network),
        "redlab, apply_plan": lambda: apply_plan(network, plan),
        "redlab, coupling": lambda: couple(network),
        "torch-pruning, graph and step": lambda: prune(copy.deepcopy(network)),
    }


def keep_half(size: int) -> list[int]:
    return [channel if channel < (size + 1) // 2 else -1 for channel in range(size)]


def prune(network: nn.Module) -> nn.Module:
    """torch-pruning's way: its graph, then every group narrowed to half."""
    pruner = tp.pruner.MagnitudePruner(
        network,
        example_input(network),
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[network.fc],
    )
    with torch.enable_grad():
        pruner.step()
    return network


if __name__ == "__main__":
    main()
