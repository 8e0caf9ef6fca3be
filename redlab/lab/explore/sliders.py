"""Explore redundancy by hand: sliders in JupyterLab, the same figures on paper."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import Dataset

from redlab.compression.merging import merge_groups, merge_neurons
from redlab.compression.similarity import LINKAGES, Dendrogram, clusters_at
from redlab.compression.units import UNITS
from redlab.hashing.density import estimate_density
from redlab.hashing.networks import hash_network
from redlab.hashing.row_scales import SCALES
from redlab.hashing.rules import RULES
from redlab.hashing.weights import Hashed, as_numpy, hash_weights, relative_error
from redlab.lab.explore import choices
from redlab.lab.explore.choices import Shelf
from redlab.lab.explore.explorer import Choice, Explorer, Values
from redlab.network.example import Example
from redlab.network.layers import Layer, codes_of, rows_of, weight_layers
from redlab.options import count_of
from redlab.studies.kernels import groups_of, why_filters_stay
from redlab.studies.merging import merged_filters
from redlab.studies.plots.hashing import plot_density, plot_values
from redlab.studies.plots.kernels import plot_unit
from redlab.studies.plots.merging import plot_filters
from redlab.studies.plots.splitting import plot_channels
from redlab.studies.plots.style import plain_log
from redlab.studies.splitting import channel_products, unit_map


def explore_density(
    network: str | Path | nn.Module = "digits/resnet",
    layer: str | None = None,
    bandwidth: str | float = "silverman/8",
    contrast: float = 0.0,
    dataset: str | Dataset | None = None,
    limit: int | None = None,
    build: str | Callable | None = None,
    weights: str | Path | None = "default",
    example: Example | None = None,
) -> Explorer:
    """Slide bandwidth and contrast, and see one layer's density with its modes and cuts.

    On demand: the accuracy of the network with every layer hashed that way.

    Arguments:
        network: the one to begin with, as ``load_network`` takes it, or a network of your own; batch norm is folded.
        layer: the one to begin with; by default that of most weights.
        bandwidth, contrast: where the sliders stand at first; see ``estimate_density``.
        dataset: what accuracy is measured on, a name or the images themselves; by default what the network was trained
            for. ``limit``: images at most, of a name.
        build, weights: of a network that is given by its name, as in ``load_network``.
        example: what a network of your own takes: a tensor, a tuple or a dict; by default as its recipe says.

    Raises:
        ValueError: an unknown network, layer or bandwidth, a number out of range (the message says what can be); no
            conv or linear layer.
        TypeError: what is no network, no bandwidth or no number.

    Example:
        >>> explorer = explore_density("digits/mlp", layer="classifier")
        >>> [choice.name for choice in explorer.choices]
        ['network', 'layer', 'bandwidth', 'contrast']
        >>> explorer.figure(bandwidth="silverman/2").axes[0].get_title()
        'digits/mlp, classifier, bandwidth silverman/2: 7 modes'
    """
    shelf = Shelf(network, dataset, limit, build, weights, example)
    start = {"network": shelf.first, "layer": layer, "bandwidth": bandwidth, "contrast": contrast}
    offered = [choices.network(shelf), choices.layer(shelf), choices.bandwidth(bandwidth), choices.contrast(contrast)]
    return Explorer("Weight density", offered, partial(_see_density, shelf), start, partial(_hashed_accuracy, shelf))


def _see_density(shelf: Shelf, figure: Figure, network: str, layer: str, **rule: Any) -> str:
    weight = _weight(shelf, network, layer)
    density = estimate_density(weight, **rule)
    ax = plot_density(density.frame(), figure.add_subplot())
    _hold(ax, weight, shelf.top(network, layer))
    ax.set_title(f"{network}, {layer}, bandwidth {rule['bandwidth']}: {ax.get_title()}")
    return f"h = {density.bandwidth:.3g}; {_collapse(shelf, network, layer, hash_weights(weight, **rule))}"


def _weight(shelf: Shelf, network: str, layer: str) -> torch.Tensor:
    """What is hashed of a layer, rows first: its codes, where rows have scales."""
    own = shelf.layers(network)[layer]
    return rows_of(own, codes_of(own))


def _hold(ax: Axes, weight: torch.Tensor, top: float) -> None:
    """Set the axes of a density as the layer's narrowest kernel needs them: they stay while one slides."""
    top = max(top, ax.get_ylim()[1] / 2)  # an own bandwidth may be narrower yet
    ax.set_ylim(-0.1 * top, 1.05 * top)
    low, high = weight.float().min().item(), weight.float().max().item()
    margin = 0.08 * (high - low) or 1.0
    ax.set_xlim(low - margin, high + margin)


