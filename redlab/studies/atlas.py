"""The atlas: ``measure_redundancy`` of many networks in one frame, and what hashing makes of random numbers.

Layers that hashing skips (all weights equal, shared with another) are in the frame and in no comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from math import pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy import ndarray

from redlab.hashing.weights import hash_weights, relative_error
from redlab.options import plain_options
from redlab.paths import checkout
from redlab.progress import progress
from redlab.studies.redundancy import measure_redundancy
from redlab.studies.titles import short_name
from redlab.zoo.names import list_networks
from redlab.zoo.saving import load_network

KEY = ["network", "trained", "seed"]


def atlas_rows(
    name: str, trained: bool, seed: int = 0, bandwidth: str | float = "silverman/8", **options: Any
) -> pd.DataFrame:
    """``measure_redundancy`` of one network, after the columns ``network``, ``trained``, ``seed`` and ``bandwidth``.

    Arguments:
        trained: with its trained weights (``seed`` is then -1); else with random initial weights, those that its own
            code draws after ``torch.manual_seed(seed)``.
        options: ``weights`` and ``build`` of the trained network, as in ``load_network``.

    Raises: as ``load_network``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = load_network(name, **options) if trained else load_network(name, None)
    seed = -1 if trained else seed
    about = {"network": short_name(name), "trained": trained, "seed": seed, "bandwidth": str(bandwidth)}
    frame = measure_redundancy(network, bandwidth)
    return pd.concat([pd.DataFrame(about, index=frame.index), frame], axis=1)


def measure_atlas(
    names: Iterable[str],
    bandwidth: str | float = "silverman/8",
    weights: str | Path | None = "default",
    build: str | Callable | None = None,
) -> pd.DataFrame:
    """``atlas_rows`` of each network, trained and with random initial weights (seed 0).

    Saved folders and networks in code (FILE.py:NAME) are measured as they are only: their weights can't be drawn anew.

    Example:
        >>> measure_atlas(["digits/mlp"]).groupby("trained")["layer"].size().to_dict()
        {False: 3, True: 3}
    """
    pairs = [(name, trained) for name in names for trained in (True, False) if trained or _has_random(name)]
    options: dict[str, Any] = {"bandwidth": bandwidth, "weights": weights, "build": build}
    rows = [atlas_rows(*pair, **options) for pair in progress(pairs, "networks")]
    return pd.concat(rows, ignore_index=True)


def _has_random(name: str) -> bool:
    return name in list_networks() or name.startswith("timm/")


def read_atlas(path: str | Path | None = None, bandwidth: str | float = "silverman/8") -> pd.DataFrame:
    """The rows of a sweep (``python -m benchmarks.atlas``) that were measured at this bandwidth; maybe none.

    Arguments:
        path: of its parquet file; None for ``benchmarks/atlas.parquet`` of the checkout.

    Example:
        >>> read_atlas()["network"].iloc[0]
        'digits/resnet'
    """
    rows = pd.read_parquet(path or checkout() / "benchmarks" / "atlas.parquet")
    rows = rows.astype(dict.fromkeys(rows.select_dtypes("category"), str))
    rows = rows.astype(dict.fromkeys(rows.select_dtypes("int32"), "int64"))
    if "zeros" not in rows:  # written before they were counted; nobody had pruned those networks
        rows.insert(rows.columns.get_loc("weights") + 1, "zeros", 0)
    return rows[rows["bandwidth"] == str(bandwidth)].reset_index(drop=True)


