"""How long networks and ONNX files take in PyTorch, ONNX Runtime and OpenVINO, measured so that they can be compared.

How the times are taken is our choice: a process for each engine, which computes on as many processors as it has
threads; one process at a time; all contestants in turns, round by round, so that a slow moment of the machine slows all
of them; ratios within a round.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from redlab.export.contestants import make_contestants
from redlab.export.engines import EngineError, EngineProcess, chosen_engines
from redlab.export.jobs import Job, jobs_of
from redlab.export.machine import cpu_flags, processors
from redlab.network.example import Example
from redlab.options import check_whole, plain_options
from redlab.progress import progress

_BUSY = 0.2  # a spread above it says that other work disturbed the measurement
_COLUMNS = ["network", "engine", "precision", "layout", "batch", "threads", "median", "q25", "q75"]
_COLUMNS += ["speedup", "speedup_q25", "speedup_q75", "spread", "conclusive", "why"]


@plain_options
def compare_runtimes(
    contestants: Mapping[str, nn.Module | str | os.PathLike],
    example: Example | None = None,
    engines: Sequence[str] | None = None,
    batches: Sequence[float] = (1, 32),
    threads: Sequence[float] = (1, 2),
    rounds: int = 15,
) -> pd.DataFrame:
    """The time of one batch on the CPU in each engine, beside the best float32 of the first contestant.

    A network runs in torch (in its better layout; split layers as ordinary ones) and, exported in float32, in ONNX
    Runtime and OpenVINO. A file runs as it is in these two. Where the processor has bfloat16, torch and OpenVINO run
    in it too: OpenVINO would without being asked. It rounds the activations of weights8 in groups of 128.

    Arguments:
        contestants: networks and paths of .onnx files, by name.
        example: a tensor, tuple or dict that all of them take, batch first. By default ``example_input`` of a network;
            of a file, random numbers of the shapes it declares, or, where these are open, the first network's example.
        engines: some of "torch", "onnxruntime", "openvino"; by default those that are installed.
        batches: inputs at once; the first input of ``example`` is repeated.
        threads: that an engine computes with, each on a processor of its own.
        rounds: measurements. In each, every contestant is called for 20 ms, and at least once.

    Returns:
        A row for each network, engine, precision, batch and number of threads. ``median``, ``q25``, ``q75`` are
        milliseconds a call over the rounds. ``speedup``, with its quartiles, is the reference's time over its own in
        the same round: above 1 it is faster. The reference is the fastest float32 row of the first contestant, at the
        same batch and threads; if no row of it is float32, of the next that has one. ``spread`` is (q75 - q25) /
        median. ``conclusive`` says whether it is at most 0.2, here and in the reference. ``why`` is the reason of a row
        without times. ``layout`` is torch's. ``attrs`` has ``machine``, the processor's instructions for int8 and
        bfloat16, and ``busy``, "" or what a busy machine leaves open.

    Warns:
        the spread of some row is above 0.2.

    Raises:
        ValueError: no contestants, an option that makes no sense, a file that is no ONNX file, no known example.
        FileNotFoundError: no such file.
        ImportError: an engine that was named is not installed.

    Example:
        >>> frame = compare_runtimes({"mlp": load_network("digits/mlp")}, engines=["torch"], batches=[8], threads=[1])
        >>> frame["network"].unique().tolist(), bool(frame["speedup"].max() >= 1)
        (['mlp'], True)
    """
    batches, threads = _wholes("batches", batches), _wholes("threads", threads)
    check_whole("rounds", rounds)
    chosen = chosen_engines(engines)
    with tempfile.TemporaryDirectory() as folder:
        made = make_contestants(contestants, example, chosen, Path(folder))
        jobs = [job for batch in batches for own in made for job in jobs_of(own, chosen, batch)]
        if not jobs:
            raise ValueError("no engine runs files: install the extra export or openvino")
        times = {count: _measure(jobs, count, rounds, Path(folder)) for count in threads}
    rows = [
        row
        for batch in batches
        for count, (found, why) in times.items()
        for row in _rows([job for job in jobs if job.batch == batch], found, why, count)
    ]
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    frame.attrs |= {"machine": cpu_flags(), "busy": _busy(frame)}
    if frame.attrs["busy"]:
        warnings.warn(frame.attrs["busy"], UserWarning, stacklevel=3)
    return frame


Times = dict[Job, list[float]]  # milliseconds, a round each


def _wholes(name: str, values: Sequence[float]) -> list[int]:
    for value in values:
        check_whole(name, value)
    if not len(values):
        raise ValueError(f"{name} must hold at least one whole number")
    return list(dict.fromkeys(map(int, values)))


def _measure(jobs: list[Job], threads: int, rounds: int, folder: Path) -> tuple[Times, dict[Job, str]]:
    """The times of what runs with so many threads, and of the others why not."""
    why = {job: job.why for job in jobs if job.why}
    times: Times = {}
    if threads > (there := len(processors())):
        return times, {job: f"{threads} threads, and this process may use {there} processors" for job in jobs} | why
    with ExitStack() as stack:
        engines = {job.engine for job in jobs}
        processes = {name: stack.enter_context(EngineProcess(name, threads, folder)) for name in sorted(engines)}
        for batch in dict.fromkeys(job.batch for job in jobs):
            own = {number: job for number, job in enumerate(jobs) if job.batch == batch and job not in why}
            title = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
            for job, ms in _turns(own, processes, rounds, title, why):
                times.setdefault(job, []).append(ms)
            for process in processes.values():
                process.forget()
    return times, why


def _turns(
    jobs: dict[int, Job], processes: dict[str, EngineProcess], rounds: int, title: str, why: dict[Job, str]
) -> Iterator[tuple[Job, float]]:
    """A measurement of each in every round; what fails is left out from then on, and ``why`` takes the reason."""
    for number, job in progress(list(jobs.items()), f"loading, {title}"):
        try:
            processes[job.engine].load(number, job.order)
        except EngineError as error:
            why[job] = str(error)
    for _ in progress(range(rounds), title):
        for number, job in jobs.items():
            try:
                if job not in why:
                    yield job, processes[job.engine].time(number)
            except EngineError as error:
                why[job] = str(error)


def _rows(jobs: list[Job], times: Times, why: dict[Job, str], threads: int) -> list[dict[str, Any]]:
    """Those of one batch: each with its better layout."""
    frame = pd.DataFrame({job: times[job] for job in jobs if job not in why})
    medians = frame.median()
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.network, job.engine, job.precision), []).append(job)
    best = [min(own, key=lambda job: medians.get(job, float("inf"))) for own in groups.values()]
    reference = _reference(best, medians)
    return [_row(job, frame, reference, why.get(job, ""), threads) for job in best]


def _reference(jobs: list[Job], medians: pd.Series) -> Job | None:
    """The fastest in float32 of the first contestant that has one."""
    known = [job for job in jobs if job.precision == "float32" and job in medians]
    return min((job for job in known if job.network == known[0].network), key=medians.__getitem__, default=None)


def _row(job: Job, times: pd.DataFrame, reference: Job | None, why: str, threads: int) -> dict[str, Any]:
    row: dict[str, Any] = {"network": job.network, "engine": job.engine, "precision": job.precision}
    row |= {"layout": job.layout, "batch": job.batch, "threads": threads, "conclusive": False, "why": why}
    if why:
        return row
    row |= _quartiles(times[job], "median", "q") | {"spread": _spread(times[job])}
    if reference is not None:
        row |= _quartiles(times[reference] / times[job], "speedup", "speedup_q")
        row["conclusive"] = max(_spread(times[job]), _spread(times[reference])) <= _BUSY
    return row


def _quartiles(values: pd.Series, middle: str, ends: str) -> dict[str, float]:
    return {middle: values.median(), f"{ends}25": values.quantile(0.25), f"{ends}75": values.quantile(0.75)}


def _spread(values: pd.Series) -> float:
    return (values.quantile(0.75) - values.quantile(0.25)) / values.median()


def _busy(frame: pd.DataFrame) -> str:
    measured = frame[frame["median"].notna()]
    open_ = len(measured) - int(measured["conclusive"].sum())
    if not (measured["spread"] > _BUSY).any():
        return ""
    return f"busy machine: nothing can be concluded from {open_} of {len(measured)} rows (spread above 20 %)"
