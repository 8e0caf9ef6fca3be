"""How redundant each weight of a network is: values, filters and multiplications in one row, cheap for whole zoos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from redlab.compression.folding import fold_batchnorm
from redlab.compression.similarity import count_duplicates, pairwise_distances
from redlab.hashing.values import count_products, measure_values
from redlab.hashing.vector import NotFinite, in_parts
from redlab.network.example import Example
from redlab.network.layers import Layer, codes_of, is_depthwise, unwrap, weight_layers
from redlab.options import plain_options
from redlab.progress import progress

KINDS = ("conv", "grouped", "depthwise", "transposed", "pointwise", "linear", "attention")
_NUMBERS = {
    "depth": "float64",
    **dict.fromkeys(
        ["outputs", "inputs", "taps", "groups", "weights", "zeros", "distinct_before", "modes", "distinct"], "int64"
    ),
    **dict.fromkeys(["error", "entropy", "kurtosis"], "float64"),
    "duplicates": "int64",
    **dict.fromkeys(["near", "alike", "closeness", "products_measured", "products_expected"], "float64"),
}
COLUMNS = ["layer", "kind", *_NUMBERS, "skipped"]


@plain_options
def measure_redundancy(
    network: nn.Module, bandwidth: str | float = "silverman/8", example: Example | None = None
) -> pd.DataFrame:
    """What is redundant in each conv and linear weight of ``network``, without data.

    Batch norms are folded first, as RED does (arXiv 2105.14797); then each weight is hashed by itself, as
    ``hash_network`` would. Beyond the network and its folded copy, memory is bounded by some four copies of the
    largest weight, and a few numbers for each pair of its filters.

    Arguments:
        bandwidth: of the density whose modes replace the weights; see ``estimate_density``.
        example: a tensor, tuple or dict that the network takes, batch first, where it has batch norms; by default
            ``example_input(network)``.

    Returns:
        One row a weight, in the order of the modules; every cell is filled. What is measured how is our choice.

        - ``layer``; ``kind``: "conv" (several taps), "grouped", "depthwise" (a group an input channel), "transposed",
          "pointwise" (one tap), "linear", or "attention": the projections of a ``MultiheadAttention`` and the linear
          layers that a module called ...Attention... holds itself. ``depth``: its place among the weights, 0 the first,
          1 the last.
        - ``outputs``, ``inputs``: channels (features); ``taps`` of a kernel; ``groups``; ``weights``: how many;
          ``zeros``: how many of them are exactly zero.
        - ``distinct_before``: how many values they take, batch norm folded; ``distinct``, after hashing; ``modes`` of
          the density; ``error``: relative L2 of hashing; ``entropy``: Shannon's of the hashed values, bits a weight.
        - ``kurtosis`` of the weights but zeros: 1.8 where they are uniform, 3 where normal, more with longer tails.
        - ``duplicates``: filters (rows of the weight, not hashed, without bias) that equal one before them, exactly;
          ``near``: share of filters whose nearest other lies nearer than half the median distance of all pairs;
          ``alike``: the same of filters scaled to length 1, so that short ones are not near for being short;
          ``closeness``: 1 - the smallest distance over the median, lengths as they are. Of a grouped layer only filters
          of one group are compared, since others read other inputs; closeness is then the largest of any group. Where a
          group has one filter (depthwise), all four are 0.
        - ``products_measured``: multiplications left, as a share of those before (one a weight that is not zero), when
          each input channel is multiplied once by each distinct hashed weight that it meets (RED++'s unit "channel",
          arXiv 2110.01397, w and -w apart);
          ``products_expected``: by chance, were the layer's weights shuffled (``expected_unique``).
        - ``skipped``: why hashing leaves it as it is (already hashed, all equal), its error 0 and the rest measured;
          or why it is not measured at all (shared with another layer, NaN), its numbers 0 but for the shape; or "".

    Example:
        >>> measure_redundancy(load_network("digits/mlp"))["weights"].tolist()
        [16384, 32768, 1280]
    """
    network = unwrap(network)
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        network = fold_batchnorm(network, example).network
    layers = list(weight_layers(network))
    rows = [_row(network, layer, bandwidth) for layer in progress(layers, "measuring redundancy")]
    frame = pd.DataFrame(rows, columns=COLUMNS).fillna(dict.fromkeys(_NUMBERS, 0)).astype(_NUMBERS)
    return frame.assign(depth=np.linspace(0, 1, len(frame)))


def _row(network: nn.Module, layer: Layer, bandwidth: str | float) -> dict:
    shape = Shape.of(layer)
    row = {"layer": layer.name, "kind": _kind(network, layer, shape), **vars(shape), "skipped": layer.skipped}
    if layer.skipped:
        return row
    try:
        return row | _measure(layer.weight.detach().cpu(), shape, layer, bandwidth)
    except NotFinite as bad:
        return row | {"skipped": f"it holds {bad.nan:,} NaN and {bad.infinite:,} infinite values"}


@dataclass(frozen=True)
class Shape:
    """Of a weight: channels that it gives and takes, taps of each kernel, groups, and how many weights that makes."""

    outputs: int
    inputs: int
    taps: int
    groups: int
    weights: int

    @classmethod
    def of(cls, layer: Layer) -> Shape:
        if layer.lazy:
            return cls(0, 0, 0, 0, 0)
        module, size = layer.module, layer.weight.shape
        if not isinstance(module, _ConvNd):
            return cls(size[0], size[1], 1, 1, size.numel())
        return cls(module.out_channels, module.in_channels, size[2:].numel(), module.groups, size.numel())


def _kind(network: nn.Module, layer: Layer, shape: Shape) -> str:
    module = layer.module
    if not isinstance(module, _ConvNd):
        owner = module if layer.parameter != "weight" else network.get_submodule(layer.name.rpartition(".")[0])
        return "attention" if "Attention" in type(owner).__name__ else "linear"
    if module.transposed:
        return "transposed"
    if shape.groups > 1:
        return "depthwise" if is_depthwise(module) else "grouped"
    return "conv" if shape.taps > 1 else "pointwise"


def _measure(weight: Tensor, shape: Shape, layer: Layer, bandwidth: str | float) -> dict:
    found = measure_values(codes_of(layer).cpu(), bandwidth)
    names = ("zeros", "distinct_before", "modes", "distinct", "error", "entropy")
    products = max(shape.weights - found.zeros, 1)
    met, hashed = (_met(each, shape, getattr(layer.module, "transposed", False)) for each in (weight, found.hashed))
    expected = shape.inputs * found.expected(shape.weights // shape.inputs)
    return {name: getattr(found, name) for name in names} | {
        "kurtosis": _kurtosis(weight),
        **_compare_filters(met, shape),
        "products_measured": count_products(hashed) / products,
        "products_expected": expected / products,
        "skipped": found.unhashed,
    }


def _met(weight: Tensor, shape: Shape, transposed: bool) -> Tensor:
    """The weight as (outputs of a group, inputs of all groups, taps): what each input channel meets is one slice.

    A view, unless there are several groups or the layer is transposed.
    """
    if transposed:
        return weight.flatten(2).transpose(0, 1)
    rows = weight.reshape(shape.groups, shape.outputs // shape.groups, shape.inputs // shape.groups, shape.taps)
    return rows.transpose(0, 1).reshape(shape.outputs // shape.groups, shape.inputs, shape.taps)


def _kurtosis(weight: Tensor) -> float:
    """The mean fourth power of the differences from their mean of the weights but zeros, over the squared mean square;
    0 if they are equal.
    """
    numbers = _numbers(weight.reshape(-1))
    numbers = numbers if numbers.all() else numbers[numbers != 0]
    if not numbers.size:
        return 0.0
    scale = float(np.abs(numbers).max()) or 1.0  # fourth powers of small weights vanish
    mean = sum(float(part.sum(dtype=np.float64)) for part in in_parts(numbers)) / numbers.size
    second = fourth = 0.0
    for part in in_parts(numbers):
        squares = np.square((part.astype(np.float64) - mean) / scale)
        second, fourth = second + float(squares.sum()), fourth + float(squares @ squares)
    return numbers.size * fourth / second**2 if second > 1e-24 * numbers.size else 0.0


def _compare_filters(met: Tensor, shape: Shape) -> dict:
    """``duplicates``, ``near``, ``alike`` and ``closeness`` of the filters in each group, over all groups."""
    if len(met) < 2:
        return {"duplicates": 0, "near": 0.0, "alike": 0.0, "closeness": 0.0}
    groups = [group.flatten(1) for group in met.split(shape.inputs // shape.groups, dim=1)]
    repeats = sum(count_duplicates(rows) for rows in groups)
    near, alike, closeness = np.array([_nearness(_numbers(rows)) for rows in groups]).T
    return {"duplicates": repeats, "near": near.mean(), "alike": alike.mean(), "closeness": closeness.max()}


def _nearness(rows: ndarray) -> tuple[float, float, float]:
    """``near``, ``alike`` and ``closeness`` of the rows (n, d) of one matrix, n at least 2."""
    distances = pairwise_distances(rows)
    lengths = torch.from_numpy(rows).norm(dim=1).numpy()  # numpy's would square a copy of all rows
    alike, _ = _near(_between_directions(distances, lengths))
    near, closeness = _near(distances)
    return near, alike, closeness


def _between_directions(distances: ndarray, lengths: ndarray) -> ndarray:
    """(n, n) the distances of the rows scaled to length 1 (zeros stay zero), from those of the rows.

    |a/|a| - b/|b||^2 = (|a - b|^2 - (|a| - |b|)^2) / (|a| |b|)
    """
    scale = float(lengths.max()) or 1.0
    lengths, squares = lengths / scale, distances / scale
    squares *= squares
    pairs = lengths[:, None] - lengths  # one matrix beside, used twice: n may be 8000
    pairs *= pairs
    squares -= pairs
    nothing = lengths == 0
    own = np.where(nothing, 1, lengths)
    squares /= np.multiply(own[:, None], own, out=pairs)
    squares[nothing], squares[:, nothing] = 1, 1
    squares[np.ix_(nothing, nothing)] = 0
    return np.sqrt(np.maximum(squares, 0, out=squares), out=squares)  # rounding may leave some below 0


def _near(distances: ndarray) -> tuple[float, float]:
    """Share of rows with another within half the median of all pairs, and 1 - the smallest distance over the median.

    The (n, n) distances are left in disorder.
    """
    np.fill_diagonal(distances, np.inf)
    nearest, median = distances.min(1), _median_off_diagonal(distances)
    near = np.mean((nearest < median / 2) | (nearest == 0))
    return float(near), float(1 - nearest.min() / median) if median else 1.0


def _median_off_diagonal(distances: ndarray) -> float:
    """The median of a symmetric (n, n) matrix with inf on its diagonal, which is left in disorder.

    Each pair stands there twice, and the n infs last: the middle of the n (n - 1) others is that of the pairs.
    """
    pairs = len(distances) * (len(distances) - 1) // 2
    flat = distances.reshape(-1)
    flat.partition([pairs - 1, pairs])
    return float(flat[pairs - 1 : pairs + 1].astype(np.float64).mean())


def _numbers(rows: Tensor) -> ndarray:
    return (rows if rows.dtype == torch.float64 else rows.float()).numpy()
