"""Random: the baseline below which no criterion may fall.

score(c) ~ U(0, 1), independent of everything.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from redlab.options import check_whole
from redlab.pruning.subject import Scored, Subject


def random(subject: Subject, seed: int = 0) -> Scored:
    """A uniform number for every channel; the same ``seed`` gives the same ones."""
    draw = _generator(seed)
    return Scored({group.name: draw.random(group.size) for group in subject.free})


def random_weights(subject: Subject, seed: int = 0) -> dict[str, ndarray]:
    """A uniform number for every weight; the same ``seed`` gives the same ones."""
    draw = _generator(seed)
    return {layer.name: draw.random(tuple(layer.weight.shape)) for layer in subject.layers.values()}


def _generator(seed: int) -> np.random.Generator:
    check_whole("seed", seed, least=0)
    return np.random.default_rng(seed)
