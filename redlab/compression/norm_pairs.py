"""Which layer takes which batch norm: read off the graph, with a reason for each norm that stays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvTransposeNd

from redlab.compression.norm_calls import rewrite_norm
from redlab.compression.norms import OWN, TRAINS
from redlab.network.example import Example
from redlab.network.layers import Layer, is_frozen_norm
from redlab.network.operations import named
from redlab.network.trace import Graph, argument, in_place, is_layer, operation, operations
from redlab.network.trial_run import NEVER, why_unseen, without_bias

# These take the shape of their second argument, whatever its values are.
_SHAPED = ("reshape_as", "view_as", "expand_as")


@dataclass
class Pairs:
    """Which layer takes each batch norm, which norms come before their layer, and why others are left.

    Attributes:
        acts: what norms with a forward of their own leave once they are folded (``norms.stand_in``).
        unbiased: the layers whose own forward would not read a bias.
    """

    folded: dict[str, str] = field(default_factory=dict)
    ahead: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    acts: dict[str, list[Any]] = field(default_factory=dict)
    unbiased: set[str] = field(default_factory=set)

    def step(self) -> dict[str, Any]:
        """As a recipe records it."""
        step = {"step": "fold", "folded": dict(self.folded), "ahead": list(self.ahead)}
        return step | ({"acts": own} if (own := {k: v for k, v in self.acts.items() if k in self.folded}) else {})


def find_pairs(
    graph: Graph | None, norms: Mapping[str, nn.Module], example: Example | None, asked_for: Mapping[str, str]
) -> tuple[Pairs, Graph | None]:
    """Also what is left of the graph without the norms that are folded; None where it is not what a trace shows."""
    pairs = Pairs(left=dict(asked_for))
    if graph is None:
        return pairs, None
    graph, found = graph.of(graph.network), True
    pairs.left |= _uncalled(graph, norms, example)
    norms = {name: norm for name, norm in norms.items() if name not in pairs.left}
    for name, norm in norms.items():
        acts, why = rewrite_norm(graph, norm)
        pairs.left |= {name: why} if why else {}
        pairs.acts |= {name: acts} if acts else {}
    norms = {name: norm for name, norm in norms.items() if name not in pairs.left}
    pairs.unbiased = without_bias(graph, _beside_norms(graph), example)
    while found:  # a norm that is folded away may leave another one beside a layer
        found = any([_pair(graph, name, norms[name], pairs) for name in norms if name not in pairs.folded])
    rewritten = any(is_frozen_norm(norm) and name not in pairs.folded for name, norm in norms.items())
    return pairs, None if rewritten else graph


def _beside_norms(graph: Graph) -> list[Layer]:
    """The layers without a bias that may have to take one."""
    return [layer for weight, layer in graph.layers.items() if layer.module.bias is None and _meets_norm(weight)]


def _meets_norm(weight: Node) -> bool:
    beside = [node for call in weight.users if is_layer(call) for node in (call.args[0], *call.users)]
    beside += [user for node in beside if operation(node) in named("view") for user in node.users]
    return any(operation(node) == "batch_norm" for node in beside)


def _uncalled(graph: Graph, norms: Mapping[str, nn.Module], example: Example | None) -> dict[str, str]:
    """The norms that the graph doesn't show, and why."""
    means = {f"{name}.running_mean": name for name, norm in norms.items() if norm.running_mean is not None}
    reasons = why_unseen(graph, [mean for mean in means if not graph.users(mean)], example)
    return {means[mean]: f"it is {why}" if why == NEVER else why for mean, why in reasons.items()}


def _pair(graph: Graph, name: str, norm: nn.Module, pairs: Pairs) -> bool:
    """Try one norm: enter it into ``pairs``, and take it out of the graph if it folds."""
    if why := _why_not_norm(graph, name, norm):
        pairs.left[name] = why
        return False
    calls = graph.users(f"{name}.running_mean")
    previous, following = calls[0].args[0], next(iter(calls[0].users), None)
    why = _why_not_previous(graph, calls, pairs.unbiased)
    if why and (why_following := _why_not_following(graph, calls, following, pairs.unbiased)):
        pairs.left[name] = (
            why_following if following is not None and is_layer(following) and not is_layer(_maker(previous)) else why
        )
        return False
    pairs.left.pop(name, None)
    taker = following if why and following is not None else _maker(previous)
    pairs.folded[name] = graph.layers[taker.args[1]].name
    pairs.ahead += [name] if why else []
    for call in calls:
        call.replace_all_uses_with(call.args[0])
        graph.fx.erase_node(call)
    return True


