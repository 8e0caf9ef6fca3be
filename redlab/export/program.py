"""A network as a program: traced once, with any batch size where its code allows it, and written as float32 ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

from redlab.compression.moments import runs_layer
from redlab.export.axes import axis_names, dynamic_axes, name_axes, of_one, token_length
from redlab.network.evaluating import evaluating, first_line, quiet, refusal
from redlab.network.example import Inputs
from redlab.network.layers import Layer, weight_layers
from redlab.network.trace import Graph, graph_of, operation, tensor_name

WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))  # ONNX's layers


@dataclass(frozen=True)
class Weight:
    """Where a file has the weight of a layer.

    Attributes:
        name: of the tensor.
        node: the value that the layer puts out, by its name: the sum with the bias, where that is an operation.
        transposed: whether it lies as (inputs, outputs).
    """

    name: str
    node: str
    transposed: bool


@dataclass(frozen=True, eq=False)
class Program:
    """A network as ONNX has it.

    Attributes:
        network: what was exported, on the CPU in float32.
        graph: the operations that became ONNX ones, for a batch of one. A value of the file has its node's name.
        onnx: torch's ONNX program.
        fixed: why the file takes batches of one size only, or "".
        tokens: why the file takes sequences of token ids of one length only, or "".
        weights: the stored weight of every layer whose weight the file multiplies by, by the layer's name.
    """

    network: nn.Module
    graph: Graph
    onnx: Any
    fixed: str
    tokens: str
    weights: dict[str, Weight]

    def save(self, path: Path) -> None:
        """One file; above 1.8 GB of tensors, which is all that its format holds, with a ``.data`` file beside it."""
        self.onnx.save(path)


def export_program(network: nn.Module, inputs: Inputs) -> Program:
    """``network`` in eval mode as ONNX; it lies on the CPU in float32, as ``inputs`` do.

    Raises:
        ValueError: it cannot be traced, or has an operation that ONNX does not know.
    """
    with evaluating(network), quiet(), _silent():
        program, fixed, tokens = _any_size(network, inputs)
        try:
            made: Any = torch.onnx.export(program, (), dynamo=True, verbose=False, external_data=False)
        except Exception as error:  # whatever torch's exporter raises
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise ValueError(refusal(network, inputs, "be written as ONNX", cause)) from error
    names = axis_names(made.exported_program)
    _drop_notes(made.model.graph)
    name_axes(made.model.graph, names)
    graph = graph_of(network, made.exported_program)
    sizes = {"batch": 1, "tokens": token_length(inputs) or 1}
    lengths = {symbol: sizes[name] for symbol, name in names.items()}
    for node in graph.fx.nodes:
        node.meta["val"] = tree_map(partial(of_one, lengths=lengths), node.meta.get("val"))
    return Program(network, graph, made, fixed, tokens, _weights(graph, made.model.graph))


def _drop_notes(file: Any) -> None:
    """Take out what torch notes of each node, such as the lines of code with the paths of this machine."""
    for node in file:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*file.inputs, *file.outputs, *file.initializers.values()]:
        value.metadata_props.clear()


def _weights(graph: Graph, file: Any) -> dict[str, Weight]:
    """Where the file has the layers' weights; one that lies transposed under a number gets its name back.

    Layers of equal weights have one tensor, under the name of the first.
    """
    values = {value.name: value for node in file for value in node.outputs}
    found: dict[str, Weight] = {}
    for layer in weight_layers(graph.network):
        name = _tensor_name(graph, layer)
        placeholder = graph.tensors.get(name)
        users = [] if placeholder is None else [node for node in placeholder.users if runs_layer(node)]
        for call in [node for node in users if node.args[1] is placeholder][:1]:
            product = _product(values.get(call.name))
            if product is None:
                continue
            stored = product.inputs[1]
            named = stored.name in {own.name for own in found.values()}
            if not named and stored.name != name and name not in file.initializers:
                del file.initializers[stored.name]
                stored.name = name
                file.register_initializer(stored)
            found[layer.name] = Weight(stored.name, call.name, operation(call) == "linear" and not _by_rows(product))
    return found


def _tensor_name(graph: Graph, layer: Layer) -> str:
    if layer.parameter == "weight":
        return tensor_name(graph.network, layer)
    return layer.parameter if layer.module is graph.network else f"{layer.name}_weight"


def _product(value: Any) -> Any:
    """The node that multiplies by a layer's constant, from its output or the sum with its bias; None if none does."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Add":
        node = node.inputs[0].producer()
    if node is None or node.op_type not in WEIGHTED:
        return None
    return node if node.inputs[1].is_initializer() else None


def _by_rows(product: Any) -> bool:
    """Whether a product of matrices has its second factor as (outputs, inputs)."""
    return product.op_type == "Gemm" and product.attributes.get_int("transB", 0) == 1


def _any_size(network: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, str, str]:
    """For any batch size and any number of tokens, or for those of ``inputs`` and why."""
    fixed, tokens = "its inputs have no batch axis", ""
    if inputs.batch is not None:
        two = inputs if inputs.batch > 1 else inputs.repeat(2)
        if token_length(two) is not None:
            try:
                return _traced(network, two, dynamic_axes(two, True)), "", ""
            except Exception as error:  # torch.export raises whatever the network's own code does
                tokens = first_line(error)
        try:
            return _traced(network, two, dynamic_axes(two, False)), "", tokens
        except Exception as error:
            fixed = first_line(error)
    try:
        return _traced(network, inputs, None), fixed, tokens
    except Exception as error:
        raise ValueError(refusal(network, inputs, "be traced", error)) from error


def _traced(network: nn.Module, inputs: Inputs, axes: Any) -> ExportedProgram:
    return torch.export.export(network, inputs.args, inputs.kwargs, dynamic_shapes=axes, strict=False)


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, torch's exporter and its libraries neither warn nor log: our own errors and tables report."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
