"""A folder of image files with ImageNet's labels, decoded one by one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from redlab.zoo.image_files import SUFFIXES, decode, is_stray, look_at, why_no_image
from redlab.zoo.image_labels import TABLE, WORDNET_IDS, labels_of, read_table

# ImageNet's mean and standard deviation, by which redlab normalises images.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class ImageFolder(Dataset):
    """Image files with labels; only their paths are held.

    Attributes:
        root: the folder.
        files: paths inside it.
        labels: one int a file.
        name: of the dataset.
        left_out: the files of the folder that are not in the dataset, and why.
        altered: the files of the dataset that decoding changes (16-bit grey to 8 bits, for example), and how.
        empty: the class folders without an image; they keep their labels.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    name: str = "imagenet_folder"
    left_out: dict[str, str] = field(default_factory=dict)
    altered: dict[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(float32 3x224x224 normalised by ImageNet's mean and std, label); a damaged file raises ValueError."""
        return _normalised(decode(self.root / self.files[index])), self.labels[index]

    def take(self, indices: np.ndarray) -> ImageFolder:
        """The images at ``indices``, in that order; ``left_out`` and ``altered`` stay those of the whole folder."""
        files, labels = (tuple(of[i] for i in indices) for of in (self.files, self.labels))
        return replace(self, files=files, labels=labels)


def read_image_folder(root: Path) -> ImageFolder:
    """The images of ``root``: by its ``labels.csv`` (columns file,label) or else one folder per class.

    Labels are 0..999 in the sorted order of ImageNet's WordNet ids, as torchvision counts them. Class folders named by
    integers are those labels; named by WordNet ids, all 1000 must be there, or ``wnids_sorted.txt`` (a line an id) in
    ``root`` or its parent; any others count in their sorted order. As in torchvision's ImageFolder all images below a
    class folder are of that class, however deep. A class folder without images keeps its label.

    An image is its first frame, turned as its EXIF orientation says (torchvision's ImageFolder does not turn it). If
    its shorter side is over 256 or under 224 it is resized to 256 on that side, then the centre 224x224 is taken.
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
        raise FileNotFoundError(
            f"no folder {root}: put ImageNet images there, with labels.csv (file,label) or one folder a class"
        )
    dataset, note = _by_table(root) if (root / TABLE).is_file() else _by_folders(root)
    if not dataset.files:
        left = f"; {len(dataset.left_out)} files were left out{_some(dataset.left_out)}" if dataset.left_out else ""
        raise ValueError(f"{root} holds no images ({', '.join(SUFFIXES)}) with labels{left}")
    _warn(dataset, note)
    return dataset


def _by_table(root: Path) -> tuple[ImageFolder, str]:
    rows = read_table(root)
    listed = {os.path.normpath(file) for file, _ in rows}
    left_out = {
        inside: why_no_image(root / inside, Path(inside)) or f"not in {TABLE}"
        for inside in _inside(root, "", {})
        if inside not in listed and inside not in (TABLE, WORDNET_IDS)
    }
    altered = {file: change for file, _ in rows if (change := look_at(root / file)[1])}
    return ImageFolder(root, *_columns(rows), left_out=left_out, altered=altered), ""


def _by_folders(root: Path) -> tuple[ImageFolder, str]:
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_stray(path.name))
    if not folders:
        raise ValueError(f"{root} holds neither {TABLE} nor one folder per class")
    labels = labels_of(root, folders)
    left_out = _outside(root, folders)
    altered: dict[str, str] = {}
    rows = [
        (file, label)
        for folder, label in zip(folders, labels, strict=True)
        for file in _inside(root, folder, left_out)
        if _is_taken(root, file, left_out, altered)
    ]
    filled = {Path(file).parts[0] for file, _ in rows}
    empty = tuple(folder for folder in folders if folder not in filled)
    note = _why_deep(root, filled, rows)
    return ImageFolder(root, *_columns(rows), left_out=left_out, altered=altered, empty=empty), note


def _columns(rows: list[tuple[str, int]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return tuple(file for file, _ in rows), tuple(label for _, label in rows)


def _outside(root: Path, folders: list[str]) -> dict[str, str]:
    """The files that lie in no class folder."""
    left_out: dict[str, str] = {}
    for path in sorted(root.iterdir()):
        if not path.is_dir() and path.name != WORDNET_IDS:
            left_out[path.name] = why_no_image(path, Path(path.name)) or "in no class folder"
        elif path.is_dir() and path.name not in folders:
            left_out |= dict.fromkeys(_inside(root, path.name, {}), "hidden or of the operating system")
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


def _is_taken(root: Path, file: str, left_out: dict[str, str], altered: dict[str, str]) -> bool:
    """Whether a file becomes part of the dataset. Notes why not, and what decoding changes."""
    why, change = why_no_image(root / file, Path(file)), ""
    if not why:
        why, change = look_at(root / file)
    if why:
        left_out[file] = why
    if change:
        altered[file] = change
    return not why


def _why_deep(root: Path, filled: set[str], rows: list[tuple[str, int]]) -> str:
    """What to say if the class folders hold only folders: they may be one level too high."""
    if not rows or any(len(Path(file).parts) < 3 for file, _ in rows):
        return ""
    deeper = sorted({Path(file).parts[1] for file, _ in rows})
    if {name.lower() for name in filled} <= _SPLITS:
        one = root / min(filled, key=lambda name: ("train" in name.lower(), name))
        splits = ", ".join(sorted(filled))
        raise ValueError(f"{root} holds splits ({splits}), not classes: name one of them, such as {one}")
    held = ", ".join(deeper[:3]) + (", ..." if len(deeper) > 3 else "")
    return f"all images lie one level deeper ({held}): if those are the classes, name the folder that holds them"


_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


def _warn(dataset: ImageFolder, note: str) -> None:
    """Warn once of all that is left out, altered or empty."""
    said = [note] if note else []
    for what, found in (("left out", dataset.left_out), ("altered", dataset.altered)):
        if found:
            said.append(f"{len(found)} file{'s' * (len(found) > 1)} {what}{_some(found)}")
    if dataset.empty:
        many = f"{len(dataset.empty)} class folder{'s' * (len(dataset.empty) > 1)}"
        said.append(f"{many} without images{_some(dict.fromkeys(dataset.empty, ''))}")
    if said:
        lists = "the dataset's left_out, altered and empty list them all"
        warnings.warn(f"{dataset.root}: {'; '.join(said)} ({lists})", stacklevel=5)


def _some(found: dict[str, str]) -> str:
    """The first three by name, with the reason."""
    named = "; ".join(f"{file}: {why}" if why else file for file, why in list(found.items())[:3])
    return f" ({named}{'; ...' if len(found) > 3 else ''})"


def _normalised(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1).contiguous().div_(255)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return pixels.sub_(mean).div_(std)
