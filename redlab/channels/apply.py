"""Carrying out a plan: the only code that removes channels. Tensors become narrower in a copy of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from redlab.channels.plan import check_plan, decode_index, representatives
from redlab.channels.sizes import read_size, write_size
from redlab.network.layers import copy_network, unwrap
from redlab.network.recipe import append_step
from redlab.network.zero_pad import ZeroPadShortcut


@torch.inference_mode(False)  # whatever the caller's mode: the new network may be trained
def apply_plan(network: nn.Module, plan: dict) -> nn.Module:
    """A network with only the channels that ``plan`` keeps: smaller tensors, no masks, no hooks.

    A merged channel has the mean of its members' producer rows and the sum of their consumer slices. Where the members
    are equal, the network computes the same function as before. Nothing is traced.

    Arguments:
        network: left untouched.
        plan: what ``make_plan`` made for this network, or for one of the same architecture and widths.

    Raises:
        ValueError: the plan is malformed, or names a tensor that the network lacks or has in another width.

    Example:
        >>> network = load_network("digits/resnet")
        >>> pruned = prune_channels(network, score_channels(network, "magnitude"), ratio=0.5)
        >>> again = apply_plan(network, pruned.plan)
        >>> torch.equal(again(example_input(network)), pruned.network(example_input(network)))
        True
    """
    network = unwrap(network)
    edits = edits_of(check_plan(plan))
    check_fit(network, edits)
    smaller = narrow(network, edits)
    append_step(smaller, plan)
    return smaller


@dataclass(frozen=True, eq=False)
class Part:
    """The slices of one group in one tensor of ``width``, ``index`` (size, m), and what each channel becomes.

    ``becomes`` (size,) holds the channel that each one becomes: itself, its merge target, or -1 if it is removed.
    """

    role: str
    width: int
    index: Tensor
    becomes: Tensor

    @cached_property
    def merged(self) -> Tensor:
        """The channels that become another one."""
        return ((self.becomes >= 0) & (self.becomes != torch.arange(len(self.becomes)))).nonzero().flatten()


@dataclass(frozen=True, eq=False)
class Edit:
    """All that happens to one tensor along one dim."""

    parts: tuple[Part, ...]

    @property
    def role(self) -> str:
        return self.parts[0].role

    @property
    def width(self) -> int:
        return self.parts[0].width

    @cached_property
    def kept(self) -> Tensor:
        """A mask (width): which slices stay."""
        kept = torch.ones(self.width, dtype=torch.bool)
        for part in self.parts:
            kept[part.index[part.becomes != torch.arange(len(part.index))]] = False
        return kept

    @cached_property
    def stay(self) -> Tensor:
        """The slices that stay."""
        return self.kept.nonzero().flatten()


# By the name of the tensor and the dim; of the module that pads, or of the number that is a size, and 0.
Edits = Mapping[tuple[str, int], Edit]


def edits_of(plan: dict) -> Edits:
    """What a checked plan does to every tensor.

    Raises:
        ValueError: its members contradict one another.
    """
    parts: dict[tuple[str, int], list[Part]] = {}
    for group, items in plan["members"].items():
        becomes = torch.tensor(representatives(plan["groups"][group]))
        for item in items:
            part = Part(item["role"], item["width"], decode_index(item["index"], len(becomes)), becomes)
            for name, dim in item["tensors"]:
                parts.setdefault((name, dim), []).append(part)
    # Tensors with the same parts, such as the four of a norm, share one edit and what it caches.
    edits = {tuple(map(id, own)): Edit(tuple(own)) for own in parts.values()}
    for tensor, own in parts.items():
        _check_parts(tensor[0], own)
    return {tensor: edits[tuple(map(id, own))] for tensor, own in parts.items()}


def _check_parts(name: str, parts: Sequence[Part]) -> None:
    widths = sorted({part.width for part in parts})
    if len(widths) > 1:
        raise ValueError(f"not a plan: it gives {name} the widths {widths[0]} and {widths[1]}")
    if len(parts) > 1:
        slices = torch.cat([part.index.flatten() for part in parts])
        if len(torch.unique(slices)) < len(slices):
            raise ValueError(f"not a plan: two groups claim the same slice of {name}")


def check_fit(network: nn.Module, edits: Edits) -> None:
    """Raises ValueError where ``network`` lacks a tensor that the edits name, or has it in another width."""
    for (name, dim), edit in edits.items():
        other = "the plan is for another network"
        if (has := _width_of(network, name, dim, edit.role)) == 0:
            raise ValueError(f"{other}: this one has no {name} with a dim {dim}")
        if has != edit.width:
            raise ValueError(f"{other}: {name} has {has} slices along dim {dim}, not {edit.width}")


def _width_of(network: nn.Module, name: str, dim: int, role: str) -> int:
    """How many slices there are to choose from; 0 where there is nothing of that name."""
    if role == "size":
        return read_size(network, name)
    path, _, attribute = name.rpartition(".")
    try:
        module = network.get_submodule(name if role == "padding" else path)
    except AttributeError:
        return 0
    if role == "padding":
        return module.zeros_before + module.zeros_after if isinstance(module, ZeroPadShortcut) else 0
    tensor = {**module._parameters, **module._buffers}.get(attribute)
    return tensor.shape[dim] if tensor is not None and dim < tensor.ndim else 0


@torch.no_grad()
def narrow(network: nn.Module, edits: Edits, instead: Mapping[int, Tensor] | None = None) -> nn.Module:
    """A copy of ``network`` with ``edits`` carried out; only the slices that stay are copied.

    Arguments:
        network: one that ``check_fit`` accepts.
        instead: by the ``id`` of a tensor of ``network``, the tensor to start from in its place.
    """
    own = dict(instead or {})
    tensors: dict[str, Tensor] = {}
    for (name, dim), edit in sorted(edits.items(), key=lambda item: item[0]):  # rows first: whole blocks of memory
        if edit.role not in ("padding", "size"):
            old = _tensor(network, name)
            tensors[name] = _narrowed(tensors.get(name, own.get(id(old), old).detach()), dim, edit)
    # By id: modules that share a tensor share the narrow one.
    own |= {id(old): _like(old, new) for name, new in tensors.items() for old in [_tensor(network, name)]}
    smaller = copy_network(network, own)
    for (name, _), edit in edits.items():
        if edit.role == "padding":
            _narrow_padding(smaller.get_submodule(name), edit)
        elif edit.role == "size":
            write_size(smaller, name, len(edit.stay))
    for path in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
        _set_widths(smaller.get_submodule(path))
    return smaller


def _tensor(network: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    return getattr(network.get_submodule(path), attribute)


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _narrow_padding(module: ZeroPadShortcut, edit: Edit) -> None:
    kept = edit.kept
    before = int(kept[: module.zeros_before].sum())
    module.zeros_before, module.zeros_after = before, int(kept.sum()) - before


def _narrowed(old: Tensor, dim: int, edit: Edit) -> Tensor:
    new = old.index_select(dim, edit.stay.to(old.device))
    if any(len(part.merged) for part in edit.parts):
        place = edit.kept.cumsum(0) - 1
        for part in edit.parts:
            _merge(new, old, dim, part, place)
    return new


def _merge(new: Tensor, old: Tensor, dim: int, part: Part, place: Tensor) -> None:
    """Add to the slices of ``new`` the channels that were merged into them."""
    merged = part.merged
    into = part.becomes[merged]
    sources, targets = part.index[merged].flatten().to(old.device), part.index[into].flatten()
    rows = old.index_select(dim, sources)
    if part.role == "producer":
        # The mean as first + mean(other - first): equal rows keep their values to the last bit.
        counts = torch.bincount(part.becomes[part.becomes >= 0], minlength=len(part.becomes))[into]
        counts = counts[:, None].expand(-1, part.index.shape[1]).flatten().to(old.device, old.dtype)
        shape = [-1 if axis == dim else 1 for axis in range(old.ndim)]
        rows = (rows - old.index_select(dim, targets.to(old.device))) / counts.view(shape)
    new.index_add_(dim, place[targets].to(old.device), rows)


def _set_widths(module: nn.Module) -> None:
    """Set the attributes for the width of a module from its tensors."""
    if isinstance(module, _ConvNd):
        _set_conv_widths(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        tensors = [module.weight, module.running_mean]
        module.num_features = next(len(tensor) for tensor in tensors if tensor is not None)
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:  # an instance norm: plans of old name no size
            module.num_groups = len(module.weight)
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _set_conv_widths(module: _ConvNd) -> None:
    first, second = module.weight.shape[:2]
    if module.transposed:
        module.in_channels, module.out_channels = first, second * module.groups
        return
    if second == 1 and module.groups > 1 and module.groups == module.in_channels:  # one group for every input channel
        module.groups = first * module.groups // module.out_channels
    module.in_channels, module.out_channels = second * module.groups, first
