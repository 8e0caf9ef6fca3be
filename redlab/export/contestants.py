"""Networks and ONNX files whose time is compared, side by side: a network is exported, a file is taken as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redlab.compression.splitting import as_dense
from redlab.export.onnx import export_onnx
from redlab.export.onnx_facts import OnnxFacts, onnx_facts
from redlab.network.evaluating import first_line
from redlab.network.example import Example, Inputs, fit_example
from redlab.progress import progress


@dataclass(frozen=True)
class Contestant:
    """A network, an ONNX file, or both of the same function.

    Attributes:
        name: among the contestants.
        network: dense, in float32, on the CPU, in eval mode.
        facts: of the file.
        inputs: one input.
        stem: how the names of its own files begin.
        why: the reason if there is no file.
    """

    name: str
    network: nn.Module | None
    file: Path | None
    facts: OnnxFacts | None
    inputs: Inputs
    stem: Path
    why: str = ""


Given = Mapping[str, "nn.Module | str | os.PathLike"]


def make_contestants(given: Given, example: Example | None, engines: Sequence[str], folder: Path) -> list[Contestant]:
    """Networks as files in ``folder`` where an engine needs one, and ONNX files as they are.

    Raises:
        TypeError, ValueError: what is no network and no file, no engine for it, or no known example.
        FileNotFoundError: no such file.
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError("contestants must be a dict of networks and ONNX files by name, at least one")
    wants_files = engines != ["torch"]
    files = {name: _file(name, own, wants_files) for name, own in given.items() if not isinstance(own, nn.Module)}
    facts = {name: onnx_facts(path) for name, path in files.items()}
    made: dict[str, Contestant] = {}
    networks = {name: own for name, own in given.items() if isinstance(own, nn.Module)}
    stems = {name: folder / str(number) for number, name in enumerate(given)}
    for name, own in progress(list(networks.items()), "exporting"):
        made[name] = _of_network(name, own, example, stems[name], wants_files)
    known = example if example is not None else next((own.inputs for own in made.values()), None)
    for name, path in files.items():
        made[name] = Contestant(name, None, path, facts[name], _inputs(facts[name], example, known), stems[name])
    return [made[name] for name in given]


def _file(name: str, given: Any, wants_files: bool) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"contestant {name!r} must be a network or the path of an .onnx file, not {given!r}")
    path = Path(given)
    if not path.is_file():
        raise FileNotFoundError(f"contestant {name!r}: there is no file {path}; load_network gives networks by name")
    if not wants_files:
        raise ValueError(f"contestant {name!r} is a file: the engine onnxruntime or openvino must run it")
    return path


def _of_network(name: str, network: nn.Module, example: Example | None, stem: Path, wants_file: bool) -> Contestant:
    own = as_dense(network).eval().to("cpu", torch.float32)
    inputs = fit_example(own, example).first()
    without = Contestant(name, own, None, None, inputs, stem)
    if not wants_file:
        return without
    try:
        path = stem.with_suffix(".onnx")
        export_onnx(own, path, example=inputs)
        return replace(without, file=path, facts=onnx_facts(path))
    except Exception as error:  # the exporter raises many kinds; torch can run it all the same
        return replace(without, why=f"no ONNX file: {first_line(error)}")


def _inputs(facts: OnnxFacts, example: Example | None, known: Example | None) -> Inputs:
    """One input: that given, or of the file's shapes, or as a network beside it takes."""
    if example is None:
        try:
            return Inputs(tuple(map(torch.from_numpy, facts.example())))
        except ValueError:
            if known is None:
                raise
    return Inputs.of(known).first()  # type: ignore[arg-type]  # here it is known
