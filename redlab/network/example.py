"""What a network is called with: one tensor, several by position, or several by name; and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_leaves, tree_map

from redlab.network.description import describe, example_from
from redlab.network.layers import unwrap
from redlab.network.recipe import Recipe, change_recipe, recipe_of

# A tensor, a tuple of positional inputs, a dict of keyword inputs; or the ``Inputs`` made of one.
Example: TypeAlias = "Tensor | tuple | list | Mapping[str, Any] | Inputs"


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of one call of a network: tensors, also in lists, tuples and dicts; others pass unchanged.

    Attributes:
        args: by position.
        kwargs: by name.
    """

    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Example) -> Inputs:
        """The inputs that ``given`` holds.

        Raises:
            ValueError: it is none of these kinds, or holds no tensor.

        Example:
            >>> Inputs.of((torch.zeros(1, 3), torch.zeros(1, 4))).describe()
            'inputs of shape (1, 3) and (1, 4)'
            >>> Inputs.of({"x": torch.zeros(1, 3), "scale": 2.0}).describe()
            'inputs of shape x (1, 3)'
        """
        if isinstance(given, Inputs):
            return given
        if isinstance(given, Tensor):
            return cls((given,))
        made = None
        if isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
            made = cls((), dict(given))
        elif isinstance(given, tuple | list):
            made = cls(tuple(given))
        if made is None or not made.tensors:
            what = "holds no tensor" if made is not None else f"is a {type(given).__name__}"
            raise ValueError(
                f"inputs must be a tensor, a tuple of positional inputs or a dict of keyword inputs: this {what}"
            )
        return made

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, also those in containers."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with every tensor changed."""
        given = (self.args, self.kwargs)
        return Inputs(*tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, given))

    def to(self, network: nn.Module) -> Inputs:
        """On the device of ``network``, floating tensors in its dtype; whole numbers (token ids) keep theirs."""
        place = place_of(network)
        return self.each(lambda t: t.to(**place) if t.is_floating_point() else t.to(place.get("device", t.device)))

    @property
    def batch(self) -> int | None:
        """How many inputs: the length of the first tensor that is an argument itself; None if there is none."""
        own = [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor) and value.ndim > 0]
        return len(own[0]) if own else None

    def first(self) -> Inputs:
        """The first input of the batch: the first part of every tensor as long as the batch.

        If only containers hold tensors (a list of images, for example), all stays as it is.
        """
        return self.each(lambda t: t[:1] if t.ndim > 0 and len(t) == self.batch else t)

    def repeat(self, batch: int) -> Inputs:
        """One input so many times: every tensor whose first axis has length 1 is repeated along it."""
        return self.each(lambda t: t.repeat(batch, *[1] * (t.ndim - 1)) if t.ndim > 0 and len(t) == 1 else t)

    def run(self, network: nn.Module) -> Any:
        """The output of ``network``."""
        return network(*self.args, **self.kwargs)

    def describe(self) -> str:
        """The shapes, for messages."""
        if len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Tensor):
            return f"an input of shape {tuple(self.args[0].shape)}"
        unnamed = [_shapes(value) for value in self.args]
        named = [f"{name} {_shapes(value)}" for name, value in self.kwargs.items() if _shapes(value)]
        return f"inputs of shape {' and '.join(filter(None, [*unnamed, *named]))}"


