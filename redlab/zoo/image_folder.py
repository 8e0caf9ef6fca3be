"""A folder of image files with labels, decoded one by one.

The labels are in a table, or follow from the names of the class folders.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from redlab.zoo.dataset_names import TABLE, by_hand, no_folder, splits_of
from redlab.zoo.image_files import SUFFIXES, decode, is_stray, look_at, why_no_image
from redlab.zoo.image_form import IMAGENET, ImageForm, normalised
from redlab.zoo.image_labels import CLASSES, WORDNET_IDS, imagenet_labels, labels_in_order, read_table

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
_Labels = Callable[[Path, list[str]], list[int]]  # of the sorted class folders of a folder


@dataclass(frozen=True, eq=False)
class ImageFolder(Dataset):
    """Image files with labels; only their paths are held.

    Attributes:
        root: the folder.
        files: paths inside it.
        labels: one int a file.
        name: of the dataset.
        form: the size, mean and std of the images that come out.
        left_out: the files of the folder that are not in the dataset, and why.
        altered: the files of the dataset that decoding changes (16-bit grey to 8 bits, for example), and how.
        empty: the class folders without an image; they keep their labels.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    name: str = "imagenet_folder"
    form: ImageForm = IMAGENET
    left_out: dict[str, str] = field(default_factory=dict)
    altered: dict[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(float32 channels x height x width of ``form``, label); a damaged file raises ValueError."""
        mean, std = self.form.mean, self.form.std
        image = np.asarray(decode(self.root / self.files[index], self.form.size, grey=len(mean) == 1))
        return normalised(np.atleast_3d(image).transpose(2, 0, 1), 255, mean, std), self.labels[index]

    def take(self, indices: np.ndarray) -> ImageFolder:
        """The images at ``indices``, in that order; ``left_out`` and ``altered`` stay those of the whole folder."""
        files, labels = (tuple(of[i] for i in indices) for of in (self.files, self.labels))
        return replace(self, files=files, labels=labels)


def read_image_folder(root: Path, name: str = "imagenet_folder", form: ImageForm = IMAGENET) -> ImageFolder:
    """The images of ``root``: by its ``labels.csv`` (columns file,label) or else one folder per class.

    Labels are 0..999 in the sorted order of ImageNet's WordNet ids, as torchvision counts them. Class folders named by
    integers are those labels; named by WordNet ids, all 1000 must be there, or ``wnids_sorted.txt`` (a line an id) in
    ``root`` or its parent; any others count in their sorted order. As in torchvision's ImageFolder all images below a
    class folder are of that class, however deep. A class folder without images keeps its label.

    An image is its first frame, turned as its EXIF orientation says (torchvision's ImageFolder does not turn it). If
    its shorter side is over 256 or under 224 it is resized to 256 on that side, then the centre 224x224 is taken. For
    another size both numbers change alike (our choice): see ``image_files.resized``.
    ``image_files.as_colour`` says what becomes of 16-bit grey, palettes, transparency and CMYK.

    Files that are no images, hidden, damaged or not in ``labels.csv`` are left out. One warning sums up what is left
    out or altered; the dataset's ``left_out``, ``altered`` and ``empty`` list it all. A damaged image that
    ``labels.csv`` names is not left out: reading it raises ValueError.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no labels, no images; a row of labels.csv that names an absent file, one outside, one that an
            earlier row names, or a bad label; folders that are splits (train, val) and not classes.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: {by_hand('imagenet_folder', root)}")
    dataset = replace(_read(root, imagenet_labels, CLASSES), name=name, form=form)
    _warn(dataset, _why_deep(dataset))
    return dataset


def read_class_folder(folder: Path, split: str, name: str, form: ImageForm) -> ImageFolder:
    """The images of ``folder:PATH``, as ``read_image_folder`` reads them, with labels as torchvision's ImageFolder.

    Class folders count in the sorted order of their names, whatever those are, and ``labels.csv`` may hold any whole
    numbers. Where ``folder`` has train/ and test/ (or val/), those are the splits, and the folders of train/ count in
    both (torchvision would count a split without one of the classes in another way); else all of it is "test".

    Raises:
        FileNotFoundError, ValueError: as in ``read_image_folder``; there is no such split, or its labels could be
            others than those of the training images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(no_folder(name, folder))
    splits = splits_of(folder)
    if split not in splits:
        raise ValueError(f"{name} has the split 'test' only: {split!r} needs the folders train/ and test/ (or val/)")
    order = _class_order(splits["train"], splits["test"]) if "train" in splits else None
    dataset = replace(_read(splits[split], partial(labels_in_order, order=order), None), name=name, form=form)
    _warn(dataset, _why_deep(dataset), _why_numbered(dataset))
    return dataset


def _class_order(train: Path, test: Path) -> list[str] | None:
    """The class folders that count; None where tables have the labels."""
    tables = [(split / TABLE).is_file() for split in (train, test)]
    if any(tables) and not all(tables):
        raise ValueError(f"{train} and {test}: one has {TABLE} and one has not, so that their labels may differ")
    return None if all(tables) else _class_folders(train)


def _read(root: Path, labels_of: _Labels, classes: int | None) -> ImageFolder:
    dataset = _by_table(root, classes) if (root / TABLE).is_file() else _by_folders(root, labels_of)
    if not dataset.files:
        left = f"; {len(dataset.left_out)} files were left out{_some(dataset.left_out)}" if dataset.left_out else ""
        raise ValueError(f"{root} holds no images ({', '.join(SUFFIXES)}) with labels{left}")
    return dataset


def _by_table(root: Path, classes: int | None) -> ImageFolder:
    rows = read_table(root, classes)
    listed = {TABLE, WORDNET_IDS, *(os.path.normpath(file) for file in rows)}
    others = [file for file in _inside(root, "", {}) if file not in listed]
    left_out = {file: why_no_image(root, file) or f"not in {TABLE}" for file in others}
    altered = {file: change for file in rows if (change := look_at(root / file)[1])}
    return ImageFolder(root, tuple(rows), tuple(rows.values()), left_out=left_out, altered=altered)


def _class_folders(root: Path) -> list[str]:
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_stray(path.name))
    if not folders:
        raise ValueError(f"{root} holds neither {TABLE} nor one folder per class")
    return folders


def _by_folders(root: Path, labels_of: _Labels) -> ImageFolder:
    folders = _class_folders(root)
    labels = labels_of(root, folders)
    left_out = _outside(root, folders)
    altered: dict[str, str] = {}
    rows: dict[str, int] = {}
    for folder, label in zip(folders, labels, strict=True):
        for file in _inside(root, folder, left_out):
            why, change = why_no_image(root, file), ""
            if not why:
                why, change = look_at(root / file)
            if why:
                left_out[file] = why
            else:
                rows[file] = label
            if change:
                altered[file] = change
    filled = {Path(file).parts[0] for file in rows}
    empty = tuple(folder for folder in folders if folder not in filled)
    return ImageFolder(root, tuple(rows), tuple(rows.values()), left_out=left_out, altered=altered, empty=empty)


def _outside(root: Path, folders: list[str]) -> dict[str, str]:
    """The files that lie in no class folder, and why they are no part of the dataset."""
    left_out: dict[str, str] = {}
    for path in sorted(root.iterdir()):
        if path.name not in (*folders, WORDNET_IDS):
            files = _inside(root, path.name, {}) if path.is_dir() else [path.name]
            left_out |= {file: why_no_image(root, file) or "in no class folder" for file in files}
    return left_out


def _inside(root: Path, folder: str, left_out: dict[str, str]) -> Iterator[str]:
    """The files below a folder of ``root``, sorted as torchvision does; unlike there, links in a circle end."""
    seen: set[str] = set()
    found: list[tuple[str, str]] = []
    for here, folders, files in os.walk(root / folder, followlinks=True):
        place = os.path.relpath(here, root)
        if (real := os.path.realpath(here)) in seen:
            left_out[f"{place}/"] = "a link to a folder that was read already"
            folders.clear()
            continue
        seen.add(real)
        found += [(place, file) for file in files]
    return (os.path.normpath(os.path.join(place, file)) for place, file in sorted(found))


def _why_deep(dataset: ImageFolder) -> str:
    """What to say if the class folders hold only folders: they may be one level too high."""
    if _has_table(dataset):
        return ""
    parts = [Path(file).parts for file in dataset.files]
    if min(map(len, parts)) < 3:
        return ""
    filled, deeper = (sorted({names[level] for names in parts}) for level in (0, 1))
    if {name.lower() for name in filled} <= _SPLITS:
        one = dataset.root / min(filled, key=lambda name: ("train" in name.lower(), name))
        held = ", ".join(filled)
        raise ValueError(f"{dataset.root} holds splits ({held}), not classes: name one of them, such as {one}")
    held = ", ".join(deeper[:3]) + (", ..." if len(deeper) > 3 else "")
    return f"all images lie one level deeper ({held}): if those are the classes, name the folder that holds them"


def _why_numbered(dataset: ImageFolder) -> str:
    """What to say if class folders are named by numbers that are not their labels."""
    pairs = {} if _has_table(dataset) else dict(zip(dataset.files, dataset.labels, strict=True))
    for file, label in pairs.items():
        if (folder := Path(file).parts[0]).isdecimal() and int(folder) != label:
            return f"class folders count in the sorted order of their names: {folder} has label {label}"
    return ""


def _has_table(dataset: ImageFolder) -> bool:
    return (dataset.root / TABLE).is_file()


def _warn(dataset: ImageFolder, *notes: str) -> None:
    """Warn once of all that is left out, altered or empty."""
    told = [*notes, _told("file{} left out", dataset.left_out), _told("file{} altered", dataset.altered)]
    told.append(_told("class folder{} without images", dict.fromkeys(dataset.empty, "")))
    if any(told):
        lists = "the dataset's left_out, altered and empty list them all"
        warnings.warn(f"{dataset.root}: {'; '.join(filter(None, told))} ({lists})", stacklevel=5)


def _told(what: str, found: dict[str, str]) -> str:
    return f"{len(found)} {what.format('s' * (len(found) > 1))}{_some(found)}" if found else ""


def _some(found: dict[str, str]) -> str:
    """The first three by name, with the reason."""
    named = "; ".join(f"{file}: {why}" if why else file for file, why in list(found.items())[:3])
    return f" ({named}{'; ...' if len(found) > 3 else ''})"
