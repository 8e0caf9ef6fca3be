"""What an ONNX file says of itself: its inputs, and the precision of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from redlab.names import needs
from redlab.network.example import Inputs

_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}


@dataclass(frozen=True)
class FileInput:
    """An input of an ONNX file.

    Attributes:
        name: in the file.
        dtype: of its values.
        shape: None for every axis whose length is open.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]

    def array(self, value: Any, batch: int) -> ndarray:
        """``value``, of one input, as this file takes it: repeated along the first axis."""
        array = np.asarray(value).astype(self.dtype)
        if not self.shape or not array.ndim or len(array) != 1:
            return array
        times = batch if self.shape[0] is None else self.shape[0]
        return array.repeat(times, axis=0)


@dataclass(frozen=True)
class OnnxFacts:
    """What an ONNX file says of itself.

    Attributes:
        inputs: in the file's order.
        precision: "int8"; "weights4" or "weights8" where only weights of linear layers are stored so; "float16"; else
            "float32".
    """

    inputs: list[FileInput]
    precision: str

    @property
    def batch(self) -> int | None:
        """The only number of inputs at once that it takes; None if it takes any."""
        shape = self.inputs[0].shape if self.inputs else ()
        return shape[0] if shape else None

    def example(self) -> list[ndarray]:
        """Normal random numbers, one input.

        Raises:
            ValueError: a shape is open beyond the batch, or whole numbers are asked for; the message asks for
                ``example=``.
        """
        generator = np.random.default_rng(0)
        shapes = [[1, *(axis for axis in own.shape[1:] if axis is not None)] for own in self.inputs]
        for own in self.inputs:
            if None in own.shape[1:] or not np.issubdtype(own.dtype, np.floating):
                kind = f"{own.dtype} of shape {list(own.shape)}"
                raise ValueError(f"what the input {own.name} ({kind}) may be is not known: pass example=")
        return [
            generator.standard_normal(shape).astype(own.dtype) for own, shape in zip(self.inputs, shapes, strict=True)
        ]

    def feeds(self, inputs: Inputs, batch: int) -> dict[str, ndarray]:
        """The arrays of ``inputs``, of one input, by the names of this file.

        Raises:
            ValueError: there are more or fewer of them than the file takes.
        """
        named = {name: value for name, value in inputs.kwargs.items() if hasattr(value, "shape")}
        names = [own.name for own in self.inputs]
        values = [named[name] for name in names] if set(names) <= named.keys() else inputs.tensors
        if len(values) != len(names):
            raise ValueError(f"the file takes {', '.join(names) or 'nothing'}, and example= is {inputs.describe()}")
        pairs = zip(self.inputs, values, strict=True)
        return {
            own.name: own.array(value.detach().cpu().float() if value.is_floating_point() else value.cpu(), batch)
            for own, value in pairs
        }


def onnx_facts(path: Path) -> OnnxFacts:
    """Read them, without weights in files beside it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no ONNX file.
        ModuleNotFoundError: onnx is not installed.
    """
    needs("export", "onnx")
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's own kinds
        raise ValueError(f"{path} is no ONNX file: {error}") from error
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [_input(onnx, value) for value in model.graph.input if value.name not in stored]
    return OnnxFacts(inputs, _precision(onnx, model))


def _input(onnx: Any, value: Any) -> FileInput:
    own = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in own.shape.dim)
    return FileInput(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(own.elem_type)), shape)


def _precision(onnx: Any, model: Any) -> str:
    nodes = [*_nodes(model.graph.node), *(node for own in model.functions for node in _nodes(own.node))]
    if any(node.op_type in _QUANTIZED or node.op_type.startswith("QLinear") for node in nodes):
        return "int8"
    bits = [_bits(node) for node in nodes if node.op_type == "MatMulNBits"]
    if bits:
        return f"weights{min(bits)}"
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    return "float16" if onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds else "float32"


def _bits(node: Any) -> int:
    return next((own.i for own in node.attribute if own.name == "bits"), 4)


def _nodes(nodes: Any) -> Iterator[Any]:
    """Those of branches and loops too."""
    for node in nodes:
        yield node
        for own in node.attribute:
            if own.HasField("g"):
                yield from _nodes(own.g.node)