def _shapes(value: Any) -> str:
    return ", ".join(str(tuple(leaf.shape)) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def fit_example(network: nn.Module, example: Example | None) -> Inputs:
    """``example``, by default ``example_input(network)``, on the network's device and in its floating dtype.

    Raises:
        ValueError: it is no batch of at least one input, or holds no inputs.
    """
    inputs = Inputs.of(example_input(network) if example is None else example)
    alone = len(inputs.args) == 1 and not inputs.kwargs
    if inputs.batch == 0 or (alone and inputs.batch is None and isinstance(inputs.args[0], Tensor)):
        raise ValueError(f"example must be a batch of at least one input, and it is {inputs.describe()}")
    return inputs.to(network)


def logits_of(output: Any) -> Tensor:
    """The logits of an answer: itself if it is a tensor, else its ``logits``, as an attribute or by that key.

    Raises:
        ValueError: there is none.
    """
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(found, Tensor):
        return found
    raise ValueError(
        "the network must answer (images, classes), in a tensor or under the name logits; it gave "
        f"{type(output).__name__}{f' of {list(output)}' if isinstance(output, Mapping) else ''}"
    )


def answer(network: nn.Module, inputs: Example) -> Tensor:
    """The logits of ``network`` for ``inputs``, which lie where it does.

    Raises:
        ValueError: it does not take them, or answers no logits.
    """
    given = Inputs.of(inputs)
    try:
        output = given.run(network)
    except (TypeError, RuntimeError) as error:
        if type(error) not in (TypeError, RuntimeError):  # out of memory, for example
            raise
        raise ValueError(f"{type(network).__name__} does not take {given.describe()}: {error}") from error
    return logits_of(output)


def example_input(network: nn.Module) -> Tensor | tuple | list | dict[str, Any]:
    """A batch of one that ``network`` accepts: on its device, in its floating dtype, always the same values.

    The network's recipe says what it is: a tensor, a tuple of positional inputs or a dict of keyword inputs. Without a
    recipe it is torchvision's image size for the network's class; else a guess from the first layer: three channels
    1x3x224x224, one channel 1x1x28x28, Linear 1 x in_features.

    Raises:
        ValueError: none of these applies; the message asks for ``example=``.

    Example:
        >>> example_input(load_network("digits/resnet")).shape
        torch.Size([1, 1, 8, 8])
        >>> example_input(torch.nn.Linear(3, 2)).shape
        torch.Size([1, 3])
    """
    network = unwrap(network)
    recipe = recipe_of(network)
    if recipe is not None and recipe.example is not None:
        placed = Inputs.of(example_from(recipe.example)).to(network)
        return placed.kwargs or (placed.args[0] if "tensor" in recipe.example else placed.args)
    shape = _shape_of(network, recipe)
    if shape is None:
        raise ValueError(
            f"the input shape of {type(network).__name__} is not known: pass example=, a batch of one; "
            "or set network.redlab = Recipe(None, input_shape); or let the code that makes it return (network, example)"
        )
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(**place_of(network))


def remember_example(network: nn.Module, example: Example | None) -> None:
    """Note ``example`` in the recipe of ``network``, which its caller owns, if the recipe tells no input yet.

    An example that holds more than tensors and plain data is not noted.
    """
    recipe = recipe_of(network) or Recipe()
    if example is None or recipe.knows_input:
        return
    one = Inputs.of(example).first()
    if one.args and one.kwargs:  # no user gives both
        return
    lone = len(one.args) == 1 and isinstance(one.args[0], Tensor)
    described = describe(one.kwargs or (one.args[0] if lone else one.args))
    if described is not None:
        change_recipe(network, example=described)


def place_of(network: nn.Module) -> dict[str, Any]:
    """The device and floating dtype of ``network``, as arguments for ``Tensor.to``; empty if it has no tensors."""
    tensors = (t for t in [*network.parameters(), *network.buffers()] if t.is_floating_point())
    own = next(tensors, None)
    return {} if own is None else {"device": own.device, "dtype": own.dtype}


def _shape_of(network: nn.Module, recipe: Recipe | None) -> tuple[int, ...] | None:
    if recipe is not None and recipe.input_shape is not None:
        return tuple(recipe.input_shape)
    # Classifiers live in torchvision.models.NAME; video, detection and the like one level deeper.
    home = type(network).__module__.split(".")
    if home[:2] == ["torchvision", "models"] and len(home) == 3:
        size = 299 if type(network).__name__ == "Inception3" else getattr(network, "image_size", 224)
        return 3, size, size
    layer = next((module for module in network.modules() if isinstance(module, _FIRST_LAYERS)), None)
    if isinstance(layer, nn.Linear) and not isinstance(layer, LazyModuleMixin):
        return (layer.in_features,)
    if isinstance(layer, nn.Conv2d):
        return {3: (3, 224, 224), 1: (1, 28, 28)}.get(layer.in_channels)
    return None


# The first layer decides, even if its input cannot be guessed.
_FIRST_LAYERS = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.MultiheadAttention)
