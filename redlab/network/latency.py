"""How long a network takes, measured so that two networks can be compared.

The clock is that of ``timeit``, which stops the garbage collector meanwhile. ``torch.utils.benchmark.Timer`` would make
two more calls before each measurement, and so triple the rounds of slow networks.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from redlab.network.evaluating import refusal
from redlab.network.example import Example, Inputs, fit_example, place_of
from redlab.network.layers import copy_network
from redlab.options import check_one_of, check_whole, plain_options
from redlab.progress import progress

# The option -> the layouts that are tried.
LAYOUTS = {"best": ("nchw", "channels_last"), "nchw": ("nchw",), "channels_last": ("channels_last",)}
_FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# The processor time of this thread does not grow while other work has the processor.
CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}
_WARM_UP = 3  # calls before the first measurement
_SHORTEST = 1.0  # ms: faster calls are repeated within a measurement, or the clock itself would be measured


@dataclass(frozen=True)
class Latency:
    """How long one batch takes.

    Attributes:
        median, q25, q75: in milliseconds, over the repeats.
        batch: inputs at once.
        threads: of PyTorch on the CPU.
        layout: "nchw" (PyTorch's own order) or "channels_last".
        device: "cpu", "cuda:0", ...

    Example:
        >>> latency = measure_latency(load_network("digits/mlp"), batch=8, repeats=3, layout="nchw")
        >>> latency.batch, latency.layout, latency.device
        (8, 'nchw', 'cpu')
    """

    median: float
    q25: float
    q75: float
    batch: int
    threads: int
    layout: str
    device: str

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        where = f"{self.device}, {threads}, {self.layout}"
        return f"{self.median:.3g} ms (quartiles {self.q25:.3g} to {self.q75:.3g}) for a batch of {self.batch}: {where}"


@plain_options
def measure_latency(
    network: nn.Module,
    example: Example | None = None,
    batch: int = 1,
    repeats: int = 50,
    threads: int | None = None,
    layout: str = "best",
) -> Latency:
    """The time of one batch through ``network``, in eval mode and without gradients, on the network's own device.

    A copy is measured, after a warm-up; on a GPU until its work is done. The network and PyTorch's settings stay as
    they were. To compare networks use ``compare_latency``: the speed of a machine drifts between two calls of this
    function.

    Arguments:
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``. Its
            first one is repeated.
        batch: inputs at once.
        repeats: measurements; calls shorter than a millisecond are made several times in each.
        threads: of PyTorch on the CPU while it is measured; by default as many as it has now.
        layout: "nchw", "channels_last", or "best": both in turns; the faster one is reported.

    Raises:
        ValueError: an option that makes no sense, or an example that the network doesn't accept.

    Example:
        >>> latency = measure_latency(load_network("digits/mlp"), batch=8, repeats=3, layout="nchw")
        >>> 0 < latency.q25 <= latency.median <= latency.q75
        True
    """
    contestants = _contestants({"": network}, example, batch, layout)
    with _threads(threads):
        return _latency(*_best(_rounds(contestants, repeats), ""), contestants, batch)


def compare_latency(
    networks: Mapping[str, nn.Module],
    example: Example | None = None,
    batch: int = 1,
    repeats: int = 50,
    threads: int | None = None,
    layout: str = "best",
    clock: str = "wall",
) -> pd.DataFrame:
    """Several networks against the first one, in turns, so that a slow moment of the machine slows all of them.

    Arguments:
        networks: by name; the others as in ``measure_latency``.
        clock: "wall"; or "processor", the time that one thread has the processor. On an idle machine they agree. On a
            busy one only the second stays the same: other work interrupts slow networks more often.

    Returns:
        A row a network: ``network``, ``median``, ``q25``, ``q75`` in milliseconds, ``ratio`` (the median over the
        rounds of its time over the first one's: below 1 it is faster), ``faster``, ``layout`` (each network's better
        one), ``batch``, ``threads``, ``device``. ``faster`` is "yes" if three quarters of the rounds say so, "no" if
        three quarters say the opposite, else "within noise"; it is "" for the first.

    Raises:
        ValueError: no networks, an unknown clock, the processor's for several threads or another device, or as in
            ``measure_latency``.

    Example:
        >>> network = load_network("digits/mlp")
        >>> frame = compare_latency({"as trained": network, "folded": fold_batchnorm(network).network}, repeats=3)
        >>> frame["network"].tolist(), frame["ratio"][0].item()
        (['as trained', 'folded'], 1.0)
    """
    if not networks:
        raise ValueError("nothing to compare: networks is empty")
    contestants = _contestants(networks, example, batch, layout)
    rows: list[dict[str, Any]] = []
    first = None
    with _threads(threads):
        _check_clock(clock, contestants)
        rounds = _rounds(contestants, repeats, clock)
        for name in networks:
            times, chosen = _best(rounds, name)
            first = times if first is None else first
            row = {"network": name, **vars(_latency(times, chosen, contestants, batch))}
            rows.append(row | _against(times, first, is_first=not rows))
    columns = ["network", "median", "q25", "q75", "ratio", "faster", "layout", "batch", "threads", "device"]
    return pd.DataFrame(rows, columns=columns)


def _check_clock(clock: str, contestants: dict[tuple[str, str], _Contestant]) -> None:
    check_one_of("clock", clock, CLOCKS)
    devices = {contestant.device.type for contestant in contestants.values()}
    if clock == "processor" and (torch.get_num_threads() > 1 or devices != {"cpu"}):
        raise ValueError("the processor's clock times one thread on a CPU: pass threads=1")


def _against(times: pd.Series, first: pd.Series, is_first: bool) -> dict[str, float | str]:
    ratios = times / first
    low, high = ratios.quantile(0.25), ratios.quantile(0.75)
    verdict = "yes" if high < 1 else "no" if low > 1 else "within noise"
    return {"ratio": float(ratios.median()), "faster": "" if is_first else verdict}


@dataclass(frozen=True)
class _Contestant:
    """A copy of a network in one layout, with its input."""

    network: nn.Module
    inputs: Inputs

    @property
    def device(self) -> torch.device:
        return self.inputs.tensors[0].device

    def time(self, calls: int, clock: str = "wall") -> float:
        """Milliseconds a call."""
        return _milliseconds(lambda: self.inputs.run(self.network), self.device, calls, clock) / calls


def _contestants(
    networks: Mapping[str, nn.Module], example: Example | None, batch: int, layout: str
) -> dict[tuple[str, str], _Contestant]:
    """By (name, layout)."""
    check_one_of("layout", layout, LAYOUTS)
    check_whole("batch", batch)
    found = {}
    for name, network in networks.items():
        _check_compiled(network)
        one = fit_example(network, example).first()
        of_images = any(tensor.ndim == 4 for tensor in one.tensors)
        if not of_images and layout == "channels_last":
            raise ValueError(f"channels_last is a layout of images, and the example is {one.describe()}")
        for each in LAYOUTS[layout] if of_images else ("nchw",):
            copied = copy_network(network).eval()
            # Weights of other ranks keep their order: 3-D convolutions have another channels_last.
            copied = copied.to(memory_format=_FORMATS[each]) if of_images else copied
            found[name, each] = _Contestant(copied, one.repeat(batch).each(partial(_laid_out, _FORMATS[each])))
    return found


def _laid_out(layout: torch.memory_format, tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor.contiguous()


def _check_compiled(network: nn.Module) -> None:
    """Raises ValueError for a network compiled in place: its copy would not be compiled."""
    if compiled := [path for path, module in network.named_modules() if module._compiled_call_impl is not None]:
        raise ValueError(
            f"{compiled[0] or type(network).__name__} was compiled in place, by its method compile, which no copy "
            "keeps: pass torch.compile(network) to time it compiled"
        )


def _rounds(contestants: dict[tuple[str, str], _Contestant], repeats: int, clock: str = "wall") -> pd.DataFrame:
    """Milliseconds a call: a row a round, a column a contestant."""
    check_whole("repeats", repeats)
    with torch.inference_mode():
        calls = {key: _warm_up(contestant) for key, contestant in contestants.items()}
        rounds = [
            {key: contestant.time(calls[key], clock) for key, contestant in contestants.items()}
            for _ in progress(range(repeats), "latency")
        ]
    return pd.DataFrame(rounds)


def _warm_up(contestant: _Contestant) -> int:
    """How many calls make a measurement long enough."""
    try:
        contestant.time(_WARM_UP)
    except (RuntimeError, ValueError, TypeError) as error:  # shapes that don't fit
        raise ValueError(refusal(contestant.network, contestant.inputs, "run", error)) from error
    return max(1, round(_SHORTEST / max(contestant.time(1), 1e-3)))


def _best(rounds: pd.DataFrame, name: str) -> tuple[pd.Series, tuple[str, str]]:
    """The times of the faster layout of a network, and which it is."""
    chosen = min((key for key in rounds.columns if key[0] == name), key=lambda key: rounds[key].median())
    return rounds[chosen], chosen


def _latency(
    times: pd.Series, chosen: tuple[str, str], contestants: dict[tuple[str, str], _Contestant], batch: int
) -> Latency:
    low, median, high = (float(times.quantile(share)) for share in (0.25, 0.5, 0.75))
    device = str(place_of(contestants[chosen].network).get("device", "cpu"))
    return Latency(median, low, high, batch, torch.get_num_threads(), chosen[1], device)


def _milliseconds(run: Callable[[], object], device: torch.device, calls: int, clock: str) -> float:
    def now() -> float:
        if device.type == "cuda":  # it works on after a call has returned
            torch.cuda.synchronize(device)
        return CLOCKS[clock]()

    return 1000 * timeit.Timer(run, timer=now).timeit(calls)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """PyTorch on ``count`` threads inside, on as many as before afterwards."""
    before = torch.get_num_threads()
    count = before if count is None else count
    check_whole("threads", count)
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
