"""Which layers of a network are really called, and with what: a trial run on fake tensors, shapes only."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from redlab.graph import evaluating, fit_example, refusal
from redlab.layers import weight_layers


def try_out(network: nn.Module, example: Tensor, run: Callable[[nn.Module, Tensor], None]) -> None:
    """Call ``run`` with a copy of ``network``, which it may hook, and an input: both fake where that is possible.

    Fake tensors have shapes and no values; a network whose path depends on values runs for real.

    Raises:
        ValueError: where the network doesn't accept ``example``.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # some networks make small tensors of numbers as they run
    try:
        with FakeCopyMode(fake):
            copied = copy.deepcopy(network)
        with fake, evaluating(copied):
            run(copied, fake.from_tensor(example))
    except Exception:
        copied = copy.deepcopy(network)
        try:
            with evaluating(copied):
                run(copied, example)
        except Exception as error:  # whatever the network's own code raises
            raise ValueError(refusal(network, example, "run", error)) from error


def record_calls(network: nn.Module, example: Tensor | None = None) -> dict[str, list[torch.Size]]:
    """By the name of every conv and linear layer that a forward in eval mode calls: the shapes of its inputs.

    Layers whose weight is used without a call of theirs, such as the projections of attention, are not among them.

    Arguments:
        example: what the network takes, batch first; by default ``example_input(network)``. Its first input is run.

    Raises:
        ValueError: where the network doesn't accept ``example``.
    """
    calls: dict[str, list[torch.Size]] = {}

    def run(copied: nn.Module, images: Tensor) -> None:
        found: dict[str, list[torch.Size]] = defaultdict(list)
        for layer in weight_layers(copied):
            if layer.parameter == "weight":
                hook = partial(_take_down, found[layer.name])
                layer.module.register_forward_pre_hook(hook, with_kwargs=True)
        copied(images)
        calls.update({name: shapes for name, shapes in found.items() if shapes})

    try_out(network, fit_example(network, example)[:1], run)
    return calls


def _take_down(shapes: list[torch.Size], module: nn.Module, args: tuple, kwargs: dict) -> None:
    shapes.append((args[0] if args else kwargs["input"]).shape)
