"""Every method on real networks, side by side: accuracy, and what is left of products, parameters, bytes and time.

    python -m benchmarks.real                                goes on where the last run stopped
    python -m benchmarks.real cifar10/resnet56               this network only
    python -m benchmarks.real cifar10/resnet56 RED++ FlexRel these methods again

Needs REDLAB_DATA with cifar10/, weights/, imagenet/val250 and, for EfficientNet-Lite0, imagenet/val750. A row a
network, method, setting, seed and stage is kept in real.csv as soon as it is there. Accuracies that
``python -m benchmarks.pruning`` has measured are taken from its pruning.csv; sizes and times are measured here, on the
same network made again. Rows whose ``count`` is "old" are by a rule that counted padding:
``python -m benchmarks.recount`` renews them where nothing was trained, naming them here else. ``choice`` is the
accuracy on other images, val250, by which a setting of EfficientNet-Lite0 may be chosen.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from benchmarks import pruning
from benchmarks.real_methods import KEEPS, LITE, MOBILENET, methods, share
from benchmarks.timing import machine
from redlab import default_dataset, evaluate, fold_batchnorm, load_dataset, load_network
from redlab.network.latency import compare_latency
from redlab.network.training import train
from redlab.studies.real import measure_left
from redlab.studies.splitting import is_split, ordinary

ROWS = Path(__file__).with_name("real.csv")
_ROUNDS = {False: 40, True: 9}  # of timing, by whether layers are split: those take ten times as long and more
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_STAGES = {"pruned": "compressed", "fine-tuned": "fine-tuned"}  # of pruning.csv, and what they are called here


def time_left(original: nn.Module, network: nn.Module) -> dict[str, float]:
    """``milliseconds`` of one image on one thread, and their ``time_ratio`` to the original's, measured in turns.

    It is the processor's time, without that of other work on the machine. Batch norms are folded first in both, as for
    any use of a network; no method here gains by folding.
    """
    contestants = {"original": _folded(original), "network": _folded(network)}
    table = compare_latency(contestants, repeats=_ROUNDS[is_split(network)], threads=1, clock="processor")
    table = table.set_index("network")
    return {"milliseconds": table.loc["network", "median"], "time_ratio": table.loc["network", "ratio"]}


def _folded(network: nn.Module) -> nn.Module:
    has_norms = any(isinstance(module, _NORMS) for module in network.modules())
    return fold_batchnorm(network).network if has_norms else network


@dataclass(frozen=True)
class Job:
    """Rows that are measured together. ``stage``: "compressed", or "fine-tuned" where training made them."""

    network: str
    method: str
    seed: int
    stage: str

    @property
    def after(self) -> bool:
        """Whether the network was compressed first, and fine-tuned then."""
        return self.stage == "fine-tuned" and methods(self.network)[self.method].needs != "fine-tuning"

    @property
    def learns(self) -> bool:
        """Whether it takes minutes, for training."""
        return self.stage == "fine-tuned" and _known(self, share(KEEPS[self.network][-1])) is None

    @property
    def slow(self) -> bool:
        """Whether only sizes and times are missing, and making the network takes minutes."""
        return self.method in pruning.ONE_SEED


_KEY = list(Job.__annotations__)


def main(network: str | None = None, *words: str) -> None:
    rows = pd.read_csv(ROWS) if ROWS.exists() else pd.DataFrame(columns=_KEY)
    rows = _with_known(rows)
    done = set(rows.loc[rows["bytes"].notna(), _KEY].itertuples(index=False, name=None))
    jobs = [job for job in all_jobs() if network in (None, job.network)]
    jobs = [job for job in jobs if (job.method in words if words else astuple(job) not in done)]
    for job in (bar := tqdm(jobs)):
        bar.set_description(", ".join(map(str, astuple(job))))
        own = pd.DataFrame(tuned(job, rows) if job.after else made(job))
        stale = (rows[_KEY] == pd.Series(asdict(job))).all(axis=1)
        rows = _in_order(pd.concat([rows[~stale], own], ignore_index=True))
        rows.to_csv(ROWS, index=False, float_format="%.6g")


def all_jobs() -> list[Job]:
    """In the order in which they are measured: first seeds first, what takes minutes last."""
    jobs = []
    for name in KEEPS:
        for title, own in methods(name).items():
            stage = "fine-tuned" if own.needs == "fine-tuning" else "compressed"
            jobs += [Job(name, title, seed, stage) for seed in own.seeds]
            jobs += [Job(name, title, seed, "fine-tuned") for seed in own.tuned]
    names = list(KEEPS)
    return sorted(jobs, key=lambda job: (job.slow, job.seed, names.index(job.network), job.learns))


def _with_known(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, and those of pruning.csv that are not among them yet, without sizes and times."""
    there = set(rows[_KEY].itertuples(index=False, name=None))
    new = [row for job in all_jobs() if astuple(job) not in there for row in _known_rows(job)]
    return _in_order(pd.concat([rows, pd.DataFrame(new)], ignore_index=True)) if new else rows


