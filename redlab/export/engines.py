"""Engines that run networks, each in a process of its own, so that their pools of threads don't disturb each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from redlab.export.machine import processors
from redlab.names import needs
from redlab.options import check_one_of

# The package of an engine -> the extra that installs it; torch is there.
EXTRAS = {"torch": "", "onnxruntime": "export", "openvino": "openvino"}
_MODULE = "redlab.export.engine_process"
_TO_LOAD = 900.0  # seconds; compiling a large network takes minutes
_TO_TIME = 60.0  # seconds, beside twenty times what was expected
_TO_END = 5.0  # seconds after the last answer


def chosen_engines(engines: Sequence[str] | None) -> list[str]:
    """Those asked for; by default all that are installed.

    Raises:
        ValueError: an unknown name, or none.
        ModuleNotFoundError: one is not installed; the message says how to install it.
    """
    if engines is None:
        return [name for name in EXTRAS if find_spec(name) is not None]
    if isinstance(engines, str) or not engines:
        raise ValueError(f"engines must be a list of some of {', '.join(EXTRAS)}, not {engines!r}")
    for name in engines:
        check_one_of("engines", name, EXTRAS)
        needs(EXTRAS[name], name)
    return list(dict.fromkeys(engines))


class EngineError(Exception):
    """An engine cannot run a network; its text is the reason."""


class EngineProcess:
    """A process of one engine with a number of threads; a context, after which it has ended.

    If the process ends early, the call in which it did so raises, and the next one starts another with what was loaded.

    Arguments:
        engine: "torch", "onnxruntime" or "openvino".
        threads: that it computes with, on as many processors.
        folder: where its error messages are kept.
    """

    def __init__(self, engine: str, threads: int, folder: Path) -> None:
        self._engine, self._threads = engine, threads
        self._log = folder / f"{engine}-{threads}.log"
        self._loaded: dict[int, tuple[dict, float]] = {}
        self._process: subprocess.Popen[str] | None = None
        self._answers: SimpleQueue[str] = SimpleQueue()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end(_TO_END if kind is None else 0.0)

    def load(self, key: int, job: dict[str, Any]) -> None:
        """Load a network with its inputs, and warm it up.

        Raises:
            EngineError: it does not work; the text says why.
        """
        answer = self._ask({"load": key, **job}, _TO_LOAD)
        self._loaded[key] = job, answer["ms"]

    def time(self, key: int) -> float:
        """Milliseconds a call, in one measurement.

        Raises:
            EngineError: as ``load``.
        """
        expected = max(self._loaded[key][1], 20.0) / 1000
        try:
            return self._ask({"time": key}, _TO_TIME + 20 * expected)["ms"]
        except EngineError:
            self._loaded.pop(key)
            raise

    def forget(self) -> None:
        """Let everything that is loaded go."""
        self._loaded.clear()
        if self._process:
            self._exchange({"forget": True}, _TO_TIME)

    def _ask(self, request: dict, patience: float) -> dict:
        if self._process is None:
            self._start()
        answer = self._exchange(request, patience)
        if "why" in answer:
            raise EngineError(answer["why"])
        return answer

    def _exchange(self, request: dict, patience: float) -> dict:
        if self._process is None or self._process.stdin is None:
            return {"why": f"the process of {self._engine} ended"}
        try:
            _signal(self._process, "SIGCONT")
            self._process.stdin.write(json.dumps(request, allow_nan=False) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=patience)
            _signal(self._process, "SIGSTOP")
        except Empty:
            self._end(0.0)
            return {"why": f"{self._engine} gave no answer for {patience:.0f} seconds"}
        except OSError:  # it ended before it read
            line = ""
        return json.loads(line) if line else {"why": self._why_ended()}

    def _start(self) -> None:
        # The networks' own code is found where this process finds it.
        own = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        own |= {name: str(self._threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        pinned = ",".join(map(str, processors()[: self._threads]))
        command = [sys.executable, "-m", _MODULE, self._engine, str(self._threads), pinned]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | own
            )
        self._answers = SimpleQueue()
        # A pipe has no timeout everywhere; a queue has.
        threading.Thread(target=_pass_on, args=(self._process.stdout, self._answers), daemon=True).start()
        for key, (job, _) in self._loaded.items():
            self._exchange({"load": key, **job}, _TO_LOAD)

    def _why_ended(self) -> str:
        self._end(_TO_END)
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"the process of {self._engine} ended" + (f": {said[-1].strip()}" if said else "")

    def _end(self, patience: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            _signal(process, "SIGCONT")
            if process.stdin:
                process.stdin.close()  # at whose end it ends
            process.wait(timeout=patience)
        except (subprocess.TimeoutExpired, OSError):
            process.kill()
            process.wait()


def _signal(process: subprocess.Popen, name: str) -> None:
    """Stop or continue it, where the system can.

    The threads of an engine wait busily for the next call, for tens of milliseconds and more. ResNet-20 with two
    threads took 0.56 ms in OpenVINO and 0.67 ms in ONNX Runtime while the others were stopped, else 0.78 and 1.05.
    """
    if hasattr(signal, name):
        process.send_signal(getattr(signal, name))


def _pass_on(lines: Any, answers: SimpleQueue[str]) -> None:
    for line in lines:
        answers.put(line)
    answers.put("")  # it has ended
