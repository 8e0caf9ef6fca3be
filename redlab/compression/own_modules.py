"""Which modules of a network are no plain layers, and the plain layer that each of them is, if it is one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from redlab.compression.own_layers import Plain, propose
from redlab.network.evaluating import evaluating, refusal
from redlab.network.example import Example, Inputs, fit_example
from redlab.network.forwards import has_own_forward
from redlab.network.layers import copy_network, parameter_names, weight_layers

_COMPUTE = (WeightNorm, SpectralNorm, BasePruningMethod)  # hooks that compute a weight and do nothing else


@dataclass
class Found:
    """The modules with a forward of their own: what replaces them, what they were, and why others are left."""

    plain: dict[str, Plain] = field(default_factory=dict)
    before: dict[str, nn.Module] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def layer(self, path: str) -> str:
        """The name of the layer that stands at ``path``: behind a padding it is the second of two modules."""
        padded = path in self.plain and "pad" in self.plain[path].spec
        return f"{path}.1".lstrip(".") if padded else path


def look(network: nn.Module, example: Example | None, fixed_size: bool) -> Found:
    """The modules with a forward of their own, and the plain layer that each is on ``example``, or why it is none."""
    found = Found()
    if hasattr(network, "dpp"):
        return found  # masks that learn: harden makes them weights
    modules = dict(_candidates(network))
    if not modules:
        return found
    inputs = _inputs_of(network, modules, fit_example(network, example).first())
    for path, module in modules.items():
        if any(path.startswith(f"{outer}." if outer else "") for outer in found.plain):
            continue  # part of a module that is replaced
        if not isinstance(module, nn.Linear | _ConvNd) and _reads_no_numbers(inputs[path]):
            continue  # an embedding, say, or never called: its parameters have rows of their own
        made = _why_left(network, path, module, inputs[path]) or propose(module, inputs[path], fixed_size)
        found.before[path] = module
        if isinstance(made, Plain):
            found.plain[path] = made
        elif made is not None:
            found.left[path] = made
    return found


def _candidates(network: nn.Module) -> list[tuple[str, nn.Module]]:
    layers = {id(layer.module) for layer in weight_layers(network) if layer.parameter == "weight" and not layer.lazy}
    modules = [(path, own) for path, own in network.named_modules() if "parametrizations" not in path.split(".")]
    return [(path, own) for path, own in modules if _may_replace(own, id(own) in layers)]


def _may_replace(module: nn.Module, layer: bool) -> bool:
    """Whether a module is no plain layer, and may be one by what it holds."""
    if layer:
        return has_own_forward(module) or any(name not in module._parameters for name in ("weight", "bias"))
    homes = [kind.__module__ for kind in type(module).__mro__ if kind is not nn.Module]
    if any(home.startswith(("torch.nn.", "torch.jit.", "redlab.")) for home in homes):
        return False  # an embedding, a recurrent layer or a norm, or a subclass of one
    own = [tensor for tensor in module._parameters.values() if tensor is not None and tensor.ndim > 1]
    return bool(own) and not any(True for child in module.children() for _ in child.parameters())


def _inputs_of(network: nn.Module, modules: Mapping[str, nn.Module], inputs: Inputs) -> dict[str, list[Any]]:
    """By path, what each call of a module is given: a tensor, or None where that is something else."""
    found: dict[str, list[Any]] = defaultdict(list)

    def note(_: nn.Module, args: tuple, kwargs: dict, path: str) -> None:
        given = [*args, *kwargs.values()]
        found[path].append(given[0].detach() if len(given) == 1 and isinstance(given[0], Tensor) else None)

    copied = copy_network(network)  # a norm may change its statistics as it runs
    for path in modules:
        copied.get_submodule(path).register_forward_pre_hook(partial(note, path=path), with_kwargs=True)
    try:
        with evaluating(copied):
            inputs.run(copied)
    except Exception as error:  # whatever the network's own code raises
        raise ValueError(refusal(network, inputs, "run", error)) from error
    return found


def _why_left(network: nn.Module, path: str, module: nn.Module, inputs: Sequence[Any]) -> str:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if any(not isinstance(hook, _COMPUTE) for hook in hooks):
        return "it has hooks of its own: remove them first"
    if not inputs:
        return "it is never called"
    if any(x is None for x in inputs):
        return "it takes several inputs: its weight may depend on them"
    if any(x.is_meta for x in inputs):
        return "it has no values"
    tied = [name for names in parameter_names(network).values() if _is_tied(names, path) for name in names]
    return f"it shares a parameter: {' and '.join(tied)} are one tensor" if tied else ""


def _reads_no_numbers(inputs: Sequence[Any]) -> bool:
    return not inputs or any(x is not None and not x.is_floating_point() for x in inputs)


def _is_tied(names: Sequence[str], path: str) -> bool:
    inside = [name.startswith(f"{path}." if path else "") for name in names]
    return any(inside) and not all(inside)