def join_atlas(kept: pd.DataFrame, live: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``kept``, then those of ``live`` of networks (trained or not) that are not in it.

    Example:
        >>> kept, live = read_atlas(), measure_atlas(["digits/mlp"])
        >>> len(join_atlas(kept, live)) == len(kept)
        True
    """
    there = pd.MultiIndex.from_frame(live[KEY]).isin(pd.MultiIndex.from_frame(kept[KEY]))
    return pd.concat([kept, live[~there]], ignore_index=True) if len(kept) else live


def compare_atlas(kept: pd.DataFrame, live: pd.DataFrame) -> pd.DataFrame:
    """How far two measurements of the same layers are apart.

    Returns:
        A row a network that both have: network, trained, ``layers``; ``agreeing``: those whose numbers all agree to a
        thousandth; and the largest ``difference`` of any number, relative to the larger of it and 1e-3. A file that
        holds float32 differs by 1e-7; where another processor rounds otherwise, a layer may have a mode more or less.

    Example:
        >>> compare_atlas(read_atlas(), measure_atlas(["digits/mlp"]))["layers"].tolist()
        [3, 3]
    """
    both = kept.merge(live, on=[*KEY, "layer"], suffixes=("", " live"), validate="one_to_one")
    names = [name for name in live.select_dtypes("number") if name not in KEY]
    apart = [(both[name] - both[f"{name} live"]).abs() / both[f"{name} live"].abs().clip(lower=1e-3) for name in names]
    both["difference"] = pd.concat(apart, axis=1).max(axis=1) if len(both) else 0.0
    both["agrees"] = both["difference"] < 1e-3
    groups = both.groupby(["network", "trained"], sort=False, as_index=False)
    return groups.agg(layers=("layer", "size"), agreeing=("agrees", "sum"), difference=("difference", "max"))


def missing_networks(atlas: pd.DataFrame) -> dict[str, list[str]]:
    """Names that ``load_network`` knows and the atlas has not: ``"trained"``, and not ``"at all"``.

    Example:
        >>> "digits/mlp" in missing_networks(read_atlas())["trained"]
        False
    """
    there = {"trained": set(atlas.loc[atlas["trained"], "network"]), "at all": set(atlas["network"])}
    return {how: [name for name in list_networks() if name not in own] for how, own in there.items()}


def compared_layers(atlas: pd.DataFrame, filters: bool = False) -> pd.DataFrame:
    """The layers that hashing hashed, with two columns more.

    ``unit``: the weights that an input channel meets; ``noise``: ``modes_of_noise`` of as many weights as are not zero.

    Arguments:
        filters: only layers whose filters have others to be compared with (all but depthwise ones).

    Example:
        >>> compared_layers(measure_atlas(["digits/mlp"])).loc[0, ["inputs", "unit"]].tolist()
        [64, 256]
    """
    own = atlas[(atlas["skipped"] == "") & (atlas["products_measured"] > 0)]
    own = own[own["outputs"] > own["groups"]] if filters else own
    noise = modes_of_noise(own["weights"] - own["zeros"], own["bandwidth"].iloc[0]) if len(own) else 0.0
    return own.assign(unit=own["weights"] // own["inputs"], noise=noise)


def summarise_atlas(atlas: pd.DataFrame) -> pd.DataFrame:
    """The atlas by network, one row for its trained and one for its random initial weights.

    Returns:
        ``network``, ``trained``; ``layers`` and, of them, ``skipped``; ``weights``; ``distinct`` values after hashing,
        summed over layers, and ``share`` of the weights that they are; ``error``, mean over layers; ``bits`` a weight
        (entropy), a mean over weights; ``products`` left by unit "channel", with what ``chance`` would leave, of those
        before; ``duplicates``; ``near`` and ``alike``, shares of the filters that have others to be compared with.

    Example:
        >>> summarise_atlas(measure_atlas(["digits/mlp"]))[["trained", "layers"]].to_numpy().tolist()
        [[True, 3], [False, 3]]
    """
    return pd.DataFrame([_summary(rows) for _, rows in atlas.groupby(KEY, sort=False)])


def _summary(rows: pd.DataFrame) -> dict:
    own, filters = compared_layers(rows), compared_layers(rows, filters=True)
    products = own["weights"] - own["zeros"]
    return {
        "network": rows["network"].iloc[0],
        "trained": bool(rows["trained"].iloc[0]),
        "layers": len(rows),
        "skipped": len(rows) - len(own),
        "weights": int(own["weights"].sum()),
        "distinct": int(own["distinct"].sum()),
        "share": own["distinct"].sum() / own["weights"].sum(),
        "error": own["error"].mean(),
        "bits": np.average(own["entropy"], weights=own["weights"]),
        "products": np.average(own["products_measured"], weights=products),
        "chance": np.average(own["products_expected"], weights=products),
        "duplicates": int(filters["duplicates"].sum()),
        **{name: np.average(filters[name], weights=filters["outputs"]) for name in ("near", "alike")},
    }


def by_bins(layers: pd.DataFrame, bins: pd.Series, values: pd.Series, middle: str = "median") -> pd.DataFrame:
    """The middle of ``values`` in each of the ``bins``, with its 95 % interval from a bootstrap over networks.

    Layers of one network are no independent observations: whole networks are drawn, 200 times.

    Arguments:
        layers: says by its column ``network`` whose layer a value is.
        middle: "median" or "mean".

    Returns:
        A row a bin, by ``bin``: ``middle``, how many ``layers``, and the interval from ``low`` to ``high``.

    Example:
        >>> layers = compared_layers(measure_atlas(["digits/mlp"]))
        >>> by_bins(layers, layers["trained"], layers["distinct"]).columns.tolist()
        ['middle', 'layers', 'low', 'high']
    """
    networks = layers["network"].unique()
    rows = {name: np.flatnonzero(layers["network"] == name) for name in networks}
    draws = np.random.default_rng(0).choice(networks, (200, len(networks)))
    table = pd.DataFrame({"bin": bins.to_numpy(), "value": values.to_numpy()})
    drawn = [table.take(np.concatenate([rows[name] for name in names])) for names in draws]
    several = pd.DataFrame([part.groupby("bin")["value"].agg(middle) for part in drawn])
    found = table.groupby("bin")["value"].agg(middle=middle, layers="size")
    return found.assign(low=several.quantile(0.025), high=several.quantile(0.975))


def twin_layers(atlas: pd.DataFrame) -> pd.DataFrame:
    """The layers of networks that are there both trained and with random initial weights, one row each.

    Returns:
        The columns of the trained layer, and as ``NAME untrained`` those of its twin.

    Example:
        >>> twins = twin_layers(measure_atlas(["digits/mlp"]))
        >>> bool((twins["kurtosis"] > twins["kurtosis untrained"]).all())
        True
    """
    own = compared_layers(atlas)
    parts = [own[own["trained"]], own[~own["trained"]].drop_duplicates(["network", "layer"])]
    return parts[0].merge(parts[1], on=["network", "layer"], suffixes=("", " untrained"))


@plain_options
def modes_of_noise(weights: ndarray | pd.Series, bandwidth: str = "silverman/8") -> ndarray | pd.Series:
    """How many modes the density of so many evenly spread (uniform) random numbers has.

    Their true density is flat: every mode is noise of the sample. By Rice's formula a Gaussian kernel of width h has
    sqrt(3/2) / (2 pi h) maxima a unit of length. With h = 0.9 sd N^(-1/5) / d their number grows as N^(1/5). The
    algebra is ours; it ignores the edges, which matters little for narrow kernels.

    Arguments:
        bandwidth: "silverman", or "silverman/d".

    Raises:
        ValueError: another rule, or a number.

    Example:
        >>> round(modes_of_noise(100_000))
        60
    """
    rule = re.fullmatch(r"silverman(?:/([0-9.]+))?", bandwidth)
    if rule is None:
        raise ValueError(f"how many modes noise makes is known for silverman and silverman/NUMBER, not {bandwidth!r}")
    return sqrt(3 / 2) / (2 * pi) * sqrt(12) / 0.9 * float(rule[1] or 1) * weights**0.2


@plain_options
def measure_noise(
    sizes: Iterable[int] = (100, 1000, 10_000, 100_000, 1_000_000), bandwidth: str = "silverman/8", seed: int = 0
) -> pd.DataFrame:
    """What hashing makes of random numbers, in which there is nothing to find.

    Returns:
        A row a ``shape`` ("uniform", "normal", "Laplace") and number of ``weights``: ``distinct`` values after hashing,
        and their relative ``error``.

    Example:
        >>> measure_noise((1000,))["shape"].tolist()
        ['uniform', 'normal', 'Laplace']
    """
    rows = []
    for size in sizes:
        draw = np.random.default_rng(seed)
        drawn = {"uniform": draw.uniform(-1, 1, size), "normal": draw.normal(0, 1, size)}
        for shape, values in (drawn | {"Laplace": draw.laplace(0, 1, size)}).items():
            values = values.astype(np.float32)
            hashed = hash_weights(values, bandwidth=bandwidth)
            error = relative_error(values, np.asarray(hashed.values))
            rows.append({"shape": shape, "weights": size, "distinct": len(hashed.codebook), "error": error})
    return pd.DataFrame(rows)