def explore_hashing(
    network: str | Path | nn.Module = "digits/resnet",
    layer: str | None = None,
    rule: str = "kde",
    bandwidth: str | float = "silverman/8",
    contrast: float = 0.0,
    representative: str = "mode",
    dataset: str | Dataset | None = None,
    limit: int | None = None,
    build: str | Callable | None = None,
    weights: str | Path | None = "default",
    example: Example | None = None,
    scale: str = "none",
) -> Explorer:
    """Slide bandwidth and contrast, choose a rule, and see one layer collapse onto a few values.

    Arguments and errors: as in ``explore_density``; ``rule``, ``representative`` and ``scale`` as in ``hash_weights``.
    With scale "row" the density and the values are those of the codes.

    Example:
        >>> explorer = explore_hashing("digits/mlp", layer="classifier", rule="lloyd")
        >>> [choice.name for choice in explorer.choices]
        ['network', 'layer', 'rule', 'bandwidth', 'contrast', 'representative', 'scale']
        >>> len(explorer.figure().axes)
        2
    """
    shelf = Shelf(network, dataset, limit, build, weights, example)
    start = {"network": shelf.first, "layer": layer, "rule": rule, "bandwidth": bandwidth, "contrast": contrast}
    offered = [
        choices.network(shelf),
        choices.layer(shelf),
        choices.menu("rule", "rule", RULES),
        choices.bandwidth(bandwidth),
        choices.contrast(contrast),
        choices.menu("representative", "value of a cell", ("mode", "mean")),
        choices.menu("scale", "scale of a row", SCALES),
    ]
    start |= {"representative": representative, "scale": scale}
    see, measure = partial(_see_hashing, shelf), partial(_hashed_accuracy, shelf)
    return Explorer("Hash collapse", offered, see, start, measure, size=(9, 5.4))


def _see_hashing(shelf: Shelf, figure: Figure, network: str, layer: str, **rule: Any) -> str:
    weight = _weight(shelf, network, layer)
    hashed, top = hash_weights(weight, **rule), shelf.top(network, layer)
    if hashed.scales is not None:
        weight, top = weight / torch.as_tensor(hashed.scales).reshape(-1, *[1] * (weight.ndim - 1)), 0.0
    density = estimate_density(weight, rule["bandwidth"], rule["contrast"])
    above, below = figure.subplots(2, sharex=True)
    plot_density(density.frame(), above)
    _hold(above, weight, top)
    above.set(title=f"{network}, {layer}: {above.get_title()} at bandwidth {rule['bandwidth']}", xlabel="")
    plot_values(hashed.frame(), below)
    below.set(yscale="log", ylim=(80 / weight.numel(), 130), ylabel="weights (%, log)")  # at any bandwidth
    plain_log(below.yaxis)
    below.set_title(f"hashed by {rule['rule']}: {below.get_title()}")
    return _collapse(shelf, network, layer, hashed)


def _hashed_accuracy(shelf: Shelf, network: str, layer: str, unit: str = "", channel: int = 0, **rule: Any) -> str:
    """Of the network with every layer hashed; the unit and the channel are only drawn."""
    return shelf.accuracy(network, hash_network(shelf.folded(network), **rule).network)


def _collapse(shelf: Shelf, network: str, layer: str, hashed: Hashed) -> str:
    weight = _weight(shelf, network, layer)
    error = relative_error(as_numpy(weight).ravel(), as_numpy(hashed.values).ravel())
    after = f"{len(hashed.codebook):,} after hashing, relative L2 error {error:.2%}"
    return f"{weight.numel():,} weights: {shelf.distinct(network, layer):,} distinct values before, {after}"


