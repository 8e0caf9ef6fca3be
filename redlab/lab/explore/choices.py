"""The choices that several explorers offer, and the networks among them: each loaded and folded once."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property, lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy import ndarray
from torch import Tensor, nn
from torch.utils.data import Dataset

from redlab.compression.preparing import prepare
from redlab.hashing.density import estimate_density
from redlab.lab.explore.explorer import Choice
from redlab.network.evaluation import evaluate
from redlab.network.example import Example
from redlab.network.layers import Layer, codes_of, count_distinct, weight_layers
from redlab.network.recipe import recipe_of
from redlab.network.result import Result
from redlab.network.samples import Labelled, as_dataset, example_of
from redlab.studies.titles import short_name
from redlab.zoo.datasets import default_dataset, load_dataset
from redlab.zoo.networks import networks_here
from redlab.zoo.saving import load_network

_DIVISORS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)
_ALPHAS = tuple(round(0.02 * k, 2) for k in range(36))
_CONTRASTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


class Shelf:
    """Networks by name, in plain layers, batch norm folded.

    Arguments:
        network: the one to begin with, what ``load_network`` takes, or a network itself.
        dataset: the images that accuracy is measured on, or their name; None: those that each was trained for.
        limit: images at most.
        build, weights: of the first network, as in ``load_network``.
        example: what a network that was given itself takes; by default as its recipe says, or as images given show.

    Raises:
        TypeError: ``network`` is neither.
        ValueError: ``build`` or ``weights`` beside a network itself.
    """

    def __init__(
        self,
        network: str | Path | nn.Module,
        dataset: str | Labelled | None = None,
        limit: int | None = None,
        build: Any = None,
        weights: str | Path | None = "default",
        example: Example | None = None,
    ) -> None:
        if not isinstance(network, str | Path | nn.Module):
            raise TypeError(f"network must be a name, the folder of a saved one, or an nn.Module, not {_said(network)}")
        self._own = network if isinstance(network, nn.Module) else None
        if self._own is not None and (build is not None or weights != "default"):
            raise ValueError("build and weights are for a network that is given by its name: this one has its own")
        self.first = type(network).__name__ if isinstance(network, nn.Module) else short_name(network)
        self._loading = {"name_or_path": network, "weights": weights, "build": build}
        self._dataset, self._limit, self._example = dataset, limit, example
        self.folded = lru_cache(4)(self._folded)
        self.layers = lru_cache(4)(self._layers)
        self.distinct = lru_cache(64)(lambda name, layer: count_distinct(codes_of(self.layers(name)[layer])))
        self.top = lru_cache(64)(self._top)
        self.before = lru_cache(64)(lambda name: evaluate(self.folded(name), self._images(name)).accuracy)

    @cached_property
    def names(self) -> dict[str, str]:
        """What may be chosen: the first one, and those whose weights are here."""
        return {name: name for name in dict.fromkeys([self.first, *networks_here()])}

    def _loaded(self, name: str) -> nn.Module:
        if name != self.first:
            return load_network(name)
        return load_network(**self._loading) if self._own is None else self._own

    def example(self, name: str) -> Example | None:
        """What the network of that name takes; None where its recipe says so."""
        if self._own is None or name != self.first:
            return None
        given = None if isinstance(self._dataset, str) else self._dataset
        return example_of(self._own, self._example, given)

    def _folded(self, name: str) -> nn.Module:
        network = self._loaded(name)
        layers = list(weight_layers(network))
        if all(layer.skipped for layer in layers):
            reasons = "; ".join(f"{layer.name}: {layer.skipped}" for layer in layers) or "it has none"
            raise ValueError(f"{name} has no conv or linear layer to look at ({reasons})")
        return prepare(network, self.example(name)).network

    def _layers(self, name: str) -> dict[str, Layer]:
        return {layer.name: layer for layer in weight_layers(self.folded(name)) if not layer.skipped}

    def largest(self, name: str) -> str:
        """The layer of most weights."""
        layers = self.layers(name)
        return max(layers, key=lambda layer: layers[layer].weight.numel())

    def _top(self, name: str, layer: str) -> float:
        """The highest density that a layer has at any bandwidth of the slider."""
        density = estimate_density(codes_of(self.layers(name)[layer]), f"silverman/{_DIVISORS[-1]}").frame()["density"]
        return float(density[np.isfinite(density)].max())

    def accuracy(self, name: str, changed: nn.Module) -> str:
        """The accuracy of ``changed``, made of the network of that name, in words."""
        images = self._images(name)
        found = evaluate(changed, images).accuracy
        return f"accuracy {found:.2f} % of {len(images):,} test images; before {self.before(name):.2f} %"

    def _images(self, name: str) -> Dataset:
        if self._dataset is not None and not isinstance(self._dataset, str):
            return as_dataset(self._dataset)
        folded = self.folded(name)
        recipe = recipe_of(folded)
        known = (recipe and recipe.architecture) or name
        return load_dataset(self._dataset or default_dataset(known), limit=self._limit, network=folded)


def _said(given: Any) -> str:
    """What was given in place of a network."""
    if isinstance(given, Result):
        return "a Result: pass its .network"
    return f"the class {given.__name__}: pass an object of it" if isinstance(given, type) else repr(given)


def menu(name: str, label: str, options: Collection[Any], slider: bool = False) -> Choice:
    """Always the same options."""
    fixed = {f"{option:g}" if isinstance(option, float) else str(option): option for option in options}
    return Choice(name, label, lambda _: fixed, slider)


def network(shelf: Shelf) -> Choice:
    """One of the networks on the shelf."""
    return menu("network", "network", shelf.names)


def layer(shelf: Shelf) -> Choice:
    """One of the network's layers; that of most weights is preferred."""
    return Choice(
        "layer",
        "layer",
        lambda at: {name: name for name in shelf.layers(at["network"])},
        prefer=lambda at: shelf.largest(at["network"]),
    )


