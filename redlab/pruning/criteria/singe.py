"""SInGE: the gradient is followed while the neuron shrinks to nothing (Yvinec et al., NeurIPS 2022, arXiv 2207.04089).

    score(c) = integral over t from 0 to 1 of |dL/dz_c| at z_c = t

Never less than |L - L without c|, and equal to it if the loss only falls or only rises. Ours are the midpoint rule over
equal steps, the mean over minibatches, and the path: all channels of a group shrink together, at one gradient a group
and step. One channel at a time takes one gradient a channel and step.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from redlab.channels.groups import Group
from redlab.network.example import Inputs, place_of
from redlab.options import check_one_of, check_whole
from redlab.progress import progress
from redlab.pruning.gates import gated
from redlab.pruning.subject import Scored, Subject

PATHS = ("group", "neuron")


def singe(subject: Subject, path: str = "group", steps: int = 8, batch_size: int = 64, chunk: int = 128) -> Scored:
    """The integrated gradient of each channel's gate.

    Arguments:
        path: "group" (docs/defaults.md), all channels of a group shrink together; "neuron", each by itself.
        steps: of the integral (docs/defaults.md).
        batch_size: images in a minibatch, over whose mean loss the absolute value is taken.
        chunk: images at once; memory only.

    """
    check_one_of("path", path, PATHS)
    check_whole("steps", steps)
    places = [(k + 0.5) / steps for k in range(steps)]
    groups = subject.consumed
    totals = {group.name: np.zeros(group.size) for group in groups}
    minibatches = [list(parts) for parts in subject.minibatches(batch_size, chunk, "")]
    for group in progress(groups, "shrinking"):
        for parts in minibatches:
            gradients = [_gradient(subject, group, path, place, parts).abs().numpy() for place in places]
            totals[group.name] += np.mean(gradients, axis=0) / len(minibatches)
    return Scored(totals, skipped=subject.unread)


def _gradient(subject: Subject, group: Group, path: str, place: float, parts: list[tuple[Inputs, Tensor]]) -> Tensor:
    """(size,) dL/dz of each channel at z = ``place``, L the mean loss of a minibatch."""
    if path == "group":
        return _at(subject, group, torch.full((group.size,), place), parts)
    alone = 1 - (1 - place) * torch.eye(group.size)  # row c: only channel c has shrunk
    return torch.stack([_at(subject, group, gates, parts)[c] for c, gates in enumerate(alone)])


@torch.inference_mode(False)
@torch.enable_grad()
def _at(subject: Subject, group: Group, gates: Tensor, parts: list[tuple[Inputs, Tensor]]) -> Tensor:
    total, count = torch.zeros(group.size, dtype=torch.float64), sum(len(labels) for _, labels in parts)
    for inputs, labels in parts:
        own = gates.to(**place_of(subject.network)).requires_grad_()
        loss = F.cross_entropy(gated(subject.network, [group], [own], inputs), labels, reduction="sum") / count
        total += torch.autograd.grad(loss, own)[0].double().cpu()
    return total
