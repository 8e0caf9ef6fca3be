"""One small network of every family of timm: does it prune, to the zeroed network's output, and do its norms fold?

    python -m benchmarks.zoo_timm                           goes on where the last run stopped, stage by stage
    python -m benchmarks.zoo_timm res2net                   that family again
    python -m benchmarks.zoo_timm --stages fold res2net     only that part of its row

The smallest member of each family of ``timm.list_modules()`` by parameters, with random weights and statistics, on
images of 64 pixels or the smallest that it takes. Each runs in a process of its own on one core, and its row is kept in
zoo_timm.csv as soon as it is there; zoo_timm.md is the table. torch-pruning gets the same network and the same target.
"""

from __future__ import annotations

import argparse
import resource
import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks.zoo_timm_row import put_through
from benchmarks.zoo_timm_table import page

CONTEXT = get_context("fork")

ROWS, TABLE = Path(__file__).with_name("zoo_timm.csv"), Path(__file__).with_name("zoo_timm.md")
WALL, MEMORY = 600, 16 * 2**30  # seconds for all parts, on a machine that may be busy; bytes
# Each stage, and the columns of which it writes one.
STAGES = {
    "prune": ("left", "prune_error"),
    "plant": ("merged", "plant_error"),
    "fold": ("norms", "fold_error"),
    "peer": ("peer_left", "peer_error"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = read()
    for family in (bar := tqdm(asked.families or list(rows), unit="network")):
        bar.set_description(family)
        stages = (
            asked.stages if asked.families else [stage for stage in asked.stages if is_missing(rows[family], stage)]
        )
        if stages:
            rows[family] = without(rows[family], stages) | measure(rows[family]["name"], stages)
            write(rows)


def is_missing(row: dict, stage: str) -> bool:
    return "ended" not in row and not any(column in row for column in STAGES[stage])


def without(row: dict, stages: list[str]) -> dict:
    """The row without what these stages say anew: old errors must not stay."""
    gone = {"ended", *(column for stage in stages for column in STAGES[stage])}
    return {column: value for column, value in row.items() if column not in gone}


def read() -> dict[str, dict]:
    """The rows so far; at first only the names."""
    if ROWS.exists():
        table = pd.read_csv(ROWS, dtype=object).set_index("family")
        return {str(family): row.dropna().to_dict() for family, row in table.iterrows()}
    import timm

    return {family: {"name": smallest(family)} for family in tqdm(timm.list_modules(), desc="the smallest of each")}


def smallest(family: str) -> str:
    """The network of that family with the fewest parameters."""
    import timm

    sizes = {}
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
    return min(sizes, key=lambda name: sizes[name])


def measure(name: str, stages: list[str]) -> dict:
    """What the process of one network could say before it ended. It is forked, so that nothing is imported again."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=child, args=(name, stages, sender))
    process.start()
    sender.close()
    row, end = {"done": 1}, time.monotonic() + WALL
    with suppress(EOFError):
        while receiver.poll(max(0, end - time.monotonic())):
            row |= receiver.recv()
    process.join(1)
    if process.is_alive():
        process.kill()
        row["ended"] = f"over {WALL} s in all"
    elif process.exitcode:
        row["ended"] = f"exit code {process.exitcode}"
    return row


def child(name: str, stages: list[str], sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    put_through(name, stages, sender.send)


def write(rows: dict[str, dict]) -> None:
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("family").sort_index()
    table.to_csv(ROWS)
    TABLE.write_text(page(rows))


if __name__ == "__main__":
    main()