def _known_rows(job: Job) -> Iterator[dict[str, Any]]:
    for (*key, setting), known in _pruning_rows().items():
        if tuple(key) == astuple(job):
            needs = "fine-tuning" if job.after else methods(job.network)[job.method].needs
            row = _row(job) | {"needs": needs, "setting": setting, "split": False, "bytes": np.nan}
            row |= {name: known[name] for name in ("products", "macs", "count")} | dict.fromkeys(
                ("additions", "operations"), known["products"]
            )
            yield row | _taken(job, known) | {name: known[name] for name in ("seconds", "machine", "threads")}


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """By network, then method, as they are listed; seeds and settings as they came."""
    places = {(name, title): (i, k) for i, name in enumerate(KEEPS) for k, title in enumerate(methods(name))}
    order = [(*places[row.network, row.method], row.stage, row.seed) for row in rows.itertuples()]
    return rows.iloc[sorted(range(len(rows)), key=order.__getitem__)].reset_index(drop=True)


def made(job: Job) -> Iterator[dict[str, Any]]:
    """A row a setting: what the method makes of the network."""
    chosen, original = methods(job.network)[job.method], load_network(job.network)
    test, training = images_of(job.network)
    row = _row(job) | {"needs": chosen.needs, "machine": machine(), "threads": torch.get_num_threads(), "count": "new"}
    start = time.perf_counter()
    for setting, network in chosen.make(original, training, job.seed):
        own = row | {"setting": setting, "split": is_split(network)}
        own |= measure_left(original, network) | time_left(original, network)
        known = _known(job, setting)
        if known is None:
            own |= {"accuracy": _accuracy(network, test), "command": command("real", job)}
            own |= {"choice": _accuracy(network, load_dataset("imagenet_folder")) if job.network == LITE else np.nan}
        elif abs(known["products"] - own["products"]) < 1e-4:
            own |= _taken(job, known)
        else:
            raise RuntimeError(f"{job}, {setting}: another network than the one in pruning.csv")
        yield own | {"seconds": round(time.perf_counter() - start)}
        start = time.perf_counter()


def _row(job: Job) -> dict[str, Any]:
    return asdict(job) | {"before": _before(job.network), "images": len(images_of(job.network)[0])}


def tuned(job: Job, rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The row of the last setting, fine-tuned. Sizes and times are those before it: training changes no shape."""
    setting, own = share(KEEPS[job.network][-1]), methods(job.network)[job.method]
    # What draws nothing was pruned once, and is trained by several seeds.
    pruned = job.seed if job.seed in own.seeds else own.seeds[0]
    at = asdict(job) | {"stage": "compressed", "setting": setting, "seed": pruned}
    row = rows[(rows[list(at)] == pd.Series(at)).all(axis=1)].iloc[0].to_dict() | asdict(job) | {"needs": "fine-tuning"}
    if (known := _known(job, setting)) is not None:
        yield row | _taken(job, known) | {"seconds": known["seconds"]}
        return
    (test, training), start = images_of(job.network), time.perf_counter()
    made = dict(own.make(load_network(job.network), training, job.seed))
    network = train(made[setting], training, seed=job.seed, **pruning.FINE_TUNE).network
    found = {"accuracy": _accuracy(network, test), "command": command("real", job)}
    yield row | found | {"seconds": round(time.perf_counter() - start)}


def _taken(job: Job, known: dict[str, Any]) -> dict[str, Any]:
    return {"accuracy": known["accuracy"], "command": f"{command('pruning', job)} && {command('real', job)}"}


def command(benchmark: str, job: Job) -> str:
    return f"python -m benchmarks.{benchmark} {job.network} {shlex.quote(job.method)}"


def _accuracy(network: nn.Module, test: Dataset) -> float:
    return evaluate(ordinary(network), test).accuracy


def _known(job: Job, setting: str) -> dict[str, Any] | None:
    """The row of pruning.csv that has the accuracy of the network that today's count of products asks for."""
    row = _pruning_rows().get((*astuple(job), setting))
    return row if row is not None and row["count"] == "new" else None


@cache
def _pruning_rows() -> dict[tuple, dict[str, Any]]:
    rows = pd.read_csv(pruning.ROWS).to_dict("records")
    return {
        (row["network"], row["method"], row["seed"], _STAGES[row["stage"]], share(row["keep"])): row for row in rows
    }


@cache
def images_of(name: str) -> tuple[Dataset, Dataset]:
    """All test images, and the training images that criteria see and fine-tuning learns from; of ImageNet none."""
    dataset = "imagenet_folder:val750" if name == LITE else default_dataset(name)
    test = load_dataset(dataset)
    if name in (MOBILENET, LITE):
        return test, Subset(test, ())
    return test, load_dataset(dataset, "train", limit=pruning.FINE_TUNE_IMAGES)


@cache
def _before(name: str) -> float:
    known = [row["before"] for key, row in _pruning_rows().items() if key[0] == name]
    return known[0] if known else evaluate(load_network(name), images_of(name)[0]).accuracy


if __name__ == "__main__":
    main(*sys.argv[1:])