def explore_merging(
    network: str | Path | nn.Module = "digits/resnet",
    layer: str | None = None,
    alpha: float = 0.2,
    linkage: str = "complete",
    hashed: bool = False,
    bandwidth: str | float = "silverman/10",
    dataset: str | Dataset | None = None,
    limit: int | None = None,
    build: str | Callable | None = None,
    weights: str | Path | None = "default",
    example: Example | None = None,
) -> Explorer:
    """Slide alpha, and see which filters of one layer merge, side by side.

    On demand: multiplications and accuracy of the network with that share of every group's channels merged.

    Arguments:
        layer: the first layer of a coupled group; by default the one whose nearest two filters are nearest, in units
            of its median distance.
        alpha: the share of the filters that is merged away.
        linkage: "complete" or "single"; see ``merge_neurons``.
        hashed: whether the weights are hashed first, at this ``bandwidth``.
        network, dataset, limit, build, weights, example: as in ``explore_density``; so are the errors.

    Example:
        >>> explorer = explore_merging("digits/mlp", alpha=0.1)
        >>> [choice.name for choice in explorer.choices]
        ['network', 'hashed', 'linkage', 'layer', 'alpha']
        >>> explorer.values["layer"]
        'hidden.1.linear'
    """
    choices.check_bandwidth(bandwidth)
    shelf = Shelf(network, dataset, limit, build, weights, example)
    trees = _Trees(shelf, bandwidth)
    start = {"network": shelf.first, "layer": layer, "alpha": alpha, "linkage": linkage, "hashed": hashed}
    offered = [
        choices.network(shelf),
        Choice("hashed", "weights", lambda _: {"as trained": False, f"hashed first, {bandwidth}": True}),
        choices.menu("linkage", "linkage", LINKAGES),
        Choice("layer", "layer", trees.names, prefer=trees.nearest, why_not=trees.why_not),
        choices.alpha(alpha),
    ]
    see, measure = partial(_see_merging, trees), partial(_merged_accuracy, trees)
    return Explorer(
        "Output merging", offered, see, start, measure, "Measure multiplications and accuracy", size=(9, 4.6)
    )


class _Trees:
    """The dendrograms of the groups of the networks on a shelf, as trained and hashed, each computed once."""

    def __init__(self, shelf: Shelf, bandwidth: str | float):
        self.shelf, self.bandwidth = shelf, bandwidth
        self.start = lru_cache(4)(self._start)
        self._grown = lru_cache(8)(self._grow)

    def _start(self, network: str, hashed: bool) -> nn.Module:
        folded = self.shelf.folded(network)
        return hash_network(folded, bandwidth=self.bandwidth).network if hashed else folded

    def _grow(self, network: str, hashed: bool, linkage: str) -> list:
        return merge_groups(self.own(network, hashed), linkage, self.shelf.example(network))

    def own(self, network: str, hashed: bool) -> nn.Module:
        """A copy to trace: during the trace another thread would find fake tensors in place of the weights."""
        return copy.deepcopy(self.start(network, hashed))

    def of(self, network: str, hashed: bool, linkage: str) -> dict[str, Dendrogram]:
        """By the layer that a group is called after."""
        layers, grown = self.shelf.layers(network), self._grown(network, hashed, linkage)
        trees = {group.name: tree for group, tree in grown if tree is not None}
        if found := {name: trees[name] for name in layers if name in trees}:
            return found
        reasons = "; ".join(dict.fromkeys(f"{group.name}: {group.frozen}" for group, _ in grown if group.frozen))
        raise ValueError(f"no filters of {network} may merge ({reasons or 'no channels are coupled'})")

    def names(self, at: Values) -> dict[str, str]:
        return {name: name for name in self.of(**at)}

    def nearest(self, at: Values) -> str:
        trees = self.of(**at)
        return max(trees, key=lambda name: trees[name].closeness)

    def why_not(self, layer: str, at: Values) -> str:
        """Why a layer cannot be chosen: its filters merge with those of another layer, or stay for a reason."""
        network = at["network"]
        if (own := self.shelf.layers(network).get(layer)) is None:
            return ""
        folded, grown = self.shelf.folded(network), self._grown(**at)
        if reason := why_filters_stay(folded, own, grown):
            return f"its filters stay ({reason})"
        groups = [group.name for group, _, tree in groups_of(folded, own, grown) if tree is not None]
        return f"its filters merge with those of {' and '.join(groups)}, after which the group is called"


