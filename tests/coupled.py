"""Channels made useless in place, so that a smaller network must compute the same: what the coupling tests share."""

import copy

import torch
from torch import nn

from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.plan import make_plan


def difference(one, other, example):
    with torch.no_grad():
        wanted, got = one(example.clone()), other(example.clone())
    return float((wanted - got).abs().max() / wanted.abs().max())


def tensors_of(network):
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def free(groups):
    return [group for group in groups if not group.frozen and group.size > 1]


def draw(size):
    """A quarter of the channels, and the rest."""
    shuffled = torch.randperm(size)
    return shuffled[: max(1, size // 4)], shuffled[max(1, size // 4) :]


def without(size, gone):
    kept = sorted(set(range(size)) - set(gone.tolist()))
    return [kept.index(channel) if channel in kept else -1 for channel in range(size)]


@torch.no_grad()
def zero(network, group, channels):
    """Make the channels' producers give 0."""
    for member in group.producers:
        if not member.tensor.endswith("running_var"):
            tensors_of(network)[member.tensor].index_fill_(member.dim, member.index[channels].flatten(), 0)


@torch.no_grad()
def plant(network, group, copies, originals):
    """Make the producers of ``copies`` those of ``originals``."""
    for member in group.producers:
        tensor = tensors_of(network)[member.tensor]
        rows = tensor.index_select(member.dim, member.index[originals].flatten())
        tensor.index_copy_(member.dim, member.index[copies].flatten(), rows)


def planted(network, groups):
    """Turn a quarter of each free group into copies; where each channel goes when they are merged."""
    destinations = {}
    for group in free(groups):
        copies, others = draw(group.size)
        originals = others[torch.randint(len(others), copies.shape)]
        plant(network, group, copies, originals)
        becomes = torch.arange(group.size)
        becomes[copies] = originals
        destinations[group.name] = becomes.unique(return_inverse=True)[1].tolist()
    return destinations


class Net(nn.Module):
    """A network of layers by name and a forward given as a function."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._run = forward

    def forward(self, x):
        return self._run(self, x)


def conv(before, after, **options):
    return nn.Conv2d(before, after, 3, padding=1, **options)


def removed_and_merged(network, example, groups=None):
    """The groups of a network in eval mode, once zeroed channels are removed and planted copies merged without a trace.

    Returns the groups, and the network without the zeroed ones.
    """
    groups = couple(network, example) if groups is None else groups
    zeroed, destinations = copy.deepcopy(network), {}
    for group in free(groups):
        gone, _ = draw(group.size)
        zero(zeroed, group, gone)
        destinations[group.name] = without(group.size, gone)
    smaller = apply_plan(zeroed, make_plan(groups, destinations))
    assert difference(zeroed, smaller, example) < 1e-5
    copied = copy.deepcopy(network)
    merged = apply_plan(copied, make_plan(groups, planted(copied, groups)))
    assert difference(copied, merged, example) < 1e-5
    return groups, smaller