def bandwidth(start: str | float) -> Choice:
    """From wide to narrow; ``start`` comes first where it is none of the usual ones, and is checked."""
    check_bandwidth(start)
    usual = {f"Silverman's / {divisor}": f"silverman/{divisor}" for divisor in _DIVISORS}
    start = "silverman/1" if start == "silverman" else start
    own = {} if start in usual.values() else {str(start): start}
    return Choice("bandwidth", "bandwidth of the density", lambda _: own | usual, slider=True)


def contrast(start: float) -> Choice:
    """How much of its height a mode must rise above its valley."""
    _check_share("contrast", start)
    return menu("contrast", "contrast (share of a mode's height)", sorted({*_CONTRASTS, float(start)}), slider=True)


def alpha(start: float, of: str = "share of filters merged") -> Choice:
    """The share of a group's filters that is merged away."""
    _check_share("alpha", start)
    return menu("alpha", f"alpha ({of})", sorted({*_ALPHAS, float(start)}), slider=True)


def check_bandwidth(start: str | float) -> None:
    """Refuse what ``estimate_density`` would: a ValueError, or a TypeError for neither a rule nor a number."""
    if isinstance(start, bool) or not isinstance(start, str | Real):
        raise TypeError(f"bandwidth must be a rule such as 'silverman/8' or a positive number, not {start!r}")
    estimate_density(np.array([0.0, 1.0, 3.0]), start)


def _check_share(name: str, start: float) -> None:
    if isinstance(start, bool) or not isinstance(start, Real):
        raise TypeError(f"{name} must be a number in [0, 1), not {start!r}")
    if not 0 <= start < 1:  # NaN too
        raise ValueError(f"{name} must lie in [0, 1), not be {start}")


def hold_colours(ax: Axes, values: Tensor | ndarray, percentile: float = 100) -> None:
    """Colour the images of ``ax`` by all of ``values``, on one scale about 0 that stays while one slides."""
    top = float(np.percentile(np.abs(torch.as_tensor(values).detach().float().cpu().numpy()), percentile)) or 1.0
    for image in ax.images:
        image.set_clim(-top, top)
