"""A folder of image files with ImageNet's labels, decoded one by one.

The labels are in a table, or follow from the names of the class folders.
"""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from redlab.zoo.dataset_names import by_hand
from redlab.zoo.image_files import SUFFIXES, decode, is_stray, look_at, why_no_image

# ImageNet's mean and standard deviation, by which redlab normalises images.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TABLE, WORDNET_IDS = "labels.csv", "wnids_sorted.txt"
CLASSES = 1000
_WORDNET_ID = re.compile(r"n\d{8}")
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


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
        image = np.asarray(decode(self.root / self.files[index])).transpose(2, 0, 1)
        return normalised(image, 255, MEAN, STD), self.labels[index]

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
        raise FileNotFoundError(f"no folder {root}: {by_hand('imagenet_folder', root)}")
    by_table = (root / TABLE).is_file()
    dataset = _by_table(root) if by_table else _by_folders(root)
    if not dataset.files:
        left = f"; {len(dataset.left_out)} files were left out{_some(dataset.left_out)}" if dataset.left_out else ""
        raise ValueError(f"{root} holds no images ({', '.join(SUFFIXES)}) with labels{left}")
    _warn(dataset, "" if by_table else _why_deep(dataset))
    return dataset


def _by_table(root: Path) -> ImageFolder:
    rows = _read_table(root)
    listed = {TABLE, WORDNET_IDS, *(os.path.normpath(file) for file in rows)}
    others = [file for file in _inside(root, "", {}) if file not in listed]
    left_out = {file: why_no_image(root, file) or f"not in {TABLE}" for file in others}
    altered = {file: change for file in rows if (change := look_at(root / file)[1])}
    return ImageFolder(root, tuple(rows), tuple(rows.values()), left_out=left_out, altered=altered)


def _by_folders(root: Path) -> ImageFolder:
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_stray(path.name))
    if not folders:
        raise ValueError(f"{root} holds neither {TABLE} nor one folder per class")
    labels = _labels_of(root, folders)
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


def _read_table(root: Path) -> dict[str, int]:
    """The files of ``labels.csv`` with their labels, in its order.

    Raises:
        ValueError: it is no such table, or a row names an absent file, one outside, one that an earlier row names, or
            a bad label; the message names the line.
    """
    table = root / TABLE
    found: dict[str, int] = {}
    lines: dict[str, tuple[str, int]] = {}  # by a file's plain path, as an earlier row wrote it, and where
    try:
        with table.open(newline="", encoding="utf-8-sig") as text:
            rows = csv.DictReader(text)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{table} needs the columns file,label, it has {rows.fieldnames}")
            for row in rows:
                where = f"{table}, line {rows.line_num}"
                file, label = _checked_row(root, row, where)
                before, line = lines.setdefault(os.path.normpath(file), (file, rows.line_num))
                if line != rows.line_num:
                    other = "" if found[before] == label else f" with label {found[before]}"
                    raise ValueError(f"{where}: {file!r} is in line {line} already{other}: keep one of them")
                found[file] = label
    except (UnicodeDecodeError, csv.Error) as error:
        what = f"{table} is no table in UTF-8 ({error}): save it as CSV with the columns file,label"
        raise ValueError(what) from None
    return found


def _checked_row(root: Path, row: dict[str, str | None], where: str) -> tuple[str, int]:
    file, label = row["file"] or "", (row["label"] or "").strip()
    # Only the name counts: a link inside the folder may point to images elsewhere.
    if not file or os.path.isabs(file) or ".." in PurePosixPath(file.replace("\\", "/")).parts:
        raise ValueError(f"{where}: {file!r} is not a file inside the folder")
    if not os.path.isfile(root / file):  # False for impossible names, too
        raise ValueError(f"{where}: there is no file {file!r}")
    return file, _checked_label(label, where)


def _checked_label(text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) >= CLASSES:
        raise ValueError(f"{where}: label {text!r} is not a whole number in 0..{CLASSES - 1}")
    return int(text)


def _labels_of(root: Path, folders: list[str]) -> list[int]:
    """The label of each class folder, of sorted names.

    Raises:
        ValueError: a number is no label, appears twice (4 and 04) or is mixed with names; the list of all WordNet ids
            is missing, or ids are mixed with names; there are too many folders.
    """
    _check_alike(root, folders)
    if all(folder.isdecimal() for folder in folders):
        labels = [_checked_label(folder, f"{root}, folder {folder}") for folder in folders]
        if twice := [folder for folder, label in zip(folders, labels, strict=True) if labels.count(label) > 1]:
            raise ValueError(f"{root}: the folders {' and '.join(twice[:2])} are the same label: join them")
        return labels
    if all(_WORDNET_ID.fullmatch(folder) for folder in folders) and len(folders) != CLASSES:
        order = _wordnet_order(root)
        if absent := sorted(set(folders) - set(order)):
            raise ValueError(f"{root}: wnids_sorted.txt does not list {', '.join(absent[:3])}")
        return [order[folder] for folder in folders]
    if len(folders) > CLASSES:
        raise ValueError(f"{root} holds {len(folders)} class folders, at most {CLASSES} were expected")
    return list(range(len(folders)))


def _check_alike(root: Path, folders: list[str]) -> None:
    """Refuse mixed kinds: one folder of another kind would move the labels of all after it."""
    numbers = [folder for folder in folders if folder.isdecimal()]
    ids = [folder for folder in folders if _WORDNET_ID.fullmatch(folder)]
    in_order = sorted(numbers) == sorted(numbers, key=int)
    for kind, some in (("numbers", [] if in_order else numbers), ("WordNet ids", ids)):
        if some and (others := sorted(set(folders) - set(some))):
            raise ValueError(
                f"{root} has folders named by {kind} and {len(others)} others ({', '.join(others[:3])}), which would "
                f"move their labels: take those away, or put a {TABLE} (file,label) there"
            )


def _wordnet_order(root: Path) -> dict[str, int]:
    for file in (root / WORDNET_IDS, root.parent / WORDNET_IDS):
        if file.is_file():
            ids = file.read_text(encoding="ascii", errors="replace").split()
            if len(set(ids)) != CLASSES or ids != sorted(ids) or not all(map(_WORDNET_ID.fullmatch, ids)):
                raise ValueError(f"{file} must list the {CLASSES} WordNet ids, sorted; it lists {len(set(ids))}")
            return {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    raise ValueError(
        f"{root} has folders named by WordNet ids, but not {CLASSES} of them, so their labels are unknown: "
        "put wnids_sorted.txt (the sorted ids, a line each) beside them, or a labels.csv (file,label)"
    )


def _warn(dataset: ImageFolder, note: str) -> None:
    """Warn once of all that is left out, altered or empty."""
    told = [note, _told("file{} left out", dataset.left_out), _told("file{} altered", dataset.altered)]
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


def normalised(image: np.ndarray, scale: float, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes (channels, height, width) as float32: (image / scale - mean) / std, a mean and std per channel."""
    # numpy: half the time of torch for a small array
    pixels = image.astype(np.float32, order="C") / np.float32(scale)
    shift, width = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
    return torch.from_numpy((pixels - shift) / width)
