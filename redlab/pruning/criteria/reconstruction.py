"""Reconstruction (ours): what a layer would lose of its output if the other channels did a channel's work.

    score(j) = sum over the layers that read j of ||W_j||^2 / P_jj,  P the inverse covariance of the channels there;
    repeat: the lowest goes; W_k <- W_k - (P_kj / P_jj) W_j;  P <- P - P_j P_j' / P_jj

The step is that of the Optimal Brain Surgeon (Hassibi & Stork, NIPS 1992) on activations, whose covariance follows from
batch norm and weights without data (``readers``); the error is that of the reading layers' outputs, squared.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from scipy.linalg.blas import dsyr, dsyr2

from redlab.compression.channel_rows import slices_of
from redlab.progress import progress
from redlab.pruning.consumer_moments import Reader, readers_of
from redlab.pruning.scores import Scored, last_turn, turn
from redlab.pruning.subject import Subject


def reconstruction(subject: Subject) -> Scored:
    """The squared error of the next layers' outputs, per position, that the channel's removal costs in its turn."""
    values, skipped = {}, {}
    for group in progress(subject.free, "reconstruction"):
        readers = readers_of(subject, group)
        if isinstance(readers, str):
            skipped[group.name] = readers
        else:
            values[group.name] = _scores([_State(subject, reader) for reader in readers])
    return Scored(values, skipped=skipped)


def _scores(states: list[_State]) -> ndarray:
    n = len(states[0].precision)
    scores, alive, top = np.zeros(n), np.ones(n, bool), 0.0
    for _ in range(n - 1):
        errors = np.where(alive, sum(state.errors() for state in states), np.inf)
        going = int(errors.argmin())
        alive[going], top = False, turn(float(errors[going]), top)
        scores[going] = top
        for state in states:
            state.remove(going)
    scores[alive] = last_turn(top)
    return scores


class _State:
    """One reader with the channels that are left: the inverse covariance, and the products of its input slices.

    Both are symmetric; only what lies on and above the diagonal is kept up to date, in place.
    """

    def __init__(self, subject: Subject, reader: Reader) -> None:
        weight = subject.weights(folded=True)[reader.member.tensor]
        slices = slices_of(weight, reader.member.index, reader.member.dim).astype(np.float64)
        # In the order of columns, as BLAS wants it: a wide layer's removal then takes a tenth of numpy's time.
        self.precision = np.asfortranarray(np.linalg.inv(reader.covariance))
        self.gram = np.asfortranarray(slices @ slices.T)

    def errors(self) -> ndarray:
        return np.diag(self.gram) / np.diag(self.precision)

    def remove(self, j: int) -> None:
        """The slices of all the others take over what they can of channel j, its own becomes zero."""
        column, own = _column(self.precision, j), _column(self.gram, j)
        share = -column / column[j]  # -1 for j itself
        dsyr2(1, share, own + own[j] / 2 * share, a=self.gram, overwrite_a=True)
        dsyr(-1 / column[j], column, a=self.precision, overwrite_a=True)
        self.precision[: j + 1, j] = self.precision[j, j:] = 0
        self.precision[j, j] = 1


def _column(upper: ndarray, j: int) -> ndarray:
    """Column j of a symmetric matrix of which the upper half is there."""
    return np.concatenate([upper[:j, j], upper[j, j:]])
