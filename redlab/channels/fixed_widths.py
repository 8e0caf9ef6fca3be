"""Whether a network's own code accepts fewer channels. Sizes written into it (``x.view(-1, 400)``) do not follow.

The network runs on fake tensors: shapes only, no arithmetic, no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from redlab.channels.apply import edits_of, narrow
from redlab.channels.groups import Group
from redlab.channels.plan import make_plan
from redlab.network.evaluating import evaluating
from redlab.network.example import Inputs


def misfits(network: nn.Module, inputs: Inputs, groups: Sequence[Group]) -> dict[str, str]:
    """By the name of every free group that cannot lose a channel, why: the error of the network's code."""
    free = {group.name: group for group in groups if not group.frozen and group.size > 1}
    found = culprits(list(free), lambda names: _why_not(network, inputs, [free[name] for name in names]))
    return {name: f"its width is fixed in the network's code: {why}" for name, why in found.items()}


def culprits(names: Sequence[str], why_not: Callable[[Sequence[str]], str]) -> dict[str, str]:
    """Which of ``names`` fail, and why. A set that fails is halved until single names are left: few trials for a few.

    Arguments:
        why_not: why several of them fail together, or "".
    """
    why = why_not(names) if names else ""
    if not why or len(names) == 1:
        return dict.fromkeys(names, why) if why else {}
    half = len(names) // 2
    return culprits(names[:half], why_not) | culprits(names[half:], why_not)


def _why_not(network: nn.Module, inputs: Inputs, groups: Sequence[Group]) -> str:
    """The error of the network when each of ``groups`` has lost its first channel, "" if it runs."""
    plan = make_plan(groups, {group.name: [-1, *range(group.size - 1)] for group in groups})
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        smaller = narrow(network, edits_of(plan), _fakes(network, mode))
        with mode, evaluating(smaller):
            inputs.each(mode.from_tensor).run(smaller)
    except Exception as error:  # whatever the network's own code raises
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def _fakes(network: nn.Module, mode: FakeTensorMode) -> dict[int, Tensor]:
    """A fake for every parameter and buffer, by the ``id`` of that."""
    fakes: dict[int, Tensor] = {id(tensor): mode.from_tensor(tensor.detach()) for tensor in network.buffers()}
    for tensor in network.parameters():
        fakes[id(tensor)] = nn.Parameter(mode.from_tensor(tensor.detach()), requires_grad=False)
    return fakes