def _see_merging(trees: _Trees, figure: Figure, layer: str, alpha: float, **at: Any) -> str:
    tree = trees.of(**at)[layer]
    merged = count_of(alpha, len(tree.first))
    weights = {own.name: own for own in weight_layers(trees.start(at["network"], at["hashed"]))}[layer]
    filters, clusters = merged_filters(weights, tree, merged), clusters_at(tree, merged)
    ax = plot_filters(filters, figure.add_subplot())
    choices.hold_colours(ax, weights.weight)
    ax.set_title(f"{at['network']}, {layer}: filters that merge at alpha {alpha:g}")
    after, joint = clusters.max() + 1, int((np.bincount(clusters) > 1).sum())
    drawn = filters["cluster"].nunique()
    several = f"{joint} of them stand for several" + (f" (the tightest {drawn} are drawn)" if drawn < joint else "")
    left = f"{after / len(clusters):.0%} of this layer's multiplications are left"
    return f"{len(clusters)} filters become {after}, {several}; {left}"


def _merged_accuracy(trees: _Trees, network: str, hashed: bool, linkage: str, layer: str, alpha: float) -> str:
    example = trees.shelf.example(network)
    result = merge_neurons(trees.own(network, hashed), alpha, linkage=linkage, example=example)
    left = result.layers["products_after"].sum() / result.layers["products_before"].sum()
    return f"{left:.1%} of the multiplications left, {trees.shelf.accuracy(network, result.network)}"


def explore_splitting(
    network: str | Path | nn.Module = "digits/resnet",
    layer: str | None = None,
    channel: int = 0,
    unit: str = "channel",
    rule: str = "uniform",
    bandwidth: str | float = "silverman/4",
    dataset: str | Dataset | None = None,
    limit: int | None = None,
    build: str | Callable | None = None,
    weights: str | Path | None = "default",
    example: Example | None = None,
) -> Explorer:
    """Slide the bandwidth, choose a unit, and see which weights are multiplied and how many multiplications are left.

    On demand: the accuracy of the network with every layer hashed that way; splitting itself changes nothing.

    Arguments:
        channel: the input channel whose weights are drawn.
        unit: "channel", "tap" or "kernel"; see ``split_inputs``.
        rule, bandwidth: how the layer is hashed; other rules than kde take as many values as the density has modes.
        all others: as in ``explore_density``; so are the errors.

    Example:
        >>> explorer = explore_splitting("digits/mlp", layer="classifier", unit="tap")
        >>> [choice.name for choice in explorer.choices]
        ['network', 'layer', 'rule', 'bandwidth', 'unit', 'channel']
        >>> explorer.values["unit"], explorer.values["channel"]
        ('tap', 0)
    """
    shelf = Shelf(network, dataset, limit, build, weights, example)
    start = {"network": shelf.first, "layer": layer, "rule": rule, "bandwidth": bandwidth, "unit": unit}
    offered = [
        choices.network(shelf),
        choices.layer(shelf),
        choices.menu("rule", "rule", RULES),
        choices.bandwidth(bandwidth),
        choices.menu("unit", "unit that shares multiplications", UNITS),
        Choice("channel", "input channel", lambda at: _channels(shelf, **at), slider=True),
    ]
    hashed = lru_cache(8)(partial(_hashed_layer, shelf))
    see, measure = partial(_see_splitting, hashed), partial(_hashed_accuracy, shelf)
    return Explorer("Input splitting", offered, see, start | {"channel": channel}, measure, size=(9, 4.4))


def _channels(shelf: Shelf, network: str, layer: str, **_: Any) -> dict[str, int]:
    own = shelf.layers(network)[layer]
    return {str(k): k for k in range(own.weight.shape[1] * getattr(own.module, "groups", 1))}


def _hashed_layer(shelf: Shelf, network: str, layer: str, rule: str, bandwidth: str | float) -> Layer:
    own = copy.deepcopy(shelf.layers(network)[layer])
    own.weight.data = torch.as_tensor(hash_weights(codes_of(own), rule, bandwidth).values)
    own.module._buffers.pop(own.scale_name, None)
    return own


def _see_splitting(hashed: Callable[..., Layer], figure: Figure, unit: str, channel: int, **at: Any) -> str:
    own = hashed(**at)
    products = channel_products(own.module, unit)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    plot_unit(unit_map(own, channel, (unit,)), left)
    left.set_title(f"input channel {channel}:\n{left.get_title()}")
    plot_channels(products, right)
    figure.suptitle(f"{at['network']}, {at['layer']}, {at['rule']}: one multiplication for equal weights of a {unit}")
    multiplied, weights = products["products"].sum(), products["weights"].sum()
    return f"{multiplied:,} multiplications left of {weights:,} a position ({multiplied / weights:.1%})"
