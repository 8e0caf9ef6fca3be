"""The atlas: ``measure_redundancy`` of many networks in one frame, and what it says of them.

Layers that hashing skips (all weights equal, shared with another) are in the frame and in no comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import pi, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy import ndarray

from redlab.atlas import KINDS, measure_redundancy
from redlab.hashing import hash_weights, relative_error
from redlab.networks import list_networks
from redlab.paths import checkout
from redlab.progress import progress
from redlab.storage import load_network

KEY = ["network", "trained", "seed"]
# What is explained: the logarithm of a share, or the share itself where it is mostly 0.
RESPONSES = {
    "values": ("distinct values (log share)", lambda f: np.log10(f["distinct"] / f["weights"])),
    "products": ("products left (log share)", lambda f: np.log10(f["products_measured"])),
    "near": ("near filters (share)", lambda f: f["near"]),
}
# What explains it, by name: columns of one number a layer, or several.
PREDICTORS = {
    "weights (log)": lambda f: np.log10(f[["weights"]]),
    "unit (log)": lambda f: np.log10(f[["unit"]]),
    "depth": lambda f: f[["depth"]],
    "kind": lambda f: pd.DataFrame(
        {kind: (f["kind"] == kind) * 1.0 for kind in KINDS[1:] if (f["kind"] == kind).any()}
    ),
    "trained": lambda f: f[["trained"]] * 1.0,
}
TAILS = {"tails (log), added": lambda f: np.log10(f[["kurtosis"]])}


def atlas_rows(name: str, trained: bool, seed: int = 0, bandwidth: str | float = "silverman/8") -> pd.DataFrame:
    """``measure_redundancy`` of one network, after the columns ``network``, ``trained``, ``seed`` and ``bandwidth``.

    Arguments:
        trained: with its trained weights (``seed`` is then -1); else with random initial weights, those that its own
            code draws after ``torch.manual_seed(seed)``.

    Raises: as ``load_network``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = load_network(name, weights="default" if trained else None)
    about = {"network": name, "trained": trained, "seed": -1 if trained else seed, "bandwidth": str(bandwidth)}
    frame = measure_redundancy(network, bandwidth)
    return pd.concat([pd.DataFrame(about, index=frame.index), frame], axis=1)


def measure_atlas(names: Iterable[str], bandwidth: str | float = "silverman/8") -> pd.DataFrame:
    """``atlas_rows`` of each network, trained and with random initial weights (seed 0)."""
    pairs = [(name, trained) for name in names for trained in (True, False)]
    rows = [atlas_rows(*pair, bandwidth=bandwidth) for pair in progress(pairs, "networks")]
    return pd.concat(rows, ignore_index=True)


def read_atlas(path: str | Path | None = None, bandwidth: str | float = "silverman/8") -> pd.DataFrame:
    """The rows of a sweep (``python -m benchmarks.atlas``) that were measured at this bandwidth; maybe none.

    Arguments:
        path: of its parquet file; None for ``benchmarks/atlas.parquet`` of the checkout.
    """
    rows = pd.read_parquet(path or checkout() / "benchmarks" / "atlas.parquet")
    rows = rows.astype(dict.fromkeys(rows.select_dtypes("category"), str))
    rows = rows.astype(dict.fromkeys(rows.select_dtypes("int32"), "int64"))
    return rows[rows["bandwidth"] == str(bandwidth)].reset_index(drop=True)