def _why_not_norm(graph: Graph, name: str, norm: nn.Module) -> str:
    """Why a norm can't be folded whatever stands beside it, or ""."""
    if norm.running_mean is None:
        return "no running statistics"
    calls = graph.users(f"{name}.running_mean")
    if any(operation(call) == "batch_norm" and argument(call, "training") for call in calls):
        return TRAINS
    if any(operation(call) != "batch_norm" or graph.caller(call) is not norm for call in calls):
        return OWN
    for tensor in ("running_var", "weight", "bias"):
        if others := [user for user in graph.users(f"{name}.{tensor}") if user not in calls]:
            return f"its {tensor} is also used by {operations(others)}"
    return ""


def _readers(node: Node) -> list[Node]:
    """The operations that read the values of ``node``, not its shape alone."""
    return [user for user in node.users if operation(user) not in _SHAPED or user.args[0] is node]


def _maker(node: Node) -> Node:
    """What makes the features of ``node``: it may be flattened to (all, features) in between."""
    if operation(node) not in named("view") or len(_readers(node)) > 1 or operation(node.args[0]) != "linear":
        return node
    made, flat = (each.meta["val"].shape for each in (node.args[0], node))
    return node.args[0] if len(flat) == 2 and made[-1] == flat[-1] else node


def _why_not_previous(graph: Graph, calls: Sequence[Node], unbiased: Collection[str]) -> str:
    """Why the layer before a norm does not take it, or "": each call of the one must read a call of the other."""
    makers = [_maker(call.args[0]) for call in calls]
    node = makers[0]
    if len({maker.args[1] if is_layer(maker) else maker for maker in makers}) > 1:
        return f"it is called {len(calls)} times"
    if not is_layer(node):
        return f"its input comes from {operation(node)}, not from a conv or linear layer"
    if why := graph.why_fixed(node, makers, widths=False):
        return why
    layer = graph.layers[node.args[1]]
    if layer.name in unbiased:
        return _deaf(layer)
    for maker in makers:
        if len(readers := _readers(maker)) > 1:
            others = [user for user in readers if operation(user) != "batch_norm"] or readers
            return f"the output of {layer.name} also goes to {operations(others)}"
    return _why_not_features(calls[0].args[0], layer)


def _why_not_following(graph: Graph, calls: Sequence[Node], node: Node | None, unbiased: Collection[str]) -> str:
    if len(calls) > 1:
        return f"it is called {len(calls)} times"
    norm = calls[0]
    if node is None or not is_layer(node) or node.args[0] is not norm or len(norm.users) > 1:
        return f"its output goes to {operations(norm.users)}, not to one conv or linear layer"
    if why := graph.why_fixed(node, widths=False):
        return why
    layer = graph.layers[node.args[1]]
    if layer.name in unbiased:
        return _deaf(layer)
    if isinstance(layer.module, _ConvTransposeNd):
        return f"transposed conv {layer.name} after it: not exact at the border"
    if _is_padded(node):
        return f"zero padding in conv {layer.name}: not exact at the border"
    # As an Identity the norm would hand on its input itself, which may change before the layer reads it.
    nodes = list(graph.fx.nodes)
    if any(in_place(between) for between in nodes[nodes.index(norm) : nodes.index(node)]):
        return f"an in-place operation runs between it and {layer.name}"
    return _why_not_features(norm, layer)


def _deaf(layer: Layer) -> str:
    return f"{layer.name} has a forward of its own that would not read the bias: prepare(network) makes it plain"


def _is_padded(node: Node) -> bool:
    """Whether a convolution adds zeros at the border by itself."""
    padding = argument(node, "padding", [])
    if padding == "same":
        return any(size > 1 for size in node.args[1].meta["val"].shape[2:])
    return padding != "valid" and any(padding)


def _why_not_features(between: Node, layer: Layer) -> str:
    """A norm works on axis 1, a layer on the features of (batch, features), the channels of (batch, channels, ...)."""
    same = between.meta["val"].ndim == layer.weight.ndim
    return "" if same else f"it normalises another axis than the features of {layer.name}"
