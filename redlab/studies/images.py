"""The images that notebooks learn and score on."""

from __future__ import annotations

import warnings

from torch import nn
from torch.utils.data import Dataset

from redlab.zoo.code import code_of
from redlab.zoo.dataset_names import has_training
from redlab.zoo.datasets import load_dataset


def training_images(name: str, network: nn.Module, limit: int | None = None) -> Dataset:
    """The training images of a dataset; where it has none, its test images, with a warning.

    Arguments:
        name: as in ``load_dataset``; so are ``network`` and ``limit``.

    Raises: as ``load_dataset``.

    Example:
        >>> len(training_images("digits", load_network("digits/mlp"), limit=64))
        64
    """
    if code_of(name):
        return _of_code(name, network, limit)
    if has_training(name):
        return load_dataset(name, "train", limit=limit, network=network)
    what = "its test images are used in their place, and accuracies on them are of images that were seen"
    warnings.warn(f"{name} has no training images: {what}", stacklevel=2)
    return load_dataset(name, limit=limit, network=network)


def _of_code(name: str, network: nn.Module, limit: int | None) -> Dataset:
    try:
        return load_dataset(name, "train", limit=limit, network=network)
    except ValueError as error:
        what = 'it is called with split="train" too; if there are no others, let it return the test images'
        raise ValueError(f"{error} ({what})") from error
