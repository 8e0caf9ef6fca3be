"""The density of a layer's weights: a Gaussian kernel estimate, its modes and the cuts between them.

d(w) = 1/(N h) sum_v K((w - v)/h) over the N scalars of a layer that are not exactly zero, as RED (arXiv 2105.14797)
looks at weights. Exact zeros belong to no mode, so that they set no bandwidth (our choice).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from numpy import ndarray

from redlab.hashing.bandwidth import parse_bandwidth, resolve_bandwidth
from redlab.hashing.contrast import check_contrast, strong_modes
from redlab.hashing.extrema import find_extrema
from redlab.hashing.vector import Vector, as_vector, binary_scale
from redlab.options import plain_options


@dataclass(frozen=True, eq=False)
class Density:
    """A kernel density estimate.

    A density of discrete or spiky data misleads: a layer already hashed shows one peak per value, as wide as the
    bandwidth, where there is no width at all.

    Attributes:
        grid: (m,) float64 ascending, in units of the weights, six bandwidths beyond them at either end. Where a grid of
            step h/12 would exceed 4 M points, just the modes and cuts.
        values: (m,) float64, the density there, in 1/units; it integrates to 1 (inf for a constant layer).
        modes: (p,) the local maxima M_1 < ... < M_p.
        cuts: (p - 1,) the local minima between them.
        bandwidth: h, in units of the weights; 0.0 for a constant layer.

    Example:
        >>> density = estimate_density(torch.tensor([1.0, 1.0, 2.0]), bandwidth=0.1)
        >>> density.modes.round(3).tolist(), np.trapezoid(density.values, density.grid).round(3).item()
        ([1.0, 2.0], 1.0)
        >>> density.frame()["mark"].value_counts()[["mode", "cut"]].tolist()
        [2, 1]
    """

    grid: Float64[ndarray, " m"]
    values: Float64[ndarray, " m"]
    modes: Float64[ndarray, " p"]
    cuts: Float64[ndarray, " c"]
    bandwidth: float

    def frame(self, **columns: object) -> pd.DataFrame:
        """A tidy frame for ``plot_density``: weight, density, mark ("", "mode" or "cut"), and what ``columns`` says."""
        weight = np.concatenate([self.grid, self.modes, self.cuts])
        mark = np.repeat(["", "mode", "cut"], [len(self.grid), len(self.modes), len(self.cuts)])
        density = np.interp(weight, self.grid, self.values)
        return pd.DataFrame({"weight": weight, "density": density, "mark": mark, **columns})


@plain_options
def estimate_density(
    weights: torch.Tensor | ndarray, bandwidth: str | float = "silverman/8", contrast: float = 0.0
) -> Density:
    """Estimate the density of all scalars but exact zeros in ``weights``, of any shape.

    Where all are zero, it is theirs.

    Arguments:
        bandwidth: "median_gap" or "mean_gap" (of consecutive distinct weights), "scott" = 1.06 sd N^(-1/5),
            "silverman" = 0.9 min(sd, IQR/1.34) N^(-1/5) (Silverman 1986, eq. 3.31; sd with N - 1; sd alone where the
            IQR is 0), any of them over a number, or h itself. The papers leave it open; the default is our choice.
        contrast: in [0, 1): modes that rise above their higher neighbouring cut by at most this share of their own
            height are dropped, weakest first (our choice). 0 keeps all.

    Defaults:
        bandwidth: ours. At silverman/4, /6, /8, /10 and /16 ResNet-20 keeps 87.58, 91.57, 91.69, 91.60 and 91.69 of
            91.73 % at 11, 16, 21, 24 and 33 % of the products; ResNet-56 is level from /6 on, MobileNetV1 keeps 2.8,
            25.2 and 72.4 of 80.4 % at /6, /8 and /16 (benchmarks/defaults.md, "bandwidth";
            `python -m benchmarks.defaults`).
            With as many values as at /8 ResNet-20 and MobileNetV1 keep 91.78 and 0.00 % by scott, 11.06 and 0.00 by
            mean_gap: gaps do not carry over from layer to layer (benchmarks/defaults.md, "bandwidth, equal values").
        contrast: 0, the papers' modes, all of them; 0.05 keeps 91.64 and 0.00 % there, on as many values.

    Raises:
        TypeError: integer, bool or complex weights, or neither tensor nor array; an option of another kind.
        ValueError: no weights, NaN or inf among them, an unknown bandwidth or one that is not positive.

    Example:
        >>> density = estimate_density(torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0]), bandwidth=0.25)
        >>> density.modes.round(3).tolist(), density.cuts.shape
        ([-1.0, 1.0], (1,))
    """
    parse_bandwidth(bandwidth)
    check_contrast(contrast)
    vector = as_vector(weights)
    if exponent := binary_scale(vector):
        h = bandwidth if isinstance(bandwidth, str) else float(np.ldexp(bandwidth, -exponent))
        small = vector.times_two_to(-exponent)
        return _times(density_of(small, resolve_bandwidth(small, h), contrast), exponent)
    return density_of(vector, resolve_bandwidth(vector, bandwidth), contrast)


def density_of(vector: Vector, h: float, contrast: float = 0.0) -> Density:
    """``estimate_density`` of a checked vector under a bandwidth in its own units; 0.0 is for a constant layer."""
    if h == 0.0:
        point = vector.weights[:1].astype(np.float64)
        return Density(point, np.array([np.inf]), point, np.empty(0), 0.0)
    found = find_extrema(vector, h)
    modes, cuts = strong_modes(found.turns, found.heights, contrast)
    return Density(found.grid, found.values, modes, cuts, h)


def _times(density: Density, exponent: int) -> Density:
    """The density of the weights times 2^exponent, exactly."""
    grid, modes, cuts = (np.ldexp(part, exponent) for part in (density.grid, density.modes, density.cuts))
    return Density(grid, np.ldexp(density.values, -exponent), modes, cuts, float(np.ldexp(density.bandwidth, exponent)))
