"""Output merging: neurons of a layer that compute nearly the same become one, and the network gets smaller.

The second step of RED (NeurIPS 2021, arXiv 2105.14797) and RED++ (TPAMI 2022, arXiv 2110.01397). Which neurons: here.
Removing them: ``apply_plan``, which averages their rows and sums the slices of their consumer layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from redlab.channels.apply import apply_plan
from redlab.channels.coupling import Group, couple
from redlab.channels.plan import make_plan
from redlab.channels.table import channel_table
from redlab.compression.channel_rows import dead_channels, effective_rows, own_rows
from redlab.compression.folding import fold_batchnorm
from redlab.compression.multiples import align_multiples
from redlab.compression.neurons import Neurons, count_merges, destinations_of
from redlab.compression.similarity import LINKAGES, Dendrogram, dendrogram, exact_duplicates
from redlab.compression.strategies import STRATEGIES
from redlab.network.cost import measure_cost
from redlab.network.example import Example, remember_example
from redlab.network.layers import is_batch_norm, unwrap, weight_layers
from redlab.network.result import Result, report_short, report_unfolded, with_others
from redlab.options import check_number, check_one_of, check_whole, plain_options, settle
from redlab.progress import progress


def merge_neurons(
    network: nn.Module,
    alpha: float = 0.0,
    strategy: str = "constant",
    linkage: str = "complete",
    alpha_of: str = "share",
    dead: bool = True,
    round_to: int = 1,
    up_to_scale: bool = False,
    example: Example | None = None,
) -> Result:
    """Merge neurons (filters) of nearly equal weights into their mean, and sum the input slices of their consumers.

    Layers whose channels must stay in step are one coupled group. Its neurons are compared by the rows of all its
    layers side by side. Identical neurons always merge, which is exact. They are identical if everything that they own
    is, batch norm included. The distance of other neurons is measured on weights and biases with batch norm folded in
    (``fold_batchnorm`` on a copy). Take ``prepare`` first if alpha > 0: the mean of weight times the mean of its scale
    is not the mean of weight times scale. Hashing is left to the caller too.

    Arguments:
        network: left untouched.
        alpha: in [0, 1), how much merges beyond identical neurons; ``alpha_of`` says of what (docs/defaults.md).
        strategy: alpha of group l of the L that may merge, in the order of their first layers. "constant";
            "ascending": alpha l / L, l from 1; "descending": the same backwards; "block": alpha b / B for all groups of
            block b of B, where a block is what the first two parts of a layer's path name (``layer1.0``): our choice.
        linkage: how far two clusters are apart: "complete", their farthest neurons; "single", their nearest.
        alpha_of: "share" of the group's neurons that is merged away, rounded down (our choice); or "pairs": all merges
            up to the alpha-quantile of the distances of the group's pairs, so that above 0 the nearest pair merges.
        dead: also remove channels that are always 0: all their producers have |gamma| < 1e-4 and beta <= 0, and a ReLU
            follows. They come on top of alpha.
        round_to: keep a multiple of so many channels: 16, say, as odd widths can be slower than those before. The last
            merges are undone; where that is not enough, identical and then dead channels stay.
        up_to_scale: neurons that are positive multiples of one another count as identical, to 1e-6 relative, where
            their scale can move into the columns that read them: through ReLU, say, not ReLU6. Fold batch norms first.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.

    Returns:
        ``layers`` has a row per conv or linear layer: layer, kind, weights, its ``group``, channels, parameters and
        products before and after, how many channels were ``merged`` away and ``dead``, ``skipped``. ``plan`` says what
        becomes of each channel.

    Warns:
        where more than a tenth of the merges that were asked for is missing, and why. ``plan["short"]`` says it too.
        Batch norms that could be folded are not; ``plan["unfolded"]``.

    Raises:
        ValueError: NaN or inf weights, with the layer's name; an option out of range or unknown; no tracing.

    Example:
        >>> print(merge_neurons(fold_batchnorm(load_network("digits/resnet")).network, alpha=0.1))
        plan(alpha=0.1, strategy='constant', linkage='complete', alpha_of='share', dead=True, round_to=1)
        channels: 250 -> 231 (92.400% left)
        parameters: 74,762 -> 63,209 (84.547% left)
        multiplications: 537,280 -> 463,537 (86.275% left)
        operations (multiplications + additions): 1,074,560 -> 927,074 (86.275% left)
        conv and linear weights: 99.666% of all 74,762 parameters
        8 layers, 1 skipped: linear (network output)
    """
    options = Options(alpha, strategy, linkage, alpha_of, dead, round_to, up_to_scale)
    with torch.inference_mode(False):
        merger = _Merger(unwrap(network), example)
        result = merger.merge(options)
        return replace(result, plan=result.plan | report_unfolded(merger.unfolded))


@torch.inference_mode(False)  # whatever the caller's mode: the new network may be trained
def merge_after(
    network: nn.Module, folded: Result | None = None, *, options: Options, example: Example | None
) -> Result:
    """``merge_neurons`` of what ``folded`` became: then nothing is traced and folded again."""
    return _Merger(unwrap(network), example, folded).merge(options)


@torch.inference_mode(False)
def merge_each(network: nn.Module, settings: list[dict], example: Example | None = None) -> Iterator[Result]:
    """``merge_neurons`` once for each of ``settings`` (its keywords): coupled once, one dendrogram for every alpha.

    Raises: as ``merge_neurons``.

    Example:
        >>> merged = merge_each(load_network("digits/mlp"), [{"alpha": 0.1}, {"alpha": 0.2}])
        >>> [int(result.layers["merged"].sum()) for result in merged]
        [37, 76]
    """
    options = [Options(**setting) for setting in settings]
    network = unwrap(network)
    merger = _Merger(network, example)
    yield from map(merger.merge, options)


def merge_trees(network: nn.Module, linkage: str = "complete", example: Example | None = None) -> dict[str, Dendrogram]:
    """The dendrogram of every coupled group that may merge, by its name (that of its first layer): all its channels,
    compared as ``merge_neurons`` compares them.

    Raises:
        ValueError: NaN or inf weights, an unknown linkage, or the network can't be traced.

    Example:
        >>> trees = merge_trees(load_network("digits/resnet"))
        >>> list(trees)
        ['conv1', 'layer1.0.conv1', 'layer2.0.conv1', 'layer2.0.conv2', 'layer3.0.conv1', 'layer3.0.conv2']
    """
    return {group.name: tree for group, tree in merge_groups(network, linkage, example) if tree is not None}


@plain_options
def merge_groups(
    network: nn.Module, linkage: str = "complete", example: Example | None = None
) -> list[tuple[Group, Dendrogram | None]]:
    """``merge_trees`` with the groups themselves, and those that may not merge: they have no tree."""
    Options(linkage=linkage)
    network = unwrap(network)
    merger = _Merger(network, example)
    return [(own, None if own.frozen else merger.neurons(own, linkage, dead=False).tree) for own in merger.all]


@dataclass(frozen=True)
class Options:
    """The options of ``merge_neurons``, checked when they are put together."""

    alpha: float = 0.0
    strategy: str = "constant"
    linkage: str = "complete"
    alpha_of: str = "share"
    dead: bool = True
    round_to: int = 1
    up_to_scale: bool = False

    def __post_init__(self) -> None:
        settle(self)
        check_number("alpha", self.alpha, below=1)
        check_one_of("strategy", self.strategy, STRATEGIES)
        check_one_of("linkage", self.linkage, LINKAGES)
        check_one_of("alpha_of", self.alpha_of, ("share", "pairs"))
        check_whole("round_to", self.round_to)

    def asked(self) -> dict[str, Any]:
        """What a plan records: ``up_to_scale`` only where it is on."""
        return {name: value for name, value in asdict(self).items() if name != "up_to_scale" or value}


class _Merger:
    """What merging the same network in several ways has in common: its groups, their neurons and dendrograms."""

    def __init__(self, network: nn.Module, example: Example | None, folded: Result | None = None) -> None:
        _check_weights(network)
        self.network, self.example, self._is_folded = network, example, folded is not None
        self._graph = folded.graph if folded else None
        self.all = couple(network, example, self._graph)
        self.groups = [group for group in self.all if not group.frozen]
        self._known: dict[tuple, Neurons] = {}

    @cached_property
    def _fold(self) -> Result:
        return fold_batchnorm(self.network, self.example)

    @property
    def folded(self) -> nn.Module:
        return self.network if self._is_folded else self._fold.network

    @property
    def unfolded(self) -> list[str]:
        """The batch norms that could be folded and are not."""
        norms = any(is_batch_norm(module) for module in self.network.modules())
        return list(self._fold.plan["folded"]) if norms and not self._is_folded else []

    @cached_property
    def _aligned(self) -> _Merger:
        """The same of a network in which multiples of a neuron are identical to it."""
        aligned = copy.copy(self)
        aligned.network, aligned._known = align_multiples(self.network, self.all, self.example, self._graph), {}
        aligned.__dict__.pop("_fold", None)
        return aligned

    @cached_property
    def _cost(self) -> pd.DataFrame:
        return measure_cost(self.network, self.example)

    def neurons(self, group: Group, linkage: str, dead: bool) -> Neurons:
        """The neurons of a group, without dead ones where ``dead`` says so. Asked again, they keep their tree."""
        if (key := (group.name, linkage, dead)) not in self._known:
            alive = ~dead_channels(self.folded, group) if dead else np.ones(group.size, bool)
            rows = own_rows(self.network, group)[alive]
            first = exact_duplicates(rows) if len(rows) else np.zeros(0, int)
            grow = lambda: dendrogram(effective_rows(self.folded, group)[alive], linkage, first)  # noqa: E731
            self._known[key] = Neurons(group.size, alive, first, grow)
        return self._known[key]

    def merge(self, options: Options) -> Result:
        return (self._aligned if options.up_to_scale else self)._merge(options)

    def _merge(self, options: Options) -> Result:
        destinations, wanted, removed = {}, 0, 0
        shares = STRATEGIES[options.strategy](self.groups, options.alpha)
        for group, share in progress(list(zip(self.groups, shares, strict=True)), "merging"):
            neurons = self.neurons(group, options.linkage, options.dead)
            merges = count_merges(neurons, share, options.alpha_of)
            where = destinations_of(neurons, merges, options.round_to)
            wanted, removed = wanted + merges, removed + len(neurons) - (max(where) + 1)
            if where != list(range(group.size)):
                destinations[group.name] = where
        plan = make_plan(self.all, destinations) | {"options": options.asked()}
        merged = apply_plan(self.network, plan)
        remember_example(merged, self.example)
        table = channel_table(self.network, merged, self.all, destinations, self.example, self._cost)
        return Result(merged, with_others(table, self.network, merged), plan | self._short(options, wanted, removed))

    def _short(self, options: Options, wanted: int, removed: int) -> dict[str, str]:
        """What is missing of alpha; where no group may merge, all of it is."""
        if options.alpha == 0:
            return {}
        left = {group.name: group.frozen for group in self.all if group.frozen}
        size = sum(group.size for group in self.groups)
        asked = wanted / size if size else options.alpha
        return report_short("channels that may merge", asked, removed / size if size else 0.0, left, options.round_to)


def _check_weights(network: nn.Module) -> None:
    for layer in weight_layers(network):
        tensors = () if layer.lazy else (layer.weight, getattr(layer.module, "bias", None))
        if not all(tensor is None or tensor.isfinite().all() for tensor in tensors):
            raise ValueError(f"layer {layer.name}: NaN or inf among its weights or biases")
