"""What the consumer layers of a group get of its channels, without data: mean and covariance.

Batch norm knows the mean and spread of a channel in training (``moments``). How two channels vary together follows from
the weights that make them. All of that is our choice: inputs count as uncorrelated across channels, and pixels at
distance d as correlated by 2^-d. A ReLU turns a correlation r into sum_k r^k c_k c'_k, with c_k the coefficients of the
rectified normal variable in Hermite polynomials (Mehler's formula).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from redlab.channels.groups import Group, Member
from redlab.compression.channel_rows import passes_through, slices_of
from redlab.compression.moments import MeanInputs
from redlab.network.layers import output_statistics
from redlab.pruning.subject import Subject

_NEAR = 0.5  # correlation of neighbouring pixels: on ResNet-56 as good as one fitted to each layer's variances
_TERMS, _REACH, _PLACES = 16, 6.0, 201  # of the series; of the integral, in standard deviations and steps
_RIDGE = 1e-3  # of the mean variance: the covariance is an estimate


@dataclass(frozen=True, eq=False)
class ConsumerInput:
    """What one consumer layer gets of the channels of a group.

    Attributes:
        member: its input slices.
        mean: (groups of the layer, size) of each channel.
        covariance: (size, size) float64. A channel of a grouped convolution is one input of every group; its variance
            is the mean over them.
    """

    member: Member
    mean: ndarray
    covariance: ndarray


def consumer_inputs(subject: Subject, group: Group) -> list[ConsumerInput] | str:
    """Of all consumer layers of ``group``; or the reason why their inputs are not known."""
    correlation, found = _correlation(subject, group), []
    for member in group.consumers:
        name = subject.layers[member.tensor].name if member.tensor in subject.layers else member.tensor
        if name in subject.mean_inputs.unknown or name not in subject.mean_inputs.calls:
            return f"the input of {name} is not known: {subject.mean_inputs.unknown.get(name, 'it is never called')}"
        mean, variance = _marginals(subject.mean_inputs, name, member)
        spread = np.sqrt(variance.mean(0))
        covariance = correlation * np.outer(spread, spread)
        covariance[np.diag_indices(len(spread))] += _RIDGE * variance.mean() + np.finfo(np.float32).tiny
        found.append(ConsumerInput(member, mean, covariance))
    return found or "no layer reads its channels"


def _marginals(inputs: MeanInputs, name: str, member: Member) -> tuple[ndarray, ndarray]:
    """(groups of the layer, size) each: mean and variance of the channels, over positions and calls."""
    calls = [
        [_per_input(tensor, node) for tensor in (given.mean, given.variance)] for node, given in inputs.calls[name]
    ]
    both = [torch.stack(each).mean(0).view(-1, member.width) for each in zip(*calls, strict=True)]
    mean, variance = (each[:, member.index.flatten()].view(len(each), *member.index.shape).mean(2) for each in both)
    return mean.numpy(), variance.numpy()


def _per_input(values: Tensor, node: torch.fx.Node) -> Tensor:
    axis = values.ndim - 1 if "linear" in str(node.target) else 1
    return values.double().mean([k for k in range(values.ndim) if k != axis]).cpu()


def _correlation(subject: Subject, group: Group) -> ndarray:
    """(size, size) between the channels as their consumer layers get them.

    Example: a layer makes two channels with the filters (1, 0) and (1, 1). Their cosine is 0.71, and so is the
    correlation of its outputs. A ReLU makes 0.64 of it, for outputs of mean 0. A depthwise convolution multiplies it by
    the cosine of its own two filters, 1 for equal ones. The ReLU after that makes 0.57 of it.
    """
    layers = [member for member in group.producers if member.tensor in subject.layers]
    makers = [member for member in layers if not passes_through(subject.folded, member)]
    correlation = _cosines(subject, makers) if makers else np.eye(group.size)
    rectified = group.relu and len(makers) == 1
    if rectified:
        correlation = _after_relu(subject, makers[0], correlation)
    for member in [member for member in layers if member not in makers]:
        correlation = correlation * _cosines(subject, [member])
        if rectified:
            correlation = _after_relu(subject, member, correlation)
    np.fill_diagonal(correlation, 1)
    return correlation


def _after_relu(subject: Subject, member: Member, correlation: ndarray) -> ndarray:
    """The correlation after the ReLU that follows a layer, if the mean and spread of the layer's outputs are known.

    The outputs count as normal variables.
    """
    known = output_statistics(subject.folded.get_submodule(member.tensor.rpartition(".")[0]))
    if known is None:
        return correlation
    mean, std = (values[member.index[:, 0]].double().cpu() for values in known)
    places = torch.linspace(-_REACH, _REACH, _PLACES, dtype=torch.float64)
    shares = torch.softmax(-(places**2) / 2, 0)
    values = (mean[:, None] + std[:, None] * places).relu()
    basis = [torch.ones_like(places), places]
    for k in range(2, _TERMS + 1):
        basis.append((places * basis[-1] - (k - 1) ** 0.5 * basis[-2]) / k**0.5)
    terms = (torch.stack(basis[1:]) * shares @ values.T).numpy()
    spread = np.sqrt(((values**2) @ shares - (values @ shares) ** 2).clamp_min(1e-30).numpy())
    covariance = sum(correlation ** (k + 1) * np.outer(term, term) for k, term in enumerate(terms))
    rectified = np.clip(covariance / np.outer(spread, spread), -1, 1)
    np.fill_diagonal(rectified, 1)
    return rectified


def _cosines(subject: Subject, members: Sequence[Member]) -> ndarray:
    rows = np.concatenate([_smoothed(subject, member) for member in members], axis=1)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return rows @ rows.T


def _smoothed(subject: Subject, member: Member) -> ndarray:
    """(size, d) rows whose products are those of the filters under correlated pixels."""
    weight = subject.folded.get_parameter(member.tensor).detach().double().cpu()
    taps = weight.shape[2:]
    if taps:
        places = torch.cartesian_prod(*(torch.arange(length) for length in taps)).view(taps.numel(), -1).double()
        factor = torch.linalg.cholesky(_NEAR ** torch.cdist(places, places))
        weight = (weight.flatten(2) @ factor).view_as(weight)
    return slices_of(weight, member.index, member.dim)
