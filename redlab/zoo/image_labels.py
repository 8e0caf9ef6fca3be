"""The labels of a folder of images: from its table, or from the names of its class folders."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path, PurePosixPath

from redlab.zoo.dataset_names import TABLE

WORDNET_IDS, CLASSES = "wnids_sorted.txt", 1000
_WORDNET_ID = re.compile(r"n\d{8}")


def read_table(root: Path, classes: int | None = CLASSES) -> dict[str, int]:
    """The files of ``labels.csv`` with their labels below ``classes`` (None: whole numbers), in its order.

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
                file, label = _checked_row(root, row, where, classes)
                before, line = lines.setdefault(os.path.normpath(file), (file, rows.line_num))
                if line != rows.line_num:
                    other = "" if found[before] == label else f" with label {found[before]}"
                    raise ValueError(f"{where}: {file!r} is in line {line} already{other}: keep one of them")
                found[file] = label
    except (UnicodeDecodeError, csv.Error) as error:
        what = f"{table} is no table in UTF-8 ({error}): save it as CSV with the columns file,label"
        raise ValueError(what) from None
    return found


def _checked_row(root: Path, row: dict[str, str | None], where: str, classes: int | None) -> tuple[str, int]:
    file, label = row["file"] or "", (row["label"] or "").strip()
    # Only the name counts: a link inside the folder may point to images elsewhere.
    if not file or os.path.isabs(file) or ".." in PurePosixPath(file.replace("\\", "/")).parts:
        raise ValueError(f"{where}: {file!r} is not a file inside the folder")
    if not os.path.isfile(root / file):  # False for impossible names, too
        raise ValueError(f"{where}: there is no file {file!r}")
    return file, _checked_label(label, where, classes)


def _checked_label(text: str, where: str, classes: int | None = CLASSES) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or (classes is not None and int(text) >= classes):
        most = "" if classes is None else f" in 0..{classes - 1}"
        raise ValueError(f"{where}: label {text!r} is not a whole number{most}")
    return int(text)


def labels_in_order(root: Path, folders: list[str], order: list[str] | None = None) -> list[int]:
    """The place of each class folder among the sorted names, as torchvision's ImageFolder counts.

    Arguments:
        order: the sorted names that count, of another split; None: the folders themselves.

    Raises:
        ValueError: a folder is not among ``order``, so that its label is unknown.
    """
    places = {name: place for place, name in enumerate(folders if order is None else order)}
    if absent := [folder for folder in folders if folder not in places]:
        raise ValueError(f"{root} has class folders that the training split lacks: {', '.join(absent[:3])}")
    return [places[folder] for folder in folders]


def imagenet_labels(root: Path, folders: list[str]) -> list[int]:
    """The label of each class folder, of sorted names, in 0..999.

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
