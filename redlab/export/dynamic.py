"""A float32 ONNX model whose linear layers multiply bytes: weights in 8 bits, activations quantized as they come.

For transformers: their activations have no ranges that hold (a few channels are far larger than the others), and the
time that finding a range takes is small beside the product. ONNX Runtime's ``quantize_dynamic`` writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redlab.export.grids import Rows
from redlab.export.static import overrides, quiet_logs


def quantize_dynamic(model: Any, weights: dict[str, tuple[Rows, int]], path: Path) -> Any:
    """The model with a product of bytes for every product with a constant.

    Arguments:
        model: float32; left untouched.
        weights: codes and the axis of the outputs by the name of the tensor; other constants are quantized by columns.
        path: of a file that may be written meanwhile.
    """
    import onnx
    from onnxruntime import quantization

    turned = {f"{name}_Transposed": (rows, 1) for name, (rows, axis) in weights.items() if axis == 0}
    with quiet_logs():
        quantization.quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True, "TensorQuantOverrides": overrides(weights | turned)},
        )
    return onnx.load(path)
