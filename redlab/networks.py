"""The networks that redlab knows by name: how to build them, what goes in, where their weights come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from redlab.checkpoints import fetch, read_checkpoint
from redlab.cifar_resnet import CifarResNet
from redlab.layers import unwrap
from redlab.mlp import MLP
from redlab.mobilenet import MobileNetV1, imagenet_mobilenet
from redlab.network_names import TORCHVISION, all_names, is_known, unknown_network
from redlab.paths import data_root, shipped
from redlab.recipe import recipe_of

_AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"


@dataclass(frozen=True)
class _Download:
    """A file of weights under the data root: where it lies, its SHA-256 (or the start of it), its public address."""

    path: str
    sha256: str
    url: str | None
    about: str


@dataclass(frozen=True)
class _Network:
    """A network by name; ``input_mean`` is that of the training images. Without ``download`` its weights ship."""

    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    input_mean: tuple[float, ...]
    download: _Download | None = None


def _akamaster(depth: int, file: str, sha256: str) -> _Download:
    about = f"ResNet-{depth} of akamaster/pytorch_resnet_cifar10"
    return _Download(f"weights/cifar10/{file}", sha256, _AKAMASTER + file, about)


# Of the training images of each channel, as load_dataset gives them; those of ImageNet are normalised to a mean of 0.
_DIGITS, _CIFAR10, _IMAGENET = (0.3054,), (0.0279, 0.1168, 0.1801), (0.0, 0.0, 0.0)
_DIGITS_BLOCKS = ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1))
_KNOWN = {
    "digits/resnet": _Network(lambda: CifarResNet((1, 1, 1), in_channels=1), (1, 8, 8), _DIGITS),
    "digits/mobilenet": _Network(
        lambda: MobileNetV1((16, 1), _DIGITS_BLOCKS, in_channels=1, classes=10), (1, 8, 8), _DIGITS
    ),
    "digits/mlp": _Network(lambda: MLP(64, (256, 128), 10), (1, 8, 8), _DIGITS),
    "cifar10/resnet20": _Network(
        lambda: CifarResNet((3, 3, 3)),
        (3, 32, 32),
        _CIFAR10,
        _akamaster(20, "resnet20-12fca82f.th", "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    ),
    "cifar10/resnet56": _Network(
        lambda: CifarResNet((9, 9, 9)),
        (3, 32, 32),
        _CIFAR10,
        _akamaster(56, "resnet56-4bfd9763.th", "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    ),
    "imagenet/mobilenet_v1_0.75": _Network(
        lambda: imagenet_mobilenet(0.75),
        (3, 224, 224),
        _IMAGENET,
        _Download(
            "weights/imagenet/mobilenet_v1_0.75_224.pth",
            "b4b1fd30e0572900fd47ae7d2fa754e3664fab2d06ffeb2feffde72108bbb8a7",
            None,
            "Google's MobileNetV1 0.75 224 converted to PyTorch, float32, batch norm not folded",
        ),
    ),
}


def list_networks() -> list[str]:
    """Every name that ``load_network`` knows: redlab's own, then ``torchvision/...``.

    Example:
        >>> list_networks()[:3], "torchvision/resnet50" in list_networks()
        (['digits/resnet', 'digits/mobilenet', 'digits/mlp'], True)
    """
    return all_names()


def networks_here() -> list[str]:
    """redlab's own networks whose weights ship or lie under the data root."""
    return [name for name, own in _KNOWN.items() if not own.download or (data_root() / own.download.path).is_file()]


