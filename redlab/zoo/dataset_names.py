"""Datasets by name, and where they are, without torch: what is wrong or missing is reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from redlab.names import unknown
from redlab.paths import data_root

_ANSWERS = 3.0  # seconds that an address has to answer


@dataclass(frozen=True)
class Place:
    """Where a dataset is.

    Attributes:
        folder: its own folder under the data root.
        needed: what must be in that folder; "" if it ships.
        by_hand: what to put where; ``{root}`` is the folder.
        source: its public address, or None.
    """

    folder: str
    needed: str = ""
    by_hand: str = ""
    source: str | None = None


def _idx(folder: str, kind: str, source: str) -> Place:
    """MNIST, or another dataset in the format of its files."""
    hand = f"put the four *-ubyte files of {kind}, unpacked, into {{root}}/{kind}/raw"
    return Place(folder, f"{kind}/raw/train-images-idx3-ubyte", hand, source)


PLACES = {
    "digits": Place("digits"),
    "mnist": _idx("mnist", "MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion_mnist": _idx(
        "fashion_mnist", "FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    ),
    "cifar10": Place(
        "cifar10",
        "cifar-10-batches-py",
        "put the folder cifar-10-batches-py (of cifar-10-python.tar.gz, cs.toronto.edu/~kriz) into {root}",
        "https://www.cs.toronto.edu/~kriz/",
    ),
    "imagenet_folder": Place(
        "imagenet/val250", ".", "put ImageNet images there, with labels.csv (file,label) or one folder a class"
    ),
}
# The first word of a network's name -> the images that it was trained for.
FAMILIES = {
    "digits": "digits",
    "cifar10": "cifar10",
    "imagenet": "imagenet_folder",
    "torchvision": "imagenet_folder",
}
_TEST_ONLY = ("imagenet_folder",)


def check_dataset(name: str) -> None:
    """Raises ValueError for an unknown dataset, with a guess and the known ones."""
    if name not in PLACES:
        raise ValueError(unknown("dataset", str(name), list(PLACES)))


def is_here(name: str) -> bool:
    """Whether the images are under the data root, or ship."""
    place = PLACES[name]
    return not place.needed or (data_root() / place.folder / place.needed).exists()


def by_hand(name: str, root: Path) -> str:
    """What to put into ``root``, so that it holds the dataset."""
    return PLACES[name].by_hand.format(root=root)


def has_training(name: str) -> bool:
    """Whether there is a split of training images."""
    return name not in _TEST_ONLY


def check_at_hand(name: str) -> None:
    """Refuse a dataset that is neither here nor can be downloaded, without loading anything.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: it is missing and has no public address.
        ConnectionError: it is missing and its address does not answer.
    """
    check_dataset(name)
    if is_here(name):
        return
    root, source = data_root() / PLACES[name].folder, PLACES[name].source
    if source is None:
        raise FileNotFoundError(f"no folder {root}: {by_hand(name, root)}")
    if reason := _silent(source):
        raise ConnectionError(f"nothing whole in {root}, and the download failed ({reason}): {by_hand(name, root)}")


def _silent(address: str) -> str:
    """Why nothing answers there; "" for any answer."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(address, method="HEAD"), timeout=_ANSWERS).close()
    except OSError as error:  # URLError and TimeoutError are OSErrors
        return "" if isinstance(error, HTTPError) else str(error).strip()
    return ""


def own_dataset(architecture: str) -> str | None:
    """The images that a network of this name was trained for, if they are here; ImageNet's must be named."""
    name = FAMILIES.get(architecture.partition("/")[0])
    return name if name in ("digits", "cifar10") and is_here(name) else None
