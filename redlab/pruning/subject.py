"""What a criterion looks at, a network, its coupled groups and images where it needs some; and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy import ndarray
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from redlab.channels.coupling import Group, couple
from redlab.compression.channel_rows import slices_of
from redlab.compression.folding import fold_batchnorm
from redlab.compression.moments import MeanInputs, mean_inputs
from redlab.network.example import Example, Inputs
from redlab.network.layers import Layer, weight_layers
from redlab.network.recipe import input_mean_of
from redlab.network.result import Result
from redlab.network.samples import batches, placed
from redlab.options import check_one_of, check_whole
from redlab.progress import progress

UNREAD = "no call of a layer reads its channels"
REDUCTIONS: dict[str, Callable[[ndarray], ndarray]] = {
    "mean": lambda rows: rows.mean(0),
    "sum": lambda rows: rows.sum(0),
    "max": lambda rows: rows.max(0),
    "first": lambda rows: rows[0],
}


@dataclass(frozen=True, eq=False)
class Subject:
    """What is scored.

    Attributes:
        network: a copy of its own, in eval mode. A criterion may use its gradients, and leaves its values alone.
        dataset: of (inputs, label), as ``as_dataset`` gives it, or None for criteria that need no data.
        example: a tensor, tuple or dict that the network takes, batch first; None: ``example_input(network)``.
    """

    network: nn.Module
    dataset: Dataset | None = None
    example: Example | None = None

    @cached_property
    def groups(self) -> list[Group]:
        """All coupled groups, also those that must stay."""
        return couple(self.network, self.example)

    @cached_property
    def free(self) -> list[Group]:
        """The groups that may lose channels and whose layers' weights can be read."""
        known = [group for group in self.groups if any(member.tensor in self.layers for member in group.producers)]
        return [group for group in known if not group.frozen]

    @property
    def consumed(self) -> list[Group]:
        """The free groups whose channels some layer reads, so that gates can lie on them."""
        return [group for group in self.free if group.consumers]

    @property
    def unread(self) -> dict[str, str]:
        """By the names of the other free groups, why they have no gates."""
        return {group.name: UNREAD for group in self.free if not group.consumers}

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """By the dotted name of its weight, every conv and linear layer whose weight may be rewritten."""
        paths = {module: path for path, module in self.network.named_modules()}
        rows = [layer for layer in weight_layers(self.network) if not layer.skipped]
        return {f"{paths[layer.module]}.{layer.parameter}".lstrip("."): layer for layer in rows}

    @cached_property
    def _fold(self) -> Result:
        return fold_batchnorm(self.network, self.example)

    @property
    def folded(self) -> nn.Module:
        """The network with its batch norms folded: the weights that it computes with."""
        return self._fold.network

    @property
    def folded_ahead(self) -> list[str]:
        """The batch norms that fold into the layer after them: in ``network``, that layer gets another input."""
        return self._fold.plan["ahead"]

    @cached_property
    def mean_inputs(self) -> MeanInputs:
        """Mean and variance of each layer's input, as far as batch norm knows them. Unknown images have mean 0."""
        return mean_inputs(self.folded, self.example, input_mean_of(self.network) or (0.0,))

    def weights(self, folded: bool = False) -> dict[str, Tensor]:
        """The weights of ``layers`` by their dotted names; detached."""
        network = self.folded if folded else self.network
        tensors = dict(network.named_parameters(remove_duplicate=False))
        return {name: tensors[name].detach() for name in self.layers}

    def batches(self, size: int, title: str = "") -> Iterator[tuple[Inputs, Tensor]]:
        """The dataset in its own order, ``size`` images at once, where the network lies and in its dtype."""
        for batch in self._loader(size, title):
            yield placed(self.network, batch)

    def inputs(self, size: int, title: str = "") -> Iterator[Inputs]:
        """The same without the labels."""
        for inputs, _ in self._loader(size, title):
            yield inputs.to(self.network)

    def _loader(self, size: int, title: str) -> Iterable[tuple[Inputs, Any]]:
        check_whole("images at once", size)
        assert self.dataset is not None  # criteria that learn from images are given some
        loader = batches(self.dataset, int(size))
        return progress(loader, title) if title else loader

    def minibatches(self, size: int, chunk: int, title: str) -> Iterator[Iterator[tuple[Inputs, Tensor]]]:
        """Minibatches of ``size`` images, each as an iterator over parts of at most ``chunk`` of them."""
        check_whole("batch_size", size)
        assert self.dataset is not None  # criteria that learn from images are given some
        for start in progress(range(0, len(self.dataset), size), title):
            images = Subset(self.dataset, range(start, min(start + size, len(self.dataset))))
            yield Subject(self.network, images).batches(min(chunk, size))


def per_channel(group: Group, saliency: Mapping[str, Tensor], reduction: str = "mean") -> ndarray:
    """(size,) the saliency of a group's channels: summed over each one's weights in a layer, then over the layers.

    The one place where members of a coupled group are brought to one number a channel.

    Arguments:
        saliency: by the dotted name of a conv or linear weight, a tensor of its shape.
        reduction: over the layers that produce the channels: "mean" (our choice), "sum", "max" or "first".
    """
    check_one_of("reduction", reduction, REDUCTIONS)
    slices = [slices_of(saliency[m.tensor], m.index, m.dim) for m in group.producers if m.tensor in saliency]
    rows = [own.sum(1, dtype=np.float64) for own in slices]
    return REDUCTIONS[reduction](np.stack(rows)) if rows else np.zeros(group.size)


@dataclass(frozen=True, eq=False)
class Scored:
    """What a criterion returns: ``values`` as in ``Scores``, and the rest if it has any."""

    values: Mapping[str, ndarray]
    heirs: Mapping[str, ndarray] = field(default_factory=dict)
    errors: Mapping[str, ndarray] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


def turn(cost: float, last: float) -> float:
    """The score of a channel that is removed at this cost after one that scores ``last``: larger, if above 0.

    Costs may fall from turn to turn, and of equal scores the channel of lower number would be removed first.
    """
    return max(cost, last * (1 + 1e-12))


def last_turn(last: float) -> float:
    """The score of the channel that is left at the end, after one that scores ``last``."""
    return float(last) * (1 + 1e-9) + 1e-38
