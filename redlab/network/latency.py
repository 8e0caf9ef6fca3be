"""How long a network takes, measured so that two networks can be compared.

The clock is that of ``timeit``, which stops the garbage collector meanwhile. ``torch.utils.benchmark.Timer`` would make
two more calls before each measurement, and so triple the rounds of slow networks.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from redlab.network.evaluating import refusal
from redlab.network.example import Example, Inputs, fit_example
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
    row = compare_latency({"": network}, example, batch, repeats, threads, layout).to_dict("records")[0]
    return Latency(**{field.name: row[field.name] for field in fields(Latency)})


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
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    contestants = _contestants(networks, example, batch, layout)
    devices = {key: inputs.tensors[0].device for key, (_, inputs) in contestants.items()}
    check_whole("repeats", repeats)
    check_whole("threads", threads)
    check_one_of("clock", clock, CLOCKS)
    if clock == "processor" and (threads > 1 or {device.type for device in devices.values()} != {"cpu"}):
        raise ValueError("the processor's clock times one thread on a CPU: pass threads=1")
    try:
        torch.set_num_threads(threads)
        rounds = _rounds(contestants, repeats, clock)
    finally:
        torch.set_num_threads(before)
    medians = rounds.median()
    best = [min((key for key in rounds if key[0] == name), key=medians.__getitem__) for name in networks]
    rows: list[dict[str, Any]] = []
    for name, layout in best:
        times, ratios = rounds[name, layout], rounds[name, layout] / rounds[best[0]]
        row = {"network": name, "layout": layout, "median": times.median(), "ratio": ratios.median()}
        row |= {"q25": times.quantile(0.25), "q75": times.quantile(0.75), "faster": _faster(ratios) if rows else ""}
        rows.append(row | {"batch": batch, "threads": threads, "device": str(devices[name, layout])})
    columns = ["network", "median", "q25", "q75", "ratio", "faster", "layout", "batch", "threads", "device"]
    return pd.DataFrame(rows, columns=columns)


def _faster(ratios: pd.Series) -> str:
    """What three quarters of the rounds say."""
    return "yes" if ratios.quantile(0.75) < 1 else "no" if ratios.quantile(0.25) > 1 else "within noise"


def _contestants(
    networks: Mapping[str, nn.Module], example: Example | None, batch: int, layout: str
) -> dict[tuple[str, str], tuple[nn.Module, Inputs]]:
    """By (name, layout), a copy of each network and its input."""
    check_one_of("layout", layout, LAYOUTS)
    check_whole("batch", batch)
    found = {}
    for name, network in networks.items():
        if compiled := [path for path, module in network.named_modules() if module._compiled_call_impl is not None]:
            raise ValueError(
                f"{compiled[0] or type(network).__name__} was compiled in place, by its method compile, which no copy "
                "keeps: pass torch.compile(network) to time it compiled"
            )
        one = fit_example(network, example).first()
        of_images = any(tensor.ndim == 4 for tensor in one.tensors)
        if not of_images and layout == "channels_last":
            raise ValueError(f"channels_last is a layout of images, and the example is {one.describe()}")
        for each in LAYOUTS[layout] if of_images else ("nchw",):
            copied = copy_network(network).eval()
            # Tensors of other ranks than images' keep their order: 3-D convolutions have another channels_last.
            copied = copied.to(memory_format=_FORMATS[each]) if of_images else copied
            found[name, each] = copied, one.repeat(batch).each(partial(_laid_out, _FORMATS[each]))
    return found


def _laid_out(layout: torch.memory_format, tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor.contiguous()


def _rounds(contestants: dict[tuple[str, str], tuple[nn.Module, Inputs]], repeats: int, clock: str) -> pd.DataFrame:
    """Milliseconds a call: a row a round, a column a contestant."""
    with torch.inference_mode():
        calls = {key: _warm_up(*contestant) for key, contestant in contestants.items()}
        rounds = [
            {key: _milliseconds(*contestant, calls[key], clock) for key, contestant in contestants.items()}
            for _ in progress(range(repeats), "latency")
        ]
    return pd.DataFrame(rounds)


def _warm_up(network: nn.Module, inputs: Inputs) -> int:
    """How many calls make a measurement long enough."""
    try:
        _milliseconds(network, inputs, _WARM_UP)
    except (RuntimeError, ValueError, TypeError) as error:  # shapes that don't fit
        raise ValueError(refusal(network, inputs, "run", error)) from error
    return max(1, round(_SHORTEST / max(_milliseconds(network, inputs, 1), 1e-3)))


def _milliseconds(network: nn.Module, inputs: Inputs, calls: int, clock: str = "wall") -> float:
    """Of one call, on average."""
    device = inputs.tensors[0].device

    def now() -> float:
        if device.type == "cuda":  # it works on after a call has returned
            torch.cuda.synchronize(device)
        return CLOCKS[clock]()

    return 1000 * timeit.Timer(lambda: inputs.run(network), timer=now).timeit(calls) / calls
