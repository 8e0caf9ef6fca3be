"""What the processes of the engines are to time: files that they can load, written beside one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from redlab.export.contestants import Contestant
from redlab.export.machine import has_bf16
from redlab.network.evaluating import evaluating, first_line
from redlab.network.example import Inputs
from redlab.network.latency import LAYOUTS


@dataclass(frozen=True)
class Job:
    """One network in one engine, for one batch.

    Attributes:
        network: the name of the contestant.
        engine: that runs it.
        precision: "float32", "bf16", or what the file holds.
        layout: of torch: "nchw" or "channels_last".
        batch: inputs at once.
        file, inputs: what the engine loads.
        why: the reason if it cannot run.
    """

    network: str
    engine: str
    precision: str
    layout: str
    batch: int
    file: str = ""
    inputs: str = ""
    why: str = ""

    @property
    def order(self) -> dict[str, str]:
        """What the process of the engine is told."""
        return {"file": self.file, "inputs": self.inputs, "precision": self.precision, "layout": self.layout}


def jobs_of(contestant: Contestant, engines: Sequence[str], batch: int) -> Iterator[Job]:
    """All that is timed of it at one batch: engines, precisions, layouts."""
    if "torch" in engines and contestant.network is not None:
        yield from _of_torch(contestant, contestant.network, batch)
    for engine in engines:
        if engine != "torch":
            yield from _of_file(contestant, engine, batch)


def _of_torch(contestant: Contestant, network: nn.Module, batch: int) -> Iterator[Job]:
    inputs = contestant.inputs.repeat(batch)
    given, file, why = f"{contestant.stem}-{batch}.in.pt", "", ""
    try:
        torch.save((inputs.args, inputs.kwargs), given)
        file = str(_torch_file(network, inputs, contestant.stem, batch))
    except Exception as error:  # what is not pickled and not traced; both raise many kinds
        why = f"it cannot be handed to another process: {first_line(error)}"
    layouts = LAYOUTS["best" if any(tensor.ndim == 4 for tensor in inputs.tensors) else "nchw"]
    for precision in ("float32", "bf16") if has_bf16() else ("float32",):
        for layout in layouts:
            yield Job(contestant.name, "torch", precision, layout, batch, file, given, why)


def _torch_file(network: nn.Module, inputs: Inputs, stem: Path, batch: int) -> Path:
    """The network itself where another process finds its code, else its traced program for this batch."""
    path = stem.with_suffix(".pt")
    if path.is_file():
        return path
    if all(_importable(type(module)) for module in network.modules()):
        try:
            torch.save(network, path)
            return path
        except Exception:  # hooks that are no plain functions, say
            path.unlink(missing_ok=True)
    path = Path(f"{stem}-{batch}.pt2")
    with evaluating(network):
        torch.export.save(torch.export.export(network, inputs.args, inputs.kwargs), path)
    return path


def _importable(own: type) -> bool:
    return own.__module__ != "__main__" and "<locals>" not in own.__qualname__


def _of_file(contestant: Contestant, engine: str, batch: int) -> Iterator[Job]:
    facts, file = contestant.facts, str(contestant.file)
    precision = facts.precision if facts else "float32"
    also_bf16 = engine == "openvino" and precision == "float32" and has_bf16()
    job = partial(Job, contestant.name, engine, layout="", batch=batch)
    given, why = "", contestant.why
    if facts and facts.batch not in (None, batch):
        why = f"the file takes batches of {facts.batch} only"
    elif facts:
        given, why = _write(contestant, batch)
    for own in (precision, "bf16") if also_bf16 else (precision,):
        yield job(precision=own, file=file, inputs=given, why=why)


def _write(contestant: Contestant, batch: int) -> tuple[str, str]:
    """The file of its inputs, or why there is none."""
    path = f"{contestant.stem}-{batch}.npz"
    try:
        assert contestant.facts is not None
        np.savez(path, **contestant.facts.feeds(contestant.inputs, batch))  # type: ignore[arg-type]
    except ValueError as error:
        return "", first_line(error)
    return path, ""
