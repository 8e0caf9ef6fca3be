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
    "products": ("multiplications left (log share)", lambda f: np.log10(f["products_measured"])),
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
    blocks = {name: made(layers) for name, made in (PREDICTORS | (TAILS if tails else {})).items()}
    blocks = {name: block for name, block in blocks.items() if np.ptp(block.to_numpy(), axis=0).any()}
    owners = np.array([name for name, block in blocks.items() for _ in block])  # of the columns, after the first
    table = np.column_stack([np.ones(len(layers)), *(block.to_numpy() for block in blocks.values()), target(layers)])
    parts = [table[layers["network"].to_numpy() == name] for name in layers["network"].unique()]
    moments = np.stack([part.T @ part for part in parts])
    counts = np.random.default_rng(seed).multinomial(len(moments), np.full(len(moments), 1 / len(moments)), resamples)
    # The sums over all layers first, then those over each resample of the networks.
    sums = np.concatenate([moments.sum(0, keepdims=True), np.tensordot(counts, moments, 1)])
    slopes, r2 = _least_squares(sums, np.arange(len(owners) + 1))
    rows = []
    for name in blocks:
        others = np.append(0, 1 + np.flatnonzero(owners != name))
        alone = np.flatnonzero(owners == name)
        slope = slopes[:, 1 + alone[0]] if len(alone) == 1 else np.zeros(len(sums))
        row = {"response": words, "predictor": name, "r2": r2[0]}
        rows.append(row | _interval("drop", r2 - _least_squares(sums, others)[1]) | _interval("slope", slope))
    return pd.DataFrame(rows).rename(columns={"drop_low": "low", "drop_high": "high"})


def _least_squares(sums: ndarray, use: ndarray) -> tuple[ndarray, ndarray]:
    """Slopes (n, columns) and R^2 (n,) of n fits at once.

    Arguments:
        sums: (n, p, p), X'X of each, where X holds ones, the predictors and the response.
        use: the columns to fit with, 0 (the ones) among them.
    """
    inner, cross, total = sums[:, use[:, None], use], sums[:, use, -1], sums[:, -1, -1]
    # A resample may lack a kind: its column is then 0, and so is its slope.
    slopes = np.einsum("nij,nj->ni", np.linalg.pinv(inner, 1e-12, hermitian=True), cross)
    mean = cross[:, 0] ** 2 / inner[:, 0, 0]
    spread, explained = total - mean, np.einsum("ni,ni->n", slopes, cross) - mean
    return slopes, np.divide(explained, spread, out=np.zeros(len(sums)), where=spread > 1e-12 * total)


def _interval(name: str, values: ndarray) -> dict[str, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {name: values[0], f"{name}_low": low, f"{name}_high": high}
