"""Which layers of a network are really called, and with what: a trial run on fake tensors, shapes only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from redlab.example import Example, Inputs, fit_example
from redlab.graph import evaluating, refusal
from redlab.layers import copy_network, unwrap, weight_layers


def try_out(network: nn.Module, inputs: Inputs, run: Callable[[nn.Module, Inputs], None]) -> None:
    """Call ``run`` with a copy of ``network``, which it may hook, and inputs: both fake where that is possible.

    Fake tensors have shapes and no values; a network whose path depends on values runs for real.

    Raises:
        ValueError: where the network doesn't accept ``inputs``.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # some networks make small tensors of numbers as they run
    try:
        with FakeCopyMode(fake):
            copied = copy_network(network)
        with fake, evaluating(copied):
            run(copied, inputs.each(fake.from_tensor))
    except Exception:
        copied = copy_network(network)
        try:
            with evaluating(copied):
                run(copied, inputs)
        except Exception as error:  # whatever the network's own code raises
            raise ValueError(refusal(network, inputs, "run", error)) from error


def record_calls(network: nn.Module, example: Example | None = None) -> dict[str, list[torch.Size]]:
    """By the name of every conv and linear layer that a forward in eval mode calls: the shapes of its inputs.

    Layers whose weight is used without a call of theirs, such as the projections of attention, are not among them.

    Arguments:
        example: what the network takes, batch first: a tensor, a tuple of positional inputs or a dict of keyword
            inputs; by default ``example_input(network)``. Its first input is run.

    Raises:
        ValueError: where the network doesn't accept ``example``.
    """
    network = unwrap(network)
    calls: dict[str, list[torch.Size]] = {}

    def run(copied: nn.Module, inputs: Inputs) -> None:
        found: dict[str, list[torch.Size]] = defaultdict(list)
        for layer in weight_layers(copied):
            if layer.parameter == "weight":
                hook = partial(_take_down, found[layer.name])
                layer.module.register_forward_pre_hook(hook, with_kwargs=True)
        inputs.run(copied)
        calls.update({name: shapes for name, shapes in found.items() if shapes})

    try_out(network, fit_example(network, example).first(), run)
    return calls


def _take_down(shapes: list[torch.Size], module: nn.Module, args: tuple, kwargs: dict) -> None:
    shapes.append((args[0] if args else kwargs["input"]).shape)
