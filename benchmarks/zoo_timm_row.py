"""What one timm network of the zoo is put through, in a process of its own.

Every stage says its part of the row as soon as it is known, so that a process that is ended for time or memory leaves
the rest.
"""

from __future__ import annotations

import copy
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from benchmarks.zoo_peer import measure_peer
from redlab.channels.apply import apply_plan, edits_of
from redlab.channels.coupling import couple
from redlab.channels.groups import Group
from redlab.channels.plan import make_plan
from redlab.compression.preparing import prepare
from redlab.network.operations import named
from redlab.network.trace import Graph, is_layer, operation, trace
from redlab.pruning.channels import prune_channels
from redlab.pruning.scores import Scores, score_channels
from redlab.pruning.selection import Selector

LIMIT, TARGET, SHARE, FLAT = 60, 0.70, 0.25, 1e-4
SIZES = (64, 96, 128, 160, 192, 224, 256)
LARGEST = 150_000_000  # parameters: beyond it the parts that need several copies are left out
_ATTENTION = named("matrix product") - {"einsum", "addmm", "mm"} | {"lstm", "gru"}


class OutOfTime(BaseException):
    """Nothing that expects errors of networks may take it for one."""


Say = Callable[[dict[str, Any]], None]


def put_through(name: str, stages: list[str], say: Say) -> None:
    """Build the network, and take these stages one after another."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    network, example = build(name)
    parameters = sum(p.numel() for p in network.parameters())
    graph = trace(network, example[:1])
    say({"name": name, "parameters": parameters, "size": example.shape[-1], "kind": kind_of(network, graph)})
    plain = {"network": network}  # or what ``prepare`` makes of it, where weights are computed
    runs = {
        "prune": lambda: prune(plain, example, parameters),
        "plant": lambda: plant(plain["network"], example),
        "fold": lambda: fold(network, example, graph),
        "peer": lambda: measure_peer(network, example, TARGET),
    }
    signal.signal(signal.SIGPROF, _too_long)
    for stage in [stage for stage in runs if stage in stages]:
        if stage != "prune" and parameters >= LARGEST:
            say({f"{stage}_error": f"left out: over {LARGEST // 10**6} M parameters"})
            continue
        try:
            signal.setitimer(signal.ITIMER_PROF, 2 * LIMIT)  # of one core; what the table calls seconds is part of it
            say(runs[stage]())
            signal.setitimer(signal.ITIMER_PROF, 0)
        except (Exception, OutOfTime) as error:  # one stage that fails leaves the others
            say({f"{stage}_error": f"{type(error).__name__}: {error}".splitlines()[0][:300]})


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The network with random numbers, and two images as small as it takes."""
    import timm

    network = timm.create_model(name).eval()
    channels, *full = network.default_cfg["input_size"]
    for size in [size for size in SIZES if size < full[-1]]:
        for options in ({}, {"img_size": size}):
            example = torch.randn(2, channels, size, size)
            try:
                made = timm.create_model(name, **options).eval() if options else network
                with torch.no_grad():
                    if made(example).isfinite().all():
                        return randomise(made), example
            except Exception:
                continue
    return randomise(network), torch.randn(2, channels, *full)


@torch.no_grad()
def randomise(network: nn.Module) -> nn.Module:
    """The network itself, with random numbers wherever all are equal, which hides errors."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    for name, parameter in network.named_parameters():
        value = parameter.flatten()[0]
        if (parameter != value).any():
            continue
        if value != 0 or (parameter.ndim < 2 and "bias" not in name):
            parameter.uniform_(0.7, 1.3)
        else:
            parameter.normal_(0, 0.1 if parameter.ndim < 2 else 0.02)
    return network


def kind_of(network: nn.Module, graph: Graph) -> str:
    """Convolutional: convolutions over neighbours, and no product of two matrices of activations, as in attention."""
    convs = [m for m in network.modules() if isinstance(m, _ConvNd) and max(m.kernel_size) > max(m.stride)]
    mixing = {operation(node) for node in graph.fx.nodes if node.op == "call_function"} & _ATTENTION
    return "transformer or hybrid" if mixing or len(convs) < 3 else "convolutional"


def prune(plain: dict[str, nn.Module], example: Tensor, parameters: int) -> dict[str, Any]:
    """Prune by magnitude until at most ``TARGET`` of the parameters are left, and compare with the zeroed network."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    start, one, network = time.process_time(), example[:1], plain["network"]
    prepared: dict[str, Any] = {}
    scores = score_channels(network, "magnitude", example=one)
    if any("prepare(" in reason for reason in scores.skipped.values()):
        network = plain["network"] = prepare(network, one, fold=False).network
        prepared = {"prepared": 1}
        scores = score_channels(network, "magnitude", example=one)
    ratio = bisect(network, scores, parameters, "global")
    pruned = prune_channels(network, scores, ratio, example=one)
    seconds = time.process_time() - start
    signal.setitimer(signal.ITIMER_PROF, 2 * LIMIT)
    zeroed = zero(copy.deepcopy(network), scores.groups, pruned.plan["groups"])
    if spread(zeroed, example) < FLAT:  # one order over random weights may leave nothing that depends on the image
        prepared["scope"] = "layer"
        ratio = bisect(network, scores, parameters, "layer")
        pruned = prune_channels(network, scores, ratio, scope="layer", example=one)
        zeroed = zero(copy.deepcopy(network), scores.groups, pruned.plan["groups"])
    left = sum(p.numel() for p in pruned.network.parameters()) / parameters
    row = {"left": round(left, 3), "ratio": round(ratio, 4), "seconds": round(seconds, 1), "why": why(network, scores)}
    row |= {"mattered": compare(network, zeroed, example), "spread": spread(zeroed, example)}
    return row | prepared | {"difference": compare(zeroed, pruned.network, example)}


