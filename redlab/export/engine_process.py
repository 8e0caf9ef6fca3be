"""One engine in a process of its own: it loads networks and times them, as its standard input asks.

``python -m redlab.export.engine_process ENGINE THREADS PROCESSORS``, which ``engines.EngineProcess`` starts. A line of
JSON comes in, a line goes out:

| in | out |
|---|---|
| ``{"load": 3, "file": ..., "inputs": ..., "precision": ..., "layout": ...}`` | ``{"ms": of a call, in warm-up}`` |
| ``{"time": 3}`` | ``{"ms": of a call}`` |
| ``{"forget": true}`` | ``{}`` |

or ``{"why": the reason}`` for what does not work. The files are written by the process that asks, in a folder that is
its own: unpickling them runs no other code than its own.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import IO, Any

Call = Callable[[], Any]

_WARM_UP = 3  # calls before anything is timed
_LONG_ENOUGH = 20.0  # ms: shorter measurements hang on the clock and on what ran before


def main(engine: str, threads: int, processors: list[int]) -> None:
    """Answer until the input ends."""
    answers = _own_output()
    if hasattr(os, "sched_setaffinity") and processors:
        os.sched_setaffinity(0, processors)
    _end_with_parent()
    timer = Timer(ENGINES[engine], threads)
    gc.disable()  # a collection within a measurement would be part of it
    for line in sys.stdin:
        answers.write(json.dumps(timer.answer(json.loads(line)), allow_nan=False) + "\n")
        answers.flush()


class Timer:
    """The loaded networks, each as a call without arguments, and how many calls make a measurement."""

    def __init__(self, load: Callable[[dict, int], Call], threads: int) -> None:
        self._load, self._threads = load, threads
        self._loaded: dict[int, tuple[Call, int]] = {}

    def answer(self, job: dict) -> dict:
        """Do what a line asks."""
        try:
            if "load" in job:
                return {"ms": self._keep(job["load"], self._load(job, self._threads))}
            if "time" in job:
                return {"ms": _measure(*self._loaded[job["time"]])}
        except Exception as error:  # whatever an engine says becomes the reason in a row
            return {"why": _reason(error)}
        self._loaded.clear()
        gc.collect()
        return {}

    def _keep(self, key: int, call: Call) -> float:
        for _ in range(_WARM_UP):
            call()
        once = _milliseconds(call, 1)
        # One call is a poor guess where it is short: what it takes among others decides.
        ms = _milliseconds(call, _calls(once)) if once < _LONG_ENOUGH else once
        self._loaded[key] = call, _calls(ms)
        return ms


def _calls(ms: float) -> int:
    return max(1, math.ceil(_LONG_ENOUGH / max(ms, 1e-3)))


def _measure(call: Call, calls: int) -> float:
    if calls > 1:
        call()  # the caches hold what the other engines left there; long calls don't notice
    return _milliseconds(call, calls)


def _milliseconds(call: Call, calls: int) -> float:
    """Of one call, on average."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return 1000 * (time.perf_counter() - start) / calls


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _torch(job: dict, threads: int) -> Call:
    import torch
    from torch.utils._pytree import tree_map

    torch.set_num_threads(threads)
    layout = torch.channels_last if job["layout"] == "channels_last" else torch.contiguous_format
    dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        leaf = leaf.to(dtype) if leaf.is_floating_point() else leaf
        return leaf.contiguous(memory_format=layout) if leaf.ndim == 4 else leaf.contiguous()

    if job["file"].endswith(".pt2"):
        network = torch.export.load(job["file"]).module()
    else:
        network = torch.load(job["file"], weights_only=False)
    network = network.to(dtype).to(memory_format=layout) if job["layout"] == "channels_last" else network.to(dtype)
    args, kwargs = tree_map(placed, torch.load(job["inputs"], weights_only=False))

    def call() -> Any:
        with torch.inference_mode():
            return network(*args, **kwargs)

    return call


def _onnxruntime(job: dict, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(job["file"], options, providers=["CPUExecutionProvider"])
    feeds = _arrays(job["inputs"])
    return lambda: session.run(None, feeds)


def _openvino(job: dict, threads: int) -> Call:
    import openvino

    core = openvino.Core()
    model, feeds = core.read_model(job["file"]), _arrays(job["inputs"])
    # Shapes that are known when it compiles are faster, and a file for one purpose has them.
    model.reshape({name: list(array.shape) for name, array in feeds.items()})
    own = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    # Without the hint it takes bfloat16 wherever the processor has it.
    own["INFERENCE_PRECISION_HINT"] = "bf16" if job["precision"] == "bf16" else "f32"
    if job["precision"] == "weights8":  # activations are rounded by so many, as steps of weights are; else by 32
        own["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 128
    request = core.compile_model(model, "CPU", own).create_infer_request()
    return lambda: request.infer(feeds, share_inputs=True)


def _arrays(file: str) -> dict[str, Any]:
    import numpy as np

    with np.load(file) as held:
        return dict(held)


ENGINES = {"torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino}


def _end_with_parent() -> None:
    """Where Linux offers it: a process that is stopped between measurements would never see that its input ended."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _own_output() -> IO[str]:
    """The standard output for the answers alone: what libraries print there is sent to the standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(word) for word in sys.argv[3].split(",") if word])
