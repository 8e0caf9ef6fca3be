"""A network in 8 bits: its weights on grids, the ranges of its activations, and the file made of both."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redlab.compression.bias import correct_biases
from redlab.compression.moments import Moments, mean_inputs
from redlab.export.dynamic import quantize_dynamic
from redlab.export.grids import Rows, read_rows, round_rows, weight_of
from redlab.export.image_ranges import measured_ranges
from redlab.export.program import Program, Weight, export_program
from redlab.export.ranges import Interval, Ranges, expected_ranges, of_images
from redlab.export.short_weights import is_product
from redlab.export.static import Facts, fill_ranges, least_steps, quantize_static, why_float
from redlab.network.example import Inputs
from redlab.network.layers import copy_network, weight_layers
from redlab.network.recipe import input_mean_of, recipe_of
from redlab.network.samples import Labelled
from redlab.network.trace import Graph, operation

# What a CPU's flags say of exact products of bytes: sums of four in 32 bits.
_EXACT = ("avx512_vnni", "avx_vnni", "amx_int8")
_NOT_SEEN = "the exported program does not multiply by its weight as it is"
_NOT_LINEAR = "no linear layer: only these run in bytes beside attention"
_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention")


@dataclass(frozen=True, eq=False)
class EightBits:
    """A model in bytes.

    Attributes:
        program: of the network with the rounded weights, in float32.
        model: ONNX.
        rows: by layer, the codes of those in bytes.
        ranges: by the name of a value, its smallest and largest.
        inputs: by layer, the value that it reads.
        reasons: by layer, why it stayed in float32.
    """

    program: Program
    model: Any
    rows: dict[str, Rows]
    ranges: Ranges
    inputs: dict[str, str]
    reasons: dict[str, str]


def eight_bits(
    network: nn.Module, inputs: Inputs, ranges: str | Labelled, bits: int, input_range: tuple[float, float] | None
) -> EightBits:
    """A prepared network in 8 bits. Arguments and errors as ``export_onnx``."""
    make = partial(_make, network, inputs, ranges, bits, input_range)
    made = make(frozenset())
    if not made.reasons:
        return made
    # A layer that stays in float32 after all keeps its own weights.
    again = make(frozenset(made.reasons))
    return replace(again, reasons=made.reasons | again.reasons)


def _make(
    network: nn.Module,
    inputs: Inputs,
    ranges: str | Labelled,
    bits: int,
    input_range: tuple[float, float] | None,
    left: Collection[str],
) -> EightBits:
    rows, rounded = _on_grids(network, inputs, ranges, bits, left)
    program = export_program(rounded, inputs)
    model = program.onnx.model_proto
    if attends(program.graph):
        return _dynamic(program, model, rows)
    if isinstance(ranges, str):
        found, unknown = _expected(program, inputs, input_range)
    else:
        found, unknown = measured_ranges(model, ranges), {}
    facts = Facts(model)
    return _static(program, facts, rows, fill_ranges(facts, found), unknown)


def usual_bits() -> int:
    """8 where this machine multiplies bytes exactly, else 7: see ``export_onnx``."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 8
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return 8 if any(flag in flags for flag in _EXACT) else 7


def attends(graph: Graph) -> bool:
    """Whether a network multiplies two activations as matrices, as attention does."""
    varies = set(graph.inputs)
    for node in graph.fx.nodes:
        factors = [factor for factor in node.all_input_nodes if factor in varies]
        if operation(node) in _PRODUCTS and len(factors) > 1:
            return True
        varies |= {node} if factors else set()
    return False


