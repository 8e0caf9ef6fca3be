"""What hashing makes of random numbers: the measure of what it finds in weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import pi, sqrt

import numpy as np
import pandas as pd
from numpy import ndarray

from redlab.hashing.weights import hash_weights, relative_error
from redlab.options import plain_options


@plain_options
def modes_of_noise(weights: ndarray | pd.Series, bandwidth: str = "silverman/8") -> ndarray | pd.Series:
    """How many modes the density of so many evenly spread (uniform) random numbers has.

    Their true density is flat: every mode is noise of the sample. By Rice's formula a Gaussian kernel of width h makes
    sqrt(3/2) / (2 pi h) maxima a unit of length, and h = 0.9 sd N^(-1/5) / d, so that their number grows as N^(1/5).
    Our algebra; edges are left out, which is good for narrow kernels.

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
        drawn = {
            "uniform": draw.uniform(-1, 1, size),
            "normal": draw.normal(size=size),
            "Laplace": draw.laplace(size=size),
        }
        for shape, values in drawn.items():
            values = values.astype(np.float32)
            hashed = hash_weights(values, bandwidth=bandwidth)
            error = relative_error(values, np.asarray(hashed.values))
            rows.append({"shape": shape, "weights": size, "distinct": len(hashed.codebook), "error": error})
    return pd.DataFrame(rows)
