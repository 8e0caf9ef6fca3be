"""Neurons that are positive multiples of one another: scaled alike, they are identical, and merging them is exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from redlab.channels.groups import Group, Member
from redlab.channels.scales import ScaleGroup, scalable_groups
from redlab.compression.channel_rows import own_parts
from redlab.compression.rescaling import along_columns, ends_of, is_transposed, move_scales, widths
from redlab.network.example import Example
from redlab.network.layers import OUT_SCALE, Layer, copy_network, weight_layers
from redlab.network.trace import Graph, tensor_name

# Relative, of each tensor's slices: multiples differ by the rounding of float32, about 1e-7. Our choice.
ALIKE = 1e-6


@torch.no_grad()
def align_multiples(
    network: nn.Module, groups: Sequence[Group], example: Example | None = None, graph: Graph | None = None
) -> nn.Module:
    """A copy in which neurons that are positive multiples of one another are identical; it computes the same.

    The later of two neurons gets the scale of the first, its consumers' columns take the rest. They are multiples if
    all that they own is alike, to 1e-6 relative, once the row of the first layer that makes them, with its bias, has
    the length 1. Where scales can't be moved (``scalable_groups``), nothing changes.

    Arguments:
        groups: what ``couple`` found in ``network``.
        example, graph: as in ``scalable_groups``.

    Example:
        >>> network = fold_batchnorm(load_network("digits/mlp")).network
        >>> from redlab.channels.coupling import couple
        >>> from redlab.compression.multiples import align_multiples
        >>> _ = network.hidden[0].linear.weight[1].copy_(3 * network.hidden[0].linear.weight[0])
        >>> _ = network.hidden[0].linear.bias[1].copy_(3 * network.hidden[0].linear.bias[0])
        >>> aligned = align_multiples(network, couple(network))
        >>> weight = aligned.hidden[0].linear.weight
        >>> bool((weight[0] == weight[1]).all())
        True
    """
    scales = scalable_groups(network, example, graph)
    layers = {tensor_name(network, layer): layer for layer in weight_layers(network) if not layer.skipped}
    lengths = _lengths({layer.name: layer for layer in layers.values()}, scales)
    unit = copy_network(network)
    move_scales(unit, scales, lengths)
    rows = {layer.name: own for layer, own, _ in ends_of(network, scales, lengths)}
    factors = {name: torch.ones_like(own) for name, own in lengths.items()}
    firsts = {}
    for group in groups:
        if not group.frozen and (made := _made(group, layers, scales)):
            first = alike(list(own_parts(unit, group).values()))
            if len(np.unique(first)) < group.size:
                firsts[group.name] = first
                for own, channels, layer, index in made:
                    asked = rows[layer][index] / rows[layer][index[torch.from_numpy(first)]]
                    factors[own.name][channels[channels >= 0]] = asked[channels >= 0]
    del unit
    aligned = copy_network(network)
    move_scales(aligned, scales, factors)
    for group in groups:
        if group.name in firsts:
            _make_equal(aligned, group, firsts[group.name])
    return aligned


def alike(parts: Sequence[ndarray]) -> ndarray:
    """(n,) the first row like each: in every one of ``parts``, (n, anything), it differs by 1e-6 relative at most.

    Example:
        >>> from redlab.compression.multiples import alike
        >>> alike([np.array([[3.0, 4.0], [3.0, 4.1], [3.0, 4.000001]])])
        array([0, 1, 0])
    """
    # Rows that are alike have nearly the same projection: each is compared with the next few along it.
    drawn = np.random.default_rng(0)
    line, reach = np.zeros(len(parts[0])), np.zeros(len(parts[0]))
    for part in parts:
        direction = drawn.standard_normal(part.shape[1])
        line += part @ direction
        reach += 2 * ALIKE * np.linalg.norm(part, axis=1) * np.linalg.norm(direction)
    order, first = np.argsort(line, kind="stable"), np.arange(len(line))
    for place, row in enumerate(order):
        for other in order[place + 1 :]:
            if line[other] - line[row] > reach[row]:
                break
            if bool(_near(parts, row[None], other[None]).all()):
                # ``row`` may be in a class by now: the two classes become one.
                one, two = first[row], first[other]
                first[(first == one) | (first == two)] = min(one, two)
                break
    return first


def _near(parts: Sequence[ndarray], one: ndarray, other: ndarray) -> ndarray:
    """(n,) whether rows ``one`` and ``other`` are alike."""
    near = np.ones(len(one), bool)
    for part in parts:
        largest = np.maximum(np.linalg.norm(part[one], axis=1), np.linalg.norm(part[other], axis=1))
        near &= np.linalg.norm(part[one] - part[other], axis=1) <= ALIKE * largest
    return near


def _lengths(layers: dict[str, Layer], scales: Sequence[ScaleGroup]) -> dict[str, Tensor]:
    """By the name of each group that may be scaled, the length of each channel's first row that is not 0.

    Groups come in the order in which they run: the columns of that row have their scale by then.
    """
    columns = {name: torch.ones(widths(layer)[1], dtype=torch.float64) for name, layer in layers.items()}
    found = {}
    for group in scales:
        if group.frozen:
            continue
        lengths = torch.zeros(group.size, dtype=torch.float64)
        for name, places in group.rows.items():
            squares = torch.zeros_like(lengths)
            squares.index_add_(0, places[places >= 0], _squares(layers[name], columns[name])[places >= 0])
            lengths = lengths.where(lengths > 0, squares.sqrt())
        found[group.name] = lengths.where((lengths > 0) & lengths.isfinite(), 1.0)
        padded = torch.cat([found[group.name], torch.ones(1, dtype=torch.float64)])
        for name, places in group.columns.items():
            columns[name] *= padded[places]
    return found


def _squares(layer: Layer, columns: Tensor) -> Tensor:
    """(n_out,) the squared length of each row of a layer with its bias, its columns multiplied."""
    weight = layer.weight.detach().double().cpu()
    squares = (weight * along_columns(layer, columns)).square().unsqueeze(-1).flatten(2).sum(2)
    groups = getattr(layer.module, "groups", 1)
    summed = squares.unflatten(0, (groups, -1)).sum(1).flatten() if is_transposed(layer) else squares.sum(1)
    bias = layer.module.bias
    return summed if bias is None else summed + bias.detach().double().cpu().square()


_Made = tuple[ScaleGroup, Tensor, str, Tensor]


def _made(group: Group, layers: dict[str, Layer], scales: Sequence[ScaleGroup]) -> list[_Made]:
    """The scales that rows of a coupled group follow: scale group, its channel by slice (size, m), layer and slices."""
    found = []
    for member in group.producers:
        layer = layers.get(member.tensor)
        if layer is not None and member.dim == int(is_transposed(layer)) and member.width == widths(layer)[0]:
            for own in scales:
                if not own.frozen and layer.name in own.rows:
                    channels = own.rows[layer.name][member.index]
                    found += [(own, channels, layer.name, member.index)] if bool((channels >= 0).any()) else []
    return found


def _make_equal(network: nn.Module, group: Group, first: ndarray) -> None:
    """Give channels that are alike the very same bits, in place."""
    parts = own_parts(network, group)
    later = np.flatnonzero(first != np.arange(len(first)))
    later = later[_near(list(parts.values()), later, first[later])]  # not so: scales that could not move
    for member in [*parts, *(own for own in group.producers if own.tensor.endswith(OUT_SCALE))]:
        _copy_slices(network, member, torch.from_numpy(first[later]), torch.from_numpy(later))


def _copy_slices(network: nn.Module, member: Member, sources: Tensor, targets: Tensor) -> None:
    path, _, name = member.tensor.rpartition(".")
    tensor = getattr(network.get_submodule(path), name)
    index = member.index.to(tensor.device)
    values = tensor.index_select(member.dim, index[sources].flatten())
    tensor.index_copy_(member.dim, index[targets].flatten(), values)
