"""The rows that the channels of a coupled group are compared by, and which of its channels are always 0."""

from __future__ import annotations

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from redlab.channels.coupling import Group, Member
from redlab.compression.norms import scale_and_shift
from redlab.network.layers import OUT_SCALE, OUTPUT_STATISTICS, as_floats, is_depthwise, output_statistics

# A norm whose scale is below this lets nothing through. Folded, it makes a filter 1e-4 / sqrt(eps) = 0.03 times as
# large at most: a filter that is longer today, or has a larger bias, was changed since.
_TINY, _FAINT = 1e-4, 0.03
# What a layer remembers of its rows, and does not compute with.
_NOTES = (*OUTPUT_STATISTICS, OUT_SCALE)


def own_rows(network: nn.Module, group: Group) -> ndarray:
    """(size, d) everything that each channel owns: equal rows mean channels that compute the same."""
    return _side_by_side(list(own_parts(network, group).values()), group.size)


def own_parts(network: nn.Module, group: Group) -> dict[Member, ndarray]:
    """The same apart: by tensor, (size, anything)."""
    parts = {}
    for member in group.producers:
        path, name = _split(member)
        if name not in _NOTES:
            parts[member] = slices_of(getattr(network.get_submodule(path), name), member.index, member.dim)
    return parts


def effective_rows(folded: nn.Module, group: Group) -> ndarray:
    """(size, d) what each channel computes with: weights and biases of its layers, and of norms that could not fold
    the scale and the shift.

    Arguments:
        folded: the network whose ``group`` it is, with its batch norms folded.
    """
    columns = [column for member in group.producers for column in _effective(folded, member)]
    return _side_by_side(columns, group.size)


def dead_channels(folded: nn.Module, group: Group) -> ndarray:
    """(size,) bool: channels that are 0 whatever comes in.

    A ReLU follows, and everything that produces them is a layer whose batch norm had |gamma| < 1e-4 and beta <= 0, and
    whose weights still are as small as that norm made them.
    """
    dead = np.full(group.size, group.relu)
    for member in group.producers:
        path, name = _split(member)
        module = folded.get_submodule(path)
        if isinstance(module, nn.Identity):  # a norm that was folded: its layer tells
            continue
        known = output_statistics(module)
        if name == "weight" and _outputs(module, member) and known is not None:
            mean, std = (slices_of(values, member.index) for values in known)
            dead &= ((std < _TINY) & (mean <= 0)).all(1) & _is_faint(module, member)
        elif name != "bias" and name not in _NOTES:
            return np.zeros(group.size, bool)
    return dead


def _is_faint(layer: nn.Module, member: Member) -> ndarray:
    """(size,) whether the filters and biases of each channel are nearly 0 as they are now."""
    bias = slices_of(torch.zeros(member.width) if layer.bias is None else layer.bias, member.index)
    return (np.linalg.norm(slices_of(layer.weight, member.index, member.dim), axis=1) < _FAINT) & (bias < _FAINT).all(1)


def _effective(folded: nn.Module, member: Member) -> list[ndarray]:
    """The columns that one producing tensor gives, none for what folding has taken or remembered."""
    path, name = _split(member)
    module = folded.get_submodule(path)
    if name in _NOTES or (tensor := getattr(module, name, None)) is None:
        return []
    if isinstance(module, _BatchNorm) and module.running_mean is not None:
        # One tensor of the norm stands for it; how its statistics scale is no distance, what it does to a channel is.
        both = scale_and_shift(module, tensor.device) if name == "running_mean" else ()
        return [slices_of(vector, member.index) for vector in both]
    if name == "bias" and isinstance(module, _ConvNd | nn.Linear):
        return []  # comes with the weight: before the fold it may not have been there
    vectors = [module.bias] if name == "weight" and _outputs(module, member) and module.bias is not None else []
    return [slices_of(tensor, member.index, member.dim), *(slices_of(vector, member.index) for vector in vectors)]


def _outputs(module: nn.Module, member: Member) -> bool:
    """Whether ``member``, of a layer's weight, counts the layer's outputs one by one, as its bias does."""
    if isinstance(module, _ConvNd):
        return member.dim == int(module.transposed) and module.weight.shape[member.dim] == module.out_channels
    return isinstance(module, nn.Linear) and member.dim == 0


def passes_through(network: nn.Module, member: Member) -> bool:
    """Whether ``member`` is the weight of a depthwise convolution, which filters channels and makes none anew."""
    path, name = _split(member)
    return name == "weight" and is_depthwise(network.get_submodule(path))


def slices_of(tensor: Tensor, index: Tensor, dim: int = 0) -> ndarray:
    """(size, anything) the slices of ``tensor`` that belong to each channel, in float32 or float64."""
    return as_floats(tensor).movedim(dim, 0)[index.flatten()].reshape(len(index), -1).numpy()


def _side_by_side(columns: list[ndarray], size: int) -> ndarray:
    return np.concatenate(columns, axis=1) if columns else np.zeros((size, 0), np.float32)


def _split(member: Member) -> tuple[str, str]:
    """The path of the module that owns a tensor, and the tensor's own name."""
    path, _, name = member.tensor.rpartition(".")
    return path, name
