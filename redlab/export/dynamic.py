"""A float32 ONNX model whose linear layers multiply bytes: weights in 8 bits, activations quantized as they come.

For transformers: their activations have no ranges that hold (a few channels are far larger than the others), and the
time that finding a range takes is small beside the product. ONNX Runtime's ``quantize_dynamic`` writes it: it can be
handed the steps by which it finds our codes again. Embeddings stay in float32: a look-up multiplies nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from redlab.export.grids import Rows
from redlab.export.static import overrides, quiet_logs
from redlab.export.writing import drop_unused

_TURNED = "_Transposed"  # how ONNX Runtime calls the weight of a Gemm, which it makes a MatMul and an Add


def quantize_dynamic(model: Any, weights: dict[str, tuple[Rows, int]], path: Path) -> Any:
    """The model with a product of bytes for every product with one of ``weights``.

    Arguments:
        model: float32, with names of its own for all nodes; left untouched.
        weights: codes and the axis of the outputs by the name of the tensor.
        path: of a file that may be written meanwhile.

    Raises:
        RuntimeError: the codes of a weight are not those of the file.
    """
    import onnx
    from onnxruntime import quantization

    nodes = [node.name for node in model.graph.node if set(node.input[1:2]) & weights.keys()]
    if not nodes:  # which the quantizer would take for all
        return model
    turned = {f"{name}{_TURNED}": (rows, 1) for name, (rows, axis) in weights.items() if axis == 0}
    with quiet_logs():
        quantization.quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True, "TensorQuantOverrides": overrides(weights | turned)},
        )
    made = onnx.load(path)
    drop_unused(made.graph)
    _check_codes(made, weights)
    return made


def _check_codes(model: Any, weights: dict[str, tuple[Rows, int]]) -> None:
    """Raises RuntimeError if the file has other codes or steps of a weight than ours, or none."""
    from onnx.numpy_helper import to_array

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, (rows, axis) in weights.items():
        own = name if axis == 1 else f"{name}{_TURNED}"
        names = [f"{own}_{part}" for part in ("quantized", "scale", "zero_point")]
        if not stored.keys() >= set(names) or not _same(rows, axis, *(to_array(stored[part]) for part in names)):
            raise RuntimeError(f"onnxruntime wrote other codes of {name} than it was handed: please report it")


def _same(rows: Rows, axis: int, codes: ndarray, steps: ndarray, zeros: ndarray) -> bool:
    """Whether the file has these codes, as (inputs, outputs)."""
    own = rows.codes if axis == 1 else rows.codes.T
    return np.array_equal(codes, own) and np.array_equal(steps, rows.steps) and not zeros.any()
