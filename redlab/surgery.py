"""The tensors of a network, narrowed in place as a plan says; ``pruning`` does it to a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from redlab.cifar_resnet import ZeroPadShortcut
from redlab.plan import decode_index, representatives


@dataclass(frozen=True, eq=False)
class Part:
    """The slices of one group in one tensor: (size, m), and for every channel the one that it becomes, or -1."""

    role: str
    index: Tensor
    becomes: Tensor


@dataclass(frozen=True, eq=False)
class Edit:
    """All that happens to one tensor along one dim."""

    width: int
    parts: list[Part]

    def kept(self) -> Tensor:
        """A mask (width): which slices stay."""
        kept = torch.ones(self.width, dtype=torch.bool)
        for part in self.parts:
            kept[part.index[part.becomes != torch.arange(len(part.index))]] = False
        return kept


Edits = Mapping[tuple[str, int], Edit]  # by the name of the tensor (for paddings the module) and the dim


def edits_of(plan: dict) -> Edits:
    """What a plan that was checked does to every tensor.

    Raises:
        ValueError: its members contradict one another.
    """
    edits: dict[tuple[str, int], Edit] = {}
    for group, items in plan["members"].items():
        becomes = torch.tensor(representatives(plan["groups"][group]))
        for item in items:
            part = Part(item["role"], decode_index(item["index"], len(becomes)), becomes)
            for name, dim in item["tensors"]:
                edit = edits.setdefault((name, dim), Edit(item["width"], []))
                if edit.width != item["width"]:
                    raise ValueError(f"not a plan: it gives {name} two widths, {edit.width} and {item['width']}")
                edit.parts.append(part)
    for (name, _), edit in edits.items():
        slices = torch.cat([part.index.flatten() for part in edit.parts])
        if len(edit.parts) > 1 and len(torch.unique(slices)) < len(slices):
            raise ValueError(f"not a plan: two groups claim the same slice of {name}")
    return edits


def check_fit(network: nn.Module, edits: Edits) -> None:
    """Raises ValueError where ``network`` lacks a tensor that the edits name, or has it in another width."""
    for (name, dim), edit in edits.items():
        _check_tensor(network, name, dim, edit)


@torch.no_grad()
def narrow(network: nn.Module, edits: Edits) -> None:
    """Carry out ``edits`` in place, on a network that ``check_fit`` accepts and that the caller owns."""
    for (name, dim), edit in edits.items():
        if edit.parts[0].role == "padding":
            _narrow_padding(network.get_submodule(name), edit)
        else:
            _narrow_tensor(network, name, dim, edit)
    for path in dict.fromkeys(name.rpartition(".")[0] for name, _ in edits):
        _set_widths(network.get_submodule(path))


def _check_tensor(network: nn.Module, name: str, dim: int, edit: Edit) -> None:
    path, _, attribute = name.rpartition(".")
    try:
        module = network.get_submodule(name if edit.parts[0].role == "padding" else path)
    except AttributeError:
        raise ValueError(f"the plan is for another network: this one has no {name}") from None
    if edit.parts[0].role == "padding":
        has = module.zeros_before + module.zeros_after if isinstance(module, ZeroPadShortcut) else 0
    else:
        tensor = {**module._parameters, **module._buffers}.get(attribute)
        has = tensor.shape[dim] if tensor is not None and dim < tensor.ndim else 0
    if has == 0:
        raise ValueError(f"the plan is for another network: this one has no {name} with a dim {dim}")
    if has != edit.width:
        raise ValueError(f"the plan is for another network: {name} has {has} slices along dim {dim}, not {edit.width}")


def _narrow_padding(module: ZeroPadShortcut, edit: Edit) -> None:
    kept = edit.kept()
    before = int(kept[: module.zeros_before].sum())
    module.zeros_before, module.zeros_after = before, int(kept.sum()) - before


def _narrow_tensor(network: nn.Module, name: str, dim: int, edit: Edit) -> None:
    path, _, attribute = name.rpartition(".")
    module = network.get_submodule(path)
    old, kept = getattr(module, attribute), edit.kept()
    tensor = old.detach()
    new = tensor.index_select(dim, kept.nonzero().flatten().to(tensor.device))
    place = kept.cumsum(0) - 1
    for part in edit.parts:
        _merge(new, tensor, dim, part, place)
    old.data, old.grad = new, None  # the parameter itself stays, and with it whoever shares it


def _merge(new: Tensor, old: Tensor, dim: int, part: Part, place: Tensor) -> None:
    """Add to the slices of ``new`` what the channels that became theirs bring."""
    merged = ((part.becomes >= 0) & (part.becomes != torch.arange(len(part.becomes)))).nonzero().flatten()
    if len(merged) == 0:
        return
    into = part.becomes[merged]
    sources, targets = part.index[merged].flatten().to(old.device), part.index[into].flatten()
    rows = old.index_select(dim, sources)
    if part.role == "producer":
        # The mean as first + mean(other - first): what is equal stays what it is, to the last bit.
        counts = torch.bincount(part.becomes[part.becomes >= 0], minlength=len(part.becomes))[into]
        counts = counts[:, None].expand(-1, part.index.shape[1]).flatten().to(old.device, old.dtype)
        shape = [-1 if axis == dim else 1 for axis in range(old.ndim)]
        rows = (rows - old.index_select(dim, targets.to(old.device))) / counts.view(shape)
    new.index_add_(dim, place[targets].to(old.device), rows)


def _set_widths(module: nn.Module) -> None:
    """The attributes that say how wide a module is, from its tensors."""
    if isinstance(module, _ConvNd):
        _set_conv_widths(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        tensors = [module.weight, module.running_mean]
        module.num_features = next(len(tensor) for tensor in tensors if tensor is not None)
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
