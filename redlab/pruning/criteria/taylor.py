"""Taylor importance: by how much the loss changes when a channel is removed, from its gradient (Molchanov et al.,
CVPR 2019, arXiv 1906.10771; the authors' code was read).

    gate:        score(c) = mean over minibatches of (z dL/dz)^2,  z = 1 after batch norm, dL/dz = gamma dL/dgamma + beta dL/dbeta
    second:      score(c) = mean over minibatches of (-z dL/dz + z^2/2 d2L/dz2)^2
    joint:       score(c) = mean over minibatches of (sum over the weights w of filter c of w dL/dw)^2
    independent: score(c) = mean over minibatches of the sum over the weights w of filter c of (w dL/dw)^2
    weights:     score(w) = mean over minibatches of (w dL/dw)^2

L is the mean cross-entropy of a minibatch, so the size of a minibatch is part of the criterion.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from redlab.network.example import answer
from redlab.options import check_one_of, check_whole
from redlab.pruning.gates import expected_change, gate_gradients
from redlab.pruning.subject import UNREAD, Scored, Subject, per_channel

FORMS = ("gate", "joint", "independent")
SKIP_FIXES = {"producers": 0, "mean": 2, "official": 1, "none": 0}  # the power of B that scores are divided by


def taylor(
    subject: Subject,
    form: str = "gate",
    order: int = 1,
    skip_fix: str = "producers",
    batch_size: int = 64,
    chunk: int = 128,
    probes: int = 64,
    seed: int = 0,
) -> Scored:
    """The squared change of the loss that a Taylor expansion expects of removing each channel.

    Arguments:
        form: "gate", the paper's best, or "joint" or "independent" over the weights of the producing layers
            (docs/defaults.md).
        order: 1, or 2 (gate only): diagonal Hessian, exact up to 1,000 gates, above by ``probes`` random vectors.
        skip_fix: the gates of a residual stage. "producers" (our choice, docs/defaults.md): one gate a channel for all
            consumer layers, the exact first-order term of removal. The others put a gate after each of the B sums and
            add the gradients: "none"; "mean", divided by B; "official", the score divided by B as the authors do.
        batch_size: images in a minibatch; dL/dz is averaged over them before it is squared (docs/defaults.md).
        chunk: images at once; memory only, no score depends on it.

    """
    for name, value, known in (("form", form, FORMS), ("order", order, (1, 2)), ("skip_fix", skip_fix, SKIP_FIXES)):
        check_one_of(name, value, known)
    if order == 2 and (form, skip_fix) != ("gate", "producers"):
        raise ValueError("the second order is that of one gate a channel: form='gate', skip_fix='producers'")
    check_whole("batch_size", batch_size)
    check_whole("probes", probes, 2)  # one has no standard error
    if form != "gate":
        return _of_rows(subject, form, batch_size, chunk)
    if order == 2:
        return expected_change(subject, batch_size, chunk, probes, seed)
    gradients, tensors = gate_gradients(subject, chunk, after_sums=skip_fix != "producers")
    power = SKIP_FIXES[skip_fix]
    values = {name: _mean_square(own, batch_size) / tensors[name] ** power for name, own in gradients.items()}
    return Scored(values, skipped={name: UNREAD for name, count in tensors.items() if count == 0})


def _mean_square(gradients: Tensor, batch_size: int) -> ndarray:
    """(images, size) -> (size,): averaged over each minibatch, squared, averaged over minibatches."""
    return torch.stack([part.mean(0).square() for part in gradients.split(batch_size)]).mean(0).numpy()


def _of_rows(subject: Subject, form: str, batch_size: int, chunk: int) -> Scored:
    totals, count = {group.name: np.zeros(group.size) for group in subject.free}, 0
    for product in _weight_products(subject, batch_size, chunk):
        count += 1
        if form == "independent":
            product = {name: own.square() for name, own in product.items()}
        for group in subject.free:
            sums = per_channel(group, product, "sum")
            totals[group.name] += sums**2 if form == "joint" else sums
    return Scored({name: total / count for name, total in totals.items()})


def taylor_of_weights(subject: Subject, batch_size: int = 64, chunk: int = 128) -> dict[str, ndarray]:
    """(w dL/dw)^2 of every weight, averaged over minibatches; arguments as above."""
    totals: dict[str, Tensor] = {}
    count = 0
    for product in _weight_products(subject, batch_size, chunk):
        count += 1
        for name, own in product.items():
            totals[name] = totals.get(name, 0) + own.square()
    return {layer.name: (totals[name] / count).cpu().numpy() for name, layer in subject.layers.items()}


@torch.inference_mode(False)
@torch.enable_grad()
def _weight_products(subject: Subject, batch_size: int, chunk: int) -> Iterator[dict[str, Tensor]]:
    """For each minibatch w dL/dw of every weight, in float64."""
    weights = {name: layer.weight.requires_grad_() for name, layer in subject.layers.items()}
    for minibatch in subject.minibatches(batch_size, chunk, "gradients"):
        totals, count = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}, 0
        for inputs, labels in minibatch:
            loss = F.cross_entropy(answer(subject.network, inputs), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    totals[name] += gradient
            count += len(labels)
        yield {name: weights[name].detach().double() * total / count for name, total in totals.items()}
