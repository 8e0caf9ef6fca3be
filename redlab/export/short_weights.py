"""A float32 ONNX model whose linear layers keep their weights in 8 or 4 bits and multiply in float32.

Every product with a layer's constant becomes one ``MatMulNBits`` of ONNX Runtime: whole codes, and one step for every
block of inputs of a row. ONNX Runtime's ``MatMulNBitsQuantizer`` writes the same node, but finds the steps itself, from
the largest weight of each block, and so would round again what hashing rounded already; it takes no codes, and no Gemm.
So the codes are packed here, for all layers: those of hashing have the step of their row in each of its blocks.

The node also says that activations are rounded to 8 bits as they come, by blocks as well (``accuracy_level`` 4): ONNX
Runtime's other kernel for codes of 8 bits, in float32, took 3 to 4 times the time of the float32 file at batch 1 (16
tokens through MiniLM-L6). OpenVINO rounds activations by default, whatever the file says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from redlab.export.grids import read_rows
from redlab.export.program import Program, export_program
from redlab.export.writing import drop_unused
from redlab.network.example import Inputs
from redlab.network.layers import Layer, weight_layers

# Inputs that share a step, by bits: at most these. The kernel takes powers of 2 from 16 on.
_LARGEST, _SMALLEST = {8: 128, 4: 32}, 16
_DOMAIN, _IN_BYTES = "com.microsoft", 4
_NOT_LINEAR = "no linear layer: only these have short weights"
_NOT_SEEN = "the exported program does not multiply by its weight as it is"


@dataclass(frozen=True)
class Blocks:
    """The weights of a linear layer as codes times steps.

    Attributes:
        codes: int8 (outputs, inputs), from -2^(bits - 1) on.
        steps: float32 (outputs, blocks), not 0; the last block may be shorter.
        bits: 8 or 4.
        hashed: whether the weights were so already.
    """

    codes: ndarray
    steps: ndarray
    bits: int
    hashed: bool

    @property
    def size(self) -> int:
        """Of a block."""
        return block_size(self.codes.shape[1], self.bits)

    @property
    def values(self) -> Tensor:
        """The float32 weight that the codes stand for, as an engine multiplies them out."""
        steps = self.steps.repeat(self.size, axis=1)[:, : self.codes.shape[1]]
        return torch.from_numpy(self.codes * steps)

    @property
    def bytes(self) -> int:
        """Of codes and steps in the file."""
        return self.packed().nbytes + self.steps.nbytes

    def packed(self) -> ndarray:
        """uint8 (outputs, blocks, bytes of a block): codes from 0 on, of 4 bits the first one in the lower half.

        Example: codes (-8, 7) in 4 bits are 0 and 15, the byte 0xF0.
        """
        padded = np.pad(self.codes.astype(np.int16), ((0, 0), (0, -self.codes.shape[1] % self.size)))
        blocks = (padded + 2 ** (self.bits - 1)).astype(np.uint8).reshape(len(padded), -1, self.size)
        return blocks if self.bits == 8 else blocks[..., ::2] | blocks[..., 1::2] << 4


@dataclass(frozen=True, eq=False)
class ShortWeights:
    """A model of whose linear layers the weights are short.

    Attributes:
        program: of the network in float32.
        model: ONNX.
        blocks: by layer, the codes.
        reasons: by layer, why it stayed in float32.
    """

    program: Program
    model: Any
    blocks: dict[str, Blocks]
    reasons: dict[str, str]


def short_weights(network: nn.Module, inputs: Inputs, bits: int) -> ShortWeights:
    """A prepared network with linear weights in 8 or 4 bits."""
    program = export_program(network, inputs)
    model = program.onnx.model_proto
    products = {node.input[1] for node in model.graph.node if is_product(node)}
    found, reasons = {}, {}
    for layer in (own for own in weight_layers(network) if not own.skipped):
        stored = program.weights.get(layer.name)
        if layer.weight.ndim != 2:
            reasons[layer.name] = _NOT_LINEAR
        elif stored is None or stored.name not in products:
            reasons[layer.name] = _NOT_SEEN
        else:
            found[layer.name] = blocks_of(layer, bits)
    weights = {program.weights[name].name: own for name, own in found.items()}
    return ShortWeights(program, shorten_weights(model, weights), found, reasons)


def is_product(node: Any) -> bool:
    """Whether an ONNX node multiplies matrices, and does nothing more than add a bias."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    values = {own.name: own.f if own.name in ("alpha", "beta") else own.i for own in node.attribute}
    return node.op_type == "MatMul" or (
        node.op_type == "Gemm" and all(values.get(name, value) == value for name, value in plain.items())
    )


