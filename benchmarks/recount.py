"""The shares of real.csv, pruning.csv and defaults.csv by today's rule of counting, without training or timing.

    python -m benchmarks.recount                          goes on where the last run stopped
    python -m benchmarks.recount cifar10/resnet20         this network only
    python -m benchmarks.recount cifar10/resnet20 RED++   these methods again
    python -m benchmarks.recount defaults                 what defaults.csv has of hashed and split networks

Every network that is compressed and not trained is made again and counted. Where it is the one of the stored row, by
its parameters and bytes, the row keeps its accuracy; where a target of products chose other channels, the accuracy is
measured again, and so it is for methods that are named. Times stay as they were measured. Rows of trained networks keep
the shares of the old rule, in which multiplications by padding counted, and say so: their column ``count`` is "old",
that of the others "new". In defaults.csv shares of networks that were split by channel follow from the old ones, since
what is left of them never counted padding: only what it is a share of did.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from torch import nn
from tqdm import tqdm

from benchmarks import defaults, pruning, real
from benchmarks.default_measures import hashed
from benchmarks.default_questions import QUESTIONS
from benchmarks.real_methods import methods, share
from redlab import evaluate, load_network, measure_cost
from redlab.studies.methods import left_of, prune_by_method
from redlab.studies.real import measure_left
from redlab.studies.splitting import ordinary

Made = Iterator[tuple[str, nn.Module, dict[str, float]]]


def main(network: str | None = None, *words: str) -> None:
    if network == "defaults":
        recount_defaults()
        return
    rows, criteria = with_count(pd.read_csv(real.ROWS)), with_count(pd.read_csv(pruning.ROWS))
    for job in tqdm([job for job in real.all_jobs() if job.stage == "compressed" and network in (None, job.network)]):
        own = rows.loc[(rows[list(asdict(job))] == pd.Series(asdict(job))).all(axis=1)]
        if job.method in words if words else (own["count"] == "old").any():
            for _ in recount(job, rows, criteria, again=bool(words)):
                save(rows, criteria)
    save(rows, criteria)


def save(rows: pd.DataFrame, criteria: pd.DataFrame) -> None:
    rows.to_csv(real.ROWS, index=False, float_format="%.6g")
    criteria.to_csv(pruning.ROWS, index=False, float_format="%.6g")
    pruning.TABLE.write_text(pruning.table(criteria))


def with_count(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, in which those that nothing is said of are by the old rule."""
    macs = rows["macs"] if "macs" in rows else pd.Series(np.nan, rows.index)
    macs = macs.fillna(rows["products"].where(~rows["split"].astype(bool)) if "split" in rows else rows["products"])
    if "setting" in rows:  # of split networks, all at alpha 0, dead channels alone are gone
        dead = macs[rows["setting"] == "alpha 0"].set_axis(rows.loc[rows["setting"] == "alpha 0", "network"])
        macs = macs.fillna(rows["network"].map(dead))
    # Each product of the original is a term of one sum: it has as many additions.
    both = {"operations": (rows["products"] + rows["additions"]) / 2} if "additions" in rows else {}
    return rows.assign(**both, macs=macs, count=rows["count"].fillna("old") if "count" in rows else "old")


def recount(job: real.Job, rows: pd.DataFrame, criteria: pd.DataFrame, again: bool) -> Iterator[str]:
    """Write the shares of today, and accuracies where they must be, into the rows of ``job`` in both tables.

    Arguments:
        again: rows that are by today's rule already, too.

    Returns:
        Each setting as soon as it is written.
    """
    original = load_network(job.network)
    for setting, network, left in made(job, original):
        at = (rows[[*asdict(job), "setting"]] == pd.Series(asdict(job) | {"setting": setting})).all(axis=1)
        old = rows[at].iloc[0]
        if old["count"] == "new" and not again:
            continue
        new = measure_left(original, network)
        if again or not all(np.isclose(old[name], new[name], rtol=1e-5) for name in ("parameters", "bytes")):
            plain = ordinary(network)
            new["accuracy"] = evaluate(plain, real.images_of(job.network)[0]).accuracy
        write(rows, at, new)
        at = (criteria["network"] == job.network) & (criteria["method"] == job.method) & (criteria["seed"] == job.seed)
        at &= (criteria["stage"] == "pruned") & (criteria["keep"].map(share) == setting)
        write(criteria, at, left | {name: new[name] for name in ("macs", "accuracy") if name in new})
        yield setting


def recount_defaults() -> None:
    """Shares of the products that padding is among, as shares of those without it."""
    rows = pd.read_csv(defaults.ROWS)
    of_hashed = [title for title, question in QUESTIONS.items() if question.measure is hashed]
    for name in rows["network"].unique():
        cost = measure_cost(load_network(name)).attrs
        at = (rows["network"] == name) & rows["question"].isin(of_hashed) & (rows["count"] == "old")
        rows.loc[at, ["products", "unsigned"]] *= cost["macs"] / cost["products"]
        rows.loc[at, "count"] = "new"
    rows.to_csv(defaults.ROWS, index=False, float_format="%.6g")
    defaults.TABLE.write_text(defaults.table(rows))


def made(job: real.Job, original: nn.Module) -> Made:
    """A setting, the network, and what is left of it by ``compare_criteria``, where that is what made it."""
    (_, training), own = real.images_of(job.network), methods(job.network)[job.method]
    if job.method not in pruning.METHODS:
        yield from ((setting, network, {}) for setting, network in own.make(original, training, job.seed))
        return
    keeps = real.KEEPS[job.network]
    for keep, result in prune_by_method(original, training, pruning.METHODS[job.method], keeps, job.seed):
        yield share(keep), result.network, left_of(result)


def write(rows: pd.DataFrame, at: pd.Series, new: dict[str, Any]) -> None:
    for name, value in (new | {"count": "new"}).items():
        rows.loc[at, name] = value


if __name__ == "__main__":
    main(*sys.argv[1:])
