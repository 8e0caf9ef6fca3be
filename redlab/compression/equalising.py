"""Equalisation: scales moved from rows into the columns that read them, so that rows can share one codebook.

Across layers by ranges: Nagel et al., "Data-free quantization through weight equalization and bias correction" (ICCV
2019, arXiv 1906.04721, section 4.1). Absorbing a row's scale whole, and all about groups of several layers: our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from redlab.channels.scales import ScaleGroup, scalable_groups
from redlab.compression.rescaling import along_columns, along_rows, few_bits, is_transposed, move_scales, widths
from redlab.network.example import Example, remember_example
from redlab.network.layers import Layer, copy_network, out_scale, output_statistics, unwrap, weight_layers
from redlab.network.recipe import append_step
from redlab.network.result import Result, with_others
from redlab.network.trace import Graph, retrace
from redlab.options import check_one_of, plain_options

_LARGEST = 20  # log2: no factor is beyond 2^20 or below 2^-20, whatever the weights: our choice
_SWEEPS, _STILL = 100, 2.0**-9  # log2: a factor has 8 significant bits
_DEAD = 1e-4  # of a folded norm: the channel carries nothing, and a scale of its own would make it large


@plain_options
@torch.inference_mode(False)
@torch.no_grad()
def equalise(
    network: nn.Module, mode: str = "ranges", example: Example | None = None, graph: Graph | None = None
) -> Result:
    """Move scales between layers so that the rows of each are alike; what the network computes stays.

    Only where all between two layers is positively homogeneous: see ``scalable_groups``. Fold batch norms first, and
    hash afterwards. Channel c's rows are divided by a factor t, and the columns that read them are multiplied by it.

    Arguments:
        network: left untouched.
        mode: "ranges": t = sqrt(r1 / r2), where r1 is the largest weight of the rows of channel c, over all layers that
            make it, and r2 the largest of the columns that read it; repeated until nothing moves, 100 times at most.
            "absorb": t is the row's root mean square over the median of all rows, so that all rows of a layer have the
            same one. Where several layers make the channels (a residual stream), t is the geometric mean of theirs,
            which leaves differences. Rows that were hashed with a scale give it away whole, where one layer makes the
            channels: then it costs nothing.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        graph: as in ``scalable_groups``.

    Returns:
        ``layers`` has a row per conv and linear layer: layer, kind, weights, the ``group`` or groups of its rows, the
        ``largest`` and ``smallest`` factor t of its rows, ``skipped``: why all its factors are 1. ``graph`` is kept for
        later steps. Factors have 8 significant bits and lie in [2^-20, 2^20]; of channels that are always 0 they are 1.

    Raises:
        ValueError: an unknown mode; NaN or inf weights, with the layer's name; the network can't be traced.

    Example:
        >>> folded = fold_batchnorm(load_network("digits/resnet"))
        >>> result = equalise(folded.network, graph=folded.graph)
        >>> result.layers[["layer", "skipped"]].values.tolist()[-1]
        ['linear', 'network output']
    """
    check_one_of("mode", mode, _MODES)
    network = unwrap(network)
    graph = retrace(network, example, graph)
    groups = scalable_groups(network, example, graph)
    factors = factors_of(network, groups, mode)
    scaled = copy_network(network)
    move_scales(scaled, groups, factors)
    step = {"step": "equalise"}
    append_step(scaled, step)
    remember_example(scaled, example)
    rows = with_others(_table(network, groups, factors), network, scaled)
    return Result(scaled, rows, step | {"options": {"mode": mode}}, graph=graph.of(scaled))


def factors_of(network: nn.Module, groups: list[ScaleGroup], mode: str) -> dict[str, Tensor]:
    """By the name of each group that may be scaled, its factors (size,) in float64, with 8 significant bits."""
    check_one_of("mode", mode, _MODES)
    weights = _Weights(network, groups, mode)
    logs = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups if not group.frozen}
    for _ in range(_SWEEPS):
        moved = 0.0
        for group in groups:
            if (old := logs.get(group.name)) is not None:
                new = (old + _MODES[mode](weights, group)).clamp(-_LARGEST, _LARGEST)
                weights.move(group, new - old)
                moved = max(moved, float((new - old).abs().max()))
                logs[group.name] = new
        if moved < _STILL:
            break
    return {name: few_bits(own.exp2()) for name, own in logs.items()}


class _Weights:
    """The sizes of a network's weights as the factors found so far leave them.

    Attributes:
        sizes: by layer, as they were: of each kernel its largest magnitude ("ranges") or mean square ("absorb").
            The weight's shape, with one tap.
        rows, columns: by layer, log2 of what its rows (n_out,) and columns (n_in,) were multiplied by so far.
        alive: by group, (size,) which channels are not always 0.
    """

    def __init__(self, network: nn.Module, groups: list[ScaleGroup], mode: str) -> None:
        used = {name for group in groups for name in (*group.rows, *group.columns)}
        self.layers = {layer.name: layer for layer in weight_layers(network) if layer.name in used}
        self.power = 2 if mode == "absorb" else 1
        self.sizes = {name: _sizes(layer, self.power) for name, layer in self.layers.items()}
        self.rows = {name: torch.zeros(widths(own)[0], dtype=torch.float64) for name, own in self.layers.items()}
        self.columns = {name: torch.zeros(widths(own)[1], dtype=torch.float64) for name, own in self.layers.items()}
        self.alive = {group.name: _alive(group, self.layers) for group in groups}

    def move(self, group: ScaleGroup, logs: Tensor) -> None:
        """Take note of further factors (log2) of a group."""
        padded = torch.cat([logs, torch.zeros(1, dtype=logs.dtype)])
        for name, places in group.rows.items():
            self.rows[name] -= padded[places]
        for name, places in group.columns.items():
            self.columns[name] += padded[places]

    def largest(self, group: ScaleGroup, ends: str) -> Tensor:
        """(size,) log2 of the largest weight of each channel, in its "rows" or "columns", over all layers."""
        found = torch.zeros(group.size, dtype=torch.float64)
        for name, places in getattr(group, ends).items():
            own = self._over(name, ends, torch.amax)
            found.scatter_reduce_(0, places[places >= 0], own[places >= 0], "amax")
        return found.log2()

    def mean_square(self, name: str, places: Tensor, size: int) -> Tensor:
        """(size,) log2 of the root mean square of each channel's rows in one layer; -inf where they are 0."""
        own = self._over(name, "rows", torch.mean)
        counts = torch.zeros(size, dtype=torch.float64)
        counts.index_add_(0, places[places >= 0], torch.ones(int((places >= 0).sum()), dtype=torch.float64))
        sums = torch.zeros(size, dtype=torch.float64).index_add_(0, places[places >= 0], own[places >= 0])
        return (sums / counts).log2() / 2

    def _over(self, name: str, ends: str, reduce: Callable) -> Tensor:
        """Of each row (or column) of a layer the largest or mean size of its kernels."""
        layer, sizes = self.layers[name], self.sizes[name]
        rows, columns = (own[name].mul(self.power).exp2().float() for own in (self.rows, self.columns))
        scaled = sizes * along_rows(layer, rows) * along_columns(layer, columns)
        scaled = scaled.reshape(scaled.shape[:2])
        groups = getattr(layer.module, "groups", 1)
        if (ends == "rows") != is_transposed(layer):  # slices along axis 0
            return reduce(scaled, 1).double()
        return reduce(scaled.unflatten(0, (groups, -1)), 1).flatten().double()


