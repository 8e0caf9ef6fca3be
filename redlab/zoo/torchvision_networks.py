"""torchvision's classifiers, built so that their architecture is the same with and without weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision import models

from redlab.zoo.image_form import MEAN

# Two of them change with their weights: the options of the pretrained ones.
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": False},
    "inception_v3": {"aux_logits": True, "transform_input": True, "init_weights": False},
}
# DenseNet's files are older than the rule that module names hold no dots: norm.1 is norm1 now.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
# GoogLeNet's file holds two training heads that the pretrained network does not have.
_TRAINING_HEAD = re.compile(r"aux[12]\.")


def build(name: str) -> nn.Module:
    """The architecture that torchvision's default weights fit, with fresh random weights."""
    options = dict(_OPTIONS.get(name, {}))
    if name.startswith("vit_"):
        options["image_size"] = _crop(name)  # vit_h_14's weights want 518
    return models.get_model(name, weights=None, **options)


def input_shape(name: str) -> tuple[int, int, int]:
    """(3, size, size), the crop that its default weights were made for."""
    return 3, _crop(name), _crop(name)


def input_mean(name: str) -> tuple[float, ...]:
    """The mean a channel of ImageNet's images as its default weights want them normalised: 0 for all but one."""
    return mean_normalised(*normalisation(name))


def normalisation(name: str) -> tuple[list[float], list[float]]:
    """The mean and standard deviation a channel by which its default weights want images normalised."""
    wanted = models.get_model_weights(name).DEFAULT.transforms()
    return list(wanted.mean), list(wanted.std)


def mean_normalised(mean: Sequence[float], std: Sequence[float]) -> tuple[float, ...]:
    """The mean a channel of ImageNet's images, normalised by ``mean`` and ``std``."""
    return tuple(round((usual - own) / width, 4) for usual, own, width in zip(MEAN, mean, std, strict=True))


def source(name: str) -> tuple[str, str, str]:
    """The address of its default weights, the file's name, and the start of its SHA-256, which the name holds."""
    url = models.get_model_weights(name).DEFAULT.url
    file = url.rsplit("/", 1)[-1]
    return url, file, re.findall(r"-([0-9a-f]{8,})\.pth$", file)[0]


def adapt(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of torchvision's file under the names that the architecture has today."""
    if name.startswith("densenet"):
        return {_OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in weights.items()}
    if name == "googlenet":
        return {key: tensor for key, tensor in weights.items() if not _TRAINING_HEAD.match(key)}
    return weights


def _crop(name: str) -> int:
    return models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
