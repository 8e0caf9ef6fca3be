"""Datasets by name, and where they are, without torch: what is wrong or missing is reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from redlab.names import unknown
from redlab.paths import data_root
from redlab.zoo.code import check_code, code_of, nearly_code

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
TABLE = "labels.csv"  # of a folder of images: columns file,label
_FOLDER, _IMAGENET = "folder:", "imagenet_folder:"
FORMS = (f"{_IMAGENET}NAME", f"{_FOLDER}PATH", "FILE.py:NAME", "package.module:NAME")  # of names that are not listed


def images_at(name: str) -> Path | None:
    """The folder that ``imagenet_folder:NAME`` (under imagenet/ of the data root) or ``folder:PATH`` means; else None.

    Raises:
        ValueError: no name or path follows, or NAME is no plain name of a folder.

    Example:
        >>> from redlab.zoo.dataset_names import images_at
        >>> images_at("folder:/pictures/pets").as_posix(), images_at("digits")
        ('/pictures/pets', None)
    """
    if name.startswith(_FOLDER):
        if not (path := name.removeprefix(_FOLDER)):
            raise ValueError(f"{name!r} names no folder: write folder:PATH")
        return Path(path).expanduser().absolute()
    if name.startswith(_IMAGENET):
        folder = name.removeprefix(_IMAGENET)
        if folder in ("", ".", "..") or "/" in folder or "\\" in folder:
            raise ValueError(f"{name!r}: NAME is a folder under imagenet/ of the data root; others are folder:PATH")
        return data_root() / "imagenet" / folder
    return None


def splits_of(folder: Path) -> dict[str, Path]:
    """The splits of ``folder:PATH``: train/ and test/ (or else val/) where both are there; else all of it is "test"."""
    train, tests = folder / "train", [folder / name for name in ("test", "val") if (folder / name).is_dir()]
    if train.is_dir() and tests and not (folder / TABLE).is_file():
        return {"test": tests[0], "train": train}
    return {"test": folder}


def check_dataset(name: str) -> None:
    """Refuse a name that is no dataset's, without running code.

    Raises:
        ValueError: it is unknown (with a guess and the known ones), or names a file or package that is not there.
    """
    name = str(name)
    if name in PLACES or images_at(name) is not None:
        return
    if hint := nearly_code(name):
        raise ValueError(f"{name!r} names no dataset: {hint}")
    if (code := code_of(name)) is None:
        raise ValueError(unknown("dataset", name, [*PLACES, *FORMS]))
    check_code(code)


def is_here(name: str) -> bool:
    """Whether the images are there: under the data root, in the folder that is named, or shipped.

    Of code it is only known that its file, or its package, is there.
    """
    if (folder := images_at(name)) is not None:
        return folder.is_dir()
    if name not in PLACES:
        return True
    place = PLACES[name]
    return not place.needed or (data_root() / place.folder / place.needed).exists()


def by_hand(name: str, root: Path) -> str:
    """What to put into ``root``, so that it holds the dataset."""
    return PLACES[name].by_hand.format(root=root)


def has_training(name: str) -> bool:
    """Whether there is a split of training images; of code it is not known, and taken to be so."""
    if name.startswith(_FOLDER) and (folder := images_at(name)) is not None:
        return "train" in splits_of(folder)
    return name not in _TEST_ONLY and not name.startswith(_IMAGENET)


def check_at_hand(name: str) -> None:
    """Refuse a dataset that is neither here nor can be downloaded, without loading anything.

    Raises:
        ValueError: as ``check_dataset``.
        FileNotFoundError: it is missing and has no public address; what is there instead is listed.
        ConnectionError: it is missing and its address does not answer.
    """
    check_dataset(name)
    if is_here(name):
        return
    if (folder := images_at(name)) is not None:
        raise FileNotFoundError(no_folder(name, folder))
    root, source = data_root() / PLACES[name].folder, PLACES[name].source
    if source is None:
        raise FileNotFoundError(f"no folder {root}: {by_hand(name, root)}")
    if reason := _silent(source):
        raise ConnectionError(f"nothing whole in {root}, and the download failed ({reason}): {by_hand(name, root)}")


def no_folder(name: str, folder: Path) -> str:
    """The message for a named folder of images that is not there."""
    if name.startswith(_FOLDER):
        return f"no folder {folder}: {_FOLDER}PATH names one with a folder of images a class, or with {TABLE}"
    there = [f"{_IMAGENET}{path.name}" for path in sorted(folder.parent.glob("*/"))]
    return f"no folder {folder}; known: {', '.join(there) or 'none'}"


def _silent(address: str) -> str:
    """Why nothing answers there; "" for any answer."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(address, method="HEAD"), timeout=_ANSWERS).close()
    except OSError as error:  # URLError and TimeoutError are OSErrors
        return "" if isinstance(error, HTTPError) else str(error).strip()
    return ""


def family_of(network: str) -> str | None:
    """The dataset of the family that the name of a network is in; None for code and other families."""
    return None if code_of(network) else FAMILIES.get(network.partition("/")[0])


def own_dataset(architecture: str) -> str | None:
    """The images that a network of this name was trained for, if they are here; ImageNet's must be named."""
    name = family_of(architecture)
    return name if name in ("digits", "cifar10") and is_here(name) else None