def block_size(inputs: int, bits: int) -> int:
    """How many inputs of a layer share a step: of few, all."""
    return min(_LARGEST[bits], max(_SMALLEST, 2 ** (inputs - 1).bit_length()))


def blocks_of(layer: Layer, bits: int) -> Blocks:
    """The weights of a linear layer in so many bits: as hashing left them where that fits, else rounded by blocks."""
    if rows := read_rows(layer, bits):
        count = -(-rows.codes.shape[1] // block_size(rows.codes.shape[1], bits))
        return Blocks(rows.codes, rows.steps[:, None].repeat(count, axis=1), bits, True)
    return round_blocks(layer.weight.detach().float().cpu().numpy(), bits)


def round_blocks(weight: ndarray, bits: int) -> Blocks:
    """The codes nearest to (outputs, inputs); the weight of the largest magnitude in each block has the lowest code.

    Which is its step times -2^(bits - 1), so that its step has its sign turned: as in llama.cpp's Q4_0 and ONNX
    Runtime. One code more is used than with the same number of codes on both sides.
    """
    inputs, size, lowest = weight.shape[1], block_size(weight.shape[1], bits), -(2 ** (bits - 1))
    blocks = np.pad(weight, ((0, 0), (0, -inputs % size))).reshape(len(weight), -1, size)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    steps = (largest / lowest).astype(np.float32)
    steps = np.where(np.abs(steps) < np.finfo(np.float32).tiny, np.float32(1), steps)
    codes = np.rint(blocks / steps).clip(lowest, -1 - lowest).astype(np.int8)
    return Blocks(codes.reshape(len(weight), -1)[:, :inputs], steps[..., 0], bits, False)


def shorten_weights(model: Any, weights: dict[str, Blocks]) -> Any:
    """The model with a ``MatMulNBits`` for every product with one of ``weights``, by the name of the tensor."""
    import onnx

    graph, made, used = model.graph, [], set()
    for node in graph.node:
        name = node.input[1] if is_product(node) else ""
        made += _short_product(node, weights[name]) if name in weights else [node]
        used |= {name} & weights.keys()
    del graph.node[:]
    graph.node.extend(made)
    for name in sorted(used):
        graph.initializer.append(onnx.numpy_helper.from_array(weights[name].packed(), f"{name}_codes"))
        graph.initializer.append(onnx.numpy_helper.from_array(weights[name].steps, f"{name}_steps"))
    drop_unused(graph)
    if all(own.domain != _DOMAIN for own in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return model


def _short_product(node: Any, own: Blocks) -> list[Any]:
    """The product, and of a Gemm the sum with its bias."""
    from onnx.helper import make_node

    outputs, inputs = own.codes.shape
    names = [node.input[0], f"{node.input[1]}_codes", f"{node.input[1]}_steps"]
    sizes = {"K": inputs, "N": outputs, "bits": own.bits, "block_size": own.size, "accuracy_level": _IN_BYTES}
    biased = len(node.input) > 2
    answer = f"{node.output[0]}_product" if biased else node.output[0]
    made = [make_node("MatMulNBits", names, [answer], node.name, domain=_DOMAIN, **sizes)]
    if biased:
        made.append(make_node("Add", [answer, node.input[2]], list(node.output), f"{node.name}_bias"))
    return made
