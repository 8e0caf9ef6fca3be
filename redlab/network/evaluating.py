"""Running a network in eval mode without a trace: no gradients, no logs, all settings restored."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn

from redlab.network.example import Inputs


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Inside, ``network`` is in eval mode; afterwards every module's training flag is restored."""
    before = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside: eval mode, no gradients, attention as separate operations, nothing compiled, no cache of keys and values.

    Afterwards, everything is as it was before.
    """
    configs: list[Any] = [getattr(module, "config", None) for module in network.modules()]
    # A decoder, as in the transformers library, would return its keys and values too.
    caching = [config for config in configs if getattr(config, "use_cache", None) is True]
    fused = torch.backends.mha.get_fastpath_enabled()
    # The fast path of nn.MultiheadAttention is one opaque operation, in which products can be neither seen nor counted.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for config in caching:
            config.use_cache = False
        # Compiled kernels end the process where they meet tensors without values.
        eager = torch.compiler.set_stance("force_eager")
        with in_eval_mode(network), torch.inference_mode(False), torch.no_grad(), eager, _unlogged():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for config in caching:
            config.use_cache = True


_ONE_AT_A_TIME = threading.RLock()  # stderr belongs to the whole process
_LOGGERS = ("torch.export", "torch._export", "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")


@contextmanager
def _unlogged() -> Iterator[None]:
    """Inside, torch logs nothing of what cannot be traced or run: our own errors report it."""
    loggers = [logger for name in _LOGGERS if not (logger := logging.getLogger(name)).disabled]
    try:
        for logger in loggers:
            logger.disabled = True
        yield
    finally:
        for logger in loggers:
            logger.disabled = False


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, the half graph that a failed ``torch.export`` prints on stderr is removed; other output there is kept."""
    said, dump = io.StringIO(), ""
    with _ONE_AT_A_TIME:
        try:
            with redirect_stderr(said):
                yield
        except Exception as error:
            dump = f"{getattr(error, 'partial_fx_graph', '')}\n"
            raise
        finally:
            sys.stderr.write(said.getvalue().replace(dump, "") if dump else said.getvalue())


def refusal(network: nn.Module, inputs: Inputs, what: str, error: Exception) -> str:
    """The message of a ValueError: ``network`` cannot ``what`` on ``inputs``, and the first line of the reason."""
    reason = first_line(error)
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        reason = "TorchScript hides its layers: pass the module that it was made from"
    return f"{type(network).__name__} cannot {what} on {inputs.describe()}: {reason}"


def first_line(error: BaseException | None) -> str:
    """What an error says, in one line; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
