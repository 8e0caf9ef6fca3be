"""Reconstruction (ours): what the consumer layers' outputs lose when the other channels take over a channel's work.

    score(j) = sum over the consumer layers of j of ||W_j||^2 / P_jj,  P the inverse covariance of the channels there;
    repeat: the lowest is removed; W_k <- W_k - (P_kj / P_jj) W_j;  P <- P - P_j P_j' / P_jj

The step is that of the Optimal Brain Surgeon (Hassibi & Stork, NIPS 1992) on activations, whose covariance follows from
batch norm and weights without data (``consumer_moments``). The error is that of the consumer layers' outputs, squared.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from scipy.linalg.blas import dsyr, dsyr2

from redlab.compression.channel_rows import slices_of
from redlab.progress import progress
from redlab.pruning.consumer_moments import ConsumerInput, consumer_inputs
from redlab.pruning.subject import Scored, Subject, last_turn, turn


def reconstruction(subject: Subject) -> Scored:
    """The squared error of the consumer layers' outputs, per position, when the channel is removed in its turn."""
    values, skipped = {}, {}
    for group in progress(subject.free, "reconstruction"):
        inputs = consumer_inputs(subject, group)
        if isinstance(inputs, str):
            skipped[group.name] = inputs
        else:
            values[group.name] = _scores([_State(subject, own) for own in inputs])
    return Scored(values, skipped=skipped)


def _scores(states: list[_State]) -> ndarray:
    n = len(states[0].precision)
    scores, alive, top = np.zeros(n), np.ones(n, bool), 0.0
    for _ in range(n - 1):
        errors = np.where(alive, sum(state.errors() for state in states), np.inf)
        removed = int(errors.argmin())
        alive[removed], top = False, turn(float(errors[removed]), top)
        scores[removed] = top
        for state in states:
            state.remove(removed)
    scores[alive] = last_turn(top)
    return scores


class _State:
    """One consumer layer with the channels that are left: their inverse covariance, and the Gram matrix of its slices.

    Both are symmetric. Only the diagonal and what lies above it are kept up to date, in place.
    """

    def __init__(self, subject: Subject, given: ConsumerInput) -> None:
        weight = subject.weights(folded=True)[given.member.tensor]
        slices = slices_of(weight, given.member.index, given.member.dim).astype(np.float64)
        # Column by column, as BLAS wants it: a removal in a wide layer then takes a tenth of numpy's time.
        self.precision = np.asfortranarray(np.linalg.inv(given.covariance))
        self.gram = np.asfortranarray(slices @ slices.T)

    def errors(self) -> ndarray:
        return np.diag(self.gram) / np.diag(self.precision)

    def remove(self, j: int) -> None:
        """The slices of the other channels take over what they can of channel j; its own become zero."""
        column, own = _column(self.precision, j), _column(self.gram, j)
        share = -column / column[j]  # -1 for j itself
        dsyr2(1, share, own + own[j] / 2 * share, a=self.gram, overwrite_a=True)
        dsyr(-1 / column[j], column, a=self.precision, overwrite_a=True)
        self.precision[: j + 1, j] = self.precision[j, j:] = 0
        self.precision[j, j] = 1


def _column(upper: ndarray, j: int) -> ndarray:
    """Column j of a symmetric matrix whose upper half is given."""
    return np.concatenate([upper[:j, j], upper[j, j:]])
