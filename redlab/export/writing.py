"""A file that replaces another once it is complete, with the ``.data`` file that a large one has beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redlab.files.atomic import part_of

_MOST_INSIDE = 1_800_000_000  # bytes of tensors: a file of this format holds 2 GB


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path of the same name in a folder beside ``path``, to write to; what is there replaces ``path`` at the end.

    If the block raises, ``path`` stays as it was and nothing is left.

    Raises:
        OSError: it could not be written (a full disk, say); the message names ``path`` and the reason.
    """
    folder = part_of(path)
    try:
        folder.mkdir(parents=True)
        yield folder / path.name
        made = sorted(folder.iterdir(), reverse=True)  # net.onnx.data before net.onnx, which names it
        for part in made:
            os.replace(part, path.parent / part.name)
        if len(made) == 1:  # that of the file before
            _data_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"could not write {path}, what was there is unchanged: {error.strerror or error}") from error
    finally:
        for part in folder.glob("*"):
            part.unlink(missing_ok=True)
        if folder.is_dir():
            folder.rmdir()


def _data_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def file_bytes(path: Path) -> int:
    """The size of a file with the ``.data`` beside it."""
    beside = _data_of(path)
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def save_model(model: Any, path: Path) -> None:
    """An ONNX model as one file; above 1.8 GB of tensors with a ``.data`` file beside it."""
    import onnx

    outside = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _MOST_INSIDE
    onnx.save(model, path, save_as_external_data=outside, location=f"{path.name}.data" if outside else None)


def drop_unused(graph: Any) -> None:
    """Take the constants out of an ONNX graph that nothing reads."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
