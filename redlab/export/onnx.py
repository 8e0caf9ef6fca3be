"""A network as an ONNX file that runs without redlab: float32, 8 bits throughout, or weights in 8 or 4 bits.

Hashing to evenly spaced values is what an 8-bit network needs: ``hash_network(rule="uniform", scale="row")`` leaves
whole codes times one step a row, and these codes are what the file holds. Ranges of activations follow from batch
norm without data (Nagel et al., ICCV 2019, arXiv 1906.04721), or from images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from redlab.compression.preparing import prepare_for
from redlab.compression.splitting import as_dense
from redlab.export.comparing import compare, rounding
from redlab.export.eight_bits import EightBits, eight_bits, usual_bits
from redlab.export.grids import weight_of
from redlab.export.program import export_program
from redlab.export.short_weights import ShortWeights, short_weights
from redlab.export.writing import file_bytes, save_model, written
from redlab.names import needs
from redlab.network.example import Example, Inputs, fit_example
from redlab.network.layers import Layer, weight_layers
from redlab.network.result import Result, report_once
from redlab.network.samples import Labelled
from redlab.options import check_one_of, plain_options

PRECISIONS = ("float32", "int8", "weights8", "weights4")
_SHORT = {"weights8": 8, "weights4": 4}
_COLUMNS = ["layer", "kind", "weights", "precision", "codes", "error", "low", "high", "bytes", "skipped"]
_MOST = 1e-4  # how far a float32 file may answer from its network, of the largest output
_ROUNDINGS = 4  # or so many times what float32 does to the network itself: deep ones amplify every rounding


@dataclass(frozen=True, eq=False)
class Export:
    """A file that was written, and how it compares with its network.

    Attributes:
        path: of the file.
        precision: "float32", "int8", "weights8" or "weights4".
        layers: a row a conv or linear layer: ``layer``, ``kind``, ``weights``, ``precision`` (of its product),
            ``codes`` ("hash": as hashing left them; "rows", "blocks": rounded here by these; "" in float32), ``error``
            (relative L2, of rounding here), ``low`` and ``high`` (of its input), ``bytes`` of the weight in the file
            and ``skipped``: why a layer stayed in float32.
        bytes: of the file, with the ``.data`` beside it.
        difference: largest difference to the network on the example, over the largest magnitude of its answer.
        agreement: share of the example whose largest output is the same.
        plan: the options.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export = export_onnx(load_network("digits/mlp"), f"{folder}/net.onnx", "weights8")
        >>> export.precision, export.layers["precision"].tolist()
        ('weights8', ['weights8', 'weights8', 'weights8'])
    """

    path: Path
    precision: str
    layers: pd.DataFrame
    bytes: int
    difference: float
    agreement: float
    plan: dict = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        text = "<br>".join(self._lines())
        return f"<p>{text}</p>{self.layers.to_html(index=False, max_rows=12, float_format='{:.4g}'.format)}"

    def _lines(self) -> list[str]:
        rows = self.layers
        options = ", ".join(f"{name}={value!r}" for name, value in self.plan.get("options", {}).items())
        weights = 4 * int(rows["weights"].sum())
        lines = [f"export_onnx({options}): {self.path.name}, {self.bytes:,} bytes"]
        lines += [f"weights of layers: {weights:,} bytes in float32 -> {int(rows['bytes'].sum()):,}"] if weights else []
        lines += [f"largest difference on the example {self.difference:.2g} of the largest output"]
        lines += [f"same arg max on {self.agreement:.1%} of the example"] if self.agreement == self.agreement else []
        codes = rows["codes"].value_counts()
        by = "rows" if self.precision == "int8" else "blocks"
        lines += [f"codes: {codes.get('hash', 0)} layers as they were hashed, {codes.get(by, 0)} rounded by {by}"]
        lines = lines if self.precision != "float32" else lines[:-1]
        left = rows[rows["skipped"] != ""]
        if len(left):
            lines.append(f"{len(left)} of {len(rows)} in float32: {report_once(left['layer'], left['skipped'])}")
        lines += [f"batches of one size only: {fixed}"] if (fixed := self.plan.get("fixed")) else []
        return [*lines, f"sequences of one length only: {fixed}"] if (fixed := self.plan.get("tokens")) else lines


@plain_options
@torch.inference_mode(False)
def export_onnx(
    network: nn.Module | Result,
    path: str | PathLike,
    precision: str = "float32",
    ranges: str | Labelled = "batchnorm",
    example: Example | None = None,
    bits: int | str = "auto",
    input_range: tuple[float, float] | None = None,
) -> Export:
    """Write a network as an ONNX file that runs elsewhere, and compare what the file computes with the network.

    Batch norm is folded first (``prepare``); split layers are written as ordinary ones, parameters keep their names.
    The batch size may vary where the network's code allows it, and so may the number of token ids. Tensors above 1.8 GB
    lie in a ``.data`` file beside.

    | precision | products | for |
    |---|---|---|
    | float32 | as they are; within 1e-4 of the network, or 4 times its own rounding | anything |
    | int8 | bytes: weights and activations in 8 bits | convolutional networks: 2 to 3 times faster; transformers |
    | weights8, weights4 | of linear layers, with weights in 8 or 4 bits | a smaller file; transformers in OpenVINO |

    In "int8" the codes of a layer that was hashed by rule "uniform" are stored as they are; any other layer is
    rounded, symmetrically, by rows, and its bias corrected. Of convolutional networks activations are uint8 with one
    scale a tensor, fixed beforehand. Networks with attention find the scale of each activation as they run: theirs
    have a few channels that are far larger than the others. That is fast in ONNX Runtime; OpenVINO runs "weights8"
    faster. Embeddings stay in float32.

    In "weights8" a step belongs to 128 inputs of an output, in "weights4" to 32, and codes of hashing are kept where
    they fit (levels=255 or 15, scale="row"). Both engines round activations to 8 bits as they come, by blocks: those of
    OpenVINO have 32 inputs, and it is faster with 128 (its option DYNAMIC_QUANTIZATION_GROUP_SIZE).

    Arguments:
        path: of the file, ending in .onnx; replaced once the new one is complete.
        precision: see above.
        ranges: for "int8", "batchnorm": without data (see ``ranges``); or a dataset, of whose first 500 images the
            smallest and largest values are taken, and the biases corrected.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        bits: of the weights in "int8": 8, 7, or "auto": 8 where this machine multiplies bytes exactly (AVX-512 VNNI,
            AVX-VNNI, AMX, ARM), else 7. Older CPUs add two products of bytes in 16 bits, which overflow with codes
            above 64. Choose 7 for a file whose machine is not known.
        input_range: smallest and largest value of the network's input; by default from its recipe (images of [0, 1],
            normalised), else 8 deviations around its mean.

    Raises:
        ValueError: the network cannot be written as ONNX, holds NaN, or computes something else there; no range of
            any activation is known; an option is unknown.
        ModuleNotFoundError: the extra ``export`` is missing.

    Source: Krishnamoorthi 2018, arXiv 1806.08342 (rows, symmetric); Nagel et al. 2019, arXiv 1906.04721 (ranges,
    biases). The 8 deviations and the intervals between layers are our choice.

    Example:
        >>> import tempfile
        >>> network = load_network("digits/resnet")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export = export_onnx(network, f"{folder}/net.onnx", "int8")
        >>> set(export.layers["precision"]), export.agreement
        ({'int8'}, 1.0)
    """
    needs("export", "onnx", "onnxscript", "onnxruntime")
    check_one_of("precision", precision, PRECISIONS)
    check_one_of("bits", bits, ("auto", 7, 8))
    if isinstance(ranges, str):
        check_one_of("ranges", ranges, ("batchnorm",))
    if Path(path).suffix != ".onnx":
        raise ValueError(f"the path must end in .onnx, not {str(path)!r}")
    plain, inputs = _plain(network, example)
    options: dict[str, Any] = {"precision": precision}
    with written(Path(path)) as part:
        if precision == "int8":
            options["ranges"] = ranges if isinstance(ranges, str) else type(ranges).__name__
            options["bits"] = usual_bits() if bits == "auto" else bits
            made = eight_bits(plain, inputs, ranges, int(options["bits"]), input_range)
            _refuse_all_float(made, ranges)
            save_model(made.model, part)
            program, layers = made.program, _in_bytes(plain, made)
        elif precision in _SHORT:
            short = short_weights(plain, inputs, _SHORT[precision])
            _refuse_no_linear(short)
            save_model(short.model, part)
            program, layers = short.program, _in_blocks(plain, short, precision)
        else:
            program = export_program(plain, inputs)
            program.save(part)
            layers = _in_floats(plain)
        difference, agreement = compare(plain, inputs, part)
        if precision == "float32":
            _refuse_others(plain, inputs, difference)
    plan = {"step": "export_onnx", "options": options, "fixed": program.fixed, "tokens": program.tokens}
    return Export(Path(path), precision, layers, file_bytes(Path(path)), difference, agreement, plan)


def _refuse_others(network: nn.Module, inputs: Inputs, difference: float) -> None:
    """Raises ValueError if a float32 file answers otherwise than the network, by more than rounding does."""
    if difference <= _MOST:
        return
    own = rounding(network, inputs)
    if not difference <= _ROUNDINGS * own:
        raise ValueError(
            f"the file answers otherwise than the network, by {difference:.2g} of the largest output, where rounding "
            f"to float32 explains {own:.2g}: nothing was written. Please report the network"
        )


def _plain(network: nn.Module | Result, example: Example | None) -> tuple[nn.Module, Inputs]:
    """A copy on the CPU in float32 in plain layers, batch norm folded; and the inputs as it takes them."""
    network = network.network if isinstance(network, Result) else network
    inputs = fit_example(network, example)
    plain = as_dense(network).to("cpu", torch.float32).eval()
    inputs = inputs.to(plain)
    for name, tensor in plain.named_parameters():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity: such a network is not exported")
    return prepare_for(plain, inputs).network, inputs


def _refuse_all_float(made: EightBits, ranges: Any) -> None:
    if made.rows or not made.reasons:
        return
    advice = "Pass ranges=, a dataset of images" if isinstance(ranges, str) else 'Use precision="float32"'
    why = report_once(made.reasons, made.reasons.values())
    raise ValueError(f"no layer can run in bytes: {why}. {advice}")


def _refuse_no_linear(made: ShortWeights) -> None:
    if not made.blocks:
        why = report_once(made.reasons, made.reasons.values()) if made.reasons else "it has no layers"
        raise ValueError(f'no weights can be short: {why}. Use precision="float32" or "int8"')


def _in_floats(network: nn.Module) -> pd.DataFrame:
    rows = [_row(layer, 4 * layer.weight.numel()) for layer in weight_layers(network) if not layer.lazy]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _in_bytes(network: nn.Module, made: EightBits) -> pd.DataFrame:
    rows = []
    for layer in (own for own in weight_layers(network) if not own.lazy):
        own = made.rows.get(layer.name)
        if own is None:
            why = made.reasons.get(layer.name) or layer.skipped
            rows.append(_row(layer, 4 * layer.weight.numel()) | {"skipped": why})
            continue
        low, high = made.ranges.get(made.inputs.get(layer.name, ""), (float("nan"), float("nan")))
        row = _row(layer, own.codes.size + 4 * len(own.steps))
        row |= {"precision": "int8", "codes": "hash" if own.hashed else "rows", "low": low, "high": high}
        rows.append(row | {"error": _error(layer, weight_of(layer, own))})
    return pd.DataFrame(rows, columns=_COLUMNS)


def _in_blocks(network: nn.Module, made: ShortWeights, precision: str) -> pd.DataFrame:
    rows = []
    for layer in (own for own in weight_layers(network) if not own.lazy):
        own = made.blocks.get(layer.name)
        row = _row(layer, 4 * layer.weight.numel() if own is None else own.bytes)
        if own is None:
            row |= {"skipped": made.reasons.get(layer.name) or layer.skipped}
        else:
            row |= {"precision": precision, "codes": "hash" if own.hashed else "blocks"}
            row |= {"error": _error(layer, own.values)}
        rows.append(row)
    return pd.DataFrame(rows, columns=_COLUMNS)


def _row(layer: Layer, stored: int) -> dict[str, Any]:
    """A layer that stays in float32."""
    weights = layer.weight.numel()
    row = {"layer": layer.name, "kind": layer.kind, "weights": weights, "precision": "float32", "codes": ""}
    return row | {"error": 0.0, "low": float("nan"), "high": float("nan"), "bytes": stored, "skipped": ""}


def _error(layer: Layer, stored: Tensor) -> float:
    """The relative L2 error of a layer's weights."""
    weight = layer.weight.detach()
    return float((stored - weight).norm() / weight.norm().clamp_min(1e-30))
