"""A float32 ONNX model in bytes: pairs of QuantizeLinear and DequantizeLinear around what runs in 8 bits (QDQ).

ONNX Runtime's own quantizer places the pairs: it can be handed a range for every activation, and for every weight the
steps by which it finds our codes again, so that we need not change graphs ourselves. Two things it cannot be told are
done here: which nodes have all their ranges, and that the network's answer stays in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy import ndarray

from redlab.export.grids import Rows
from redlab.export.program import WEIGHTED
from redlab.export.ranges import Ranges

# What keeps the range of its first input, and has the same scale on both sides.
_MOVES = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Pad", "Split", "MaxPool"))
_CLIPS = frozenset(("Relu", "Clip"))
_OTHERS = frozenset(("Add", "Mul", "LeakyRelu", "Concat", "AveragePool", "GlobalAveragePool", "ReduceMean", "Sigmoid"))
_PRODUCTS = WEIGHTED - {"ConvTranspose"}
IN_BYTES = _PRODUCTS | _MOVES | _CLIPS | _OTHERS
_BOUNDED = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0)}
_BIAS_REACH = 2**30  # what a bias may be at most, in units of its step: half of what 32 bits hold


def fill_ranges(model: Any, ranges: Ranges) -> Ranges:
    """The ranges of values that only the file has.

    What moves values has its input's, a sigmoid lies in [0, 1], and a product of matrices is its sum less the bias.
    """
    found, constants = dict(ranges), _constants(model)
    for node in model.graph.node:
        known = found.get(node.input[0]) if node.op_type in _MOVES else _BOUNDED.get(node.op_type)
        if known is not None:
            found |= {name: known for name in node.output if name and name not in found}
        if node.op_type == "Add" and node.output[0] in found and node.input[1] in constants:
            low, high = found[node.output[0]]
            own = constants[node.input[1]]
            found.setdefault(node.input[0], (min(0.0, low - float(own.max())), max(0.0, high - float(own.min()))))
    return found


def least_steps(model: Any, ranges: Ranges, name: str) -> ndarray | float:
    """(rows,) the smallest step of a weight's rows with which its bias fits in 32 bits.

    Rows that do next to nothing but add a bias, as those of dead filters, have tiny steps otherwise.
    """
    node = next((node for node in model.graph.node if name in node.input[1:2]), None)
    bias = _constants(model).get(node.input[2]) if node is not None and len(node.input) > 2 else None
    if node is None or bias is None or node.input[0] not in ranges:
        return 0.0
    low, high = ranges[node.input[0]]
    scale = max((high - low) / 255, float(np.finfo(np.float32).tiny))
    return np.abs(bias) / (_BIAS_REACH * scale)


def quantize_static(model: Any, ranges: Ranges, weights: dict[str, tuple[Rows, int]]) -> Any:
    """The model with every node in bytes of whose activations all have a range, and of whose weights all have codes.

    Arguments:
        model: float32, with names of its own for all nodes; it is used up.
        ranges: of activations by the name of their value, as ``fill_ranges`` returns them.
        weights: codes and the axis of the outputs by the name of the tensor, whose values are codes * steps.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.shape_inference.infer_shapes(model)
    nodes = [node.name for node in model.graph.node if not why_float(model, node, ranges, weights)]
    if not nodes:  # which the quantizer would take for all
        return model
    data = TensorsData(CalibrationMethod.MinMax, {name: tuple(map(np.float32, ends)) for name, ends in ranges.items()})
    options = {"TensorQuantOverrides": overrides(weights), "QDQDisableWeightAdjustForInt32Bias": True}
    types = sorted({node.op_type for node in model.graph.node})
    with quiet_logs():
        quantizer = QDQQuantizer(
            model, True, False, QuantType.QInt8, QuantType.QUInt8, data, nodes, [], types, options
        )  # fmt: skip
        quantizer.quantize_model()
    _check_codes(quantizer.model.model, weights)
    return _float_answers(quantizer.model.model)


def overrides(weights: dict[str, tuple[Rows, int]]) -> dict[str, list[dict[str, Any]]]:
    """What makes ONNX Runtime's quantizer find the codes again: the step of each row, with 0 at 0."""
    from onnxruntime.quantization import QuantType

    zero = {"zero_point": np.int8(0), "quant_type": QuantType.QInt8}
    return {
        name: [{"axis": axis, "scale": step, **zero} for step in rows.steps] for name, (rows, axis) in weights.items()
    }


def why_float(model: Any, node: Any, ranges: Ranges, weights: dict[str, tuple[Rows, int]]) -> str:
    """Why a node stays in float32, or ""."""
    constants = {tensor.name for tensor in model.graph.initializer}
    if node.op_type not in IN_BYTES:
        return f"{node.op_type} has no kernel for bytes"
    if node.op_type in _PRODUCTS and node.input[1] not in weights:
        return "its weight is no constant of a layer"
    if node.op_type not in _PRODUCTS and {answer.name for answer in model.graph.output} & set(node.output):
        return "the network's answer stays in float32"
    factors = [] if node.op_type in _PRODUCTS | _MOVES | _CLIPS else node.input[1:]
    if constants & {node.input[0], *factors}:
        return "its constant stays in float32"
    if unknown := [name for name in (node.input[0], *factors, *node.output) if name and name not in ranges]:
        return f"no range is known of {', '.join(unknown)}"
    return "" if node.op_type != "Clip" or _reaches(model, node, ranges) else "its bounds are not those of its range"


def _reaches(model: Any, node: Any, ranges: Ranges) -> bool:
    """Whether the bytes of a Clip's output end within its bounds, so that they clip by themselves."""
    low, high = ranges[node.output[0]]
    constants = _constants(model)
    bounds = [constants.get(name) for name in node.input[1:]]
    ends = zip(bounds, (low, high), (1, -1), strict=False)
    return all(bound is None or sign * (end - float(bound)) >= -1e-6 for bound, end, sign in ends)


def _constants(model: Any) -> dict[str, ndarray]:
    from onnx.numpy_helper import to_array

    return {tensor.name: to_array(tensor) for tensor in model.graph.initializer}


def _check_codes(model: Any, weights: dict[str, tuple[Rows, int]]) -> None:
    """Raises RuntimeError if the file has other codes of a weight than ours."""
    stored = _constants(model)
    for name, (rows, _) in weights.items():
        found = stored.get(f"{name}_quantized")
        if found is not None and not np.array_equal(found, rows.codes):
            raise RuntimeError(f"onnxruntime wrote other codes of {name} than it was handed: please report it")


def _float_answers(model: Any) -> Any:
    """Take out the pair in front of each of the network's answers: what makes it puts out float32."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers = [name for node in graph.node for name in node.input]
    for answer in graph.output:
        last = makers.get(answer.name)
        first = makers.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        if first is None or first.op_type != "QuantizeLinear" or readers.count(first.output[0]) > 1:
            continue
        source = makers.get(first.input[0])
        if source is None or source.op_type not in WEIGHTED or readers.count(first.input[0]) > 1:
            continue
        source.output[list(source.output).index(first.input[0])] = answer.name
        graph.node.remove(first)
        graph.node.remove(last)
    return model


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Inside, ONNX Runtime's quantizer logs no warnings: our tables report."""
    logger = logging.getLogger()
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(level)
