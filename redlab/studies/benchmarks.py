"""Measured times, read from ``benchmarks/results.parquet``, beside the rows of other studies."""

from __future__ import annotations

import pandas as pd

from redlab.paths import checkout


def read_benchmark(part: str) -> pd.DataFrame:
    """The rows of ``benchmarks/results.parquet`` of the benchmarks whose name holds ``part``; ``make bench`` made them.

    Raises:
        ValueError: no benchmark has such a name; the message lists all names.

    Example:
        >>> "seconds" in read_benchmark("latency step by step, cifar10/resnet20")
        True
    """
    table = pd.read_parquet(checkout() / "benchmarks" / "results.parquet")
    found = table[table["benchmark"].str.contains(part, regex=False)]
    if found.empty:
        raise ValueError(f"no benchmark is called {part!r}; there are {', '.join(table['benchmark'].unique())}")
    return found.dropna(axis=1, how="all").reset_index(drop=True)


def with_times(steps: pd.DataFrame, network: str) -> pd.DataFrame:
    """``step_by_step`` with the ``milliseconds`` that ``make bench`` measured, batch 1.

    Arguments:
        network: its name; ``steps`` is returned as it is where that network was not measured.

    Example:
        >>> steps = pd.DataFrame({"method": ["RED"], "step": ["fold batch norms"]})
        >>> with_times(steps, "cifar10/resnet20").columns.tolist()
        ['method', 'step', 'milliseconds']
    """
    try:
        measured = read_benchmark(f"latency step by step, {network}")
    except ValueError:
        return steps
    seconds = measured.set_index(["method", "step"])["seconds"]
    first = seconds["as trained", "as trained"]
    found = [seconds.get(key, first) for key in zip(steps["method"], steps["step"], strict=True)]
    return steps.assign(milliseconds=[1000 * own for own in found])


def with_latency(frame: pd.DataFrame, network: str) -> pd.DataFrame:
    """The rows of ``compare_criteria`` whose networks ``make bench`` timed, batch 1.

    Arguments:
        network: its name.

    Returns:
        These rows, with ``milliseconds``, the median; ``time_ratio`` to the network before, and its quartiles
        ``time_low`` and ``time_high``. No rows where the network was not timed.

    Example:
        >>> frame = pd.DataFrame({"method": ["Taylor"], "keep": [0.6]})
        >>> with_latency(frame, "digits/resnet").columns.tolist()
        ['method', 'keep', 'milliseconds', 'time_ratio', 'time_low', 'time_high']
    """
    try:
        rows = read_benchmark(f"latency after pruning, {network}").dropna(subset="method")
    except ValueError:
        return frame.iloc[:0].assign(milliseconds=0.0, time_ratio=0.0, time_low=0.0, time_high=0.0)
    times = pd.DataFrame({"method": rows["method"], "near": rows["share"].round(4)})
    times["milliseconds"], times["time_ratio"] = 1000 * rows["seconds"], rows["ratio"]
    for name, quartile in {"time_low": "q25", "time_high": "q75"}.items():
        times[name] = rows["ratio"] * rows[quartile] / rows["seconds"]
    found = frame.assign(near=frame["keep"].round(4)).merge(times, on=["method", "near"]).drop(columns="near")
    found.attrs = frame.attrs
    return found
