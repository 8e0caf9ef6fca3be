"""The oracle: each channel is taken out and the loss measured (Molchanov et al., CVPR 2019, arXiv 1906.10771).

score(c) = mean over minibatches of (L - L without c)^2,  L the mean cross-entropy of a minibatch; or of all images
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.channels.groups import Group
from redlab.network.example import Inputs, answer
from redlab.progress import progress
from redlab.pruning.subject import Scored, Subject


def oracle(
    subject: Subject, only: Collection[str] | None = None, batch_size: int | None = None, chunk: int = 100
) -> Scored:
    """What other criteria estimate, measured: one pass over the images for every channel.

    Arguments:
        only: the names of the groups whose channels are taken out; by default all.
        batch_size: images over which the change is averaged before it is squared; None: all.
        chunk: images at once; memory only.
    """
    changes = removal_changes(subject, only, chunk)
    return Scored({name: mean_square(change, batch_size).numpy() for name, change in changes.items()})


def mean_square(changes: Tensor, batch_size: int | None) -> Tensor:
    """(channels, images) -> (channels,): averaged over each minibatch, squared, averaged over minibatches."""
    parts = changes.split(batch_size or changes.shape[1], dim=1)
    return torch.stack([part.mean(1).square() for part in parts]).mean(0)


@torch.no_grad()
def removal_changes(subject: Subject, only: Collection[str] | None = None, chunk: int = 100) -> dict[str, Tensor]:
    """By group (size, images) float64: how the loss of each image changes when each channel is taken out."""
    network, groups = subject.folded.eval(), [g for g in subject.free if only is None or g.name in only]
    batches = list(subject.batches(chunk))
    whole = _losses(network, batches)
    found: dict[str, list[Tensor]] = {g.name: [] for g in groups}
    jobs = [(g, channel) for g in groups for channel in range(g.size)]
    for group, channel in progress(jobs, "channels taken out"):
        found[group.name].append(_losses_without(network, group, channel, batches) - whole)
    return {name: torch.stack(changes) for name, changes in found.items()}


def _losses_without(network: nn.Module, group: Group, channel: int, batches: list[tuple[Inputs, Tensor]]) -> Tensor:
    """The losses without ``channel`` in its consumer layers; the weights are restored afterwards."""
    taken = []
    for member in group.consumers:
        slices = network.get_parameter(member.tensor).movedim(member.dim, 0)
        index = member.index[channel].to(slices.device)
        taken.append((slices, index, slices[index].clone()))
        slices[index] = 0
    losses = _losses(network, batches)
    for slices, index, values in taken:
        slices[index] = values
    return losses


def _losses(network: nn.Module, batches: list[tuple[Inputs, Tensor]]) -> Tensor:
    return torch.cat([F.cross_entropy(answer(network, x), y, reduction="none").double().cpu() for x, y in batches])
