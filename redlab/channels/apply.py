"""Carrying out a plan: the only code in which channels disappear."""

from __future__ import annotations

import torch
from torch import nn

from redlab.channels.plan import check_plan
from redlab.channels.surgery import check_fit, edits_of, narrow
from redlab.network.layers import unwrap
from redlab.network.recipe import append_step


@torch.inference_mode(False)  # whatever the caller's mode: the new network may be trained
def apply_plan(network: nn.Module, plan: dict) -> nn.Module:
    """A network with the channels that ``plan`` leaves: smaller tensors, no masks, no hooks.

    A merged channel has the mean of its members' producer rows and the sum of their consumer slices: exact where the
    members are equal, and the network then computes the same function. Nothing is traced.

    Arguments:
        network: left untouched.
        plan: what ``make_plan`` made for this network, or for one of the same architecture and widths.

    Raises:
        ValueError: the plan is malformed, or names what the network doesn't have, or has in another width.

    Example:
        >>> network = load_network("digits/resnet")
        >>> pruned = prune_channels(network, score_channels(network, "magnitude"), ratio=0.5)
        >>> again = apply_plan(network, pruned.plan)
        >>> torch.equal(again(example_input(network)), pruned.network(example_input(network)))
        True
    """
    network = unwrap(network)
    edits = edits_of(check_plan(plan))
    check_fit(network, edits)
    smaller = narrow(network, edits)
    append_step(smaller, plan)
    return smaller
