"""The networks that redlab knows by name: how to build them, what goes in, where their weights come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from redlab.files.checkpoint import read_checkpoint
from redlab.files.download import fetch
from redlab.paths import data_root, shipped
from redlab.zoo.architectures import MLP, CifarResNet, MobileNetV1, imagenet_mobilenet
from redlab.zoo.network_names import TORCHVISION, all_names, is_known, unknown_network

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
    from redlab.zoo import torchvision_networks  # torchvision takes seconds to import: only where it is asked for

    return torchvision_networks


def _torchvision_name(name: str) -> str:
    if name.startswith(TORCHVISION) and is_known(name):
        return name.removeprefix(TORCHVISION)
    raise ValueError(unknown_network(name))
