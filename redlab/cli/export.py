"""The command ``redlab export``: a network in, an ONNX file out, compared with the network."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from redlab.cli.completion import complete_datasets, complete_networks
from redlab.cli.opening import NO_IMAGES, called, check_network, check_place, note_example
from redlab.cli.terminal import argument, exits, option, say, timed
from redlab.names import needs, unknown
from redlab.zoo.dataset_names import check_at_hand, own_dataset
from redlab.zoo.names import architecture_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from redlab.export.onnx import Export
    from redlab.network.evaluation import Evaluation
    from redlab.zoo.datasets import ImageArray
    from redlab.zoo.image_folder import ImageFolder

    Images = ImageArray | ImageFolder | None

PRECISIONS = ("float32", "int8", "weights8", "weights4")
_ROUNDS = 9
_NETWORK, _FLOAT32 = "network in torch", "float32 ONNX"


def export(
    network: Annotated[str, argument("NETWORK", "A name, FILE.py:NAME, or a saved folder.", complete_networks)],
    precision: Annotated[str, option("NAME", "float32, int8, weights8 or weights4.")] = "float32",
    out: Annotated[Path | None, option("FILE", "File to write. Default: NAME.onnx in this folder.")] = None,
    ranges: Annotated[
        str, option("HOW", "int8: batchnorm (no data), or a dataset's name, whose training images are used.")
    ] = "batchnorm",
    bits: Annotated[
        str, option("BITS", "int8: 8, 7 (a CPU without VNNI runs it), or auto: what suits this machine.")
    ] = "auto",
    time: Annotated[bool, option(None, "Time the file beside the network. Default: yes.", "--time/--no-time")] = True,
    dataset: Annotated[
        str | None, option("NAME", "Images for the accuracy. Default: the network's own.", complete=complete_datasets)
    ] = None,
    limit: Annotated[int | None, option("N", "Use only this many images.")] = None,
    build: Annotated[
        str | None, option("FILE.py:NAME", "What makes the architecture of a saved folder.", complete=complete_networks)
    ] = None,
    weights: Annotated[Path | None, option("FILE", "Weights to load: safetensors, or a state dict.")] = None,
) -> None:
    """Write a network as an ONNX file, and compare the two.

    The file runs without redlab. Prints which layers run in which precision and why; then, for the network, its float32
    file and the file, the bytes, how often they answer as the network does, the accuracy where images are at hand
    (those the network was trained for, or --dataset), and how much faster they are than the best float32 in each engine
    that is installed. FILE.py:NAME, as NETWORK or --build, runs that file.

    Exit codes: 0 success. 1 the file could not be written, or what was written could not be compared. 2 wrong usage,
    or the network can't be written so; nothing was written.
    """
    out = (out or Path(f"{called(network)}.onnx")).resolve()
    with exits(1, OSError), exits(2, ValueError, FileNotFoundError, ConnectionError, ModuleNotFoundError):
        check_precision(precision)
        _check_ranges(precision, ranges, bits)
        check_network(network, build, weights, "export")
        for named in filter(None, (dataset, ranges if ranges != "batchnorm" else None)):
            check_at_hand(named)
        dataset = dataset or own_dataset(build or architecture_of(network) or "")
        _check_file(out)
    steps, said = 3 + time, f"writing {out.name}, {precision}"
    with exits(2, ValueError, TypeError, RuntimeError), exits(1, OSError):
        with timed(f"[1/{steps}] loading {network}"):
            original, images = _opened(network, build, weights, dataset, limit)
            own = None if images is None else _answers(original, images)
        seen: Any = ranges if ranges == "batchnorm" else _training(ranges, original)
        with timed(f"[2/{steps}] {said}"):
            made = _written(original, out, precision, seen, bits)
    with exits(1, OSError, ValueError, RuntimeError):
        with timed(f"[3/{steps}] comparing"):
            rows = _compared(original, own, made, images)
        if time:
            with timed(f"[4/{steps}] timing"):
                times, note = _times(original, made)
            rows = rows.join(times)
    say(f"\n{made}\nwritten to {out}\n\n{rows.fillna('').to_string()}\n")
    if images is None:
        say(f"accuracy is not measured: {NO_IMAGES}")
    if time:
        say(note)


def check_precision(precision: str) -> None:
    """Refuse an unknown precision, and to go on without the packages that write files, before torch is loaded."""
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, list(PRECISIONS)))
    needs("export", "onnx", "onnxscript", "onnxruntime")


def _check_ranges(precision: str, ranges: str, bits: str) -> None:
    if bits not in ("auto", "7", "8"):
        raise ValueError(f"--bits must be 7, 8 or auto, not {bits}")
    for name, given in {"--ranges": ranges != "batchnorm", "--bits": bits != "auto"}.items():
        if given and precision != "int8":
            raise ValueError(f"{name} is for --precision int8, not {precision}")


def _check_file(out: Path) -> None:
    if out.suffix != ".onnx" or out.is_dir():
        raise ValueError(f"--out must name a file that ends in .onnx, not {out}")
    check_place(out)


def write(network: nn.Module, out: Path, precision: str) -> None:
    """Write a network as a file, and say what is in it."""
    with timed(f"writing {out}, {precision}"):
        made = _written(network, out, precision)
    say(str(made))


def _written(network: nn.Module, out: Path, precision: str, ranges: Any = "batchnorm", bits: str = "auto") -> Export:
    from redlab.export.onnx import export_onnx

    return export_onnx(network, out, precision, ranges, bits=bits if bits == "auto" else int(bits))


def _opened(
    network: str, build: str | None, weights: Path | None, dataset: str | None, limit: int | None
) -> tuple[nn.Module, Images]:
    from redlab.zoo.datasets import load_dataset
    from redlab.zoo.saving import load_network

    opened = load_network(network, weights or "default", build)
    images = None if dataset is None else load_dataset(dataset, limit=limit, network=opened)
    note_example(opened, images)
    return opened, images


def _training(name: str, network: nn.Module) -> Any:
    from redlab.export.image_ranges import IMAGES
    from redlab.studies.images import training_images

    images: Any = training_images(name, network, limit=IMAGES)
    say(f"ranges are those of {len(images):,} images of {name}")
    return images


def _answers(runs: nn.Module | Path, images: Any) -> tuple[Evaluation, Tensor]:
    from redlab.network.evaluation import evaluate_classes

    return evaluate_classes(runs, images)


def _compared(network: nn.Module, own: tuple[Evaluation, Tensor] | None, made: Export, images: Images) -> pd.DataFrame:
    """A row for the network, one for its float32 file and one for the file: bytes, same answers, accuracy."""
    import pandas as pd

    from redlab.zoo.saving import bytes_of

    rows = {_NETWORK: _row(bytes_of(network), 1.0, own)}
    with TemporaryDirectory() as folder:
        files = {made.path.name: made}
        if made.precision != "float32":
            files = {_FLOAT32: _written(network, Path(folder) / "float32.onnx", "float32")} | files
        for title, file in files.items():
            found = None if images is None else _answers(file.path, images)
            same = float((found[1] == own[1]).double().mean()) if found and own else file.agreement
            rows[title] = _row(file.bytes, same, found)
    return pd.DataFrame.from_dict(rows, orient="index").dropna(axis=1, how="all")


def _row(stored: int, same: float, found: tuple[Evaluation, Tensor] | None) -> dict[str, str | None]:
    row = {"bytes": f"{stored:,}", "same answers": f"{same:.1%}" if same == same else None}
    if found is None:
        return row
    low, high = found[0].interval
    return row | {f"accuracy, {found[0].count:,} images": f"{found[0].accuracy:.2f} % [{low:.1f}, {high:.1f}]"}


def _times(network: nn.Module, made: Export) -> tuple[pd.DataFrame, str]:
    """A column an engine, of speed-ups with their quartiles; and what is to be said of them."""
    from redlab.export.runtimes import compare_runtimes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a busy machine: said below
        table = compare_runtimes(
            {_NETWORK: network, made.path.name: made.path}, batches=(1,), threads=(1,), rounds=_ROUNDS
        )
    table = table[table["precision"] != "bf16"]
    exported = (table["network"] == _NETWORK) & (table["engine"] != "torch")
    table = table.assign(row=table["network"].mask(exported, _FLOAT32), cell=[*map(_cell, table.itertuples())])
    failed = [f"{own.row} does not run in {own.engine}: {own.why}" for own in table.itertuples() if own.why]
    busy = table.attrs["busy"]
    notes = [_reference(table), *failed, *([f"{busy}: time it again"] if busy else [])]
    return table.pivot_table("cell", "row", "engine", "first").add_prefix("speed-up, "), "\n".join(notes)


def _cell(row: Any) -> str:
    """A speed-up with its quartiles; no number where other work disturbed the measurement."""
    if row.why:
        return "failed"
    return f"{row.speedup:.2f} [{row.speedup_q25:.2f}, {row.speedup_q75:.2f}]" if row.conclusive else "unclear"


def _reference(table: pd.DataFrame) -> str:
    said = f"speed-up over the best float32 at batch 1, 1 thread: medians and quartiles of {_ROUNDS} rounds"
    best = table[(table["network"] == _NETWORK) & table["median"].notna()]
    if best.empty:
        return said
    fastest = best.loc[best["median"].idxmin()]
    return f"{said}; that is {fastest['median']:.3g} ms in {fastest['engine']}"
