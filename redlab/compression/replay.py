"""A recipe taken again: the architecture built afresh, every recorded step repeated, without tracing and values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from redlab.channels.apply import apply_plan
from redlab.compression import splitting
from redlab.compression.bias import add_bias
from redlab.compression.folding import apply_fold
from redlab.compression.preparing import apply_prepare
from redlab.network.geometry import Geometry
from redlab.network.layers import out_scale, rows_of, weight_layers
from redlab.network.recipe import recipe_of


def replayable() -> tuple[str, ...]:
    """The steps that a recipe may hold."""
    return tuple(_STEPS)


def take_step(network: nn.Module, step: dict) -> nn.Module:
    """The network that one recorded step makes of ``network``, as far as its shapes go; its values mean nothing yet."""
    return _STEPS[step["step"]](network, step)


def finish(network: nn.Module, source: Path) -> nn.Module:
    """The same with the layers split as its recipe says, now that it has its values; in place.

    Raises:
        ValueError: a step that doesn't fit the network; the message names ``source``.
    """
    recipe = recipe_of(network)
    for step in [step for step in (recipe.steps if recipe else ()) if step["step"] in splitting.STEPS]:
        try:
            network = splitting.retake(network, step)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"step {step['step']!r} of its recipe does not fit the network"
            raise ValueError(f"{source}: {what} ({type(error).__name__}: {error})") from error
    return network


def _fold(network: nn.Module, step: dict) -> nn.Module:
    apply_fold(network, step["folded"], step["ahead"], step.get("acts"))
    return network


def _prepare(network: nn.Module, step: dict) -> nn.Module:
    return apply_prepare(network, step["modules"])


def _same(network: nn.Module, step: dict) -> nn.Module:
    return network  # other values in the same tensors; what splitting makes follows from values: ``finish`` does it


def _hash(network: nn.Module, step: dict) -> nn.Module:
    scaled = set(step.get("scaled", ()))
    layers = {layer.name: layer for layer in weight_layers(network)}
    if unknown := sorted(scaled - set(layers)):
        raise ValueError(f"it names layers that do not exist: {', '.join(unknown)}")
    for name, layer in layers.items():
        if name in scaled:
            layer.module.register_buffer(layer.scale_name, layer.weight.new_ones(len(rows_of(layer, layer.weight))))
        elif out_scale(layer) is not None:
            delattr(layer.module, layer.scale_name)  # it was hashed again
    return network


def _gain_biases(network: nn.Module, step: dict) -> nn.Module:
    for name in step["gained"]:
        layer = network.get_submodule(name)
        add_bias(layer, layer.weight.new_zeros(Geometry.of(layer).outputs))
    return network


def _plan(network: nn.Module, step: dict) -> nn.Module:
    # A file may ask for any number of slices: refused before index tensors of that size are made.
    widest = max(max(tensor.shape, default=0) for tensor in network.state_dict().values())
    if wider := [item["width"] for items in step["members"].values() for item in items if item["width"] > widest]:
        raise ValueError(f"it names {wider[0]} slices of a tensor, and the widest has {widest}")
    return apply_plan(network, step)


_STEPS: dict[str, Callable[[nn.Module, dict], nn.Module]] = {
    "prepare": _prepare,
    "fold": _fold,
    "equalise": _same,
    "hash": _hash,
    "correct_biases": _gain_biases,
    "compensate": _gain_biases,
    "prune_weights": _same,
    "plan": _plan,
    **dict.fromkeys(splitting.STEPS, _same),
}