def _on_grids(
    network: nn.Module, inputs: Inputs, ranges: str | Labelled, bits: int, left: Collection[str]
) -> tuple[dict[str, Rows], nn.Module]:
    """The codes of every layer, and the network with their values; biases corrected for what was rounded here.

    Layers that are ``left`` keep their weights.
    """
    rounded, rows = copy_network(network), {}
    for layer in (own for own in weight_layers(rounded) if not own.skipped and own.name not in left):
        rows[layer.name] = read_rows(layer, bits) or round_rows(layer, bits)
        if not rows[layer.name].hashed:
            layer.module.get_parameter(layer.parameter).data = weight_of(layer, rows[layer.name])
    if all(own.hashed for own in rows.values()):
        return rows, rounded
    return rows, correct_biases(rounded, network, ranges, inputs).network


def _expected(
    program: Program, inputs: Inputs, input_range: tuple[float, float] | None
) -> tuple[Ranges, dict[str, str]]:
    """Ranges without data, and why others are not known."""
    mean = input_mean_of(program.network)
    if mean is None and input_range is not None:
        mean = (sum(input_range) / 2,)
    moments = mean_inputs(program.network, inputs, mean, program.graph, norms=True)
    given = moments.graph.inputs  # of a copy of the program's graph, where they may have other names
    names = {own.name: value.name for own, value in zip(given, program.onnx.model.graph.inputs, strict=False)}
    first = next((moments.values.get(node) for node in given), None)
    ranges, unknown = expected_ranges(moments, _of_input(program.network, first, input_range))
    # What moments ask for is an option of theirs: here the input's range says more than its mean.
    unknown = {name: why.replace("pass input_mean", "pass input_range") for name, why in unknown.items()}
    return {names.get(name, name): ends for name, ends in ranges.items()}, unknown


def _of_input(network: nn.Module, moments: Any, input_range: tuple[float, float] | None) -> Interval | None:
    """How far the network's first input goes: as it is said, else as images do that are normalised by its recipe."""
    if not isinstance(moments, Moments):
        return None
    if input_range is not None:
        return Interval(*(torch.full_like(moments.mean, end) for end in input_range))
    images = getattr(recipe_of(network), "images", None) or {}
    return of_images(images["mean"], images["std"], moments.mean) if {"mean", "std"} <= images.keys() else None


def _dynamic(program: Program, model: Any, rows: dict[str, Rows]) -> EightBits:
    stored = {name: own for name, own in program.weights.items() if name in rows}
    products = {node.input[1] for node in model.graph.node if is_product(node)}
    stored = {name: own for name, own in stored.items() if own.name in products}
    with tempfile.TemporaryDirectory() as folder:
        codes = {own.name: _turned(rows[name], own) for name, own in stored.items()}
        made = quantize_dynamic(model, codes, Path(folder) / "part.onnx")
    reasons = {name: _NOT_LINEAR for name in rows if name not in stored}
    return EightBits(program, made, {name: rows[name] for name in stored}, {}, {}, reasons)


def _static(
    program: Program, facts: Facts, rows: dict[str, Rows], ranges: Ranges, unknown: dict[str, str]
) -> EightBits:
    stored = {name: own for name, own in program.weights.items() if name in rows}
    fitted = {name: rows[name].at_least(least_steps(facts, ranges, own.name)) for name, own in stored.items()}
    codes = {own.name: _turned(fitted[name], own) for name, own in stored.items()}
    reasons = {name: _NOT_SEEN for name in rows if name not in stored}
    for name, own in stored.items():
        for node in facts.readers[own.name]:
            if why := why_float(facts, node, ranges, codes):
                known = [unknown[value] for value in node.input[:1] if value in unknown]
                reasons.setdefault(name, ": ".join([why, *known]))
    kept = {name: own for name, own in fitted.items() if name not in reasons}
    inputs = {name: facts.readers[stored[name].name][0].input[0] for name in kept}
    made = quantize_static(facts, ranges, {stored[name].name: codes[stored[name].name] for name in kept})
    return EightBits(program, made, kept, ranges, inputs, reasons)


def _turned(rows: Rows, weight: Weight) -> tuple[Rows, int]:
    """The codes as the file has the weight, and the axis of its outputs."""
    return (replace(rows, codes=rows.codes.T), 1) if weight.transposed else (rows, 0)
