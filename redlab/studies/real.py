"""Real networks by many methods, side by side: what a row holds, and the rows that ``benchmarks.real`` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn
from torch.utils.data import Dataset

from redlab.network.evaluation import accuracy_interval, evaluate
from redlab.paths import checkout
from redlab.studies.atlas import twin_layers
from redlab.studies.splitting import ordinary, totals

# What a method needs beyond the trained network. Compare methods only within one of these.
NEEDS = ("nothing", "data", "fine-tuning")
SHARES = ("products", "macs", "additions", "operations", "parameters", "bytes")
_TIMES = ("milliseconds", "time_ratio")
# What tables and figures call a method that is stored under a shorter name: RED++ with our options is not the papers'.
_OURS = "RED++, ours (uniform codes)"
_TITLES = {
    "RED++": _OURS,
    "RED++ by default": _OURS,
    "RED++, biases from images": f"{_OURS}, biases from images",
}
# A setting in words, as numbers of the columns that other frames have too.
_SETTINGS = {
    "keep": r"^([\d.]+)% of products$",
    "max_error": r"^error ([\d.]+)$",
    "max_noise": r"^noise ([\d.]+)$",
    "alpha": r"^alpha ([\d.]+)$",
    "bandwidth": r"^(silverman/\d+)$",
}


def measure_left(original: nn.Module, network: nn.Module, dataset: Dataset | None = None) -> dict[str, float]:
    """What is left of ``original`` in ``network``, which a method made from it.

    Arguments:
        dataset: the images of the accuracy, measured with split layers as ordinary ones; None: it is not measured.

    Returns:
        ``products``, ``macs``, ``additions``, ``operations`` (multiplications and additions), ``parameters`` and
        ``bytes`` (of the folders that ``save_network`` writes), as shares of the original's; ``accuracy`` in percent.
        Split layers count each distinct multiplication once and have one parameter a distinct value of a channel;
        look-ups are not counted. RED's separated kernels can add more than they save: the share of additions can
        exceed 1.

    Example:
        >>> from redlab import hash_network, load_network
        >>> network = load_network("digits/mlp")
        >>> left = measure_left(network, hash_network(network, max_error=0.1).network)
        >>> left["products"], round(left["bytes"], 1)
        (1.0, 0.2)
    """
    before, after = (totals(own) for own in (original, network))
    row = {name: after[name] / before[name] for name in SHARES}
    if dataset is not None:
        row["accuracy"] = evaluate(ordinary(network), dataset).accuracy
    return row


def read_real(path: str | Path | None = None) -> pd.DataFrame:
    """The rows that ``python -m benchmarks.real`` wrote, in the order in which methods are tried.

    Arguments:
        path: by default benchmarks/real.csv of the checkout.

    Returns:
        A row a network, method, setting, seed and stage: these; ``needs``, one of ``NEEDS``; ``split``, whether its
        layers are split; the columns of ``measure_left``; ``milliseconds`` of one image and their ``time_ratio`` to the
        original's; ``before``, the accuracy of the original; ``images`` of the test; ``choice``, the accuracy on 250
        other images, for choosing a setting (NaN where no others were held back); ``accuracy_low`` and
        ``accuracy_high``, the 95 % Wilson interval; ``count``, "new" where shares are by the rule of ``measure_cost``,
        "old" where multiplications by padding are counted too; the ``command`` that makes the row; ``seconds``,
        ``machine``, ``threads``; and the setting as ``keep``, ``max_error``, ``max_noise``, ``alpha`` (else NaN) and
        ``bandwidth`` (else "").

    Raises:
        FileNotFoundError: there is no such file.

    Example:
        >>> rows = read_real()
        >>> rows.loc[rows["method"] == "SInGE", ["network", "needs"]].drop_duplicates().to_numpy().tolist()
        [['cifar10/resnet20', 'data']]
    """
    frame = pd.read_csv(path or checkout() / "benchmarks" / "real.csv")
    bounds = [accuracy_interval(*row) for row in frame[["accuracy", "images"]].to_numpy()]
    frame["accuracy_low"], frame["accuracy_high"] = zip(*bounds, strict=True)
    found = {name: frame["setting"].str.extract(pattern)[0] for name, pattern in _SETTINGS.items()}
    numbers = {name: column.astype(float) for name, column in found.items() if name != "bandwidth"}
    numbers["keep"] /= 100
    return frame.assign(**numbers, bandwidth=found["bandwidth"].fillna(""))


def title_of(method: str) -> str:
    """What tables and figures call a method of ``read_real``.

    Example:
        >>> title_of("RED++"), title_of("RED++ as published")
        ('RED++, ours (uniform codes)', 'RED++ as published')
    """
    return _TITLES.get(method, method)


def summarise_real(frame: pd.DataFrame) -> pd.DataFrame:
    """``read_real`` with seeds taken together: means, the standard deviation ``sd`` of the accuracy (0 for one seed),
    how many ``seeds`` there are, ``accuracy_low`` and ``accuracy_high``, which enclose the 95 % Wilson intervals of all
    seeds, and ``time_low`` and ``time_high``, the least and the largest ``time_ratio``.

    Example:
        >>> summary = summarise_real(read_real().query("network == 'cifar10/resnet56' and method == 'FlexRel'"))
        >>> summary[["setting", "seeds"]].to_numpy().tolist()
        [['75% of products', 3], ['47% of products', 3]]
    """
    keys = ["network", "needs", "method", "setting", "split", "count", "before"]
    groups = frame.groupby(keys, sort=False)
    means = groups[["accuracy", *SHARES, *_TIMES, "images"]].mean()
    spread = groups.agg(
        sd=("accuracy", "std"),
        seeds=("accuracy", "count"),
        accuracy_low=("accuracy_low", "min"),
        accuracy_high=("accuracy_high", "max"),
        time_low=("time_ratio", "min"),
        time_high=("time_ratio", "max"),
    )
    return means.join(spread).fillna({"sd": 0.0}).reset_index()


def beyond_chance(summary: pd.DataFrame, atlas: pd.DataFrame) -> pd.DataFrame:
    """What is redundant in trained networks and not in random ones, from stored rows.

    Arguments:
        summary: of ``summarise_real``, and ``atlas`` of ``read_atlas``: networks that are in both are compared.

    Returns:
        A row a ``measure`` and ``network``, in percent: ``trained``, and ``random`` for random initial weights (NaN
        where only a trained network has an answer), and the ``images`` of an accuracy.

        - "near filters": those nearer to another than half the median distance.
        - "dead channels": multiplications that merging saves at alpha 0, with the same outputs.
        - "bytes at equal accuracy": the fewest bytes on disk of RED++ where the 95 % interval of the accuracy holds
          the accuracy before.

    Example:
        >>> frame = beyond_chance(summarise_real(read_real()), read_atlas())
        >>> frame[frame["network"] == "cifar10/resnet20"].set_index("measure")["trained"].round(1).to_dict()
        {'near filters': 9.7, 'dead channels': 2.5, 'bytes at equal accuracy': 13.0}
    """
    twins, rows = twin_layers(atlas), []
    for network in [name for name in dict.fromkeys(summary["network"]) if name in set(twins["network"])]:
        own, layers = summary[summary["network"] == network], twins[twins["network"] == network]
        layers = layers[layers["outputs"] > layers["groups"]]
        near = [100 * np.average(layers[name], weights=layers["outputs"]) for name in ("near", "near untrained")]
        alone = own[own["setting"] == "alpha 0"]
        same = own["method"].str.startswith("RED++") & own["before"].between(own["accuracy_low"], own["accuracy_high"])
        rows += [
            ("near filters", network, *near, np.nan),
            ("dead channels", network, 100 * (1 - alone["products"].min()), np.nan, np.nan),
            ("bytes at equal accuracy", network, 100 * own.loc[same, "bytes"].min(), np.nan, own["images"].min()),
        ]
    return pd.DataFrame(rows, columns=["measure", "network", "trained", "random", "images"])


def table_real(summary: pd.DataFrame, network: str) -> pd.DataFrame:
    """Of ``summarise_real``, the rows of one network as text, by what methods need, with the published figures.

    Cells that were not measured or published are empty.

    Returns:
        The columns needs, method, setting, accuracy, interval (95 %, over all seeds), images, seeds, products, macs,
        additions, operations (multiplications and additions), parameters, bytes, count ("old": padding counts as
        well), ms, time (that of the original is 1), and
        ``protocol``: how a published figure differs; empty where the row is measured here. Papers report macs.

    Example:
        >>> table = table_real(summarise_real(read_real()), "cifar10/resnet20")
        >>> table.loc[table["method"].str.contains("published"), ["method", "accuracy"]].to_numpy().tolist()[-1]
        ['Distiller (published)', '91.78 → 91.34']
    """
    own = summary[summary["network"] == network].assign(protocol="")
    printed = published_figures().query("network == @network")
    printed = printed.assign(method=printed["method"] + " (published)")
    rows = pd.concat([own, printed], ignore_index=True)
    rows["order"] = rows["needs"].map(lambda needs: NEEDS.index(needs) if needs in NEEDS else -1)
    rows = rows.sort_values("order", kind="stable")
    text = {name: rows[name] for name in ("needs", "method", "setting")}
    text["method"] = rows["method"].map(title_of)
    text["accuracy"] = [_accuracy(*row) for row in rows[["before", "accuracy", "sd"]].to_numpy()]
    bounds = rows["accuracy_low"].map("{:.1f} to ".format) + rows["accuracy_high"].map("{:.1f}".format)
    text["interval"] = bounds.where(rows["images"].notna(), "")
    text["images"] = rows["images"].map("{:,.0f}".format).where(rows["images"].notna(), "")
    text["seeds"] = rows["seeds"].map("{:.0f}".format).where(rows["seeds"].notna(), "")
    for name in SHARES:
        text[name] = (100 * rows[name]).map("{:.1f} %".format).where(rows[name].notna(), "")
    text["count"] = rows["count"].where(rows["count"] == "old", "")
    for name, title in zip(_TIMES, ("ms", "time"), strict=True):
        text[title] = rows[name].map("{:.2f}".format).where(rows[name].notna(), "")
    return pd.DataFrame({**text, "protocol": rows["protocol"]}).reset_index(drop=True)


def left_out() -> pd.DataFrame:
    """What was not measured, and why: network, method, reason. Kept in benchmarks/left_out.csv.

    Example:
        >>> left_out()["network"].iloc[0]
        'imagenet/mobilenet_v1_0.75'
    """
    return pd.read_csv(checkout() / "benchmarks" / "left_out.csv")


def published_figures() -> pd.DataFrame:
    """What papers and tools report: network, needs, method, setting, before, accuracy, products, macs, parameters,
    source, protocol. Kept in benchmarks/published.csv.

    Shares are in [0, 1], accuracies in percent, top-1; NaN where the source gives no number. Papers count macs, padding
    included; ``products`` repeats that share, for axes that also hold measured ones. Networks without measured rows
    are included.

    Example:
        >>> figures = published_figures()
        >>> figures.loc[figures["method"] == "DepGraph", "accuracy"].tolist()
        [93.77, 93.64]
    """
    rows = pd.read_csv(checkout() / "benchmarks" / "published.csv").fillna({"needs": ""})
    return rows.assign(setting="", products=rows["macs"])


def _accuracy(before: float, after: float, sd: float) -> str:
    return f"{before:.2f} → {after:.2f}" + (f" ± {sd:.2f}" if sd > 0 else "")


def beside_stored(live: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """Rows measured just now beside the stored ones of the same network, method and setting, seed 0.

    Returns:
        network, method, setting, and accuracy, products, macs, additions, operations, parameters and bytes twice: as
        ``NAME`` and ``NAME_stored``; no rows where nothing is stored.

    Example:
        >>> stored = read_real()
        >>> beside = beside_stored(stored.query("method == 'RED as published'"), stored)
        >>> (beside["accuracy"] == beside["accuracy_stored"]).all().item()
        True
    """
    keys, measured = ["network", "method", "setting"], ["accuracy", *SHARES]
    first = stored[(stored["seed"] == 0) & (stored["stage"] == "compressed")]
    return live[keys + measured].merge(first[keys + measured], on=keys, suffixes=("", "_stored"))
