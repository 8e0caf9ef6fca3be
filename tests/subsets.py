"""What draws without replacement do, by enumeration: the law that masks are compared with."""

from itertools import combinations, permutations

import numpy as np


def subset_chances(logits, k):
    """By each subset of ``k`` entries its probability where entries are drawn in turn, each in proportion to exp."""
    share = np.exp(np.asarray(logits, float) - max(logits))
    share /= share.sum()
    return {chosen: sum(_in_turn(share, order) for order in permutations(chosen))
            for chosen in combinations(range(len(share)), k)}  # fmt: skip


def inclusion_chances(logits, k):
    """The probability that each entry is among the ``k``."""
    chances = subset_chances(logits, k)
    return np.array([sum(own for chosen, own in chances.items() if entry in chosen) for entry in range(len(logits))])


def _in_turn(share, order):
    left, chance = 1.0, 1.0
    for entry in order:
        chance *= share[entry] / left
        left -= share[entry]
    return chance
