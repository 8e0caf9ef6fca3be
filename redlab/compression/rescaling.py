"""Moving the scales of channels: rows divided by a factor, the columns that read them times it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from redlab.channels.scales import ScaleGroup, scalable_groups
from redlab.network.example import Example, remember_example
from redlab.network.layers import OUTPUT_STATISTICS, Layer, copy_network, out_scale, unwrap, weight_layers
from redlab.network.trace import Graph
from redlab.options import check_one_of

BITS = 8  # of a factor. Times a code of 15 bits it is exact in float32, so that a scale that moves leaves codes exact


@torch.inference_mode(False)
@torch.no_grad()
def rescale_channels(
    network: nn.Module, factors: Mapping[str, Tensor], example: Example | None = None, graph: Graph | None = None
) -> nn.Module:
    """A copy of ``network`` that computes the same: what makes channel c is divided by its factor, what reads it grows.

    Divided are rows of weights, biases, what layers remember of their outputs (``out_mean``, ``out_std``), and the
    scales of hashed rows. Where such a scale is the factor itself, or a factor a power of two, the codes stay exact.

    Arguments:
        factors: by the name of a group of ``scalable_groups``, (size,) numbers above 0.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        graph: as in ``scalable_groups``.

    Raises:
        ValueError: an unknown group, one whose scales must stay, a wrong number of factors, or one that is not finite
            and above 0.

    Example:
        >>> network = fold_batchnorm(load_network("digits/mlp")).network
        >>> from redlab.compression.rescaling import rescale_channels
        >>> scaled = rescale_channels(network, {"hidden.0.linear": torch.full((256,), 2.0)})
        >>> images = torch.randn(2, 64)
        >>> bool((scaled(images) == network(images)).all())
        True
    """
    network = unwrap(network)
    groups = {group.name: group for group in scalable_groups(network, example, graph)}
    for name, own in factors.items():
        check_one_of("group", name, groups)
        if groups[name].frozen:
            raise ValueError(f"the scales of group {name!r} can't be moved: {groups[name].frozen}")
        if own.shape != (groups[name].size,) or not bool((own.isfinite() & (own > 0)).all()):
            raise ValueError(f"group {name!r} takes {groups[name].size} finite factors above 0")
    scaled = copy_network(network)
    move_scales(scaled, groups.values(), factors)
    remember_example(scaled, example)
    return scaled


def move_scales(network: nn.Module, groups: Iterable[ScaleGroup], factors: Mapping[str, Tensor]) -> None:
    """``rescale_channels`` in place; groups without factors stay."""
    for layer, rows, columns in ends_of(network, groups, factors):
        _rescale(layer, rows, columns)


def ends_of(
    network: nn.Module, groups: Iterable[ScaleGroup], factors: Mapping[str, Tensor]
) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    """Each layer that ``factors`` reach; what its rows are divided by (n_out,), its columns multiplied by (n_in,)."""
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for group in groups:
        if (own := factors.get(group.name)) is not None:
            padded = torch.cat([own.double().cpu(), torch.ones(1, dtype=torch.float64)])  # place -1: 1
            for ends, places in ((rows, group.rows), (columns, group.columns)):
                for name, channels in places.items():
                    ends[name] = ends.get(name, 1.0) * padded[channels]
    for layer in weight_layers(network):
        if layer.name in rows or layer.name in columns:
            ones = [torch.ones(count, dtype=torch.float64) for count in widths(layer)]
            yield layer, rows.get(layer.name, ones[0]), columns.get(layer.name, ones[1])


def widths(layer: Layer) -> tuple[int, int]:
    """How many outputs and inputs a layer has."""
    first, second = layer.weight.shape[:2]
    groups = getattr(layer.module, "groups", 1)
    return (second * groups, first) if is_transposed(layer) else (first, second * groups)


def is_transposed(layer: Layer) -> bool:
    """Whether the outputs lie along axis 1 of the weight."""
    return bool(getattr(layer.module, "transposed", False))


def along_rows(layer: Layer, values: Tensor) -> Tensor:
    """(n_out,) numbers in a shape that meets the rows of the weight."""
    return _along(layer, values, at_rows=True)


def along_columns(layer: Layer, values: Tensor) -> Tensor:
    """(n_in,) numbers in a shape that meets the columns of the weight, those of each group of a grouped convolution."""
    return _along(layer, values, at_rows=False)


def _along(layer: Layer, values: Tensor, at_rows: bool) -> Tensor:
    """Of 4 inputs in 2 groups, with 6 outputs: weight (6, 2, ...) meets the inputs 0 1 in rows 0-2, 2 3 in rows 3-5."""
    weight, groups = layer.weight, getattr(layer.module, "groups", 1)
    blocks = values.view(groups, -1)
    if at_rows == is_transposed(layer):  # along axis 1, a block a group of slices along axis 0
        blocks = blocks.repeat_interleave(weight.shape[0] // groups, 0)
        return blocks.view(*blocks.shape, *[1] * (weight.ndim - 2))
    return values.view(-1, *[1] * (weight.ndim - 1))


def _rescale(layer: Layer, rows: Tensor, columns: Tensor) -> None:
    module, weight = layer.module, layer.weight
    kind = torch.promote_types(weight.dtype, torch.float32)
    rows, columns = rows.to(weight.device, kind), columns.to(weight.device, kind)
    scale = out_scale(layer)
    if scale is None:
        scaled = weight.to(kind) / along_rows(layer, rows) * along_columns(layer, columns)
    else:  # the codes first: a code and a factor of few bits each have an exact product
        codes = weight.to(kind) / along_rows(layer, scale.to(kind))
        scale.copy_(scale.to(kind) / rows)
        scaled = codes * along_columns(layer, columns) * along_rows(layer, scale.to(kind))
    weight.copy_(scaled)
    for name in ("bias", *OUTPUT_STATISTICS):
        if (own := getattr(module, name, None)) is not None:
            own.copy_(own.to(kind) / rows)


def few_bits(factors: Tensor) -> Tensor:
    """``factors`` with 8 significant bits.

    Example:
        >>> from redlab.compression.rescaling import few_bits
        >>> few_bits(torch.tensor([1.0, 100.3, 0.001]))
        tensor([1.0000e+00, 1.0050e+02, 9.9945e-04])
    """
    mantissa, exponent = torch.frexp(factors)
    return torch.ldexp((mantissa * 2**BITS).round() / 2**BITS, exponent)
