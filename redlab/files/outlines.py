"""Tensors and other objects of a checkpoint as outlines: described, not read, not made."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_PLAIN = (str, int, float, bool, bytes, type(None))
_STORED = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
    "Untyped": torch.uint8,
}


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers in a file, by the ``key`` of their record: ``size`` elements of ``dtype`` from element ``shift`` on."""

    key: str
    dtype: torch.dtype
    size: int
    shift: int = 0


@dataclass(frozen=True, eq=False)
class Outline:
    """A tensor that is described and not read: as ``torch.as_strided`` would have it, in elements of its storage.

    ``why`` says why it cannot be read, or "".
    """

    storage: Storage | None
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    why: str = ""


class Odd:
    """What stands for an object that only code of others could make; what it holds as a dict or list is kept.

    Attributes:
        name: of its class, or of the function that would have made it.
        items: of it as a dict, or as a list by their numbers.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.items: dict[Any, Any] = {}

    def extend(self, items: list) -> None:
        for item in items:
            self.items[len(self.items)] = item


class Named:
    """A function or class of a pickle by its full name alone."""

    def __init__(self, name: str) -> None:
        self.name = name


def fill(target: Any, items: list) -> Any:
    """``target`` (a dict or odd object) with ``items``, keys and values in turn; keys that are objects get a name."""
    if not isinstance(target, dict | Odd):
        raise pickle.UnpicklingError(f"it sets items of a {type(target).__name__}")
    held = target.items if isinstance(target, Odd) else target
    for key, value in zip(items[::2], items[1::2], strict=True):
        held[key if isinstance(key, _PLAIN) else f"{type(key).__name__} {len(held)}"] = value
    return target


def stored_dtype(name: str) -> torch.dtype | None:
    """The dtype of a class of storages by its full name, or None."""
    home, _, kind = name.rpartition(".")
    return _STORED.get(kind.removesuffix("Storage")) if home in ("torch", "torch.storage") else None


def are_whole(*numbers: Any) -> bool:
    """Whether all are whole numbers of at least 0."""
    return all(type(number) is int and number >= 0 for number in numbers)


def part_of(base: Storage, shift: int, size: int) -> Storage:
    """``size`` elements of ``base`` from ``shift`` on; ``pickle.UnpicklingError`` where it has fewer."""
    if not are_whole(shift, size) or shift + size > base.size:
        raise pickle.UnpicklingError(f"a part of a storage that it does not have, its size is {base.size}")
    return Storage(base.key, base.dtype, size, base.shift + shift)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> Outline:
    """Of ``_rebuild_tensor`` and its second version: (requires_grad, hooks, metadata) follow, or nothing."""
    dtype = storage.dtype if isinstance(storage, Storage) else None
    return _outline(storage, dtype, offset, shape, stride, _bits(others[2:]))


def _tensor_of_dtype(storage: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> Outline:
    """Of ``_rebuild_tensor_v3``: (requires_grad, hooks, dtype, metadata) follow."""
    return _outline(storage, others[2], offset, shape, stride, _bits(others[3:]))


def _outline(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any, why: str = "") -> Outline:
    dense = isinstance(storage, Storage) or (storage is None and why)
    if not dense or not isinstance(dtype, torch.dtype) or not are_whole(offset, *shape, *stride):
        raise pickle.UnpicklingError("a tensor whose storage, dtype, shape or stride are none")
    if len(shape) != len(stride):
        raise pickle.UnpicklingError(f"a tensor of {len(shape)} axes with {len(stride)} strides")
    return Outline(storage, dtype, offset + (storage.shift if storage else 0), tuple(shape), tuple(stride), why)


def _bits(metadata: tuple) -> str:
    """Why the stored numbers are not those of the tensor: PyTorch negates and conjugates by a mark."""
    marked = [name for name in ("conj", "neg") if any(isinstance(m, dict) and m.get(name) for m in metadata)]
    return f"marked as {' and '.join(marked)}: save a resolve_conj().resolve_neg() of it" if marked else ""


def _quantized(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Outline:
    return _outline(storage, storage.dtype, offset, shape, stride, "quantized: only dense tensors are read")


def _sparse(layout: Any, data: Any) -> Outline:
    shape = next(part for part in data[::-1] if isinstance(part, tuple))
    values = next(part for part in data[::-1] if isinstance(part, Outline))
    return _without_numbers(values.dtype, shape, "sparse: only dense tensors are read")


def _meta(dtype: Any, shape: Any, *_: Any) -> Outline:
    return _without_numbers(dtype, shape, "on torch's meta device: no numbers were saved")


def _of_a_class(kind: Any, dtype: Any, shape: Any, *_: Any) -> Outline:
    return _without_numbers(dtype, shape, f"of the class {kind.name}: only plain tensors are read")


def _without_numbers(dtype: Any, shape: Any, why: str) -> Outline:
    return _outline(None, dtype, 0, shape, [0] * len(shape), why)


def _listed(items: Any = (), *_: Any) -> list:
    return list(items)


def _ordered(pairs: Any = ()) -> OrderedDict:
    return fill(OrderedDict(), [part for pair in pairs for part in pair])


# By full name all that a pickle may call; torch's own functions are replaced by those that make outlines.
MAKERS: dict[str, Callable] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": lambda counts=None, *_: counts if isinstance(counts, dict) else {},
    "collections.deque": _listed,
    **dict.fromkeys([f"builtins.{name}" for name in ("list", "tuple", "set", "frozenset")], _listed),
    **dict.fromkeys(["builtins.bytearray", "builtins.complex", "_codecs.encode"], lambda *_: None),
    **dict.fromkeys(["torch.device", "torch.serialization._get_layout"], lambda *words: words),
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_wrapper_subclass": _of_a_class,
}
