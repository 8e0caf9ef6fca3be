"""The command ``redlab inspect``: how redundant the tensors of any checkpoint are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from redlab.cli.terminal import argument, exits, option, say
from redlab.files.atomic import replaced_folder

if TYPE_CHECKING:
    import pandas as pd

RESULTS, FIGURES = "results.parquet", "figures"
_FORMATS = {"error": "{:.3g}".format, "expected": "{:,.0f}".format, "entropy": "{:.2f}".format}
_COUNTS = ("weights", "zeros", "distinct_before", "modes", "distinct", "duplicates", "measured")


def inspect(
    checkpoint: Annotated[Path, argument("CHECKPOINT", "A safetensors or torch.save file, or a sharded folder.")],
    out: Annotated[Path | None, option("FOLDER", "Folder to write. Default: NAME-inspect in this folder.")] = None,
) -> None:
    """Measure the redundancy of a checkpoint of any architecture.

    Prints a row for each tensor: its distinct values, the modes of its density, the values and the relative error after
    hashing, duplicate rows, the multiplications left (expected by chance, and counted), and bits a weight. The folder
    receives results.parquet and figures. One tensor at a time is in memory. Nothing in a file is executed.

    Exit codes: 0 success. 1 the folder could not be written. 2 wrong usage or a bad file; nothing was written.
    """
    with exits(2, ValueError, OSError):
        from redlab.studies.inspection import inspect_checkpoint, summarise, wide_tensors

        out = (out or Path(f"{_name(checkpoint)}-inspect")).resolve()
        check_folder(out)
        frame = inspect_checkpoint(checkpoint)
    say(_table(frame))
    say("\n" + "\n".join(summarise(frame)))
    with exits(1, ValueError, OSError, ModuleNotFoundError):
        folder = write_inspection(frame, out)
    say(f"saved to {folder}: results.parquet{' and figures' if wide_tensors(frame).any() else ''}")


def _name(checkpoint: Path) -> str:
    """What to call the folder: after the file, without its suffix; of a sharded one after the folder that it is in."""
    path = Path(os.path.abspath(checkpoint))  # not resolved: a cache may link to a file named after its hash
    if path.name.endswith(".index.json") and not path.is_dir():
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def _table(frame: pd.DataFrame) -> str:
    """The frame for a terminal, one line a tensor; the columns of words as one, what is 0 for want of sense empty."""
    from redlab.studies.inspection import printable, wide_tensors

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
    shares = ("as " + frame["shares"].map(printable)).where(frame["shares"] != "", "")
    notes = zip(frame["skipped"], frame["unhashed"], shares, strict=True)
    return shown.assign(note=["; ".join(filter(None, words)) for words in notes]).to_string(index=False)


def check_folder(folder: str | Path) -> None:
    """Refuse a path that ``write_inspection`` may not write to: anything but its own folder, an empty one or nothing.

    Raises:
        ValueError: with the reason.
    """
    folder = Path(folder).resolve()
    if folder.is_dir():
        held = {path.name for path in folder.iterdir()}
        if held and (RESULTS not in held or held - {RESULTS, FIGURES}):
            raise ValueError(f"{folder} holds something else than an inspection: it is left alone, name another folder")
    elif folder.exists():
        raise ValueError(f"{folder} is a file: name a new folder")


def write_inspection(frame: pd.DataFrame, folder: str | Path) -> Path:
    """Write ``results.parquet`` and ``figures/`` (PNG and PDF) of an ``inspect_checkpoint`` into ``folder``.

    They are written beside it and moved there last; an earlier inspection that is there is replaced. Where no tensor
    has two axes there is nothing to draw.

    Returns:
        The absolute path of the folder.

    Raises:
        ValueError: ``folder`` holds something else.
        OSError: it could not be written (a full disk, say); what was there is unchanged.
        ModuleNotFoundError: the extra ``lab``, which writes the file and draws, is not installed.
    """
    from redlab.names import needs

    needs("lab", "pyarrow")
    from redlab.studies.plots.inspection import save_figures

    folder = Path(folder).resolve()
    check_folder(folder)
    with replaced_folder(folder) as part:
        frame.to_parquet(part / RESULTS)
        save_figures(frame, part / FIGURES)
    return folder
