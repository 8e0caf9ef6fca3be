"""Which tensors of a network are conv and linear weights, one row each; copies of networks, without wrappers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from redlab.network.wrappers import innermost, inside

# MultiheadAttention holds its input projections as bare parameters, not as Linear modules.
_ATTENTION_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# What a reason names where a layer is not plain; pruning and scoring never fold.
TO_PREPARE = "prepare(network, fold=False) makes it a plain layer, or says why not"
# The buffers in which a layer keeps what its folded batch norm knew of its outputs: mean and standard deviation.
OUTPUT_STATISTICS = ("out_mean", "out_std")
# The buffer in which a layer keeps the scales of its rows; beside ``in_proj_weight`` it is ``in_proj_out_scale``.
OUT_SCALE = "out_scale"


@dataclass(frozen=True)
class Layer:
    """One conv or linear weight of a network.

    Attributes:
        name: the module's dotted name; a projection of a MultiheadAttention appends its own (``attn.in_proj``).
        kind: the module's class.
        module: the module itself, and ``parameter`` the name of the weight in it.
        skipped: why steps that rewrite weights must skip it, or "".
        shared: the names of the other parameters that are the same tensor, such as the weight of an embedding.
    """

    name: str
    kind: str
    module: nn.Module
    parameter: str
    skipped: str = ""
    shared: tuple[str, ...] = ()

    @property
    def weight(self) -> torch.Tensor:
        return getattr(self.module, self.parameter)

    @property
    def scale_name(self) -> str:  # of the buffer for the scales of its rows
        return self.parameter.removesuffix("weight") + OUT_SCALE

    @property
    def lazy(self) -> bool:
        """Whether the weight has no shape before the network's first call."""
        return isinstance(self.module, nn.modules.lazy.LazyModuleMixin)

    @property
    def size(self) -> int:
        """How many weights there are, 0 of a lazy layer."""
        return 0 if self.lazy else self.weight.numel()


def weight_layers(network: nn.Module) -> Iterator[Layer]:
    """Every conv and linear weight of ``network``, in the order of its modules, shared ones once for each owner.

    Example:
        >>> [(layer.name, tuple(layer.weight.shape)) for layer in weight_layers(load_network("digits/mlp"))]
        [('hidden.0.linear', (256, 64)), ('hidden.1.linear', (128, 256)), ('classifier', (10, 128))]
    """
    owners: dict[int, str] = {}
    network = unwrap(network)
    names = parameter_names(network)
    for path, module in network.named_modules():
        for parameter in _weight_names(module):
            name = path if parameter == "weight" else f"{path}.{parameter.removesuffix('_weight')}".lstrip(".")
            kind = kind_of(module)
            weight = getattr(module, parameter)
            skipped = _why_skipped(module, parameter, owners.get(id(weight)))
            owners.setdefault(id(weight), name or kind)
            own = f"{path}.{parameter}".lstrip(".")
            shared = tuple(other for other in names.get(id(weight), ()) if other != own)
            yield Layer(name or kind, kind, module, parameter, skipped, shared)


def parameter_names(network: nn.Module) -> dict[int, list[str]]:
    """By its ``id``, the dotted names of every parameter: several where it is tied. A module with two names has one."""
    names: dict[int, list[str]] = {}
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            names.setdefault(id(parameter), []).append(f"{path}.{name}".lstrip("."))
    return names


def row_parameters(layers: Iterable[Layer]) -> dict[str, int]:
    """How many parameters each row of a table has; shared ones count once, in the first row."""
    counts: dict[str, int] = {}
    seen: dict[int, nn.Parameter] = {}
    for layer in layers:
        # An attention's output projection lies inside it, and has a row of its own.
        own = {id(p): p for p in layer.module.parameters(recurse=layer.parameter == "weight") if not is_lazy(p)}
        counts[layer.name] = sum(p.numel() for key, p in own.items() if key not in seen)
        seen |= own
    return counts


def kind_of(module: nn.Module) -> str:
    """The class of a module, under the name that was written."""
    # A parametrized module's class is made on the fly; its base is the one that was written.
    return type(module).__mro__[1].__name__ if parametrize.is_parametrized(module) else type(module).__name__


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm, also one of buffers alone."""
    return isinstance(module, _BatchNorm) or is_frozen_norm(module)


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether it holds what a batch norm does without being of PyTorch's class, as torchvision's FrozenBatchNorm2d."""
    held = {**module._parameters, **module._buffers}
    has_all = all(held.get(name) is not None for name in ("running_mean", "running_var", "weight", "bias"))
    return not isinstance(module, _NormBase) and has_all and isinstance(getattr(module, "eps", None), float)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer is a convolution that filters each channel for itself."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels


def _weight_names(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, _ConvNd | nn.Linear):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        return tuple(name for name in _ATTENTION_PROJECTIONS if getattr(module, name) is not None)
    return ()


def _why_skipped(module: nn.Module, parameter: str, owner: str | None) -> str:
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "its weight has no shape yet (lazy): run the network once"
    if parametrize.is_parametrized(module, parameter):
        return f"its weight is parametrized: {TO_PREPARE}"
    if parameter not in module._parameters:
        return f"its weight is computed at every call: {TO_PREPARE}"
    if owner is not None:
        return f"shares its weight with {owner}"
    return "its weight is empty" if getattr(module, parameter).numel() == 0 else ""


