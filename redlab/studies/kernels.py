"""The kernels of one layer, and which of them go together: filters that merge, kernels that equal one another."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from torch import Tensor, nn

from redlab.channels.groups import Group, Member
from redlab.compression.similarity import Dendrogram, clusters_at
from redlab.compression.units import first_equal, first_multiple
from redlab.network.layers import Layer
from redlab.options import count_of


def kernels_of(layer: Layer, weight: Tensor | None = None) -> ndarray:
    """The weight by filter and input channel: (outputs, inputs per group, rows, columns), float32 or float64.

    A weight of a linear layer is a kernel of one pixel, a kernel over one dimension has one row, and of one over three
    the slices stand one under the other (our choice).

    Arguments:
        weight: in place of the layer's own.
    """
    weight = (layer.weight if weight is None else weight).detach().cpu()
    weight = weight if weight.dtype == torch.float64 else weight.float()
    if _transposed(layer):  # (inputs, outputs per group, ...)
        weight = weight.unflatten(0, (layer.module.groups, -1)).transpose(1, 2).flatten(0, 1)
    rows, columns = prod(weight.shape[2:-1]), weight.shape[-1] if weight.ndim > 2 else 1
    return weight.reshape(*weight.shape[:2], rows, columns).numpy()


def channels_of(layer: Layer) -> ndarray:
    """The input channel that each kernel reads: (outputs, inputs per group)."""
    outputs, inputs = kernels_of(layer).shape[:2]
    groups = getattr(layer.module, "groups", 1)
    return (np.arange(outputs) // (outputs // groups))[:, None] * inputs + np.arange(inputs)


def equal_kernels(kernels: ndarray, channels: ndarray, up_to_scale: bool = False) -> ndarray:
    """Which kernels share their multiplications, as in ``split_inputs(unit="kernel")``: those of one input channel that
    are equal, or multiples of one another.

    Arguments:
        kernels: (outputs, inputs, rows, columns), and ``channels`` what each reads, (outputs, inputs).

    Returns:
        (outputs, inputs) the number of each kernel's group among those of its input channel, from 1; 0 for those that
        are alone, and for those of zeros, which need no multiplications.
    """
    rows, channels, numbers = kernels.reshape(channels.size, -1), channels.ravel(), np.zeros(channels.size, int)
    alive = np.flatnonzero(rows.any(1))
    own = rows[alive], channels[alive]
    first = first_multiple(*own)[0] if up_to_scale else first_equal(*own)
    leaders = np.flatnonzero(np.bincount(first, minlength=len(alive)) > 1)
    of_leader = np.zeros(len(alive), int)
    of_leader[leaders] = pd.Series(leaders).groupby(channels[alive[leaders]]).cumcount() + 1
    numbers[alive] = of_leader[first]
    return numbers.reshape(kernels.shape[:2])


def merged_rows(
    network: nn.Module, layer: Layer, grown: Sequence[tuple[Group, Dendrogram | None]], alpha: float
) -> ndarray:
    """Which filters of ``layer`` become one where a share ``alpha`` of each coupled group merges, dead ones included.

    Arguments:
        network: whose layer it is, and ``grown`` its ``merge_groups``.

    Returns:
        (outputs,) the number of each filter's cluster, from 1 in the order of their first members; 0 for those that
        stay alone.
    """
    clusters = -1 - np.arange(len(kernels_of(layer)))  # each alone
    for group, member, tree in groups_of(network, layer, grown):
        if tree is not None:
            _join(clusters, member, clusters_at(tree, count_of(alpha, group.size)))
    _, first, place, count = np.unique(clusters, return_index=True, return_inverse=True, return_counts=True)
    leaders = np.sort(first[count > 1])
    return np.where(count[place] > 1, np.searchsorted(leaders, first[place]) + 1, 0)


def _join(clusters: ndarray, member: Member, merged: ndarray) -> None:
    """Channels of several rows merge row by row."""
    free, per_channel = clusters.max(initial=-1) + 1, member.index.shape[1]
    clusters[member.index.numpy()] = free + merged[:, None] * per_channel + np.arange(per_channel)


def why_filters_stay(network: nn.Module, layer: Layer, grown: Sequence[tuple[Group, Dendrogram | None]]) -> str:
    """The reasons where no filter of the layer may merge, or ""."""
    producing = groups_of(network, layer, grown)
    if any(tree is not None for *_, tree in producing):
        return ""
    return "; ".join(dict.fromkeys(group.frozen for group, *_ in producing))


def groups_of(
    network: nn.Module, layer: Layer, grown: Sequence[tuple[Group, Dendrogram | None]]
) -> list[tuple[Group, Member, Dendrogram | None]]:
    """The groups that the layer's filters are in, each with the layer's rows in it, and its tree."""
    path = next(path for path, module in network.named_modules() if module is layer.module)
    where = f"{path}.{layer.parameter}".lstrip("."), int(_transposed(layer))
    found = [(group, member, tree) for group, tree in grown for member in group.producers]
    return [(group, member, tree) for group, member, tree in found if (member.tensor, member.dim) == where]


def _transposed(layer: Layer) -> bool:
    return getattr(layer.module, "transposed", False)


def kernel_frame(kernels: ndarray, groups: ndarray, filters: ndarray, channels: ndarray) -> pd.DataFrame:
    """Some kernels of a layer, for ``plot_kernels``.

    Arguments:
        kernels: (outputs, inputs, rows, columns).
        groups: 0 for none: (outputs,) of whole filters, or (outputs, inputs) of kernels.
        filters, channels: the numbers of those to show, in their order.

    Returns:
        One row a weight: filter, channel, row, column, value, group. ``attrs["of"]`` says what the groups are of,
        "filters" or "kernels".
    """
    shown = kernels[np.ix_(filters, channels)]
    place = np.indices(shown.shape).reshape(4, -1)
    group = groups[filters][place[0]] if groups.ndim == 1 else groups[np.ix_(filters, channels)][place[0], place[1]]
    columns = {"filter": filters[place[0]], "channel": channels[place[1]], "row": place[2], "column": place[3]}
    frame = pd.DataFrame(columns | {"value": shown.ravel(), "group": group})
    frame.attrs["of"] = "filters" if groups.ndim == 1 else "kernels"
    return frame
