"""A hashed network as a Core ML package: its few values are Core ML's look-up tables."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from redlab.compression.splitting import as_dense
from redlab.export.mlpackage import TARGETS, MlProgram
from redlab.export.palettes import Palette, palette_of
from redlab.network.example import Example, fit_example
from redlab.network.layers import Layer, out_scale, weight_layers
from redlab.network.result import Result, report_once
from redlab.network.row_scales import count_codes
from redlab.options import check_one_of, plain_options
from redlab.progress import progress

_SUFFIX = ".mlpackage"
_COLUMNS = ["layer", "kind", "weights", "distinct", "tables", "bits", "stored", "bytes", "skipped"]


@dataclass(frozen=True, eq=False)
class CoreMLExport:
    """A Core ML package, and how each layer is stored in it.

    Attributes:
        path: the package, a folder.
        layers: a row per conv and linear layer: ``layer``, ``kind``, ``weights``; how many ``distinct`` values there
            are (codes, where rows have scales); how many ``tables``; ``bits`` of an index or a weight; ``stored`` as
            "palette" or "float", or "": not in the file; ``bytes`` of its weights; why it has no palette of its own:
            ``skipped``, or "".
        bytes: of all files of the package.
        target: the oldest system that runs it.

    Example:
        >>> from pathlib import Path
        >>> from redlab.export.coreml import CoreMLExport
        >>> layers = pd.DataFrame({"layer": ["fc"], "stored": ["palette"], "bits": [4], "bytes": [64], "skipped": [""]})
        >>> print(CoreMLExport(Path("net.mlpackage"), layers, 900))
        net.mlpackage: 900 bytes, 64 of them the weights of 1 layer
        1 layer as look-up tables: 4 bits in 1
        the tables were read back and are ours bit for bit
        predictions not tried: it runs on Apple's devices only, from iOS18 on
    """

    path: Path
    layers: pd.DataFrame
    bytes: int
    target: str = TARGETS[0]

    def __str__(self) -> str:
        rows, tables = self.layers, self.layers[self.layers["stored"] == "palette"]
        counts = sorted(tables["bits"].value_counts().items())
        widths = ", ".join(f"{bits} bit{'' if bits == 1 else 's'} in {count}" for bits, count in counts)
        left = rows[rows["skipped"] != ""]
        of = f"{int(rows['bytes'].sum()):,} of them the weights of {_layers(len(rows))}"
        lines = [f"{self.path.name}: {self.bytes:,} bytes, {of}"]
        lines += [f"{_layers(len(tables))} as look-up tables: {widths}"] if len(tables) else ["no look-up tables"]
        lines += [f"{len(left)} not: {report_once(left['layer'], left['skipped'])}"] if len(left) else []
        lines += ["the tables were read back and are ours bit for bit"] if len(tables) else []
        return "\n".join([*lines, f"predictions not tried: it runs on Apple's devices only, from {self.target} on"])

    def __repr__(self) -> str:
        return str(self)


def _layers(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"


@plain_options
@torch.inference_mode(False)
def export_coreml(
    network: nn.Module | Result, path: str | PathLike[str], example: Example | None = None, target: str = "iOS18"
) -> CoreMLExport:
    """Write ``network`` as a Core ML package, each layer of at most 256 values as a look-up table of just these.

    Any codebook is stored exactly, whatever the hash (kde, lloyd, power, residual): a table has 2, 4, 8, 16, 64 or 256
    entries of float32, the fewest that hold the values of the layer. Where rows were hashed up to a scale, a table for
    each row is taken if that is smaller. Layers of more values, and those that tables would make larger, are stored in
    float32, and so is what is no conv or linear layer.

    The file is written anywhere and runs on Apple's devices only; so the tables are checked here, and what the network
    predicts there is not. Before the package is moved to its place, it is read back: tables, indices and scales are
    compared with ours and must be the same. Core ML is asked to compute in float32: float16, its usual precision, would
    round the tables.

    The weights are not changed: batch norm stays beside them, folded neither here nor by coremltools. Take the steps on
    ``prepare(network).network`` first. Split layers are written as ordinary ones.

    Arguments:
        network: left untouched; of float32 or shorter. A ``Result`` stands for its network.
        path: of the package, a folder; it ends in .mlpackage. What is there is replaced.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``. The
            file takes inputs of its shapes only.
        target: the oldest system that is to run it: "iOS18" (macOS 15) or "iOS26" (macOS 26). The second has one table
            of codes and a scale for each row too, where their products in float32 are the weights.

    Returns:
        Where it is, how each layer is stored, and how many bytes that takes. See ``CoreMLExport``.

    Raises:
        ModuleNotFoundError: coremltools is not installed; it comes with the extra ``coreml``.
        ValueError: another suffix; float64, NaN or inf among the weights; a network that cannot be traced or converted
            for ``example``.
        RuntimeError: coremltools wrote other tables than ours.

    Source of the format: coremltools, the operations ``constexpr_lut_to_dense`` and ``constexpr_blockwise_shift_scale``
    of iOS 18. That the network's own weights stay, and when rows get a table each, is our choice.

    Example:
        >>> export_coreml(load_network("digits/mlp"), "mlp.onnx")
        Traceback (most recent call last):
        ValueError: path must end in .mlpackage, and it is mlp.onnx
    """
    check_one_of("target", target, TARGETS)
    path = Path(path)
    if path.suffix != _SUFFIX:
        raise ValueError(f"path must end in {_SUFFIX}, and it is {path}")
    dense = _in_float32(as_dense(network.network if isinstance(network, Result) else network))
    program = MlProgram(dense, fit_example(dense, example), target)
    rows: dict[int, dict[str, Any]] = {}
    table = [_store(layer, program, rows) for layer in progress(list(weight_layers(dense)), "look-up tables")]
    program.save(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return CoreMLExport(path, pd.DataFrame(table, columns=_COLUMNS), size, target)


def _in_float32(network: nn.Module) -> nn.Module:
    """The copied network on the CPU, in eval mode and float32, which holds every shorter type exactly."""
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.dtype == torch.float64:
            raise ValueError(f"{name} is of float64, and Core ML has no more than float32: pass network.float()")
    for layer in weight_layers(network):
        if not layer.lazy and not layer.weight.isfinite().all():
            raise ValueError(f"layer {layer.name}: NaN or inf among its weights")
    return network.cpu().float().eval()


def _store(layer: Layer, program: MlProgram, rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The row of a layer, put into ``program`` if it has a palette; ``rows`` has those of all weights before."""
    row = {"layer": layer.name, "kind": layer.kind, "weights": layer.size, "skipped": layer.skipped}
    row |= {"distinct": count_codes(layer)["distinct"], "tables": 0}
    if id(layer.weight) in rows:
        return rows[id(layer.weight)] | row | {"bytes": 0}  # one tensor, in the file once
    plain = not layer.skipped
    if plain and not program.calls(layer.weight):
        return row | {"bits": 0, "stored": "", "bytes": 0, "skipped": "is not called: not in the file"}
    palette = palette_of(layer, scaled=program.target != TARGETS[0]) if plain else None
    why = layer.skipped or program.why_not(layer.weight) or _why_float(layer, palette, program.target)
    row |= {"bits": 32, "stored": "float", "bytes": 4 * layer.size, "skipped": why}
    if palette is not None and not why:
        program.put(layer.weight, palette)
        row |= {"tables": palette.tables, "bits": palette.bits, "stored": "palette", "bytes": palette.bytes}
    rows[id(layer.weight)] = row
    return row


def _why_float(layer: Layer, palette: Palette | None, target: str) -> str:
    """Why a layer stays in float32, or ""."""
    if palette is not None and palette.bytes < 4 * layer.size:
        return ""
    why = "more than 256 values" if palette is None else "tables would take more bytes"
    hint = out_scale(layer) is not None and target == TARGETS[0]
    return f"{why}; target={TARGETS[1]!r} can store its codes and scales" if hint else why
