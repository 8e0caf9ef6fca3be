"""A checkpoint of any kind as the list of its tensors: one file, or several that an index names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from redlab.checkpoints import PICKLED
from redlab.entries import Entry
from redlab.pickled import list_pickled
from redlab.safetensors_header import list_safetensors

INDEX = "model.safetensors.index.json"
SUFFIXES = (".safetensors", *PICKLED, ".bin")


def list_tensors(path: str | Path) -> list[Entry]:
    """The tensors of a checkpoint, none of them read yet.

    Arguments:
        path: a ``.safetensors``, ``.pt``, ``.pth``, ``.th`` or ``.bin`` file; the index of a sharded one
            (``model.safetensors.index.json``), or the folder that holds it.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is another kind of file, a folder without an index, damaged or wants to run code; a shard is
            missing or lacks a tensor that the index promises. The message says what, where, and what would be right.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    if path.is_dir():
        path = _index_in(path)
    if path.name.endswith(".index.json"):
        return _sharded(path)
    return _list_file(path)


def _list_file(path: Path) -> list[Entry]:
    if path.suffix not in SUFFIXES or not path.is_file():
        _refuse(path, f"is no kind of checkpoint that redlab reads: {', '.join(SUFFIXES)}, or {INDEX}")
    return list_safetensors(path) if path.suffix == ".safetensors" else list_pickled(path)


def _index_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.index.json"))
    if folder / INDEX in found:
        return folder / INDEX
    if len(found) == 1:
        return found[0]
    files = found or sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    named = f"one of its files ({', '.join(path.name for path in files[:4])})" if files else "a file"
    _refuse(folder, f"is a folder {'of several indices' if found else f'without {INDEX}'}: name {named} instead")


def _sharded(index: Path) -> list[Entry]:
    """The tensors of all files that an index names; what a file holds beyond the index is listed as well."""
    places = _read_index(index)
    entries = [entry for name in dict.fromkeys(places.values()) for entry in _list_file(index.parent / name)]
    held = {(entry.name, entry.file.name) for entry in entries}
    if lost := [place for place in places.items() if place not in held]:
        name, file = lost[0]
        _refuse(
            index, f"promises {name!r} in {file}, which has no such tensor ({len(lost)} in all): download both again"
        )
    return entries


def _read_index(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        _refuse(index, f"is truncated or no JSON ({error}): download it again")
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        _refuse(index, 'is no index: it has no "weight_map" of tensors and the files that hold them')
    for file in dict.fromkeys(places.values()):
        if Path(file).name != file:
            _refuse(index, f"names {file!r}: shards lie beside their index")
        if not (index.parent / file).is_file():
            _refuse(index, f"names {file}, which is not beside it: download that file as well")
    return places


def _refuse(path: Path, why: str) -> NoReturn:
    raise ValueError(f"{path} {why}")
