"""The history that a network carries: what it was built as, and every step taken since; and its fingerprint."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Recipe:
    """How to build a network again: a fresh ``architecture``, then each of ``steps`` in order.

    ``load_network`` sets it as ``network.redlab``, and so does the first step of a network that has none. It pickles
    as a plain dict, so that a pickled network opens without redlab.

    Attributes:
        architecture: a name that ``load_network`` knows; None: a network that was handed in as an object.
        input_shape: the shape of one input, without the batch; None: not known, or several inputs.
        steps: plain data (JSON), one dict a step, each with the key ``step``.
        input_mean: the mean of the network's input, one number a channel or one for all; None: not known.
        example: structure, shape, dtype and range of each input, as ``description.describe`` writes them.
        images: what the network expects of images: ``{"size": 224 or [h, w], "mean": [...], "std": [...]}``.
        source: the file of the architecture's code, ``{"file": name, "sha256": hex}``.

    Example:
        >>> load_network("digits/resnet").redlab.architecture
        'digits/resnet'
        >>> network = torch.nn.Linear(64, 10)
        >>> network.redlab = Recipe(None, (64,))
        >>> example_input(network).shape
        torch.Size([1, 64])
    """

    architecture: str | None = None
    input_shape: tuple[int, ...] | None = None
    steps: tuple[dict, ...] = ()
    input_mean: tuple[float, ...] | None = None
    example: dict | None = None
    images: dict | None = None
    source: dict | None = None

    @property
    def knows_input(self) -> bool:
        """Whether it says what the network is called with."""
        return self.example is not None or self.input_shape is not None

    def __reduce__(self) -> tuple:
        return dict, (list(vars(self).items()),)  # no class of redlab in a pickle

    def __copy__(self) -> Recipe:
        return self

    def __deepcopy__(self, memo: dict) -> Recipe:
        return Recipe(**copy.deepcopy(vars(self), memo))


_FIELDS = tuple(field.name for field in fields(Recipe))


def recipe_of(network: nn.Module) -> Recipe | None:
    """The network's recipe, or None if it has none. A pickled network carries it as a dict.

    Raises:
        ValueError: ``network.redlab`` is something else, or a field of that dict is.
    """
    found = getattr(network, "redlab", None)
    if isinstance(found, Mapping) and set(found) <= set(_FIELDS):
        _check_fields(found)
        return Recipe(**found)
    if found is None or isinstance(found, Recipe):
        return found
    raise ValueError(f"network.redlab must be a Recipe or a dict of {', '.join(_FIELDS)}, not {type(found).__name__}")


def _check_fields(found: Mapping[str, Any]) -> None:
    """A pickle may hold anything: refused here, where the field is known."""
    for name, value in found.items():
        wanted, holds = _KINDS[name]
        if not holds(value):
            raise ValueError(f"network.redlab: {name!r} must be {wanted}, not {repr(value)[:60]}")


def _are_all(values: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str | bytes) and all(map(holds, values))


def _is_number(value: Any, kind: type = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_number(value, Integral) and value > 0


def _is_step(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("step"), str)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "architecture": ("a name or None", lambda value: value is None or isinstance(value, str)),
    "input_shape": ("whole numbers above 0, or None", lambda value: value is None or _are_all(value, _is_size)),
    "steps": ("dicts with a 'step'", lambda value: _are_all(value, _is_step)),
    "input_mean": ("numbers or None", lambda value: value is None or _are_all(value, _is_number)),
    "example": ("a dict or None", lambda value: value is None or (isinstance(value, Mapping) and len(value) > 0)),
    "images": ("a dict or None", lambda value: value is None or isinstance(value, Mapping)),
    "source": ("a dict or None", lambda value: value is None or isinstance(value, Mapping)),
}


def input_mean_of(network: nn.Module) -> tuple[float, ...] | None:
    """The mean of the network's input, a number a channel, as its recipe says; None: not known."""
    recipe = recipe_of(network)
    return recipe.input_mean if recipe else None


def append_step(network: nn.Module, step: dict) -> None:
    """Append one step to the recipe of ``network``, a copy that its caller owns; without a recipe it gets one."""
    recipe = recipe_of(network) or Recipe()
    change_recipe(network, steps=(*recipe.steps, step))


def drop_steps(network: nn.Module, kinds: Collection[str]) -> None:
    """Remove the steps of these kinds from the recipe of ``network``, a copy that its caller owns."""
    if (recipe := recipe_of(network)) is not None:
        change_recipe(network, steps=tuple(step for step in recipe.steps if step["step"] not in kinds))


def change_recipe(network: nn.Module, **changes: Any) -> None:
    """Set some fields of the recipe of ``network``, which its caller owns; without a recipe it gets one."""
    network.redlab = replace(recipe_of(network) or Recipe(), **changes)


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
