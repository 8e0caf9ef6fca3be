"""The history that a network carries: what it was built as, and every step taken since; and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Recipe:
    """How to build a network again: a fresh ``architecture``, then each of ``steps`` in order.

    ``load_network`` sets it as ``network.redlab``. For a network of your own, set it yourself:
    ``network.redlab = Recipe("torchvision/resnet18", (3, 224, 224))``.

    Attributes:
        architecture: a name that ``load_network`` knows.
        input_shape: the shape of one input, without the batch.
        steps: plain data (JSON), one dict a step, each with the key ``step``.
        input_mean: the mean of the network's input, one number a channel or one for all; None: not known.

    Example:
        >>> load_network("digits/resnet").redlab
        Recipe(architecture='digits/resnet', input_shape=(1, 8, 8), steps=(), input_mean=(0.3054,))
        >>> network = torch.nn.Linear(64, 10)
        >>> network.redlab = Recipe("my/linear", (64,))
        >>> example_input(network).shape
        torch.Size([1, 64])
    """

    architecture: str
    input_shape: tuple[int, ...]
    steps: tuple[dict, ...] = ()
    input_mean: tuple[float, ...] | None = None


def recipe_of(network: nn.Module) -> Recipe | None:
    """The network's recipe, or None if it has none."""
    return getattr(network, "redlab", None)


def input_mean_of(network: nn.Module) -> tuple[float, ...] | None:
    """The mean of the network's input, a number a channel, as its recipe says; None: not known."""
    recipe = recipe_of(network)
    return recipe.input_mean if recipe else None


def append_step(network: nn.Module, step: dict) -> None:
    """Append one step to the recipe of ``network``, a copy that its caller owns, if it has a recipe."""
    if (recipe := recipe_of(network)) is not None:
        network.redlab = replace(recipe, steps=(*recipe.steps, step))


def drop_steps(network: nn.Module, kinds: Collection[str]) -> None:
    """Remove the steps of these kinds from the recipe of ``network``, a copy that its caller owns."""
    if (recipe := recipe_of(network)) is not None:
        network.redlab = replace(recipe, steps=tuple(step for step in recipe.steps if step["step"] not in kinds))


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
