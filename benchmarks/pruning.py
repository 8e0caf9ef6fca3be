"""Every criterion on real networks, without fine-tuning and with a little: accuracy on CIFAR-10's 10,000 test images.

    python -m benchmarks.pruning                          goes on where the last run stopped
    python -m benchmarks.pruning cifar10/resnet56         this network only
    python -m benchmarks.pruning cifar10/resnet56 taylor  these methods again

Needs REDLAB_DATA with cifar10/ and weights/cifar10/. One row a network, method, share of products, seed and stage is
kept in pruning.csv as soon as it is there; pruning.md is the table.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from benchmarks.intervals import with_interval
from benchmarks.timing import machine
from redlab import evaluate, load_dataset, load_network
from redlab.studies.pruning import compare_criteria

ROWS, TABLE = Path(__file__).with_name("pruning.csv"), Path(__file__).with_name("pruning.md")
# The smaller share is fine-tuned too: 2.12 times fewer products, where DepGraph reports L1, and twice fewer.
KEEPS = {"cifar10/resnet20": (0.75, 0.5), "cifar10/resnet56": (0.75, 1 / 2.12)}
METHODS = {
    "random, same share of each layer": {"criterion": "random", "scope": "layer"},
    "magnitude L1, same share of each layer": {"criterion": "magnitude", "scope": "layer"},
    "magnitude L1, all layers together": {"criterion": "magnitude"},
    "redundancy, merged (RED)": {"criterion": "redundancy"},
    "Srinivas-Babu": {"criterion": "srinivas_babu"},
    "neuron merging, same share of each layer": {"criterion": "neuron_merging", "scope": "layer"},
    "reconstruction (ours)": {"criterion": "reconstruction"},
    "reconstruction without compensation": {"criterion": "reconstruction", "compensation": "none"},
    "Taylor, first order": {"criterion": "taylor"},
    "Taylor, channels reconstructed": {"criterion": "taylor", "compensation": "reconstruct"},
    "SInGE": {"criterion": "singe", "steps": 4},
    "FlexRel": {"criterion": "flexrel"},
}
FINE_TUNE = {"epochs": 1, "learning_rate": 0.01, "batch_size": 128, "shift": 4, "flip": True}
TUNED = (
    "magnitude L1, same share of each layer",
    "reconstruction (ours)",
    "Taylor, first order",
    "Taylor, channels reconstructed",
    "random, same share of each layer",
)
LEFT_OUT = (("cifar10/resnet56", "SInGE"),)  # a gradient for each group, step and minibatch: half an hour
FINE_TUNE_IMAGES = 20_000
ONE_SEED = ("SInGE",)
SEEDS = (0, 1, 2)  # without fine-tuning, where the criterion sees images or draws; with it the first


def main(network: str | None = None, *words: str) -> None:
    rows = pd.read_csv(ROWS) if ROWS.exists() else pd.DataFrame(columns=["network", "method", "stage"])
    test = load_dataset("cifar10")
    training = load_dataset("cifar10", "train", limit=FINE_TUNE_IMAGES)
    jobs = [(name, method, "pruned") for name in KEEPS for method in METHODS if (name, method) not in LEFT_OUT]
    jobs += [(name, method, "fine-tuned") for name in KEEPS for method in TUNED]
    before = {name: rows.loc[rows["network"] == name, "before"].max() for name in KEEPS if "before" in rows}
    for name, method, stage in (bar := tqdm([job for job in jobs if _wanted(job, rows, network, words)])):
        bar.set_description(f"{name}, {method}, {stage}")
        if not before.get(name, 0) > 0:
            before[name] = evaluate(load_network(name), test).accuracy
        own = measure(name, method, stage, test, training, before[name])
        stale = (rows["network"] == name) & (rows["method"] == method) & (rows["stage"] == stage)
        rows = pd.concat([rows[~stale], own], ignore_index=True) if len(rows) else own
        rows.to_csv(ROWS, index=False, float_format="%.6g")
        TABLE.write_text(table(rows))


def _wanted(job: tuple[str, str, str], rows: pd.DataFrame, network: str | None, words: tuple[str, ...]) -> bool:
    """What was named, or else what is not there yet."""
    name, method, stage = job
    if network not in (None, name) or (words and not any(word in method for word in words)):
        return False
    done = (rows["network"] == name) & (rows["method"] == method) & (rows["stage"] == stage)
    return bool(words) or not done.any()


def measure(name: str, method: str, stage: str, test: Dataset, training: Dataset, before: float) -> pd.DataFrame:
    """The rows of one network, method and stage."""
    chosen, network = METHODS[method], load_network(name)
    keeps, tuned = (KEEPS[name], None) if stage == "pruned" else (KEEPS[name][-1:], FINE_TUNE)
    seeds, start = SEEDS if stage == "pruned" and method not in ONE_SEED else SEEDS[:1], time.perf_counter()
    frame = compare_criteria(network, test, training, {method: chosen}, keeps, seeds, tuned, before)
    seconds = (time.perf_counter() - start) / len(frame)
    frame = frame[frame["stage"] == stage].assign(network=name, before=before, seconds=round(seconds))
    frame = frame.assign(scope=chosen.get("scope", "global"), machine=machine(), threads=torch.get_num_threads())
    return frame.assign(count="new")


def table(rows: pd.DataFrame) -> str:
    """pruning.md."""
    lines = [
        "# Criteria on real networks",
        "",
        "Made by `python -m benchmarks.pruning`. Accuracy in percent on all 10,000 test images of CIFAR-10; where a "
        f"criterion sees images or draws, mean and standard deviation over {len(SEEDS)} seeds, of SInGE one; in "
        "brackets Wilson's 95 % interval of the mean, for the images alone. Criteria "
        f"see 1,024 training images. Fine-tuned: one pass over {FINE_TUNE_IMAGES:,} training images (0.4 epochs), "
        f"learning rate {FINE_TUNE['learning_rate']} with a tenth of warm-up and a cosine, "
        f"batch {FINE_TUNE['batch_size']}, shifts of up to {FINE_TUNE['shift']} pixels and flips, seed 0. "
        f"Measured on {'; '.join(rows['machine'].unique())}.{_old(rows)}",
        "",
    ]
    for name, own in rows.groupby("network", sort=False):
        keeps = sorted(own["keep"].round(4).unique(), reverse=True)
        titles = [f"{keep:.0%} of products" for keep in keeps] + [f"{keeps[-1]:.0%}, fine-tuned"]
        lines += [
            f"## {name}, before {with_interval(own['before'].iloc[:1], 10_000)} %",
            "",
            f"| method | {' | '.join(titles)} | parameters |",
        ]
        lines += ["|---" * (len(titles) + 2) + "|"]
        for method, part in own.groupby("method", sort=False):
            cells = [accuracy_of(part, keep, "pruned") for keep in keeps] + [accuracy_of(part, keeps[-1], "fine-tuned")]
            left = part.loc[part["keep"].round(4) == keeps[-1], "parameters"].mean()
            lines.append(f"| {method} | {' | '.join(cells)} | {left:.0%} |")
        lines.append("")
    return "\n".join(lines)


def _old(rows: pd.DataFrame) -> str:
    if not (rows["count"] == "old").any():
        return ""
    stages = rows.loc[rows["count"] == "old", "stage"].unique()
    return f" Targets of products are by the old count, padding included, of some that are {' and '.join(stages)}."


def accuracy_of(part: pd.DataFrame, keep: float, stage: str) -> str:
    """Mean, standard deviation and interval of one cell."""
    values = part.loc[(part["keep"].round(4) == round(keep, 4)) & (part["stage"] == stage), "accuracy"]
    return with_interval(values, 10_000)


if __name__ == "__main__":
    main(*sys.argv[1:])
