"""What predicts the redundancy of a layer: least squares over an atlas, and a bootstrap over its networks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy import ndarray

from redlab.studies.atlas import compared_layers
from redlab.studies.redundancy import KINDS

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


def explain_atlas(atlas: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """``explain_redundancy`` of all three responses, and what the tails explain when they are added to each.

    Example:
        >>> explain_atlas(read_atlas(), resamples=10)["response"].nunique()
        3
    """
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

    Example:
        >>> found = explain_redundancy(compared_layers(read_atlas()), "products", resamples=10)
        >>> found.loc[found["drop"].idxmax(), "predictor"]
        'unit (log)'
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