def build(name: str) -> nn.Module:
    """A fresh network with random weights (drawn from torch's global generator), in eval mode.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name in _KNOWN:
        return _KNOWN[name].build().eval()
    return _zoo().build(_torchvision_name(name)).eval()


def input_shape(name: str) -> tuple[int, ...]:
    """The shape of one input, (channels, height, width); an unknown name raises ValueError as in ``build``."""
    return _KNOWN[name].input_shape if name in _KNOWN else _zoo().input_shape(_torchvision_name(name))


def input_mean(name: str) -> tuple[float, ...]:
    """The mean of its images, a number a channel, as ``load_dataset`` gives them; errors as in ``build``."""
    return _KNOWN[name].input_mean if name in _KNOWN else _zoo().input_mean(_torchvision_name(name))


def input_mean_of(network: nn.Module) -> tuple[float, ...] | None:
    """What the recipe of ``network`` says of the mean of its input, itself or by its architecture; None: nothing."""
    if (recipe := recipe_of(network)) is None:
        return None
    if recipe.input_mean is not None:
        return recipe.input_mean
    known = recipe.architecture in _KNOWN or recipe.architecture.startswith(TORCHVISION)
    try:
        return input_mean(recipe.architecture) if known else None
    except ValueError:  # a stamp that names no network
        return None


def default_weights(name: str) -> dict[str, Tensor]:
    """The trained weights of a network: shipped with redlab, or fetched into the data root and checked.

    Raises:
        ValueError, ConnectionError, FileNotFoundError: as in ``checkpoints.fetch`` and ``read_checkpoint``.
    """
    if name.startswith("digits/") and name in _KNOWN:
        return read_checkpoint(shipped(f"{name}.safetensors"))
    weights = read_checkpoint(_fetch(_download_of(name)))
    return weights if name in _KNOWN else _zoo().adapt(_torchvision_name(name), weights)


def _download_of(name: str) -> _Download:
    if (own := _KNOWN.get(name)) and own.download:
        return own.download
    url, file, sha256 = _zoo().source(_torchvision_name(name))
    return _Download(f"weights/torchvision/{file}", sha256, url, f"torchvision's weights of {name}")


def _fetch(download: _Download) -> Path:
    return fetch(download.url, data_root() / download.path, download.sha256, download.about)


def _zoo() -> ModuleType:
    from redlab import torchvision_zoo  # torchvision takes seconds to import: only where it is asked for

    return torchvision_zoo


def _torchvision_name(name: str) -> str:
    if name.startswith(TORCHVISION) and is_known(name):
        return name.removeprefix(TORCHVISION)
    raise ValueError(unknown_network(name))


def example_input(network: nn.Module) -> Tensor:
    """A batch of one that ``network`` accepts: on its device, in its floating dtype, always the same values.

    Its shape is the one in the network's stamp; else torchvision's image size for its class; else it is guessed from
    the first layer: three channels 1x3x224x224, one channel 1x1x28x28, Linear 1 x in_features.

    Raises:
        ValueError: none of these applies; the message asks for ``example=``.

    Example:
        >>> example_input(load_network("digits/resnet")).shape
        torch.Size([1, 1, 8, 8])
        >>> example_input(torch.nn.Linear(3, 2)).shape
        torch.Size([1, 3])
    """
    network = unwrap(network)
    shape = _shape_of(network)
    if shape is None:
        raise ValueError(
            f"no telling what {type(network).__name__} takes as input: pass example=, a batch of one, "
            "or stamp it: network.redlab = Recipe(name, input_shape)"
        )
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(**place_of(network))


def place_of(network: nn.Module) -> dict[str, Any]:
    """The device and floating dtype of ``network``, as arguments for ``Tensor.to``; none if it has no tensors."""
    tensors = (t for t in [*network.parameters(), *network.buffers()] if t.is_floating_point())
    own = next(tensors, None)
    return {} if own is None else {"device": own.device, "dtype": own.dtype}


def _shape_of(network: nn.Module) -> tuple[int, ...] | None:
    if (recipe := recipe_of(network)) is not None:
        return tuple(recipe.input_shape)
    # Classifiers live in torchvision.models.NAME; video, detection and the like one level deeper.
    home = type(network).__module__.split(".")
    if home[:2] == ["torchvision", "models"] and len(home) == 3:
        size = 299 if type(network).__name__ == "Inception3" else getattr(network, "image_size", 224)
        return 3, size, size
    return _shape_for(next((m for m in network.modules() if isinstance(m, _FIRST_LAYERS)), None))


# The first layer decides, also where it is one whose input cannot be guessed.
_FIRST_LAYERS = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.MultiheadAttention)


def _shape_for(layer: nn.Module | None) -> tuple[int, ...] | None:
    if isinstance(layer, nn.Linear) and not isinstance(layer, LazyModuleMixin):
        return (layer.in_features,)
    if isinstance(layer, nn.Conv2d):
        return {3: (3, 224, 224), 1: (1, 28, 28)}.get(layer.in_channels)
    return None
