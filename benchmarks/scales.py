"""What a scale a row, clipping, the budget, rounding and bias correction keep of six networks; textbook rows beside.

    python -m benchmarks.scales                           all that is missing, on the sets to choose on
    python -m benchmarks.scales choose textbook           one group
    python -m benchmarks.scales report defaults parts     these groups, on the sets to report on
    python -m benchmarks.scales choose MiniLM-L6          one network

Needs REDLAB_DATA with cifar10/, weights/, imagenet/ and text/sts/; a network that is not there is left out. A row is
kept in scales.csv as soon as it is there; scales.md is the table. The sets are those of ``benchmarks.measures``.
"""

from __future__ import annotations

import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn
from tqdm import tqdm

import redlab
from benchmarks.measures import MINILM, NETWORKS, STAGES, original, score
from benchmarks.scale_settings import GROUPS, SAYS, SIZED
from benchmarks.textbook import quantised
from benchmarks.timing import machine
from redlab.network.result import Result, of_layers
from redlab.studies.splitting import folder_bytes

ROWS, TABLE = Path(__file__).with_name("scales.csv"), Path(__file__).with_name("scales.md")
_KEY = ["stage", "group", "setting", "network"]
Job = tuple[str, str, str, str]
Made = tuple[nn.Module, dict[str, float]]


def main(*words: str) -> None:
    known = {*STAGES, *GROUPS, *NETWORKS}
    if unknown := set(words) - known:
        raise SystemExit(f"no such stage, group or network: {', '.join(sorted(unknown))}; there are {sorted(known)}")
    for job in (bar := tqdm(jobs(words))):
        if job in set(_rows()[_KEY].itertuples(index=False, name=None)):
            continue  # measured meanwhile, by another process
        bar.set_description(", ".join(job))
        row = measure(*job)
        rows = pd.concat([_rows(), pd.DataFrame([row])], ignore_index=True)
        rows.to_csv(ROWS, index=False, float_format="%.6g")
        TABLE.write_text(table(rows))


def jobs(words: tuple[str, ...]) -> list[Job]:
    """Stage, group, setting and network of all that is asked for."""

    def asked(names: Any, default: Any) -> list[str]:
        return [name for name in names if name in words] or list(default)

    return [
        (stage, group, setting, name)
        for stage in asked(STAGES, STAGES[:1])
        for group in asked(GROUPS, GROUPS)
        for setting in GROUPS[group]
        for name in asked(NETWORKS, NETWORKS)
        if not (name == MINILM and GROUPS[group][setting].get("correct_bias") == "none")  # it has no batch norm
    ]


def measure(stage: str, group: str, setting: str, name: str) -> dict[str, Any]:
    """The row of one setting."""
    start = time.perf_counter()
    options = GROUPS[group][setting]
    network, left = quantised(name, **options) if group == "textbook" else made(name, **options)
    row = dict(zip(_KEY, (stage, group, setting, name), strict=True)) | left
    sized = group != "textbook" and (name != MINILM or group in SIZED)
    row["bytes"] = folder_bytes(network) / _bytes_before(name) if sized else float("nan")
    row |= score(name, network, stage)
    return row | {"seconds": round(time.perf_counter() - start), "machine": machine()}


def made(name: str, method: str = "red_plus_plus", equalised: bool = False, **options: Any) -> Made:
    network = original(name)
    network = redlab.equalise(network).network if equalised else network
    result = getattr(redlab, method)(network, **options)
    return result.network, left_of(result)


def left_of(result: Result) -> dict[str, float]:
    """Shares of what the network had: of MiniLM-L6, products and additions are those of its linear layers, as of any
    network those of all layers that multiply by weights; bytes are those of the folders that ``save_network`` writes.
    """
    layers = of_layers(result.layers)
    total = layers.sum(numeric_only=True)
    own = {what: total[f"{what}_after"] / total[f"{what}_before"] for what in ("products", "additions")}
    if "products_unsigned" in total:
        own["unsigned"] = total["products_unsigned"] / total["products_before"]
    own["error"] = layers["error"].mean()
    own |= {column: int(total[column]) for column in ("distinct", "scales") if column in total}
    return own | {"noise": result.plan["noise"]} if "noise" in result.plan else own


@cache
def _bytes_before(name: str) -> int:
    return folder_bytes(original(name))


def _rows() -> pd.DataFrame:
    return pd.read_csv(ROWS) if ROWS.exists() else pd.DataFrame(columns=_KEY)


def table(rows: pd.DataFrame) -> str:
    """scales.md."""
    lines = [
        "# Scales, clipping, rounding and biases: what each keeps",
        "",
        "Made by `python -m benchmarks.scales`; rows are kept in scales.csv. A setting is the same for all networks. A "
        "cell holds the change of the accuracy in points (MiniLM-L6: of Spearman x 100), in brackets its 95 % interval "
        "from the same images before and after (MiniLM-L6: bootstrap over pairs). In parentheses is what is left: the "
        "share of the multiplications, scales counted, and that of the folder's bytes, if measured. ImageNet's "
        "images are an easier sample of the validation set. The digits and CIFAR-10 networks learned from the images "
        f"that settings are chosen on. Measured on {'; '.join(rows['machine'].unique())}.",
        "",
    ]
    for stage in STAGES:
        for group in GROUPS:
            if (own := rows[(rows["stage"] == stage) & (rows["group"] == group)]).size:
                title = "to choose on" if stage == "choose" else "to report on"
                lines += [f"## {group}, on the images {title}", "", SAYS[group], "", *_section(own, group)]
    return "\n".join(lines)


def _section(rows: pd.DataFrame, group: str) -> list[str]:
    names = [name for name in NETWORKS if name in set(rows["network"])]
    heads = [f"{name}, before {before(rows[rows['network'] == name].iloc[0])}" for name in names]
    lines = [f"| setting | {' | '.join(heads)} |", "|---" * (len(names) + 1) + "|"]
    at = rows.set_index(["setting", "network"])
    for setting in GROUPS[group]:
        if setting in set(rows["setting"]):
            cells = [cell(at.loc[(setting, name)]) if (setting, name) in at.index else "" for name in names]
            lines.append(f"| {setting} | {' | '.join(cells)} |")
    return [*lines, ""]


def before(row: pd.Series) -> str:
    """The score of the network as it came, of so many images or pairs."""
    of = "of {:,.0f} pairs" if row["network"] == MINILM else "% of {:,.0f} images"
    return f"{row['before']:.2f} {of.format(row['count'])}"


def cell(row: pd.Series) -> str:
    """The change with its interval, and the shares left."""
    ends = f"[{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]"
    left = [f"{row[what]:.2%}" for what in ("products", "bytes") if pd.notna(row[what])]
    return f"{row['difference']:+.2f} {ends} ({' / '.join(left)})"


if __name__ == "__main__":
    main(*sys.argv[1:])
