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
_UNREACHED = "its bounds are not those of its range"
_BIAS_REACH = 2**30  # what a bias may be at most, in units of its step: half of what 32 bits hold


class Facts:
    """What is asked of a model again and again.

    Attributes:
        model: ONNX.
        constants: the stored tensors by name.
        answers: the names of what the network puts out.
        readers: by the name of a value, the nodes that read it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.answers = {answer.name for answer in model.graph.output}
        self.readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def constant(self, name: str) -> ndarray | None:
        """The values of a stored tensor; None if the network computes it, or there is no such name."""
        from onnx.numpy_helper import to_array

        return to_array(self.constants[name]) if name in self.constants else None


def fill_ranges(facts: Facts, ranges: Ranges) -> Ranges:
    """The ranges of values that only the file has.

    What moves values has its input's, a sigmoid lies in [0, 1], and a product of matrices is its sum less the bias.
    """
    found = dict(ranges)
    for node in facts.model.graph.node:
        known = found.get(node.input[0]) if node.op_type in _MOVES else _BOUNDED.get(node.op_type)
        if known is not None:
            found |= {name: known for name in node.output if name and name not in found}
        own = facts.constant(node.input[1]) if node.op_type == "Add" else None
        if own is not None and node.output[0] in found:
            low, high = found[node.output[0]]
            found.setdefault(node.input[0], (min(0.0, low - float(own.max())), max(0.0, high - float(own.min()))))
    return found


def least_steps(facts: Facts, ranges: Ranges, name: str) -> ndarray | float:
    """(rows,) the smallest step of a weight's rows with which the bias of each node that reads it fits in 32 bits.

    Rows that do next to nothing but add a bias, as those of dead filters, have tiny steps otherwise.
    """
    least: ndarray | float = 0.0
    for node in facts.readers.get(name, ()):
        bias = facts.constant(node.input[2]) if len(node.input) > 2 and node.op_type in WEIGHTED else None
        if bias is not None and node.input[0] in ranges:
            low, high = ranges[node.input[0]]
            scale = max((high - low) / 255, float(np.finfo(np.float32).tiny))
            least = np.maximum(least, np.abs(bias.astype(np.float64)) / (_BIAS_REACH * scale))
    return least


def quantize_static(facts: Facts, ranges: Ranges, weights: dict[str, tuple[Rows, int]]) -> Any:
    """The model with every node in bytes of whose activations all have a range, and of whose weights all have codes.

    Arguments:
        facts: of a float32 model with names of its own for all nodes; it is used up.
        ranges: of activations by the name of their value, as ``fill_ranges`` returns them.
        weights: codes and the axis of the outputs by the name of the tensor.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    nodes = [node.name for node in facts.model.graph.node if not why_float(facts, node, ranges, weights)]
    if not nodes:  # which the quantizer would take for all
        return facts.model
    _store_products(facts, weights)
    model = onnx.shape_inference.infer_shapes(facts.model)
    data = TensorsData(CalibrationMethod.MinMax, {name: tuple(map(np.float32, ends)) for name, ends in ranges.items()})
    options = {"TensorQuantOverrides": overrides(weights), "QDQDisableWeightAdjustForInt32Bias": True}
    types = sorted({node.op_type for node in model.graph.node})
    with quiet_logs():
        quantizer = QDQQuantizer(
            model, True, False, QuantType.QInt8, QuantType.QUInt8, data, nodes, [], types, options
        )  # fmt: skip
        quantizer.quantize_model()
    _float_answers(quantizer.model.model)
    quantizer.model.topological_sort()
    _check_codes(Facts(quantizer.model.model), weights)
    return quantizer.model.model


def _store_products(facts: Facts, weights: dict[str, tuple[Rows, int]]) -> None:
    """Write codes * steps where the codes were read: what is rounded again must find them."""
    from onnx.numpy_helper import from_array

    for name, (rows, axis) in weights.items():
        shape = [-1 if k == axis else 1 for k in range(rows.codes.ndim)]
        products = rows.codes.astype(np.float32) * rows.steps.reshape(shape)
        facts.constants[name].CopyFrom(from_array(products, name))


def overrides(weights: dict[str, tuple[Rows, int]]) -> dict[str, list[dict[str, Any]]]:
    """What makes ONNX Runtime's quantizer find the codes again: the step of each row, with 0 at 0."""
    from onnxruntime.quantization import QuantType

    zero = {"zero_point": np.int8(0), "quant_type": QuantType.QInt8}
    return {
        name: [{"axis": axis, "scale": step, **zero} for step in rows.steps] for name, (rows, axis) in weights.items()
    }


def why_float(facts: Facts, node: Any, ranges: Ranges, weights: dict[str, tuple[Rows, int]]) -> str:
    """Why a node stays in float32, or ""."""
    if node.op_type not in IN_BYTES:
        return f"{node.op_type} has no kernel for bytes"
    if node.op_type in _PRODUCTS and node.input[1] not in weights:
        return "its weight is no constant of a layer"
    if node.op_type not in _PRODUCTS and not facts.answers.isdisjoint(node.output):
        return "the network's answer stays in float32"
    factors = [] if node.op_type in _PRODUCTS | _MOVES | _CLIPS else node.input[1:]
    if not facts.constants.keys().isdisjoint((node.input[0], *factors)):
        return "its constant stays in float32"
    if unknown := [name for name in (node.input[0], *factors, *node.output) if name and name not in ranges]:
        return f"no range is known of {', '.join(unknown)}"
    return "" if node.op_type not in _CLIPS or _reaches(facts, node, ranges) else _UNREACHED


def _reaches(facts: Facts, node: Any, ranges: Ranges) -> bool:
    """Whether the bytes of a Relu's or Clip's output end within its bounds, so that they clip by themselves."""
    if node.op_type == "Clip" and any(name and name not in facts.constants for name in node.input[1:]):
        return False  # bounds that the network computes
    bounds = [np.float32(0), None] if node.op_type == "Relu" else [facts.constant(name) for name in node.input[1:]]
    ends = zip(bounds, ranges[node.output[0]], (1, -1), strict=False)
    return all(bound is None or sign * (end - float(bound)) >= -1e-6 for bound, end, sign in ends)


def _check_codes(facts: Facts, weights: dict[str, tuple[Rows, int]]) -> None:
    """Raises RuntimeError if the file has other codes of a weight than ours."""
    for name, (rows, _) in weights.items():
        found = facts.constant(f"{name}_quantized")
        if found is None or not np.array_equal(found, rows.codes):
            raise RuntimeError(f"onnxruntime wrote other codes of {name} than it was handed: please report it")


def _float_answers(model: Any) -> None:
    """Hand out float32 where a product makes one of the network's answers; who else reads the answer gets bytes."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for answer in graph.output:
        last = makers.get(answer.name)
        first = makers.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        source = makers.get(first.input[0]) if first is not None and first.op_type == "QuantizeLinear" else None
        if last is None or first is None or source is None or source.op_type not in WEIGHTED:
            continue
        rounded = f"{answer.name}_rounded"
        readers = _rename_inputs(graph, answer.name, rounded)
        _rename_inputs(graph, first.input[0], answer.name)
        source.output[0], last.output[0] = answer.name, rounded
        if not readers:
            graph.node.remove(first)
            graph.node.remove(last)


def _rename_inputs(graph: Any, old: str, new: str) -> int:
    """How many inputs of nodes were so called."""
    places = [(node, place) for node in graph.node for place, name in enumerate(node.input) if name == old]
    for node, place in places:
        node.input[place] = new
    return len(places)


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
