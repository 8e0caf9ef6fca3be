"""Batch norms in the graph: each call written as one ``batch_norm`` operation, whatever the norm's own forward does."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Node

from redlab.compression.norms import OWN, TRAINS, activation_of, check_acts
from redlab.network.forwards import has_own_forward
from redlab.network.layers import is_frozen_norm
from redlab.network.trace import Graph, argument, module_path, operation

_AFFINE = ("batch_norm", "mul", "add", "sub", "div", "addcmul")


def rewrite_norm(graph: Graph, norm: nn.Module) -> tuple[list[Any], str]:
    """Write every call of a norm as one operation, in place; nothing to do where it runs PyTorch's own forward.

    Returns:
        what the norm leaves once it is folded (``norms.stand_in``), and why it cannot be folded, or "".
    """
    if not is_frozen_norm(norm) and not has_own_forward(norm):
        return [], ""
    if norm._forward_hooks or norm._forward_pre_hooks:
        return [], OWN
    found: list[list[Any]] = []
    for (_, own), inside in _calls(graph, norm).items():
        acts, why = _rewrite_call(graph, own, norm, inside)
        if why:
            return [], why
        found.append(acts)
    if not found or any(acts != found[0] for acts in found):
        return [], f"{OWN}, which differs from call to call" if found else OWN
    return found[0], ""


def _calls(graph: Graph, norm: nn.Module) -> dict[tuple[str, str], list[Node]]:
    """The operations of each call of a module, under whichever of its names."""
    names = {path for path, module in graph.network.named_modules(remove_duplicate=False) if module is norm}
    calls: dict[tuple[str, str], list[Node]] = {}
    for node in graph.fx.nodes:
        for key, (own, *_) in node.meta.get("nn_module_stack", {}).items():
            if own in names:
                calls.setdefault((key, own), []).append(node)
    return calls


def _rewrite_call(graph: Graph, path: str, norm: nn.Module, inside: list[Node]) -> tuple[list[Any], str]:
    data, entry = _through(graph, inside)
    affine = 0
    while affine < len(data) and module_path(data[affine]) == path and operation(data[affine]) in _AFFINE:
        affine += 1
    read_outside = any(user not in inside for node in data[:-1] for user in node.users)
    if any(argument(node, "training") for node in inside if operation(node) == "batch_norm"):
        return [], TRAINS
    if entry is None or affine == 0 or read_outside:
        return [], OWN
    acts, why = _acts(data[affine:], path)
    if why:
        return [], why
    acts, why = check_acts(norm, acts, entry.meta["val"].shape)
    if not why and (affine > 1 or operation(data[0]) != "batch_norm"):
        _replace(graph, path, norm, entry, data[affine - 1], inside)
    return acts, why


def _through(graph: Graph, inside: list[Node]) -> tuple[list[Node], Node | None]:
    """The operations that depend on the input, and the one that it comes from; None if it comes from several."""
    constant, data, entries = {*graph.tensors.values(), *graph.constants}, [], []
    for node in inside:
        given = [read for read in node.all_input_nodes if read not in constant]
        if not given:
            constant.add(node)
            continue
        data.append(node)
        entries += [read for read in given if read not in inside]
    return data, entries[0] if len(set(entries)) == 1 else None


def _acts(nodes: list[Node], path: str) -> tuple[list[Any], str]:
    """The activations among the operations after a norm, and what is none."""
    acts: list[Any] = []
    for node in nodes:
        own = module_path(node)
        if own == path:
            act = activation_of(operation(node), lambda name, node=node: argument(node, name))
            if not act:
                return [], f"{OWN}, with {operation(node)} in it"
            acts.append(act)
        elif (child := own.removeprefix(f"{path}.").partition(".")[0]) not in acts:
            acts.append(child)
    return acts, ""


def _replace(graph: Graph, path: str, norm: nn.Module, entry: Node, last: Node, inside: list[Node]) -> None:
    """Put one ``batch_norm`` in the place of what leads from ``entry`` to ``last``."""
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = [graph.tensors.get(f"{path}.{name}".lstrip(".")) for name in names]
    with graph.fx.inserting_after(last):
        args = (entry, *tensors, False, 0.0, norm.eps, False)
        made = graph.fx.call_function(torch.ops.aten.batch_norm.default, args)
    made.meta = dict(last.meta)
    last.replace_all_uses_with(made)
    for node in reversed(inside):
        if not node.users:
            graph.fx.erase_node(node)
