"""The labels of a folder of images: by a table, or by the names of its class folders."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path, PurePosixPath

TABLE, WORDNET_IDS = "labels.csv", "wnids_sorted.txt"
CLASSES = 1000
_WORDNET_ID = re.compile(r"n\d{8}")


def read_table(root: Path) -> list[tuple[str, int]]:
    """The (file, label) of each row of ``labels.csv``, in its order.

    Raises:
        ValueError: it is no such table, or a row names an absent file, one outside, one that an earlier row names, or
            a bad label; the message names the line.
    """
    table = root / TABLE
    try:
        with table.open(newline="", encoding="utf-8-sig") as text:
            rows = csv.DictReader(text)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{table} needs the columns file,label, it has {rows.fieldnames}")
            found: dict[str, tuple[str, int, int]] = {}
            for row in rows:
                file, label = _checked_row(root, row, f"{table}, line {rows.line_num}")
                _add(found, file, label, rows.line_num, table)
            return [(file, label) for file, label, _ in found.values()]
    except (UnicodeDecodeError, csv.Error) as error:
        what = f"{table} is no table in UTF-8 ({error}): save it as CSV with the columns file,label"
        raise ValueError(what) from None


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


def _add(found: dict[str, tuple[str, int, int]], file: str, label: int, line: int, table: Path) -> None:
    before = found.setdefault(os.path.normpath(file), (file, label, line))
    if before[2] != line:
        other = "" if before[1] == label else f" with label {before[1]}"
        raise ValueError(f"{table}, line {line}: {file!r} is in line {before[2]} already{other}: keep one of them")


def labels_of(root: Path, folders: list[str]) -> list[int]:
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
