"""What of a processor decides which number formats are fast on it, and which of its cores may be used."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

# Instructions for int8 and bfloat16, of x86 and of ARM (from "bf16" on).
_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "bf16", "i8mm")
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def cpu_flags() -> list[str]:
    """The instructions of this processor that make int8 or bfloat16 fast, by Linux's names.

    Example:
        >>> set(cpu_flags()) <= {"avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
        ...                      "bf16", "i8mm"}
        True
    """
    found = _of_linux() or {
        name for name, held in getattr(torch.cpu, "get_capabilities", dict)().items() if held is True
    }
    return [flag for flag in _FLAGS if flag in found]


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16; elsewhere it would only be emulated, slowly."""
    return not _BF16.isdisjoint(cpu_flags())


def processors() -> list[int]:
    """Those that this process may use, one of every core first: two that share a core are slower than two cores."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    allowed = sorted(os.sched_getaffinity(0))
    first_of = {_core(processor): processor for processor in reversed(allowed)}
    return sorted(allowed, key=lambda processor: first_of[_core(processor)] != processor)


def _of_linux() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def _core(processor: int) -> str:
    """The processors of its core, as Linux lists them; itself where that is not known."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(processor)