def output_statistics(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and standard deviation of each output of a layer, as its folded batch norm knew them; None: not known."""
    mean, std = (getattr(module, name, None) for name in OUTPUT_STATISTICS)
    return None if mean is None or std is None or not std.isfinite().all() else (mean, std)


def by_outputs(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """A weight of the layer's shape as (outputs, inputs, kernel), (groups, outputs, ...) if transposed: a view."""
    transposed = getattr(layer.module, "transposed", False)
    return weight.unflatten(0, (layer.module.groups, -1)).transpose(1, 2) if transposed else weight


def rows_of(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """The same as (outputs, inputs, kernel) whatever the layer, the groups of a transposed one after one another."""
    rows = by_outputs(layer, weight)
    return rows.reshape(-1, *rows.shape[1 - weight.ndim :])


def out_scale(layer: Layer) -> torch.Tensor | None:
    """(outputs,) the scales of the layer's rows, where hashing gave it some: a weight is a code times its row's."""
    return layer.module._buffers.get(layer.scale_name)


def codes_of(layer: Layer) -> torch.Tensor:
    """The layer's weight with its rows' scales taken off, exactly where hashing made it; else the weight itself."""
    weight, scales = layer.weight.detach(), out_scale(layer)
    if scales is None:
        return weight
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    codes, rows = torch.empty_like(weight), rows_of(layer, weight).to(wide)
    target = by_outputs(layer, codes)
    target.copy_((rows / scales.to(wide).reshape(-1, *[1] * (weight.ndim - 1))).reshape(target.shape))
    return codes


def forget_output_statistics(network: nn.Module) -> None:
    """Mark the output statistics of every layer as unknown, in place: call it when you have trained a folded network.

    The buffers stay, so that the network is saved and loaded as before; a standard deviation of inf says "unknown".
    ``train`` calls it by itself.
    """
    for module in network.modules():
        if (std := getattr(module, OUTPUT_STATISTICS[1], None)) is not None:
            std.fill_(torch.inf)


def count_distinct(weight: torch.Tensor) -> int:
    """How many different numbers a weight of any floating type holds."""
    return len(np.unique(as_floats(weight).numpy()))


def as_floats(tensor: torch.Tensor) -> torch.Tensor:
    """In the memory of the CPU, as float64 or float32, which holds every shorter type exactly."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def copy_network(network: nn.Module, instead: dict[int, torch.Tensor] | None = None) -> nn.Module:
    """A deep copy, for a step to work on.

    Weights that hooks compute (``torch.nn.utils.prune``, ``weight_norm``) are copied as numbers: the hooks of the copy
    compute them again at every call.

    Arguments:
        instead: by the ``id`` of a parameter or buffer, the one that the copy gets in its place.
    """
    memo: dict[int, Any] = _computed(network) | (instead or {})
    copied = copy.deepcopy(network, memo)
    for module in [module for module in network.modules() if isinstance(module, GraphModule)]:
        _complete(memo[id(module)], copy.deepcopy(vars(module), memo))
    return copied


def _computed(network: nn.Module) -> dict[int, torch.Tensor]:
    """Copies of the tensors that modules hold and that were computed, which PyTorch refuses to copy; by their ids."""
    held = [value for module in network.modules() for value in vars(module).values()]
    return {id(own): own.detach().clone() for own in held if isinstance(own, torch.Tensor) and not own.is_leaf}


def replace_module(network: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """``network`` with ``new`` wherever ``old`` stands, in place; ``new`` itself where it was all of it."""
    if network is old:
        vars(new).update({name: value for name, value in vars(network).items() if name == "redlab"})
        return new
    for path in [path for path, module in network.named_modules(remove_duplicate=False) if module is old]:
        network.set_submodule(path, new)
    return network


def _complete(copied: nn.Module, own: dict[str, Any]) -> None:
    """Give the copy of a ``torch.fx`` module what its own deep copy leaves out: all that its graph does not name."""
    for name, value in own.items():
        if name not in vars(copied):
            vars(copied)[name] = value
        elif isinstance(value, dict):  # parameters, modules, hooks: all of them, in their order
            parts = value | vars(copied)[name]
            vars(copied)[name].clear()
            vars(copied)[name].update(parts)


def unwrap(network: nn.Module) -> nn.Module:
    """``network`` without ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``, around it or in it.

    The layers then have their own names, without ``_orig_mod.`` and ``module.``. Compiled kernels do not run: they end
    the process when they meet tensors without values. The parameters and buffers are the network's own.

    Returns:
        ``network`` itself if nothing wraps it, the inner network if a wrapper does. If modules in it are wrapped, a
        copy of the modules that shares every tensor.

    Example:
        >>> network = load_network("digits/mlp")
        >>> from redlab.network.layers import unwrap
        >>> unwrap(torch.compile(network)) is network
        True
    """
    network = innermost(network)
    if not any(inside(module) is not None for module in network.modules()):
        return network
    tensors = [*network.parameters(), *network.buffers()]
    own = copy_network(network, {id(tensor): tensor for tensor in tensors})
    for module in list(own.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = innermost(child)
    return own
