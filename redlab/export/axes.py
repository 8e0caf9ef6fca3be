"""Axes of any length: which ones a program may have, and what they are called in a file."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from redlab.network.example import Inputs


def dynamic_axes(inputs: Inputs, any_length: bool) -> Any:
    """What torch.export is told: which axes may have any length.

    The first one of every tensor as long as the batch; and, if ``any_length``, the second one of token ids, whose
    largest length torch reads off the network's code.
    """
    length, batch = token_length(inputs) if any_length else None, Dim("batch", min=1)

    def axes(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0:
            return None
        own: dict[int, Any] = {0: batch} if len(leaf) == inputs.batch else {}
        if length is not None and _holds_tokens(leaf):
            own[1] = Dim.DYNAMIC
        return own or None

    args, kwargs = tree_map(axes, (inputs.args, inputs.kwargs))
    return kwargs if inputs.kwargs else args


def token_length(inputs: Inputs) -> int | None:
    """The length of sequences of token ids, if all that there are have the same, of 2 or more; else None."""
    lengths = {tensor.shape[1] for tensor in inputs.tensors if _holds_tokens(tensor)}
    return next(iter(lengths)) if len(lengths) == 1 and min(lengths) > 1 else None


def _holds_tokens(tensor: Tensor) -> bool:
    """Whether it is a batch of rows of whole numbers, as token ids and their masks are."""
    return tensor.ndim == 2 and not tensor.is_floating_point() and not tensor.is_complex()


def axis_names(program: ExportedProgram) -> dict[str, str]:
    """What the symbols stand for that torch gave the lengths of the inputs: "batch" or "tokens"."""
    given = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in given]
    sizes = [(axis, size) for value in values if isinstance(value, Tensor) for axis, size in enumerate(value.shape)]
    return {str(size): "tokens" if axis else "batch" for axis, size in sizes if isinstance(size, SymInt)}


def name_axes(file: Any, names: dict[str, str]) -> None:
    """Call lengths of any size in the file by their names."""
    import onnx_ir

    for value in [*file.inputs, *(value for node in file for value in node.outputs)]:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                text = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(size.value))
                value.shape[axis] = onnx_ir.SymbolicDim(text)


def of_one(value: Any, lengths: dict[str, int]) -> Any:
    """A traced value for a batch of one: a tensor of that shape without memory of its own, or a number."""
    if isinstance(value, Tensor):
        return torch.zeros((), dtype=value.dtype).expand([_length(size, lengths) for size in value.shape])
    return _length(value, lengths)


def _length(size: Any, lengths: dict[str, int]) -> Any:
    """A length that depends on the inputs': 2 * s0 + 1 is 3 where ``s0`` is 1."""
    if not isinstance(size, SymInt):
        return size
    formula = size.node.expr
    return int(formula.subs({own: lengths.get(str(own), 1) for own in formula.free_symbols}))