def join_atlas(kept: pd.DataFrame, live: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``kept``, then those of ``live`` of networks (trained or not) that are not in it."""
    there = pd.MultiIndex.from_frame(live[KEY]).isin(pd.MultiIndex.from_frame(kept[KEY]))
    return pd.concat([kept, live[~there]], ignore_index=True) if len(kept) else live


def compare_atlas(kept: pd.DataFrame, live: pd.DataFrame) -> pd.DataFrame:
    """How far two measurements of the same layers are apart.

    Returns:
        A row a network that both have: network, trained, ``layers``; ``agreeing``: those whose numbers all agree to a
        thousandth; and the largest ``difference`` of any number, relative to the larger of it and 1e-3. A file that
        holds float32 differs by 1e-7; where another processor rounds otherwise, a layer may have a mode more or less.
    """
    both = kept.merge(live, on=[*KEY, "layer"], suffixes=("", " live"), validate="one_to_one")
    names = [name for name in live.select_dtypes("number") if name not in KEY]
    apart = [(both[name] - both[f"{name} live"]).abs() / both[f"{name} live"].abs().clip(lower=1e-3) for name in names]
    both["difference"] = pd.concat(apart, axis=1).max(axis=1) if len(both) else 0.0
    both["agrees"] = both["difference"] < 1e-3
    groups = both.groupby(["network", "trained"], sort=False)
    columns = {"layers": ("layer", "size"), "agreeing": ("agrees", "sum"), "difference": ("difference", "max")}
    return groups.agg(**columns).reset_index()


def missing_networks(atlas: pd.DataFrame) -> dict[str, list[str]]:
    """Names that ``load_network`` knows and the atlas has not: ``"trained"``, and not ``"at all"``."""
    trained, any_ = set(atlas.loc[atlas["trained"], "network"]), set(atlas["network"])
    known = list_networks()
    return {
        "trained": [name for name in known if name not in trained],
        "at all": [name for name in known if name not in any_],
    }


def compared_layers(atlas: pd.DataFrame, filters: bool = False) -> pd.DataFrame:
    """The layers that hashing hashed, with two columns more.

    ``unit``: the weights that an input channel meets; ``noise``: ``modes_of_noise`` of so many weights.

    Arguments:
        filters: only layers whose filters have others to be compared with (all but depthwise ones).
    """
    own = atlas[(atlas["skipped"] == "") & (atlas["products_measured"] > 0)]
    own = own[own["outputs"] > own["groups"]] if filters else own
    noise = modes_of_noise(own["weights"], own["bandwidth"].iloc[0]) if len(own) else 0.0
    return own.assign(unit=own["weights"] // own["inputs"], noise=noise)


def summarise_atlas(atlas: pd.DataFrame) -> pd.DataFrame:
    """The atlas by network, one row for its trained and one for its random initial weights.

    Returns:
        ``network``, ``trained``; ``layers`` and, of them, ``skipped``; ``weights``; ``distinct`` values after hashing,
        summed over layers, and ``share`` of the weights that they are; ``error``, mean over layers; ``bits`` a weight
        (entropy) and ``products`` left by unit "channel" with what ``chance`` would leave, as means over weights;
        ``duplicates``; ``near`` and ``alike``, shares of the filters that have others to be compared with.
    """
    return pd.DataFrame([_summary(rows) for _, rows in atlas.groupby(KEY, sort=False)])


def _summary(rows: pd.DataFrame) -> dict:
    own, filters = compared_layers(rows), compared_layers(rows, filters=True)
    first = rows.iloc[0]
    return {
        "network": first["network"],
        "trained": bool(first["trained"]),
        "layers": len(rows),
        "skipped": len(rows) - len(own),
        "weights": int(own["weights"].sum()),
        "distinct": int(own["distinct"].sum()),
        "share": own["distinct"].sum() / own["weights"].sum(),
        "error": own["error"].mean(),
        **{
            name: np.average(own[column], weights=own["weights"])
            for name, column in (
                ("bits", "entropy"),
                ("products", "products_measured"),
                ("chance", "products_expected"),
            )
        },
        "duplicates": int(filters["duplicates"].sum()),
        **{name: np.average(filters[name], weights=filters["outputs"]) for name in ("near", "alike")},
    }


def twin_layers(atlas: pd.DataFrame) -> pd.DataFrame:
    """The layers of networks that are there both trained and with random initial weights, one row each.

    Returns:
        The columns of the trained layer, and as ``NAME untrained`` those of its twin.
    """
    own = compared_layers(atlas)
    parts = [own[own["trained"]], own[~own["trained"]].drop_duplicates(["network", "layer"])]
    return parts[0].merge(parts[1], on=["network", "layer"], suffixes=("", " untrained"))


def modes_of_noise(weights: ndarray | pd.Series, bandwidth: str = "silverman/8") -> ndarray | pd.Series:
    """How many modes the density of so many evenly spread (uniform) random numbers has.

    Their true density is flat: every mode is noise of the sample. By Rice's formula a Gaussian kernel of width h makes
    sqrt(3/2) / (2 pi h) maxima a unit of length, and h = 0.9 sd N^(-1/5) / d, so that their number grows as N^(1/5).
    Our algebra; edges are left out, which is good for narrow kernels.

    Arguments:
        bandwidth: "silverman", or "silverman/d".

    Raises:
        ValueError: another rule, or a number.
    """
    rule = re.fullmatch(r"silverman(?:/([0-9.]+))?", bandwidth)
    if rule is None:
        raise ValueError(f"how many modes noise makes is known for silverman and silverman/NUMBER, not {bandwidth!r}")
    return sqrt(3 / 2) / (2 * pi) * sqrt(12) / 0.9 * float(rule[1] or 1) * weights**0.2


def measure_noise(
    sizes: Iterable[int] = (100, 1000, 10_000, 100_000, 1_000_000), bandwidth: str = "silverman/8", seed: int = 0
) -> pd.DataFrame:
    """What hashing makes of random numbers, in which there is nothing to find.

    Returns:
        A row a ``shape`` ("uniform", "normal", "Laplace") and number of ``weights``: ``distinct`` values after hashing,
        and their relative ``error``.
    """
    rows = []
    for size in sizes:
        draw = np.random.default_rng(seed)
        drawn = {
            "uniform": draw.uniform(-1, 1, size),
            "normal": draw.normal(size=size),
            "Laplace": draw.laplace(size=size),
        }
        for shape, values in drawn.items():
            values = values.astype(np.float32)
            hashed = hash_weights(values, bandwidth=bandwidth)
            error = relative_error(values, hashed.values)
            rows.append({"shape": shape, "weights": size, "distinct": len(hashed.codebook), "error": error})
    return pd.DataFrame(rows)


def explain_atlas(atlas: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """``explain_redundancy`` of all three responses, and what the tails explain when they are added to each."""
    frames = []
    for response in RESPONSES:
        layers = compared_layers(atlas, filters=response == "near")
        added = explain_redundancy(layers, response, resamples, seed, tails=True)
        frames += [explain_redundancy(layers, response, resamples, seed), added[added["predictor"].isin(TAILS)]]
    return pd.concat(frames, ignore_index=True)


def explain_redundancy(
    layers: pd.DataFrame, response: str, resamples: int = 1000, seed: int = 0, tails: bool = False
) -> pd.DataFrame:
    """How much of the variance of a ``response`` over layers each predictor explains that the others cannot.

    Ordinary least squares, a layer one observation. Confidence comes from a bootstrap over networks, since layers of
    one network are no independent observations. Nor are networks of one family: the intervals are rather too narrow.

    Arguments:
        layers: ``compared_layers``, for "near" with ``filters``.
        response: "values" (log10 of distinct values a weight), "products" (log10 of the share left), or "near" (the
            share itself, which is mostly 0 and has no logarithm).
        tails: add the log of the kurtosis, "tails (log), added", to the predictors weights, unit, depth, kind, trained.

    Returns:
        A row a predictor: ``response``, ``predictor``, ``r2`` of all together, ``drop`` in it without this one, and the
        2.5 % and 97.5 % points of the drop, ``low`` and ``high``; ``slope`` (of several columns, 0) with its own points
        ``slope_low`` and ``slope_high``. Predictors that do not vary are left out.
    """
    words, target = RESPONSES[response]
    chosen = PREDICTORS | (TAILS if tails else {})
    blocks = {name: made(layers) for name, made in chosen.items()}
    blocks = {name: block for name, block in blocks.items() if np.ptp(block.to_numpy(), axis=0).any()}
    names = [name for name, block in blocks.items() for _ in block]
    table = np.column_stack([np.ones(len(layers)), *(block.to_numpy() for block in blocks.values()), target(layers)])
    moments = _moments_by_network(table, layers["network"])
    weights = np.random.default_rng(seed).multinomial(len(moments), np.full(len(moments), 1 / len(moments)), resamples)
    fits = [_fit(moments.sum(0), names), *(_fit(np.tensordot(w, moments, 1), names) for w in weights)]
    return pd.DataFrame([{"response": words, **_row(name, fits)} for name in blocks])


def _moments_by_network(table: ndarray, networks: pd.Series) -> ndarray:
    """(networks, p, p) the products of the columns with one another, summed over each network's layers."""
    rows = [table[networks.to_numpy() == name] for name in dict.fromkeys(networks)]
    return np.stack([part.T @ part for part in rows])


def _fit(moments: ndarray, names: list[str]) -> dict:
    """R^2, the drop without each predictor, and the slopes, from the moments of: 1, the predictors, the response."""
    slopes, full = _solve(moments, np.ones(len(names), bool))
    drops = {name: full - _solve(moments, np.array([own != name for own in names]))[1] for name in dict.fromkeys(names)}
    alone = {name: slopes[names.index(name)] if names.count(name) == 1 else 0.0 for name in drops}
    return {"r2": full, "drop": drops, "slope": alone}


def _solve(moments: ndarray, kept: ndarray) -> tuple[ndarray, float]:
    """Slopes of the kept predictors and R^2."""
    use = np.flatnonzero(np.concatenate([[True], kept]))
    inner, cross, total = moments[np.ix_(use, use)], moments[use, -1], moments[-1, -1]
    slopes = np.linalg.lstsq(inner, cross, rcond=1e-12)[0]  # a resample may lack a kind: its column is then 0
    spread = total - cross[0] ** 2 / inner[0, 0]
    return slopes[1:], float(1 - (total - slopes @ cross) / spread) if spread > 1e-12 * total else 0.0


def _row(name: str, fits: list[dict]) -> dict:
    row = {"predictor": name, "r2": fits[0]["r2"]}
    for key, low, high in (("drop", "low", "high"), ("slope", "slope_low", "slope_high")):
        several = [fit[key].get(name, 0.0) for fit in fits[1:]]
        row |= {key: fits[0][key][name], low: np.quantile(several, 0.025), high: np.quantile(several, 0.975)}
    return row
