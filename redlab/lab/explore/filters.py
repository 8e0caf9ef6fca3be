"""Browse the kernels of a network page by page, with redundant ones outlined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy import ndarray
from torch import nn

from redlab.compression.merging import merge_groups
from redlab.compression.similarity import LINKAGES
from redlab.hashing.weights import hash_weights
from redlab.lab.explore import choices
from redlab.lab.explore.choices import Shelf
from redlab.lab.explore.explorer import Choice, Explorer
from redlab.network.example import Example
from redlab.network.layers import Layer, codes_of
from redlab.studies.kernels import channels_of, equal_kernels, kernel_frame, kernels_of, merged_rows, why_filters_stay
from redlab.studies.plots.kernels import plot_kernels

MERGING, EQUAL, MULTIPLES, NOTHING = "filters that merge", "equal kernels", "kernels equal up to a factor", "nothing"
OUTLINES = (MERGING, EQUAL, MULTIPLES, NOTHING)
PAGE = (16, 24)  # filters and input channels that are drawn at once: a number can still be read in each kernel


def browse_filters(
    network: str | Path | nn.Module = "digits/resnet",
    layer: str | None = None,
    outline: str = MERGING,
    alpha: float = 0.2,
    linkage: str = "complete",
    bandwidth: str | float = "silverman/10",
    together: bool = True,
    first_filter: int | None = None,
    first_channel: int | None = None,
    build: str | Callable | None = None,
    weights: str | Path | None = "default",
    example: Example | None = None,
) -> Explorer:
    """Browse the kernels of a layer, with redundant ones outlined: a row a filter, a column an input channel.

    Arguments:
        network: the one to begin with, as ``load_network`` takes it, or a network of your own; batch norm is folded.
        layer: the one to begin with; by default that of most weights.
        outline: "filters that merge" into one, as ``merge_neurons`` compares them: with the rows of all layers that
            they are coupled with; "equal kernels" of one input channel once the layer is hashed, which then share
            their multiplications (``split_inputs`` with unit "kernel"); "kernels equal up to a factor", the same as
            ``separate_kernels(up_to_scale=True)`` finds them; or "nothing".
        alpha: the share of a coupled group's filters that is merged away; and its ``linkage``.
        bandwidth: of hashing.
        together: True: filters that merge stand together, before the others. False: all are in the order of numbers.
        first_filter, first_channel: the page to begin with, by places in that order, from 0; multiples of 16 and 24.
        build, weights, example: as in ``explore_density``.

    Raises:
        ValueError: an unknown network, layer, outline, linkage, bandwidth or page, or an alpha out of range; the
            message says what can be.
        TypeError: what is no network, no bandwidth or no number.

    Example:
        >>> browser = browse_filters("digits/resnet", layer="conv1", alpha=0.3)
        >>> [choice.name for choice in browser.choices][:4]
        ['network', 'layer', 'outline', 'alpha']
        >>> image, words = browser.png(browser.values)
        >>> words
        '16 filters become 12: 8 of them merge, into 4; drawn: 16 filters, 1 input channels'
    """
    if linkage not in LINKAGES:
        raise ValueError(f"linkage must be one of {', '.join(LINKAGES)}, not {linkage!r}")
    book = _Book(Shelf(network, None, None, build, weights, example), linkage)
    start = {"network": book.shelf.first, "layer": layer, "outline": outline, "alpha": alpha, "bandwidth": bandwidth}
    offered = [
        choices.network(book.shelf),
        choices.layer(book.shelf),
        choices.menu("outline", "outlined", OUTLINES),
        choices.alpha(alpha, "filters that merge"),
        replace(choices.bandwidth(bandwidth), label="bandwidth (equal kernels)"),
        Choice("together", "order of filters", lambda _: {"those that merge first": True, "by number": False}),
        Choice("first_filter", "first filter", partial(book.pages, 0), slider=True),
        Choice("first_channel", "first input channel", partial(book.pages, 1), slider=True),
    ]
    start |= {"together": together, "first_filter": first_filter, "first_channel": first_channel}
    return Explorer("Filters", offered, partial(_see_kernels, book), start, size=(9.5, 5.6))


class _Book:
    """The kernels of the networks on a shelf and their groups, each computed once."""

    def __init__(self, shelf: Shelf, linkage: str):
        self.shelf = shelf
        self.grown = lru_cache(4)(lambda network: merge_groups(shelf.folded(network), linkage, shelf.example(network)))
        self.hashed, self.equal = lru_cache(8)(self._hash), lru_cache(8)(self._equal)

    def pages(self, axis: int, at: Mapping[str, Any]) -> dict[str, int]:
        """Where pages begin along filters (0) or input channels (1), by first and last places."""
        count, step = kernels_of(self.layer(**at)).shape[axis], PAGE[axis]
        return {f"{first} to {min(first + step, count) - 1}": first for first in range(0, count, step)}

    def layer(self, network: str, layer: str, **_: Any) -> Layer:
        return self.shelf.layers(network)[layer]

    def _hash(self, network: str, layer: str, bandwidth: str | float) -> ndarray:
        own = self.layer(network, layer)
        return kernels_of(own, torch.as_tensor(hash_weights(codes_of(own), bandwidth=bandwidth).values))

    def _equal(self, network: str, layer: str, bandwidth: str | float, up_to_scale: bool) -> ndarray:
        hashed, channels = self.hashed(network, layer, bandwidth), channels_of(self.layer(network, layer))
        return equal_kernels(hashed, channels, up_to_scale)


# What is drawn of a layer, for ``kernel_frame``: its kernels, their groups; the figure's title, the result in words.
_Found = tuple[ndarray, ndarray, str, str]


def _merging(book: _Book, network: str, layer: str, alpha: float, **_: Any) -> _Found:
    own, folded, grown = book.layer(network, layer), book.shelf.folded(network), book.grown(network)
    numbers = merged_rows(folded, own, grown, alpha)
    if reason := why_filters_stay(folded, own, grown):
        return kernels_of(own), numbers, "its filters stay", f"{len(numbers)} filters, which stay: {reason}"
    clusters, inside = numbers.max(), np.count_nonzero(numbers)
    left = len(numbers) - inside + clusters
    words = f"{len(numbers)} filters become {left}: {inside} of them merge, into {clusters}"
    return kernels_of(own), numbers, f"filters that merge at alpha {alpha:g}, numbered by cluster", words


def _equal(book: _Book, network: str, layer: str, bandwidth: str | float, up_to_scale: bool, **_: Any) -> _Found:
    kernels, numbers = book.hashed(network, layer, bandwidth), book.equal(network, layer, bandwidth, up_to_scale)
    what = "equal up to a factor" if up_to_scale else "equal"
    total, inside = numbers.size, np.count_nonzero(numbers)
    zero = total - np.count_nonzero(kernels.any((2, 3)))
    words = f"{total:,} kernels hashed at {bandwidth}: {inside:,} are {what} to another of their input channel"
    title = f"kernels that are {what} to another of their input channel, hashed at {bandwidth}"
    return kernels, numbers, title, words + (f"; {zero:,} are zero" if zero else "")


def _plain(book: _Book, network: str, layer: str, **_: Any) -> _Found:
    kernels = kernels_of(book.layer(network, layer))
    outputs, inputs, rows, columns = kernels.shape
    words = f"{outputs} filters of {inputs} kernels, {rows} x {columns} each"
    return kernels, np.zeros(outputs, int), "its kernels", words


_WAYS: dict[str, Callable[..., _Found]] = {MERGING: _merging, NOTHING: _plain}
_WAYS |= {EQUAL: partial(_equal, up_to_scale=False), MULTIPLES: partial(_equal, up_to_scale=True)}


def _see_kernels(
    book: _Book, figure: Figure, outline: str, together: bool, first_filter: int, first_channel: int, **at: Any
) -> str:
    kernels, groups, title, words = _WAYS[outline](book, **at)
    order = np.arange(len(kernels))
    if together and outline == MERGING:
        order = np.argsort(np.where(groups > 0, groups, len(order) + 1), kind="stable")
    filters = order[first_filter : first_filter + PAGE[0]]
    channels = np.arange(kernels.shape[1])[first_channel : first_channel + PAGE[1]]
    figure.set_layout_engine("none")  # which would measure every number twice, and take as long as all the rest
    ax = figure.add_axes((0.07, 0.09, 0.95, 0.83))
    plot_kernels(kernel_frame(kernels, groups, filters, channels), ax)
    choices.hold_colours(ax, kernels, 99)
    figure.suptitle(f"{at['network']}, {at['layer']}: {title}", fontsize=10)
    if getattr(book.layer(**at).module, "groups", 1) > 1:
        ax.set_xlabel("input channel, counted within the filter's group")
    return f"{words}; drawn: {len(filters)} filters, {len(channels)} input channels"