@torch.no_grad()
def spread(network: nn.Module, example: Tensor) -> float:
    """How far apart the outputs of the two images are, over the largest output."""
    output = network(example)
    return float(f"{float((output[0] - output[1]).abs().max() / output.abs().max()):.1e}")


def _too_long(*_: Any) -> None:
    raise OutOfTime(f"over {LIMIT} s")


def bisect(network: nn.Module, scores: Scores, parameters: int, scope: str) -> float:
    """The smallest share of channels that reaches the target, to a thousandth, or 1."""
    selector, shapes = Selector(scores.values, scope), {name: p.shape for name, p in network.named_parameters()}
    groups = [group for group in scores.groups if group.name in scores.values]

    def left(ratio: float) -> float:
        kept = {name: mask for name, mask in selector.at(ratio).items() if not mask.all()}
        plan = {name: np.where(mask, np.cumsum(mask) - 1, -1).tolist() for name, mask in kept.items()}
        gone: Counter[str] = Counter()
        shares: dict[str, float] = {}
        for (name, _), edit in edits_of(make_plan(groups, plan)).items():
            if name in shapes:
                shares[name] = shares.get(name, 1.0) * len(edit.stay) / edit.width
        for name, share in shares.items():
            gone[name] = round(shapes[name].numel() * (1 - share))
        return 1 - gone.total() / parameters

    low, high = 0.0, 1.0
    if left(high) > TARGET:
        return high
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= TARGET else (middle, high)
    return high


def why(network: nn.Module, scores: Scores) -> str:
    """Why channels stay, by the share of all parameters that their producers are; the five largest."""
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    shares: Counter[str] = Counter()
    for group in [group for group in scores.groups if group.name in scores.skipped]:
        own = sum(sizes[m.tensor] * m.index.numel() / m.width for m in group.producers if m.tensor in sizes)
        shares[scores.skipped[group.name]] += own / sum(sizes.values())
    return "; ".join(f"{reason}: {share:.0%}" for reason, share in shares.most_common(5) if share >= 0.01)


@torch.no_grad()
def zero(network: nn.Module, groups: list[Group], destinations: dict[str, list[int]]) -> nn.Module:
    """In place: nothing makes the removed channels, and nothing reads them."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for group in [group for group in groups if -1 in destinations.get(group.name, ())]:
        gone = torch.tensor([place for place, new in enumerate(destinations[group.name]) if new < 0])
        for member in (*group.producers, *group.consumers):
            if not member.tensor.endswith("running_var"):
                tensors[member.tensor].index_fill_(member.dim, member.index[gone].flatten(), 0)
    return network


@torch.no_grad()
def compare(one: nn.Module, other: nn.Module, example: Tensor) -> float:
    """The largest difference over the largest output; where float32 alone makes it large, of float64."""
    found = _difference(one, other, example)
    if 1e-6 < found < 1e-2:
        with suppress(RuntimeError):  # of code that makes float32 tensors
            found = _difference(copy.deepcopy(one).double(), copy.deepcopy(other).double(), example.double())
    return float(f"{found:.1e}")


def _difference(one: nn.Module, other: nn.Module, example: Tensor) -> float:
    wanted, got = one(example), other(example)
    return float((wanted - got).abs().max() / wanted.abs().max())


def plant(network: nn.Module, example: Tensor) -> dict[str, Any]:
    """A quarter of the channels of every group becomes dead, or copies of others: both must leave without a trace."""
    groups = [group for group in couple(network, example[:1]) if not group.frozen and group.size > 1]
    dead, copied, merging = {}, copy.deepcopy(network), {}
    tensors = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    for group in groups:
        order, becomes = torch.randperm(group.size), torch.arange(group.size)
        some = order[: max(1, int(SHARE * group.size))]
        others = order[len(some) :]
        becomes[some] = others[torch.randint(len(others), some.shape)]
        dead[group.name] = [-1 if place in some else int((others < place).sum()) for place in range(group.size)]
        with torch.no_grad():
            for member in group.producers:
                rows = tensors[member.tensor].index_select(member.dim, member.index[becomes].flatten())
                tensors[member.tensor].index_copy_(member.dim, member.index.flatten(), rows)
        merging[group.name] = becomes.unique(return_inverse=True)[1].tolist()
    emptied = zero(copy.deepcopy(network), groups, dead)
    removed, merged = apply_plan(emptied, make_plan(groups, dead)), apply_plan(copied, make_plan(groups, merging))
    planted = sum(group.size - max(dead[group.name]) - 1 for group in groups)
    return {
        "planted": planted,
        "dead": compare(emptied, removed, example),
        "merged": compare(copied, merged, example),
    }


def fold(network: nn.Module, example: Tensor, graph: Graph) -> dict[str, Any]:
    """How many batch norms ``prepare`` folds: of all, and of those that alone read a conv or linear layer."""
    prepared = prepare(network, example[:1]).network
    before, after = norms(graph), norms(trace(prepared, example[:1]))
    alone = [name for name, sole in before.items() if sole]
    row = {"norms": len(before), "folded": len(before.keys() - after.keys()), "sole": len(alone)}
    return row | {"sole_folded": len(set(alone) - after.keys()), "fold_difference": compare(network, prepared, example)}


def norms(graph: Graph) -> dict[str, bool]:
    """By the name of each batch norm that runs, whether it alone reads what a conv or linear layer makes."""
    found: dict[str, bool] = {}
    for name, node in graph.tensors.items():
        for user in [user for user in node.users if name.endswith("running_mean") and operation(user) == "batch_norm"]:
            above = user.args[0]
            found[name] = found.get(name, True) and is_layer(above) and len(above.users) == 1
    return found
