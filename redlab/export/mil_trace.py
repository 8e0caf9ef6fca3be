"""A network traced by torch, in operations that coremltools knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from redlab.network.evaluating import evaluating, quiet, refusal
from redlab.network.example import Inputs

_DEPTH = 4  # of operations made of operations made of ...


def trace_for_coreml(network: nn.Module, inputs: Inputs) -> ExportedProgram:
    """``network`` in eval mode as a program of torch's; coremltools is installed.

    Raises:
        ValueError: it cannot be traced.
    """
    try:
        with evaluating(network), quiet():
            return _as_known(torch.export.export(network, inputs.args, inputs.kwargs, strict=False))
    except Exception as error:  # torch.export raises whatever the network's own code does
        raise ValueError(refusal(network, inputs, "be traced", error)) from error


def _as_known(traced: ExportedProgram) -> ExportedProgram:
    """The traced program with the operations that coremltools doesn't know as simpler ones, where torch has them."""
    simpler = torch.export.default_decompositions()
    table: dict[Any, Any] = {}
    for _ in range(_DEPTH):
        traced = traced.run_decompositions(table)
        calls = [node for node in traced.graph.nodes if node.op == "call_function"]
        unknown = {node.target for node in calls if not _is_known(node)}
        table = {operation: simpler[operation] for operation in unknown if operation in simpler}
        if not table:
            break
    for node in traced.graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        node.replace_all_uses_with(node.args[0])  # another name for one tensor
        traced.graph.erase_node(node)
    return traced


def _is_known(node: torch.fx.Node) -> bool:
    from coremltools.converters.mil.frontend.torch.torch_op_registry import is_torch_fx_node_supported

    try:
        return is_torch_fx_node_supported(node)
    except AssertionError:  # it takes the end of __and__ for that of an operation in place
        return False
