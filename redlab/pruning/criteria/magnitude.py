"""Magnitude: small weights matter little (LeCun et al. 1989 argue against it; Han et al., NIPS 2015, and for filters
Li et al., ICLR 2017, arXiv 1608.08710, use it).

    weights:  score(w) = |w|
    channels: score(c) = (sum over the weights w of filter c of |w|^p)^(1/p),  p = 1 or 2
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from redlab.pruning.subject import Scored, Subject, per_channel


def magnitude(subject: Subject, p: float = 1, folded: bool = False, reduction: str = "mean") -> Scored:
    """The p-norm of every filter.

    Arguments:
        p: 1 (Li et al.) or 2, or any other positive number.
        folded: of the weights as batch norm scales them (our addition), not of those of the layer alone.
        reduction: over the layers of a coupled group, of the sums before the root.
    """
    if not 0 < p < np.inf:
        raise ValueError(f"p must be positive and finite, not {p!r}")
    powers = {name: weight.abs().double() ** p for name, weight in subject.weights(folded).items()}
    return Scored({group.name: per_channel(group, powers, reduction) ** (1 / p) for group in subject.free})


def magnitude_of_weights(subject: Subject, folded: bool = False) -> dict[str, ndarray]:
    """The absolute value of every weight; ``folded`` as above."""
    weights = subject.weights(folded)
    return {layer.name: np.abs(weights[name].cpu().double().numpy()) for name, layer in subject.layers.items()}
