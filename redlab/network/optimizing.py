"""The optimizer of ``train`` and the schedules of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import SGD


def sgd(network: nn.Module, learning_rate: float, weight_decay: float, others: Sequence[dict] = ()) -> SGD:
    """The optimizer of ``train``: ``weight_decay`` on matrices and kernels only.

    Arguments:
        others: groups of parameters with options of their own.
    """
    apart = {id(parameter) for group in others for parameter in group["params"]}
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    trainable = [parameter for parameter in trainable if id(parameter) not in apart]
    if not trainable and not apart:
        raise ValueError(f"{type(network).__name__} has no parameter that requires a gradient: nothing to train")
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return SGD([g for g in [*groups, *others] if g["params"]], learning_rate, momentum=0.9, nesterov=True)


def _warm_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, steps // 10)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


SCHEDULES: dict[str, Callable[[int], Callable[[int], float]]] = {
    "cosine": _warm_cosine,
    "constant": lambda steps: lambda step: 1.0,
}