def _sizes(layer: Layer, power: int) -> Tensor:
    weight = layer.weight.detach().float().cpu()
    if not bool(weight.isfinite().all()):
        raise ValueError(f"layer {layer.name}: NaN or inf among its weights")
    weight = weight.unsqueeze(-1)  # at least one axis of taps
    taps = tuple(range(2, weight.ndim))
    sizes = weight.square().mean(taps, keepdim=True) if power == 2 else weight.abs().amax(taps, keepdim=True)
    return sizes.squeeze(-1)


def _alive(group: ScaleGroup, layers: dict[str, Layer]) -> Tensor:
    """(size,) which channels a folded norm lets through, in some layer that makes them."""
    alive = torch.zeros(group.size, dtype=torch.bool)
    for name, places in group.rows.items():
        known = output_statistics(layers[name].module)
        own = torch.ones(len(places), dtype=torch.bool) if known is None else known[1].cpu() >= _DEAD
        alive[places[(places >= 0) & own]] = True
    return alive


def _by_ranges(weights: _Weights, group: ScaleGroup) -> Tensor:
    """How far (log2) each channel of a group is from equal ranges of its rows and columns."""
    return _finite(weights, group, (weights.largest(group, "rows") - weights.largest(group, "columns")) / 2)


def _by_rows(weights: _Weights, group: ScaleGroup) -> Tensor:
    """How far (log2) the rows of each channel are from the median of their layer's."""
    scales = {name: out_scale(weights.layers[name]) for name in group.rows}
    if any(own is not None for own in scales.values()):
        return _by_scales(weights, group, scales)
    logs = torch.stack([weights.mean_square(name, places, group.size) for name, places in group.rows.items()])
    known = logs.isfinite() & weights.alive[group.name]
    middle = logs.where(known, torch.nan).nanmedian(1, keepdim=True).values
    away = (logs - middle).where(known, 0.0).sum(0) / known.sum(0)
    away -= away.nanmedian()  # of several layers the medians need not agree, and all factors would drift
    return _finite(weights, group, away)


def _by_scales(weights: _Weights, group: ScaleGroup, scales: dict[str, Any]) -> Tensor:
    """The scales that hashing gave to the rows, as far as they have not moved yet; of several layers they stay."""
    (name, places), *others = group.rows.items()
    found = torch.zeros(group.size, dtype=torch.float64)
    if not others:
        logs = scales[name].detach().double().cpu().log2() + weights.rows[name]
        found[places[places >= 0]] = logs[places >= 0]
    return found


def _finite(weights: _Weights, group: ScaleGroup, logs: Tensor) -> Tensor:
    return logs.where(logs.isfinite() & weights.alive[group.name], 0.0)


_MODES: dict[str, Callable[[_Weights, ScaleGroup], Tensor]] = {"ranges": _by_ranges, "absorb": _by_rows}


def _table(network: nn.Module, groups: list[ScaleGroup], factors: dict[str, Tensor]) -> pd.DataFrame:
    rows = [
        _row(layer, [group for group in groups if layer.name in group.rows], factors)
        for layer in weight_layers(network)
    ]
    columns = ["layer", "kind", "weights", "group", "largest", "smallest", "skipped"]
    return pd.DataFrame(rows, columns=columns)


def _row(layer: Layer, own: list[ScaleGroup], factors: dict[str, Tensor]) -> tuple:
    moved = [factors[group.name] for group in own if group.name in factors]
    largest, smallest = (float(torch.cat(moved).max()), float(torch.cat(moved).min())) if moved else (1.0, 1.0)
    why = "" if moved else layer.skipped or next((group.frozen for group in own), "no scale can be taken off its rows")
    return layer.name, layer.kind, layer.size, ", ".join(group.name for group in own), largest, smallest, why
