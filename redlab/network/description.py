"""An example of a network's inputs as plain data: its structure, and the shape, dtype and range of each tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

DTYPES = (
    *("float16", "bfloat16", "float32", "float64", "bool"),
    *("uint8", "int8", "int16", "int32", "int64"),
)


def tensor(*shape: int, dtype: str = "float32", low: float | None = None, high: float | None = None) -> dict:
    """The description of one tensor; without a range its values have mean 0 and variance 1.

    Example:
        >>> from redlab.network.description import example_from, tensor
        >>> example_from({"dict": {"ids": tensor(1, 3, dtype="int64", low=7, high=7)}})
        {'ids': tensor([[7, 7, 7]])}
    """
    return {"tensor": list(shape), "dtype": dtype} | ({} if low is None else {"low": low, "high": high})


def describe(example: Any) -> dict | None:
    """The description of ``example``: tensors, numbers, text and None in tuples, lists and dicts; None: it holds more.

    Example:
        >>> from redlab.network.description import describe
        >>> describe((torch.ones(1, 3), 2))
        {'tuple': [{'tensor': [1, 3], 'dtype': 'float32', 'low': 1.0, 'high': 1.0}, {'value': 2}]}
    """
    if isinstance(example, Tensor):
        return _describe_tensor(example)
    if isinstance(example, Mapping):
        parts = {name: describe(part) for name, part in example.items() if isinstance(name, str)}
        return {"dict": parts} if len(parts) == len(example) and None not in parts.values() else None
    if type(example) in (tuple, list):
        items = [describe(part) for part in example]
        return None if None in items else {type(example).__name__: items}
    plain = example is None or isinstance(example, bool | int | str)
    return {"value": example} if plain or (isinstance(example, float) and math.isfinite(example)) else None


def _describe_tensor(given: Tensor) -> dict | None:
    name = str(given.dtype).removeprefix("torch.")
    if name not in DTYPES or given.layout != torch.strided:
        return None
    if given.is_meta or given.numel() == 0:  # values that nobody knows
        return tensor(*given.shape, dtype=name) if given.is_floating_point() else None
    values = given.detach().double() if given.is_floating_point() else given.detach().to(torch.int64)
    values = values[values.isfinite()]  # masks may hold -inf
    if len(values) == 0:
        return None
    return tensor(*given.shape, dtype=name, low=values.min().item(), high=values.max().item())


def example_from(description: dict) -> Any:
    """The example that is described: always the same values. Constant tensors stay constant.

    Floating values are uniform between their lowest and highest, whole numbers likewise: our choice.

    Raises:
        KeyError, TypeError, ValueError: it is no description.
    """
    return _make(description, torch.Generator().manual_seed(0))


def _make(part: dict, generator: torch.Generator) -> Any:
    kind = next(iter(part), None) if isinstance(part, Mapping) else None
    if kind not in _KINDS:
        raise ValueError(f"an input is described by one of {', '.join(_KINDS)}, not by {repr(part)[:60]}")
    return _KINDS[kind](part, generator)


def _make_tensor(part: dict, generator: torch.Generator) -> Tensor:
    if part["dtype"] not in DTYPES:
        raise ValueError(f"the dtype of a tensor is one of {', '.join(DTYPES)}, not {part['dtype']!r}")
    shape, dtype = part["tensor"], getattr(torch, part["dtype"])
    if "low" not in part and dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    low, high = part["low"], part["high"]
    if dtype.is_floating_point:
        return (low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)
    _check_range(dtype, low, high)
    if low == high:
        return torch.full(shape, low, dtype=dtype)
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def _check_range(dtype: torch.dtype, low: int, high: int) -> None:
    least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if not least <= low <= high <= most:
        raise ValueError(f"{dtype} holds no values from {low} to {high}")


_KINDS: dict[str, Callable[[dict, torch.Generator], Any]] = {
    "tensor": _make_tensor,
    "tuple": lambda part, generator: tuple(_make(item, generator) for item in part["tuple"]),
    "list": lambda part, generator: [_make(item, generator) for item in part["list"]],
    "dict": lambda part, generator: {name: _make(item, generator) for name, item in part["dict"].items()},
    "value": lambda part, generator: part["value"],
}


def sizes(description: dict) -> int:
    """How many values the described tensors hold in all."""
    if not description:
        return 0
    kind, content = next(iter(description.items()))
    if kind == "tensor":
        return math.prod(content)
    parts = content.values() if kind == "dict" else content if kind in ("list", "tuple") else ()
    return sum(map(sizes, parts))
