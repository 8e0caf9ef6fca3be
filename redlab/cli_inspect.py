"""The command ``redlab inspect``: how redundant the tensors of any checkpoint are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from redlab.cli_compress import _exits

if TYPE_CHECKING:
    import pandas as pd

_FORMATS = {"error": "{:.3g}".format, "expected": "{:,.0f}".format, "entropy": "{:.2f}".format}
_COUNTS = ("weights", "distinct_before", "modes", "distinct", "duplicates", "measured")


def inspect(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A file of safetensors or torch.save by any name, model.safetensors.index.json or its folder.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: NAME-inspect in this folder.")] = None,
) -> None:
    """Look into a checkpoint of any architecture, tensor by tensor.

    Prints of each tensor how many distinct values it takes, the modes of its density, what hashing would leave and at
    which relative error, its duplicate rows, the products left by chance and as counted, and bits a weight. The folder
    gets the same as results.parquet, and figures. One tensor is in memory at a time, and nothing in a file is ever
    executed. Exit codes: 0 done, 1 the folder could not be written, 2 wrong usage or a bad file, and nothing was
    written.
    """
    with _exits(2, ValueError, OSError):
        from redlab.inspection import check_folder, inspect_checkpoint, summarise, wide_tensors

        out = (out or Path(f"{_name(checkpoint)}-inspect")).resolve()
        check_folder(out)
        frame = inspect_checkpoint(checkpoint)
    typer.echo(_table(frame))
    typer.echo("\n" + "\n".join(summarise(frame)))
    with _exits(1, ValueError, OSError):
        from redlab.inspection import write_inspection

        folder = write_inspection(frame, out)
    typer.echo(f"saved to {folder}: results.parquet{' and figures' if wide_tensors(frame).any() else ''}")


def _name(checkpoint: Path) -> str:
    """What to call the folder: after the file, without its suffix; of a sharded one after the folder that it is in."""
    path = Path(os.path.abspath(checkpoint))  # not resolved: a cache may link to a file named after its hash
    if path.name.endswith(".index.json") and not path.is_dir():
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def _table(frame: pd.DataFrame) -> str:
    """The frame for a terminal, one line a tensor; the columns of words as one, what is 0 for want of sense empty."""
    from redlab.inspection import printable, wide_tensors

    shown = frame.drop(columns=["unhashed", "shares", "file", "skipped"])
    shown["tensor"] = frame["tensor"].map(printable)
    numbers = shown.columns[3:]
    formats = _FORMATS | dict.fromkeys(_COUNTS, "{:,}".format)
    shown = shown.astype(dict.fromkeys(numbers, object))
    for name in numbers:
        shown[name] = frame[name].map(formats[name])
    shown.loc[frame["skipped"] != "", [name for name in numbers if name != "weights"]] = ""
    shown.loc[~wide_tensors(frame), ["duplicates", "expected", "measured"]] = ""
    shown.loc[frame["unhashed"] != "", ["distinct", "error"]] = ""
    return shown.assign(note=_notes(frame)).to_string(index=False)


def _notes(frame: pd.DataFrame) -> list[str]:
    from redlab.inspection import printable

    shares = ("as " + frame["shares"].map(printable)).where(frame["shares"] != "", "")
    return ["; ".join(filter(None, words)) for words in zip(frame["skipped"], frame["unhashed"], shares, strict=True)]
