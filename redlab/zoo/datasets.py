"""The labelled images that redlab knows by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from redlab.files.download import network_timeout
from redlab.network.recipe import recipe_of
from redlab.paths import data_root
from redlab.zoo.code_datasets import dataset_of_code
from redlab.zoo.dataset_names import FORMS, PLACES, by_hand, check_at_hand, check_dataset, family_of, images_at
from redlab.zoo.image_folder import ImageFolder, read_class_folder, read_image_folder
from redlab.zoo.image_form import IMAGENET, MEAN, STD, form_of, normalised

SPLITS = ("test", "train")


@dataclass(frozen=True, eq=False)
class ImageArray(Dataset):
    """Images in memory as bytes, each normalised when it is read: a float copy would be four times as large.

    Attributes:
        name: of the dataset.
        images: uint8, (n, channels, height, width).
        labels: int64, (n,).
        scale: the byte that means 1.0.
        mean, std: per channel, of values in [0, 1]; what comes out is (value / scale - mean) / std.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(float32 of channels x height x width, label)."""
        return normalised(self.images[index], self.scale, self.mean, self.std), int(self.labels[index])

    def take(self, indices: np.ndarray) -> ImageArray:
        """The images at ``indices``, in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


def load_dataset(
    name: str,
    split: str = "test",
    root: str | Path | None = None,
    limit: int | None = None,
    network: nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | Sequence[int] | None = None,
) -> Any:
    """Labelled images: a map-style dataset of (float32 channels x height x width, int label).

    | name | images | values |
    |---|---|---|
    | digits | scikit-learn's 1,797 digits, 1x8x8; 360 of them, stratified, are the test split | [0, 1] |
    | mnist, fashion_mnist | 1x28x28 | normalised by their own mean and std |
    | cifar10 | 3x32x32 | normalised by ImageNet's mean and std, as the networks of `cifar10/` were trained |
    | imagenet_folder | files, cropped to 3x224x224 (see ``read_image_folder``); test only | by ImageNet's, too |
    | imagenet_folder:NAME | the same, of the folder imagenet/NAME of the data root | the same |
    | folder:PATH | files by class folder, or by a labels.csv | as the network expects them, or as you say |
    | FILE.py:NAME, package.module:NAME | what your function NAME returns for split= | its own |

    cifar10 is pickled by its authors: torchvision checks the md5 of every batch before it opens one. The bare files
    of mnist have no checksum once they are unpacked; their sizes and labels are checked here.

    ``folder:PATH``: class folders count in the sorted order of their names, as in torchvision's ImageFolder; there may
    be any number of them. If PATH holds train/ and test/ (or val/), those are the splits; else all of it is "test".
    Images are in colour, or grey if mean and std are one number each. They are resized as in ``read_image_folder``:
    the shorter side to 256/224 of the size, then cropped at the centre. That rule is ours: a network's own may differ
    by a few pixels.

    ``FILE.py:NAME``: the file is run. NAME is a function or class that takes split= ("test" or "train"); what it
    returns may be anything that ``evaluate`` takes: samples are (inputs, label), with inputs a tensor or array, a tuple
    of them or a dict. The first sample is checked.

    Arguments:
        split: "test" or "train".
        root: the folder that holds it, by default its own folder under the data root (``imagenet/val250`` for
            imagenet_folder, for which it is the folder of images itself); ignored for digits, which ship with
            scikit-learn, and refused where the name holds a path.
        limit: the first so many of a fixed permutation (numpy's RandomState(0)); all in their own order by default.
        network: of folder:PATH and imagenet_folder, size, mean and std are those of its recipe's ``images``, if it has
            them. Of other names it changes nothing.
        mean, std: of folder:PATH and imagenet_folder, a number a channel, of values in [0, 1]; before the network's.
        size: of the same two, in pixels: of one side, or [height, width]; before the network's.

    Raises:
        ValueError: an unknown name or split, a bad limit, damaged data (the message names the file); of folder:PATH,
            nobody says the size, mean or std; of other names they are given; the function fails, or returns no dataset.
        ConnectionError: it is missing and its download failed; the message says what to put where.
        FileNotFoundError: the folder of images is missing; there is no public download.

    Example:
        >>> image, label = load_dataset("digits", limit=10)[0]
        >>> image.shape, label
        (torch.Size([1, 8, 8]), 2)
    """
    check_dataset(name := str(name))
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if limit is not None and (not isinstance(limit, Integral) or isinstance(limit, bool) or limit < 1):
        raise ValueError(f"limit must be None or a whole number of at least 1, not {limit!r}")
    given = {"size": size, "mean": mean, "std": std}
    if name == "imagenet_folder" or images_at(name) is not None:
        dataset: Any = _of_images(name, split, root, network, given)
    else:
        _check_own(name, given)
        dataset = _of_code(name, split, root) if name not in PLACES else _LOADERS[name](split, _root(name, root))
    if limit is None:
        return dataset
    indices = np.random.RandomState(0).permutation(len(dataset))[:limit]
    return dataset.take(indices) if isinstance(dataset, ImageArray | ImageFolder) else Subset(dataset, indices.tolist())


