"""Opening networks by name."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from redlab import networks
from redlab.checkpoints import load_weights
from redlab.recipe import Recipe


def load_network(name_or_path: str | Path, weights: str | None = "default") -> nn.Module:
    """A network by name, in eval mode, stamped with its recipe.

    ``digits/*`` ship with redlab; the others are fetched into the data root once and checked by SHA-256. Nothing in a
    file of weights is ever executed.

    Arguments:
        name_or_path: a name of ``list_networks()``, such as "digits/resnet" or "torchvision/resnet50".
        weights: "default" for the trained weights, None for random ones (drawn from torch's global generator).

    Raises:
        ValueError: an unknown name (the message lists the known ones), other ``weights``, a damaged or wrong file.
        ConnectionError, FileNotFoundError: the weights are missing; the message says what to put where.
    """
    name = str(name_or_path)
    if weights not in ("default", None):
        raise ValueError(f"weights must be 'default' or None, not {weights!r}")
    network = networks.build(name)
    if weights == "default":
        load_weights(network, networks.default_weights(name), f"the weights of {name}")
    network.redlab = Recipe(architecture=name, input_shape=networks.input_shape(name))
    return network
