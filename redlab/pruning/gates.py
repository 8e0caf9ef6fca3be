"""Gates: a factor z = 1 on every channel of a coupled group, and how the loss changes with it.

A gate multiplies what the consumer layers get of a channel. To close it (z = 0) is the same as to remove the channel.
After ReLUs it is the gate of Molchanov et al. (CVPR 2019, arXiv 1906.10771) after batch norm, shared by all producers
of a residual stage: a factor passes through ReLUs, sums and poolings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from redlab.channels.groups import Group
from redlab.network.example import Example, Inputs, answer, logits_of, place_of
from redlab.progress import progress
from redlab.pruning.subject import Scored, Subject

EXACT_UP_TO = 1000  # gates; above, random probes
LAYERS = frozenset((
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d
))  # fmt: skip


@dataclass(eq=False)
class Call:
    """One call of a conv or linear layer.

    Attributes:
        given: the tensor that came in. Its gradient is that of everything that reads it.
        input: the layer's own view of it. Its gradient is the layer's share.
        axis: of the input's channels.
        output: what came out.
    """

    given: Tensor
    input: Tensor
    axis: int
    output: Tensor | None = None


class Watch(TorchFunctionMode):
    """Inside, every call of a layer of ``network`` is recorded in ``calls``, by the dotted name of its weight."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in network.named_parameters()}
        self.calls: dict[str, list[Call]] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func not in LAYERS or len(args) < 2:  # no layer calls by keywords
            return func(*args, **(kwargs or {}))
        given, weight, *others = args
        given = given if given.requires_grad else given.detach().requires_grad_()
        call = Call(given, given.view_as(given), given.ndim - 1 if func is F.linear else 1)
        self.calls.setdefault(self._names.get(id(weight), ""), []).append(call)
        call.output = func(call.input, weight, *others, **(kwargs or {}))
        return call.output


@torch.inference_mode(False)
@torch.enable_grad()
def gate_gradients(subject: Subject, chunk: int, after_sums: bool) -> tuple[dict[str, Tensor], dict[str, int]]:
    """dL/dz of every image for every gate, L the cross-entropy of that image; z dL/dz is the sum of x dL/dx.

    Arguments:
        chunk: images at once; memory only.
        after_sums: not one gate a channel but one on every tensor that a consumer layer gets, gradients added.
            In a residual stage that is one after each addition, and all that follows counts again.

    Returns:
        By group (images, size), dL/dz in the loss of that image alone; and on how many tensors its gates lie. A group
        whose gates lie on none has no gradients.
    """
    parts: dict[str, list[Tensor]] = {group.name: [] for group in subject.free}
    tensors = dict.fromkeys(parts, 0)
    for inputs, labels in subject.batches(chunk, "gradients"):
        with Watch(subject.network) as watch:
            loss = F.cross_entropy(answer(subject.network, inputs), labels, reduction="sum")
        products = _products(loss, watch.calls, after_sums, len(labels))
        for group in subject.free:
            own = _of_gates(group, products)
            tensors[group.name] = len(own)
            parts[group.name] += [torch.stack(list(own.values())).sum(0).cpu()] if own else []
    return {name: torch.cat(own) for name, own in parts.items() if tensors[name]}, tensors


_Products = Mapping[str, Sequence[tuple[int, Tensor]]]


def _products(loss: Tensor, calls: Mapping[str, Sequence[Call]], total: bool, images: int) -> _Products:
    """By weight, for each of its calls: the id of its input x, and x dL/dx (images, channels) in float64."""
    rows = [(name, call, call.given if total else call.input) for name, own in calls.items() for call in own]
    gradients = torch.autograd.grad(loss, [tensor for _, _, tensor in rows], allow_unused=True)
    products: dict[str, list[tuple[int, Tensor]]] = {}
    for (name, call, tensor), gradient in zip(rows, gradients, strict=True):
        if gradient is not None:
            product = (tensor.detach() * gradient).movedim(call.axis, 1)
            summed = product.reshape(images, -1, *product.shape[1:]).transpose(1, 2).flatten(2).sum(2).double()
            products.setdefault(name, []).append((id(tensor), summed))
    return products


def _of_gates(group: Group, products: _Products) -> dict[int, Tensor]:
    """(images, size) by the tensor that the gates lie on."""
    found: dict[int, Tensor] = {}
    for member in group.consumers:
        for key, product in products.get(member.tensor, ()):
            # The input channels of a grouped convolution share the slices of its weight.
            slices = product.unflatten(1, (-1, member.width)).sum(1) if product.shape[1] > member.width else product
            found[key] = slices[:, member.index.to(slices.device)].sum(2)
    return found


def gated(network: nn.Module, groups: Sequence[Group], gates: Sequence[Tensor], inputs: Example) -> Tensor:
    """The logits of ``network`` with ``gates``, a tensor (size,) a group, on the slices of the consumer layers."""
    own: dict[str, Tensor] = dict(network.named_parameters())
    scaled: dict[str, Tensor] = {}
    for group, gate in zip(groups, gates, strict=True):
        for member in group.consumers:
            weight = scaled.get(member.tensor, own[member.tensor])
            index = member.index.to(weight.device)
            scaled[member.tensor] = weight * slice_factor(gate, index, member.width, member.dim, weight.ndim)
    given = Inputs.of(inputs)
    return logits_of(functional_call(network, scaled, given.args, given.kwargs))


def slice_factor(gate: Tensor, index: Tensor, width: int, dim: int, ndim: int) -> Tensor:
    """``gate`` (size,) as a factor of a weight of ``ndim`` axes: of the ``width`` slices along ``dim``, ``index``
    (size, m) says which are each channel's. The others keep 1.
    """
    factor = torch.ones(width, dtype=gate.dtype, device=gate.device)
    factor = factor.index_put((index.flatten(),), gate.repeat_interleave(index.shape[1]))
    return factor.view([-1 if axis == dim else 1 for axis in range(ndim)])


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
    both = torch.stack(changes).mean(0), torch.stack(errors).sum(0).sqrt() / len(errors)
    parts = [each.split([group.size for group in groups]) for each in both]
    values, deviations = ({g.name: own.numpy() for g, own in zip(groups, each, strict=True)} for each in parts)
    return Scored(values, errors={} if exact else deviations, skipped=subject.unread)


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
            if probes:
                products += torch.stack([sign * _along(gradient, gates, sign) for sign in progress(signs, "probes")])
            else:
                units = progress(torch.eye(sum(sizes), dtype=torch.float64), "gates")
                products[0] += torch.stack([unit @ _along(gradient, gates, unit) for unit in units])
    spread = products.std(0) / probes**0.5 if probes > 1 else torch.zeros_like(first)
    return first, products.mean(0), spread


def _along(gradient: Tensor, gates: Sequence[Tensor], vector: Tensor) -> Tensor:
    """The Hessian times a vector."""
    parts = torch.autograd.grad(gradient, gates, vector.to(gradient), retain_graph=True, materialize_grads=True)
    return torch.cat(parts).double().cpu()
