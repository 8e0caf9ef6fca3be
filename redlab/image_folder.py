"""A folder of image files with ImageNet's labels, decoded one by one."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from redlab.mobilenet import MEAN, STD

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
RESIZE, CROP, CLASSES = 256, 224, 1000
FLATTEST = 100  # how often the longer side of a picture may hold the shorter
_WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True, eq=False)
class ImageFolder(Dataset):
    """Image files with labels; only their paths are held.

    Attributes:
        root: the folder.
        files: paths inside it.
        labels: one int a file.
        name: of the dataset.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    name: str = "imagenet_folder"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(float32 3x224x224 normalised by ImageNet's mean and std, label); a damaged file raises ValueError."""
        return _normalised(_decode(self.root / self.files[index])), self.labels[index]

    def take(self, indices: np.ndarray) -> ImageFolder:
        """The images at ``indices``, in that order."""
        files, labels = (tuple(of[i] for i in indices) for of in (self.files, self.labels))
        return replace(self, files=files, labels=labels)


def read_image_folder(root: Path) -> ImageFolder:
    """The images of ``root``: by its ``labels.csv`` (columns file,label) or else one folder per class.

    Labels are 0..999 in the sorted order of ImageNet's WordNet ids, as torchvision counts them. Class folders named by
    integers are those labels; named by WordNet ids, all 1000 must be there, or ``wnids_sorted.txt`` (a line an id) in
    ``root`` or its parent; any others count in their sorted order. An image whose shorter side is over 256 or under 224
    is resized to 256 on that side, then the centre 224x224 is taken.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no labels, no images, or a row of labels.csv that names an absent file, one outside, or a bad label.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {root}: put ImageNet images there, with labels.csv (file,label) or one folder a class"
        )
    pairs = _pairs_of_table(root) if (root / "labels.csv").is_file() else _pairs_of_folders(root)
    if not pairs:
        raise ValueError(f"{root} holds no images ({', '.join(SUFFIXES)}) with labels")
    files, labels = zip(*pairs, strict=True)
    return ImageFolder(root, files, labels)


def _pairs_of_table(root: Path) -> list[tuple[str, int]]:
    table = root / "labels.csv"
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{table} needs the columns file,label, it has {rows.fieldnames}")
            return [_checked_row(root, row, f"{table}, line {rows.line_num}") for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        what = f"{table} is no table in UTF-8 ({error}): save it as CSV with the columns file,label"
        raise ValueError(what) from None


def _checked_row(root: Path, row: dict[str, str | None], where: str) -> tuple[str, int]:
    file, label = row["file"] or "", (row["label"] or "").strip()
    # Judged by its name alone, so that a link inside the folder to images elsewhere is fine.
    if not file or os.path.isabs(file) or ".." in PurePosixPath(file.replace("\\", "/")).parts:
        raise ValueError(f"{where}: {file!r} is not a file inside the folder")
    if not os.path.isfile(root / file):  # False for any text that no file can be called, too
        raise ValueError(f"{where}: there is no file {file!r}")
    return file, _checked_label(label, where)


def _checked_label(text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) >= CLASSES:
        raise ValueError(f"{where}: label {text!r} is not a whole number in 0..{CLASSES - 1}")
    return int(text)


def _pairs_of_folders(root: Path) -> list[tuple[str, int]]:
    folders = sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise ValueError(f"{root} holds neither labels.csv nor one folder per class")
    labels = _labels_of(root, folders)
    return [
        (f"{folder}/{file.name}", label)
        for folder, label in zip(folders, labels, strict=True)
        for file in sorted((root / folder).iterdir())
        if file.suffix.lower() in SUFFIXES
    ]


def _labels_of(root: Path, folders: list[str]) -> list[int]:
    if all(folder.isdecimal() for folder in folders):
        return [_checked_label(folder, f"{root}, folder {folder}") for folder in folders]
    if all(_WORDNET_ID.fullmatch(folder) for folder in folders) and len(folders) != CLASSES:
        order = _wordnet_order(root)
        if absent := sorted(set(folders) - set(order)):
            raise ValueError(f"{root}: wnids_sorted.txt does not list {', '.join(absent[:3])}")
        return [order[folder] for folder in folders]
    if len(folders) > CLASSES:
        raise ValueError(f"{root} holds {len(folders)} class folders, at most {CLASSES} were expected")
    return list(range(len(folders)))


def _wordnet_order(root: Path) -> dict[str, int]:
    for file in (root / "wnids_sorted.txt", root.parent / "wnids_sorted.txt"):
        if file.is_file():
            ids = file.read_text(encoding="ascii", errors="replace").split()
            if len(set(ids)) != CLASSES or ids != sorted(ids) or not all(map(_WORDNET_ID.fullmatch, ids)):
                raise ValueError(f"{file} must list the {CLASSES} WordNet ids, sorted; it lists {len(set(ids))}")
            return {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    raise ValueError(
        f"{root} has folders named by WordNet ids, but not {CLASSES} of them, so their labels are unknown: "
        "put wnids_sorted.txt (the sorted ids, a line each) beside them, or a labels.csv (file,label)"
    )


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return _cropped(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error


def _cropped(image: Image.Image) -> Image.Image:
    shorter = min(image.size)
    if max(image.size) >= FLATTEST * shorter:  # resized, a few kilobytes would fill the memory
        raise ValueError(f"{image.size[0]} x {image.size[1]} pixels are a line rather than a picture")
    if not CROP <= shorter <= RESIZE:
        width, height = (int(RESIZE * side / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased, as Pillow always does
    left, top = (round((side - CROP) / 2) for side in image.size)
    return image.crop((left, top, left + CROP, top + CROP))


def _normalised(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1).contiguous().div_(255)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return pixels.sub_(mean).div_(std)
