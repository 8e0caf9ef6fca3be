"""The networks that an explorer offers: each loaded and folded once, with its layers and its images."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from redlab.compression.folding import fold_batchnorm
from redlab.network.evaluation import evaluate
from redlab.network.layers import Layer, count_distinct, weight_layers
from redlab.network.recipe import recipe_of
from redlab.network.result import Result
from redlab.network.samples import Labelled, as_dataset
from redlab.zoo.datasets import default_dataset, load_dataset
from redlab.zoo.networks import networks_here
from redlab.zoo.saving import load_network


class Shelf:
    """Networks by name, batch norm folded.

    Arguments:
        network: the one to begin with, a name or folder that ``load_network`` knows, or a network itself.
        dataset: the name of the images that accuracy is measured on; None: those that each was trained for.
        limit: images at most.

    Raises:
        TypeError: ``network`` is neither.
    """

    def __init__(
        self, network: str | Path | nn.Module, dataset: str | Labelled | None = None, limit: int | None = None
    ) -> None:
        if not isinstance(network, str | Path | nn.Module):
            raise TypeError(f"network must be a name, the folder of a saved one, or an nn.Module, not {_said(network)}")
        self._own = network if isinstance(network, nn.Module) else None
        self.first = str(network) if self._own is None else "your network"
        self._dataset, self._limit = dataset, limit
        self.folded = lru_cache(4)(self._folded)
        self.layers = lru_cache(4)(self._layers)
        self.distinct = lru_cache(64)(self._distinct)
        self.before = lru_cache(64)(self._before)

    @cached_property
    def names(self) -> dict[str, str]:
        """What may be chosen: the first one, and those whose weights are here."""
        return {name: name for name in dict.fromkeys([self.first, *networks_here()])}

    def _folded(self, name: str) -> nn.Module:
        network = self._own if self._own is not None and name == self.first else load_network(name)
        layers = list(weight_layers(network))
        if all(layer.skipped for layer in layers):
            reasons = "; ".join(f"{layer.name}: {layer.skipped}" for layer in layers) or "it has none"
            raise ValueError(f"{name} has no conv or linear layer to look at ({reasons})")
        return fold_batchnorm(network).network

    def _layers(self, name: str) -> dict[str, Layer]:
        return {layer.name: layer for layer in weight_layers(self.folded(name)) if not layer.skipped}

    def largest(self, name: str) -> str:
        """The layer of most weights."""
        layers = self.layers(name)
        return max(layers, key=lambda layer: layers[layer].weight.numel())

    def _distinct(self, name: str, layer: str) -> int:
        return count_distinct(self.layers(name)[layer].weight)

    def accuracy(self, name: str, changed: nn.Module) -> str:
        """The accuracy of ``changed``, made of the network of that name, in words."""
        images = self._images(name)
        found = evaluate(changed, images).accuracy
        return f"accuracy {found:.2f} % of {len(images):,} test images; before {self.before(name):.2f} %"

    def _images(self, name: str) -> Dataset:
        if self._dataset is not None and not isinstance(self._dataset, str):
            return as_dataset(self._dataset)
        recipe = recipe_of(self._own) if self._own is not None and name == self.first else None
        known = recipe.architecture if recipe else name
        return load_dataset(self._dataset or default_dataset(known), limit=self._limit)

    def _before(self, name: str) -> float:
        return evaluate(self.folded(name), self._images(name)).accuracy


def _said(given: Any) -> str:
    """What was given in place of a network."""
    if isinstance(given, Result):
        return "a Result: pass its .network"
    return f"the class {given.__name__}: pass an object of it" if isinstance(given, type) else repr(given)
