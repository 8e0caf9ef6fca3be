"""Compensation: what the consumer layers get in place of a removed channel.

A layer's output changes by the sum over the removed channels j of W_j (sum_k B_jk a_k + c_j - a_j), W_j its input
slices. Absorbing (Srinivas & Babu, BMVC 2015, arXiv 1507.06149) and the nearest neighbour (Kim et al., NeurIPS 2020)
give each j one k. Reconstruction (ours) gives it all of the group's, by least squares under the covariance of
``consumer_moments``, and the constant that keeps the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from redlab.channels.groups import Group, Member
from redlab.compression.bias import add_bias
from redlab.compression.channel_rows import effective_rows
from redlab.network.example import Example
from redlab.network.layers import copy_network
from redlab.network.recipe import append_step
from redlab.pruning.consumer_moments import ConsumerInput, consumer_inputs
from redlab.pruning.subject import Subject


@dataclass(frozen=True, eq=False)
class Share:
    """What one layer gets in place of the removed channels of a group.

    Attributes:
        member: its input slices.
        of_kept: B, (removed, kept).
        constant: c, (groups of the layer, removed), if there is one.
    """

    member: Member
    of_kept: ndarray
    constant: ndarray | None = None


@torch.no_grad()
def compensate(
    network: nn.Module,
    groups: Sequence[Group],
    kept: Mapping[str, ndarray],
    heirs: Mapping[str, ndarray],
    kind: str,
    example: Example | None = None,
) -> tuple[nn.Module, Sequence[Group], dict[str, str]]:
    """A copy of ``network`` in which the input slices of the kept channels also do the work of the removed ones.

    Arguments:
        groups: those of ``network``.
        kept: by group, a mask (size,); groups that are not named stay whole.
        heirs: as in ``Scores``; for "absorb".
        kind: one of ``COMPENSATIONS``; "none" and "merge" change nothing here.

    Returns:
        The copy, ``groups`` with the biases that its layers gained, and by group why nothing replaces its channels.
    """
    find = COMPENSATIONS[kind]
    losing = [group for group in groups if group.name in kept and not kept[group.name].all()]
    if find is None or not losing:
        return network, groups, {}
    subject = Subject(network, None, example)
    found = {
        group.name: _why_not(subject, group) or find(subject, group, kept[group.name], heirs.get(group.name))
        for group in losing
    }
    filled, gained = copy_network(network), []
    for name, shares in found.items():
        for share in shares if not isinstance(shares, str) else ():
            gained += _fill(filled, share, kept[name])
    append_step(filled, {"step": "compensate", "gained": gained})
    without = {name: why for name, why in found.items() if isinstance(why, str)}
    return filled, [_with_biases(group, gained) for group in groups], without


def _why_not(subject: Subject, group: Group) -> str:
    """The shares are those of the folded network. A norm that folds into the consumer layer scales its input here."""
    norms = {member.tensor.rpartition(".")[0] for member in group.producers}.intersection(subject.folded_ahead)
    return f"fold_batchnorm first: {', '.join(sorted(norms))} folds into the layer after it" if norms else ""


def _with_biases(group: Group, gained: Sequence[str]) -> Group:
    """A bias that a layer gained belongs to the channels that the layer makes."""
    own = {f"{layer}.weight": f"{layer}.bias" for layer in gained}
    biases = [replace(m, tensor=own[m.tensor], dim=0) for m in group.producers if m.tensor in own]
    return replace(group, producers=(*group.producers, *biases))


def _fill(network: nn.Module, share: Share, kept: ndarray) -> list[str]:
    """Change the slices of one layer, in place; returns its name if it gained a bias."""
    path, _, name = share.member.tensor.rpartition(".")
    layer = network.get_submodule(path)
    weight = getattr(layer, name).data.movedim(share.member.dim, 0)
    index = share.member.index.to(weight.device)
    stays, leaves = index[torch.from_numpy(kept)], index[torch.from_numpy(~kept)]
    removed = weight[leaves.flatten()].double().unflatten(0, leaves.shape)
    factors = torch.from_numpy(share.of_kept).to(weight.device)
    new = weight[stays.flatten()] + torch.einsum("jk,js...->ks...", factors, removed).flatten(0, 1)
    weight[stays.flatten()] = new.to(weight.dtype)
    if share.constant is None:
        return []
    without = [path] if layer.bias is None else []
    add_bias(layer, _shift(removed, torch.from_numpy(share.constant).to(weight.device)))
    return without


def _shift(removed: Tensor, constant: Tensor) -> Tensor:
    """(outputs,) the mean of what is lost.

    Arguments:
        removed: (removed, slices each, outputs, taps).
        constant: (groups, removed).
    """
    sums = removed.sum(1).flatten(2).sum(2) if removed.ndim > 3 else removed.sum(1)
    per_group = sums.unflatten(1, (len(constant), -1))
    return torch.einsum("gj,jgo->go", constant, per_group).flatten()


def _absorbed(subject: Subject, group: Group, kept: ndarray, targets: ndarray | None) -> list[Share] | str:
    """The merge target does the work of the channel."""
    if targets is None:
        return "its criterion names no merge targets"
    merged = np.array([merge_target(targets, kept, channel) for channel in np.flatnonzero(~kept).tolist()])
    shares = (merged[:, None] == np.flatnonzero(kept)).astype(np.float64)
    return [Share(member, shares) for member in group.consumers]


def merge_target(targets: ndarray, kept: ndarray, channel: int) -> int:
    """The kept channel that ``channel`` merges into, or -1. A target that is removed too passes on to its own."""
    while channel >= 0 and not kept[channel]:
        channel = targets[channel]
    return int(channel)


def _nearest(subject: Subject, group: Group, kept: ndarray, targets: ndarray | None) -> list[Share] | str:
    """The kept channel of most similar direction, scaled by the lengths; none where all directions are opposite.

    A depthwise convolution that the channels pass through counts as one more layer that makes them: there the scale is
    not exact, even for multiples.
    """
    rows = effective_rows(subject.folded, group).astype(np.float64)
    lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    cosines = (rows[~kept] @ rows[kept].T) / np.outer(lengths[~kept], lengths[kept])
    best = cosines.argmax(1)
    shares, lines = np.zeros_like(cosines), np.arange(len(best))
    shares[lines, best] = (lengths[~kept] / lengths[kept][best]) * (cosines[lines, best] > 0)
    return [Share(member, shares) for member in group.consumers]


def _reconstructed(subject: Subject, group: Group, kept: ndarray, targets: ndarray | None) -> list[Share] | str:
    """Least squares: B = C_removed,kept C_kept,kept^-1, c = the means that B misses."""
    inputs = consumer_inputs(subject, group)
    return inputs if isinstance(inputs, str) else [_least_squares(own, kept) for own in inputs]


def _least_squares(given: ConsumerInput, kept: ndarray) -> Share:
    covariance = given.covariance
    shares = np.linalg.solve(covariance[np.ix_(kept, kept)], covariance[np.ix_(kept, ~kept)]).T
    return Share(given.member, shares, given.mean[:, ~kept] - given.mean[:, kept] @ shares.T)


_Find = Callable[[Subject, Group, ndarray, ndarray | None], "list[Share] | str"]
COMPENSATIONS: dict[str, _Find | None] = {
    "none": None,
    "merge": None,  # ``apply_plan`` does it
    "absorb": _absorbed,
    "nearest": _nearest,
    "reconstruct": _reconstructed,
}
