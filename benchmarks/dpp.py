"""Learnt masks against zeros chosen once, at the same training: accuracy of networks with a fifth of their weights.

    python -m benchmarks.dpp                 goes on where the last run stopped
    python -m benchmarks.dpp digits/mlp      this network only

CIFAR-10 needs REDLAB_DATA with cifar10/ and weights/cifar10/. A row a network, method and seed is kept in dpp.csv as
soon as it is there; dpp.md is the table.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks.intervals import with_interval
from benchmarks.timing import machine
from redlab import default_dataset, load_dataset, load_network
from redlab.paths import data_root
from redlab.studies.masks import compare_masks

ROWS, TABLE = Path(__file__).with_name("dpp.csv"), Path(__file__).with_name("dpp.md")
KEEP, SEEDS = 0.2, (0, 1, 2)
# By network: training images, and arguments of ``train_masks``.
TRAININGS = {
    "digits/mlp": (1_437, {"epochs": 60, "smoothing": 0.1, "shift": 1}),
    "digits/resnet": (1_437, {"epochs": 30, "smoothing": 0.1, "shift": 1}),
    "cifar10/resnet20": (20_000, {"epochs": 2, "shift": 4, "flip": True, "batch_size": 128}),
}
TESTED = {"digits/mlp": 360, "digits/resnet": 360, "cifar10/resnet20": 10_000}  # test images
METHODS = {
    "DPP, random start": {},
    "DPP, random start, no entropy in the loss": {"mu": 0.0},
    "DPP, random start, noise to the end": {"noises": (1.0, 1.0)},
    "DPP, random start, k-step gradient": {"estimator": "k_step"},
    "DPP, start at magnitudes": {"start": "magnitude"},
    "DPP, start at magnitudes, a tenth of the noise": {"start": "magnitude", "noise": 0.1},
    "DPP, 8-bit weights and inputs": {"weight_bits": 8, "activation_bits": 8},
    "DPP, binary weights, 8-bit inputs": {"weight_bits": 1, "activation_bits": 8},
    "magnitude of each unit, chosen once": {"start": "magnitude", "learn": False},
    "magnitude of the whole network, chosen once": {"criterion": "magnitude"},
    "random of each unit, chosen once": {"learn": False},
}
_OF_TRAINING = ("mu", "noises")
_ON_CIFAR = (  # a training takes minutes there
    "DPP, random start",
    "DPP, start at magnitudes",
    "DPP, start at magnitudes, a tenth of the noise",
    "magnitude of each unit, chosen once",
    "magnitude of the whole network, chosen once",
)


def main(network: str | None = None) -> None:
    rows = pd.read_csv(ROWS) if ROWS.exists() else pd.DataFrame(columns=["network", "method", "seed"])
    done = set(rows[["network", "method", "seed"]].itertuples(index=False, name=None))
    jobs = [(name, method, seed) for name in TRAININGS for method in _methods(name) for seed in SEEDS]
    jobs = [job for job in jobs if job not in done and network in (None, job[0]) and _there(job[0])]
    before: dict[str, float] = {}
    for name, method, seed in (bar := tqdm(jobs)):
        bar.set_description(f"{name}, {method}, seed {seed}")
        rows = pd.concat([rows, measure(name, method, seed, before)], ignore_index=True)
        rows.to_csv(ROWS, index=False, float_format="%.6g")
        TABLE.write_text(table(rows))


def _methods(name: str) -> tuple[str, ...]:
    return _ON_CIFAR if name.startswith("cifar10/") else tuple(METHODS)


def _there(name: str) -> bool:
    if name.startswith("digits/") or (data_root() / "cifar10").is_dir():
        return True
    print(f"{name} is left out: set REDLAB_DATA to a folder with cifar10/ and weights/cifar10/")
    return False


def measure(name: str, method: str, seed: int, before: dict[str, float]) -> pd.DataFrame:
    """One row; ``before`` holds the accuracies of the networks as they came, as far as they are known."""
    images, tuning = TRAININGS[name]
    options = {key: value for key, value in METHODS[method].items() if key not in _OF_TRAINING}
    tuning = tuning | {key: value for key, value in METHODS[method].items() if key in _OF_TRAINING}
    dataset, start = default_dataset(name), time.perf_counter()
    test, training = load_dataset(dataset), load_dataset(dataset, "train", limit=images)
    frame = compare_masks(
        load_network(name), test, training, {method: options}, [KEEP], [seed], before.get(name), **tuning
    )
    before[name] = frame.attrs["before"]
    seconds = round(time.perf_counter() - start)
    frame = frame.assign(network=name, before=before[name], seconds=seconds)
    return frame.assign(machine=machine(), threads=torch.get_num_threads())


def table(rows: pd.DataFrame) -> str:
    """dpp.md."""
    lines = [
        "# Learnt masks, a fifth of the weights of every unit",
        "",
        "Made by `python -m benchmarks.dpp`. Accuracy in percent on all test images, mean and standard deviation over "
        f"{len(SEEDS)} seeds, in brackets Wilson's 95 % interval of the mean, for the images alone; every method "
        "starts from the trained network and has the same training (Adam, peak "
        "learning rate 0.002 for weights and 0.3 for logits, a tenth of warm-up and a cosine; mu 5e-5). Bits a "
        "weight count the values that are kept and where they are.",
        "",
    ]
    for name, own in rows.groupby("network", sort=False):
        images, tuning = TRAININGS[name]
        what = ", ".join(f"{key} {value}" for key, value in tuning.items())
        lines += [
            f"## {name}, before {with_interval(own['before'].iloc[:1], TESTED[name])} % of {TESTED[name]:,} images",
            "",
            f"{images:,} training images; {what}. Measured on {'; '.join(own['machine'].unique())}, "
            f"{own['threads'].iloc[0]} thread.",
            "",
            "| method | accuracy | seeds | sparsity | bits a weight | seconds |",
            "|---|---|---|---|---|---|",
        ]
        for method, part in own.groupby("method", sort=False):
            found = part["accuracy"]
            each = ", ".join(f"{value:.2f}" for value in found)
            numbers = part[["sparsity", "bits", "seconds"]].mean()
            cells = [with_interval(found, TESTED[name]), each, f"{numbers['sparsity']:.1%}"]
            cells += [f"{numbers['bits']:.2f}", f"{numbers['seconds']:.0f}"]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
