"""The command ``redlab export``: a network in, an ONNX file out, compared with the network."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from redlab.cli.completion import complete_datasets, complete_networks
from redlab.cli.opening import called, check_network, note_example
from redlab.cli.terminal import argument, exits, option, say
from redlab.names import needs, unknown
from redlab.zoo.dataset_names import check_at_hand, own_dataset
from redlab.zoo.names import architecture_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from redlab.export.onnx import Export
    from redlab.zoo.datasets import ImageArray
    from redlab.zoo.image_folder import ImageFolder

    Images = ImageArray | ImageFolder | None

PRECISIONS = ("float32", "int8", "weights8", "weights4")
_ROUNDS = 9
_TIMES = ["network", "engine", "precision", "median", "q25", "q75", "speedup", "spread", "why"]


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

    The file runs without redlab. Prints which layers run in which precision and why, the bytes, how often both answer
    the same, the accuracy where images are at hand, and the time in each engine that is installed, relative to the
    best float32.

    Exit codes: 0 success. 1 the file could not be written. 2 wrong usage; nothing was written.
    """
    out = (out or Path(f"{called(network)}.onnx")).resolve()
    with exits(1, OSError), exits(2, ValueError, FileNotFoundError, ConnectionError, ModuleNotFoundError):
        check_precision(precision)
        if bits not in ("auto", "7", "8"):
            raise ValueError(f"--bits must be 7, 8 or auto, not {bits}")
        check_network(network, build, weights, "export")
        for named in filter(None, (dataset, ranges if ranges != "batchnorm" else None)):
            check_at_hand(named)
        dataset = dataset or own_dataset(build or architecture_of(network) or "")
    with exits(2, ValueError, TypeError, RuntimeError), exits(1, OSError):
        from redlab.zoo.datasets import load_dataset
        from redlab.zoo.saving import load_network

        original = load_network(network, weights or "default", build)
        images = None if dataset is None else load_dataset(dataset, limit=limit, network=original)
        note_example(original, images)
        seen: Any = ranges if ranges == "batchnorm" else _training(ranges, original)
    with exits(1, OSError), exits(2, ValueError, RuntimeError):
        made = write(original, out, precision, seen, bits)
        say(f"\n{beside(original, made, images).to_string(index=False, na_rep='')}\n")
        if images is None:
            say("accuracy is not measured: the images of this network are not known or not here: pass --dataset")
        if time:
            say_times(original, made)


def check_precision(precision: str) -> None:
    """Refuse an unknown precision, and to go on without the packages that write files, before torch is loaded."""
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, list(PRECISIONS)))
    needs("export", "onnx", "onnxscript", "onnxruntime")


def write(network: nn.Module, out: Path, precision: str, ranges: Any = "batchnorm", bits: str = "auto") -> Export:
    """Write the file, and say what is in it."""
    from redlab.export.onnx import export_onnx

    say(f"writing {out} ...")
    made = export_onnx(network, out, precision, ranges, bits=bits if bits == "auto" else int(bits))
    say(str(made))
    return made


def _training(name: str, network: nn.Module) -> Any:
    from redlab.studies.images import training_images

    return training_images(name, network, limit=500)


def beside(network: nn.Module, made: Export, images: Images) -> pd.DataFrame:
    """A row for the network, one for its float32 file and one for the file: bytes, same answers, accuracy."""
    import pandas as pd

    from redlab.export.onnx import export_onnx
    from redlab.network.evaluation import agreement, evaluate
    from redlab.zoo.saving import bytes_of

    with TemporaryDirectory() as folder:
        files = {made.path.name: made}
        if made.precision != "float32":
            files = {"float32 ONNX": export_onnx(network, Path(folder) / "float32.onnx")} | files
        rows = [{"what": "network", "bytes": f"{bytes_of(network):,}"}]
        rows += [{"what": title, "bytes": f"{own.bytes:,}"} for title, own in files.items()]
        for row, runs in zip(rows, [network, *(own.path for own in files.values())], strict=True):
            if images is None:
                continue
            found = evaluate(runs, images)
            low, high = found.interval
            row["accuracy"] = f"{found.accuracy:.2f} % ({low:.1f} to {high:.1f}) of {found.count:,}"
            row["same answers"] = f"{agreement(network, runs, images):.2%}"
    return pd.DataFrame(rows)


def say_times(network: nn.Module, made: Export) -> None:
    """The times of the network and the file in every engine that is here, and whether they can be trusted."""
    from redlab.export.runtimes import compare_runtimes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a busy machine: said below
        table = compare_runtimes({"network": network, made.path.name: made.path}, None, None, [1], [1], _ROUNDS)
    say("latency in ms (batch 1, 1 thread); speedup over the network's best float32:")
    shown = table[_TIMES].dropna(axis=1, how="all")
    say(shown.to_string(index=False, na_rep="", float_format="{:.3g}".format))
    if table.attrs["busy"]:
        say(table.attrs["busy"])
