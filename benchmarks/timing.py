"""Interleaved timing: every contestant once a round, so that a slow moment of the machine falls on all alike."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results.parquet"


def interleaved(contestants: dict[str, Callable[[], object]], rounds: int, against: str) -> pd.DataFrame:
    """Median and quartiles in seconds of each contestant, and its median ratio to ``against`` in the same round."""
    for run in contestants.values():
        run()  # compiles, fills caches
    seconds = pd.DataFrame([{name: _seconds(run) for name, run in contestants.items()} for _ in range(rounds)])
    ratios = seconds.div(seconds[against], axis=0)
    return pd.DataFrame(
        {
            "contestant": list(contestants),
            "seconds": seconds.median().to_numpy(),
            "q25": seconds.quantile(0.25).to_numpy(),
            "q75": seconds.quantile(0.75).to_numpy(),
            "ratio": ratios.median().to_numpy(),
            "against": against,
        }
    )


def store(benchmark: str, frame: pd.DataFrame) -> None:
    """Replace the rows of ``benchmark`` in results.parquet, with the machine that they were measured on."""
    frame = frame.assign(benchmark=benchmark, machine=machine())
    if RESULTS.exists():
        old = pd.read_parquet(RESULTS)
        frame = pd.concat([old[old["benchmark"] != benchmark], frame], ignore_index=True)
    frame.to_parquet(RESULTS)


def machine() -> str:
    """What things are measured on, in words."""
    return f"{platform.machine()}, {_cpu()}, {os.cpu_count()} cores"


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name} ({'AVX-512' if 'avx512f' in flags else 'AVX2' if 'avx2' in flags else 'no AVX2'})"
