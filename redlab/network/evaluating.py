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
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside: eval mode, no gradients, attention as separate operations, nothing compiled, no cache of keys and values.

    Afterwards, everything is as it was before.
    """
    training = [module for module in network.modules() if module.training]
    configs: list[Any] = [getattr(module, "config", None) for module in network.modules()]
    caching = [config for config in configs if _caches(config)]
    fused = torch.backends.mha.get_fastpath_enabled()
    # The fast path of nn.MultiheadAttention is one opaque operation, in which products can be neither seen nor counted.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for config in caching:
            config.use_cache = False
        # Compiled kernels end the process where they meet tensors without values.
        with torch.inference_mode(False), torch.no_grad(), torch.compiler.set_stance("force_eager"), _unlogged():
            yield network.eval()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for config in caching:
            config.use_cache = True
        for module in training:
            module.training = True


def _caches(config: Any) -> bool:
    """Whether a decoder, as in the transformers library, would return its keys and values too."""
    return getattr(config, "use_cache", None) is True


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
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        reason = "TorchScript hides its layers: pass the module that it was made from"
    return f"{type(network).__name__} cannot {what} on {inputs.describe()}: {reason}"
