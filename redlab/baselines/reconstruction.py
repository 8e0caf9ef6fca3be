"""Reconstruction (ours): what a layer would lose of its output if the other channels did a channel's work.

    score(j) = sum over the layers that read j of ||W_j||^2 / P_jj,  P the inverse covariance of the channels there;
    repeat: the lowest goes; W_k <- W_k - (P_kj / P_jj) W_j;  P <- P - P_j P_j' / P_jj

The step is that of the Optimal Brain Surgeon (Hassibi & Stork, NIPS 1992) on activations, whose covariance follows from
batch norm and weights without data (``readers``); the error is that of the reading layers' outputs, squared.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from redlab.filters import slices_of
from redlab.progress import progress
from redlab.readers import Reader, readers_of
from redlab.scores import Scored, last_turn, turn
from redlab.subject import Subject


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
    """One reader with the channels that are left: the inverse covariance, and the products of its input slices."""

    def __init__(self, subject: Subject, reader: Reader) -> None:
        weight = subject.weights(folded=True)[reader.member.tensor]
        slices = slices_of(weight, reader.member.index, reader.member.dim).astype(np.float64)
        self.precision, self.gram = np.linalg.inv(reader.covariance), slices @ slices.T

    def errors(self) -> ndarray:
        return np.diag(self.gram) / np.diag(self.precision)

    def remove(self, j: int) -> None:
        """The slices of all the others take over what they can of channel j, its own becomes zero."""
        share = -self.precision[:, j] / self.precision[j, j]  # -1 for j itself
        own = self.gram[j].copy()
        self.gram += np.outer(share, own) + np.outer(own, share) + own[j] * np.outer(share, share)
        self.precision -= np.outer(self.precision[:, j], self.precision[j]) / self.precision[j, j]
        self.precision[j, j] = 1