def _root(name: str, root: str | Path | None) -> Path:
    return Path(root).expanduser() if root is not None else data_root() / PLACES[name].folder


def _check_own(name: str, given: dict[str, Any]) -> None:
    """Refuse a size, mean or std for images that have their own."""
    if named := [what for what, value in given.items() if value is not None]:
        raise ValueError(
            f"{' and '.join(named)} cannot be set: the images of {name} have a size, mean and std of their own; "
            "folder:PATH and imagenet_folder take them"
        )


def _of_images(
    name: str, split: str, root: str | Path | None, network: nn.Module | None, given: dict[str, Any]
) -> ImageFolder:
    folder = images_at(name)
    if folder is not None and root is not None:
        raise ValueError(f"root={str(root)!r} cannot be set: {name!r} names the folder itself")
    if name.startswith("folder:"):
        check_at_hand(name)  # before the form: to pass a size for no folder would help nobody
    form = form_of(name, network, given, default=None if name.startswith("folder:") else IMAGENET)
    if name.startswith("folder:") and folder is not None:
        return read_class_folder(folder, split, name, form)
    if split != "test":
        raise ValueError(f"{name} has one split, 'test'. For other images name their folder: folder:PATH")
    if folder is not None:
        check_at_hand(name)
    return read_image_folder(_root(name, root) if folder is None else folder, name, form)


def _of_code(name: str, split: str, root: str | Path | None) -> Dataset:
    if root is not None:
        raise ValueError(f"root={str(root)!r} cannot be set: {name} is called with split= alone")
    return dataset_of_code(name, split)


def default_dataset(network: str | nn.Module) -> str:
    """The name of the images that a network was trained for: "cifar10" for "cifar10/resnet20".

    Arguments:
        network: its name, or the network itself, whose recipe says what it was made of.

    Raises:
        ValueError: it belongs to none of the families, as timm/, hf/ and code of your own; name the dataset instead.

    Example:
        >>> default_dataset("cifar10/resnet20"), default_dataset(load_network("digits/mlp"))
        ('cifar10', 'digits')
    """
    recipe = recipe_of(network) if isinstance(network, nn.Module) else None
    name = str(network) if not isinstance(network, nn.Module) else recipe.architecture if recipe else None
    if name is None or (dataset := family_of(name)) is None:
        what = f"a network {type(network).__name__} without a name" if name is None else repr(name)
        raise ValueError(f"no dataset is known for {what}. Set dataset: name one of {', '.join([*PLACES, *FORMS])}")
    return dataset


def _digits(split: str, root: Path) -> ImageArray:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(np.arange(len(digits.target)), test_size=360, stratify=digits.target, random_state=0)
    images = digits.images.astype(np.uint8)[:, None]
    return ImageArray("digits", images, digits.target, 16.0, (0.0,), (1.0,)).take(test if split == "test" else train)


def _idx(name: str, kind: str, mean: float, std: float, split: str, root: Path) -> ImageArray:
    """MNIST, or another dataset in the format of its files."""
    from torchvision import datasets

    missing = by_hand(name, root)
    data = _found_or_downloaded(getattr(datasets, kind), split, root, missing)
    images, labels = data.data.numpy(), data.targets.numpy()
    count = 10_000 if split == "test" else 60_000
    if images.shape != (count, 28, 28) or labels.shape != (count,) or labels.min() < 0 or labels.max() > 9:
        raise ValueError(
            f"{root / kind / 'raw'} holds images {images.shape} and labels {labels.shape} for {split!r}, "
            f"expected {count} of 28 x 28 with labels 0..9: {missing}"
        )
    return ImageArray(name, images[:, None], labels.astype(np.int64), 255.0, (mean,), (std,))


def _cifar10(split: str, root: Path) -> ImageArray:
    from torchvision import datasets

    data = _found_or_downloaded(datasets.CIFAR10, split, root, by_hand("cifar10", root))
    images = np.moveaxis(data.data, 3, 1)  # a view: the bytes stay as they were read
    return ImageArray("cifar10", images, np.asarray(data.targets, np.int64), 255.0, MEAN, STD)


def _found_or_downloaded(kind: Callable, split: str, root: Path, missing: str):
    train = split == "train"
    try:
        return kind(root, train=train)
    except Exception as error:
        # torchvision says "Dataset not found" of a missing file and of a wrong md5. Any other error means a damaged
        # file without a checksum.
        if "not found" not in str(error).lower():
            raise ValueError(f"{root} holds damaged files ({error}): {missing}") from error
    try:
        with network_timeout():
            return kind(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"nothing whole in {root}, and the download failed ({str(error).strip()}): {missing}"
        ) from error


# name -> the function that reads a split from a folder; ``names`` has the folders.
_LOADERS: dict[str, Callable[[str, Path], ImageArray]] = {
    "digits": _digits,
    "mnist": partial(_idx, "mnist", "MNIST", 0.1307, 0.3081),
    "fashion_mnist": partial(_idx, "fashion_mnist", "FashionMNIST", 0.2860, 0.3530),
    "cifar10": _cifar10,
}
