"""The second order of removing a channel: how the loss curves along each gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from redlab.channels.groups import Group
from redlab.network.example import Inputs, place_of
from redlab.progress import progress
from redlab.pruning.gates import gated
from redlab.pruning.scores import Scored
from redlab.pruning.subject import Subject

EXACT_UP_TO = 1000  # gates; above, random probes


@torch.inference_mode(False)
@torch.enable_grad()
def expected_change(subject: Subject, batch_size: int, chunk: int, probes: int, seed: int) -> Scored:
    """Mean over minibatches of (-z g + z^2/2 h)^2, g and h the first and second derivatives of the loss at z = 1.

    The diagonal h is exact up to 1,000 gates in all: one product with the Hessian a gate. Above that it is Hutchinson's
    estimate, the mean of v * Hv over ``probes`` vectors v of random signs. The square of an estimate is too large by
    its variance, which is subtracted, so a score may be below 0. ``errors`` holds the standard errors of the scores.
    """
    groups = subject.consumed
    exact = sum(group.size for group in groups) <= EXACT_UP_TO
    generator = torch.Generator().manual_seed(seed)
    changes, errors = [], []
    for minibatch in subject.minibatches(batch_size, chunk, "curvature"):
        first, second, spread = _derivatives(subject, groups, list(minibatch), 0 if exact else probes, generator)
        change = second / 2 - first
        changes.append(change.square() - spread.square() / 4)
        errors.append((change * spread).square() + spread**4 / 8)  # (change + spread / 2 N(0, 1))^2 has this variance
    sizes = [group.size for group in groups]
    scores = torch.stack(changes).mean(0).split(sizes)
    values = {group.name: score.numpy() for group, score in zip(groups, scores, strict=True)}
    if exact:
        return Scored(values, skipped=subject.unread)
    deviations = (torch.stack(errors).sum(0).sqrt() / len(errors)).split(sizes)
    return Scored(
        values, errors={g.name: d.numpy() for g, d in zip(groups, deviations, strict=True)}, skipped=subject.unread
    )


def _derivatives(
    subject: Subject, groups: Sequence[Group], parts: Sequence[tuple[Inputs, Tensor]], probes: int, generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(gates,) each, float64: gradient, diagonal of the Hessian and its standard error, of the mean loss."""
    count, place = sum(len(labels) for _, labels in parts), place_of(subject.network)
    sizes = [group.size for group in groups]
    signs = torch.randint(0, 2, (probes, sum(sizes)), generator=generator).double() * 2 - 1
    first = torch.zeros(sum(sizes), dtype=torch.float64)
    products = torch.zeros(probes or 1, sum(sizes), dtype=torch.float64)
    for inputs, labels in parts:
        gates = [torch.ones(size, **place, requires_grad=True) for size in sizes]
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            loss = F.cross_entropy(gated(subject.network, groups, gates, inputs), labels, reduction="sum") / count
            gradient = torch.cat(torch.autograd.grad(loss, gates, create_graph=True))
            first += gradient.detach().double().cpu()
            along = _along(gradient, gates)
            if probes:
                products += torch.stack([sign * along(sign) for sign in progress(signs, "probes")])
            else:
                units = progress(torch.eye(sum(sizes), dtype=torch.float64), "gates")
                products[0] += torch.stack([unit @ along(unit) for unit in units])
    spread = products.std(0) / probes**0.5 if probes > 1 else torch.zeros_like(first)
    return first, products.mean(0), spread


def _along(gradient: Tensor, gates: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """The Hessian times a vector."""

    def along(vector: Tensor) -> Tensor:
        parts = torch.autograd.grad(gradient, gates, vector.to(gradient), retain_graph=True, materialize_grads=True)
        return torch.cat(parts).double().cpu()

    return along
