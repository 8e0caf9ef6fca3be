"""Batch norms as modules: which there are, what they compute in eval mode, and what is left once they are folded.

A batch norm may have a forward of its own, as timm's ``BatchNormAct2d``: then its activation is left. It may be of
buffers alone, as torchvision's ``FrozenBatchNorm2d``. The graph says what such a forward does, and a trial with numbers
decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from redlab.network.evaluating import evaluating, first_line
from redlab.network.layers import copy_network

OWN = "its class or a hook gives it a forward of its own"
TRAINS = "it stays in training mode, where it takes the mean and variance of each batch"
# What a norm leaves: names of its own modules, and activations as (class, options), in the order in which they run.
Acts = Sequence[Any]
# By operation: the class of torch.nn that does the same, and its options.
_CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "relu": ("ReLU", ()),
    "relu6": ("ReLU6", ()),
    "leaky_relu": ("LeakyReLU", ("negative_slope",)),
    "hardtanh": ("Hardtanh", ("min_val", "max_val")),
    "elu": ("ELU", ("alpha",)),
    "celu": ("CELU", ("alpha",)),
    "selu": ("SELU", ()),
    "silu": ("SiLU", ()),
    "mish": ("Mish", ()),
    "gelu": ("GELU", ("approximate",)),
    "softplus": ("Softplus", ("beta", "threshold")),
    "sigmoid": ("Sigmoid", ()),
    "hardsigmoid": ("Hardsigmoid", ()),
    "hardswish": ("Hardswish", ()),
    "tanh": ("Tanh", ()),
}
_TOLERANCE = 1e-9  # relative, in float64
_PIXELS = 8  # of an image in the trial: what a norm does, it does to every pixel


def scale_and_shift(norm: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
    """``norm`` in eval mode as x -> scale x + shift: one number of each per channel, in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else norm.weight.double() * scale
    shift = -scale * norm.running_mean.double()
    shift = shift if norm.bias is None else norm.bias.double() + shift
    return scale.to(device), shift.to(device)


def activation_of(name: str, options: Any) -> list[Any]:
    """The activation that an operation is, as plain data; empty where torch.nn has none.

    Arguments:
        name: of the operation.
        options: a function from the name of one of its arguments to the value.
    """
    if name not in _CLASSES:
        return []
    kind, names = _CLASSES[name]
    return [kind, {key: options(key) for key in names}]


def stand_in(norm: nn.Module, acts: Acts) -> nn.Module:
    """What stands in the place of a norm that is folded: it has the norm's numbers, such as its ``num_features``.

    Raises:
        ValueError: an activation that isn't one.
    """
    parts: dict[str, nn.Module] = {}
    for number, act in enumerate(acts):
        if isinstance(act, str):
            parts[act] = getattr(norm, act)
        elif act[0] not in {kind for kind, _ in _CLASSES.values()}:
            raise ValueError(f"{act[0]} is no activation")
        else:
            parts[f"act{number or ''}"] = getattr(nn, act[0])(**act[1]).train(norm.training)
    made = nn.Identity() if not parts else nn.Sequential()
    for name, module in parts.items():
        made.add_module(name, module)
    made.training = norm.training
    for key in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
        if hasattr(norm, key):
            setattr(made, key, getattr(norm, key))
    return made


def check_acts(norm: nn.Module, acts: list[Any], shape: Sequence[int]) -> tuple[list[Any], str]:
    """All that a norm leaves, tried in float64 on random inputs; and why it is something else than ``acts``, or "".

    Arguments:
        acts: what the graph shows after the norm. Modules without an operation, such as dropout, come before them.
        shape: of its input.
    """
    if norm.running_mean.is_meta:
        return acts, ""
    copied = copy_network(norm).double()
    called: list[str] = []
    for name, child in copied.named_children():
        child.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    try:
        with evaluating(copied):
            tried = [_try(copied, sizes) for sizes in _sizes(shape)]
            acts = [name for name in dict.fromkeys(called) if name not in acts] + acts
            rest = stand_in(copied, acts)
            far = any(_differ(wanted, rest(normed)) for wanted, normed in tried)
    except Exception as error:  # whatever its own code raises
        return acts, f"{OWN}: {first_line(error)}"
    return acts, f"{OWN}, which is not a batch norm and an activation" if far else ""


def _differ(one: Tensor, other: Tensor) -> bool:
    return not float((one - other).abs().max()) <= _TOLERANCE * max(float(one.abs().max()), 1e-30)


def _sizes(shape: Sequence[int]) -> list[list[int]]:
    """The shapes of the trials: other batches too, and images twice as long along one axis, which are cheap if thin."""
    channels, space = shape[1], shape[2:]
    small = [min(size, _PIXELS) for size in space]
    long = [[2 * size if place == axis else 1 for place, size in enumerate(space)] for axis in range(len(space))]
    return [[2, channels, *small], [3, channels, *small], *([1, channels, *sizes] for sizes in long)]


def _try(norm: nn.Module, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """What a norm makes of random numbers, and these scaled and shifted as it does."""
    noise = torch.randn(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view = [1, -1, *[1] * (len(sizes) - 2)]
    mean, std = norm.running_mean.view(view), norm.running_var.view(view).add(norm.eps).sqrt()
    x = noise.to(mean.device) * std + mean
    scale, shift = (values.view(view) for values in scale_and_shift(norm, x.device))
    return norm(x.clone()), x * scale + shift
