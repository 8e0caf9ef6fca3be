"""How fast, large and right the files are that ``export_onnx`` writes, beside the network in the best float32.

    python -m benchmarks.runtimes                        all networks; what is measured is not measured again
    python -m benchmarks.runtimes cifar10/resnet20       this network, anew
    python -m benchmarks.runtimes choose                 how many deviations a range takes, on the sets to choose on
    python -m benchmarks.runtimes sizes                  what each network weighs in each form

Needs REDLAB_DATA (see ``measures``: networks, and the sets on which they are reported), the extras ``export`` and
``openvino``, and a machine that does nothing else. Writes runtimes.csv: a row a variant of a network, engine, batch and
number of threads; ranges.csv; and sizes.csv. Scores of files are those of ONNX Runtime.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from benchmarks.measures import MINILM, images_of, original, score
from benchmarks.timing import machine
from redlab import (
    export_onnx,
    measure_cost,
    merge_neurons,
    prepare,
    prune_channels,
    red_plus_plus,
    score_channels,
    split_inputs,
)
from redlab.compression.splitting import as_dense
from redlab.export import ranges
from redlab.export.runtimes import compare_runtimes
from redlab.network.latency import compare_latency
from redlab.network.onnx_network import OnnxNetwork
from redlab.studies.sizes import compare_sizes
from redlab.studies.splitting import folder_bytes

ROWS, RANGES, SIZES = (Path(__file__).with_name(f"{name}.csv") for name in ("runtimes", "ranges", "sizes"))
NETWORKS = ("cifar10/resnet20", "cifar10/resnet56", "imagenet/mobilenet_v1_0.75", "imagenet/efficientnet_lite0", MINILM)
DEVIATIONS = (4.0, 6.0, 8.0, 10.0, 12.0)
KEPT, ROUND_TO, MERGED = 0.75, (1, 8, 16), 0.02
UNITS = ("channel", "kernel")
TOKENS = (16, 128)
_LEFT = ("score", "low", "high", "before", "count", "difference", "difference_low", "difference_high", "p")


class Variant(NamedTuple):
    """What a file is made of, and how."""

    network: nn.Module
    precision: str = "float32"
    ranges: Any = "batchnorm"


def main(arguments: list[str]) -> None:
    if arguments in (["choose"], ["sizes"]):
        choose() if arguments == ["choose"] else weigh()
        return
    done = set(pd.read_csv(ROWS)["network"].str.split(",").str[0]) if ROWS.exists() else set()
    for name in arguments or [own for own in NETWORKS if own not in done]:
        with tempfile.TemporaryDirectory() as folder:
            publish(name, (sentences if name == MINILM else images)(name, Path(folder)))


def publish(name: str, table: pd.DataFrame) -> None:
    """Replace the rows of a network."""
    table = table.assign(machine=machine(), command=f"python -m benchmarks.runtimes {name}")
    old = pd.read_csv(ROWS) if ROWS.exists() else table[:0]
    rows = pd.concat([old[~old["network"].isin(table["network"])], table], ignore_index=True)
    rows.to_csv(ROWS, index=False, float_format="%.6g")
    shown = table[(table["batch"] == 1) & (table["threads"] == 1)]
    columns = ["variant", "engine", "precision", "median", "speedup", "spread", "score", "difference", "bytes"]
    print(f"\n{name}\n{shown[columns].to_string(index=False, float_format='{:.3g}'.format)}", flush=True)


def images(name: str, folder: Path) -> pd.DataFrame:
    """Every variant of a network of images in every engine."""
    files, about, plain = {}, [], prepare(original(name)).network
    for title, own in variants(name):
        export = export_onnx(own.network, folder / f"{len(files)}.onnx", own.precision, own.ranges)
        files[title] = export.path
        kind = "int8" if own.precision == "int8" else "float32"
        runs, left = OnnxNetwork(export.path, threads=1), share("macs", as_dense(own.network), plain)
        about.append(facts(name, title, kind, runs, export.bytes, left))
    about.append(facts(name, "float32", "bf16", copy.deepcopy(plain).bfloat16(), 0, 1.0))
    times = compare_runtimes({"float32": plain} | {key: own for key, own in files.items() if key != "float32"})
    times = times.rename(columns={"network": "variant"})
    hashed = as_dense(red_plus_plus(original(name)).network)
    for unit in UNITS:
        split = split_inputs(hashed, unit, signed=True).network
        left = share("products", split, plain)
        about.append(facts(name, f"split, {unit}", "float32", split, folder_bytes(split), left))
        times = pd.concat([times, split_row(f"split, {unit}", split, plain, times)], ignore_index=True)
    rows = times.merge(pd.DataFrame(about), on=["variant", "precision"], how="left")
    return rows.assign(network=name)


def sentences(name: str, folder: Path) -> pd.DataFrame:
    """MiniLM-L6 in every precision and engine, by the number of tokens; Spearman's correlation on STS 2015."""
    network, files, about = original(name), {}, []
    ids = torch.randint(1000, 20000, (1, max(TOKENS)), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for precision in ("float32", "int8", "weights8", "weights4"):
        export = export_onnx(network, folder / f"{precision}.onnx", precision, example=given)
        files[precision] = export.path
        found = score(name, OnnxNetwork(export.path, threads=1), "report")
        print(f"{name}, {precision}: {found['score']:.2f} ({found['difference']:+.2f}), {export.bytes:,}", flush=True)
        about.append({"variant": precision, "precision": precision, "bytes": export.bytes, "products": 1.0})
        about[-1] |= {key: found[key] for key in _LEFT}
    parts = []
    for tokens in TOKENS:
        example = {key: own[:, :tokens] for key, own in given.items()}
        own = {"float32": network} | {key: path for key, path in files.items() if key != "float32"}
        times = compare_runtimes(own, example, batches=[1]).rename(columns={"network": "variant"})
        parts.append(times.assign(network=f"{name}, {tokens} tokens"))
    return pd.concat(parts).merge(pd.DataFrame(about), on=["variant", "precision"], how="left")


def share(column: str, network: nn.Module, whole: nn.Module) -> float:
    """What is left of the multiplications: engines multiply by zero too (macs), split layers don't (products)."""
    return measure_cost(network).attrs[column] / measure_cost(whole).attrs[column]


def facts(name: str, title: str, precision: str, runs: nn.Module, size: int, left: float) -> dict[str, Any]:
    """The score of what runs, its bytes, and the share of the multiplications that it makes."""
    found = score(name, runs, "report")
    print(
        f"{name}, {title}, {precision}: {found['score']:.2f} ({found['difference']:+.2f}), {size:,} bytes", flush=True
    )
    row = {"variant": title, "precision": precision, "bytes": size, "products": left}
    return row | {key: found[key] for key in _LEFT}


def variants(name: str) -> Iterator[tuple[str, Variant]]:
    """By title. Nothing but "int8, images" sees images: they are those to choose settings on."""
    network = original(name)
    plain = prepare(network).network
    yield "float32", Variant(plain)
    yield "merged", Variant(merge_neurons(plain, MERGED).network)
    scores = score_channels(network, "reconstruction")
    pruned = {k: prune_channels(network, scores, products=KEPT, round_to=k).network for k in ROUND_TO}
    for k, own in pruned.items():
        yield f"pruned, round_to={k}", Variant(own)
    yield "int8", Variant(network, "int8")
    yield "int8, images", Variant(network, "int8", images_of(name, "choose"))
    yield "hashed, int8", Variant(red_plus_plus(network).network, "int8")
    yield f"pruned, round_to={ROUND_TO[-1]}, int8", Variant(pruned[ROUND_TO[-1]], "int8")


def split_row(title: str, split: nn.Module, plain: nn.Module, times: pd.DataFrame) -> pd.DataFrame:
    """The time of a split network in torch, from its ratio to torch's float32 in the same rounds."""
    ratio = compare_latency({"plain": plain, "split": split}, repeats=9, threads=1)["ratio"].iloc[1]
    at = (times["batch"] == 1) & (times["threads"] == 1) & (times["engine"] == "torch")
    like = times[at & (times["variant"] == "float32") & (times["precision"] == "float32")].iloc[0].to_dict()
    found = {key: like[key] * ratio for key in ("median", "q25", "q75")}
    found |= {key: like[key] / ratio for key in ("speedup", "speedup_q25", "speedup_q75")}
    return pd.DataFrame([like | found | {"variant": title}])


def choose() -> None:
    """Scores on the sets to choose on, by how many deviations around its mean a layer's output reaches."""
    rows = []
    for name in NETWORKS[:-1]:
        for reach in DEVIATIONS:
            ranges.DEVIATIONS = reach
            with tempfile.TemporaryDirectory() as folder:
                path = export_onnx(original(name), Path(folder) / "net.onnx", "int8").path
                found = score(name, OnnxNetwork(path, threads=1), "choose")
            rows.append({"network": name, "deviations": reach} | {key: found[key] for key in _LEFT})
            print(f"{name}, {reach:g}: {found['score']:.2f} ({found['difference']:+.2f})", flush=True)
    pd.DataFrame(rows).to_csv(RANGES, index=False, float_format="%.6g")


def weigh() -> None:
    """The bytes of every network of images, and of what ``red_plus_plus`` makes of it, in every form."""
    parts = []
    for name in NETWORKS[:-1]:
        made = {"as trained": original(name), "hashed": red_plus_plus(original(name)).network}
        table = compare_sizes(made).rename(columns={"network": "weights"})
        parts.append(table.assign(network=name))
        print(f"{name}\n{table.to_string(index=False)}", flush=True)
    pd.concat(parts).to_csv(SIZES, index=False, float_format="%.6g")


if __name__ == "__main__":
    main(sys.argv[1:])
