"""What a pickle is read as: plain dicts and lists, outlines of tensors, inert stand-ins for all other objects."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

_PLAIN = (str, int, float, bool, bytes, type(None))
# torch's classes of storages, by the name before "Storage".
_SAME = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Bool")
_QUANTIZED = ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")
_STORED = {name: getattr(torch, name.lower()) for name in _SAME + _QUANTIZED}
_STORED |= {"Char": torch.int8, "Byte": torch.uint8, "Untyped": torch.uint8}
_STORED |= {"ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64}
_LISTS = ("collections.deque", "builtins.list", "builtins.tuple", "builtins.set", "builtins.frozenset")


class _Inert:
    """What a pickle gets to hold: it can set nothing on it."""

    def __setstate__(self, state: Any) -> None:
        pass


class Held(_Inert, dict):
    """A dict of any class, or a set or list of an unknown class with numbers for keys.

    A key that is no text or number gets a name: to hash tuples nested deeply enough ends the process.
    """

    versions: Any = None  # of a state dict's modules

    def __init__(self, pairs: Iterable = ()) -> None:
        super().__init__()
        for key, value in pairs:
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key if isinstance(key, _PLAIN) else f"{type(key).__name__} {len(self)}", value)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
            self.versions = _versions(state["_metadata"])

    def append(self, value: Any) -> None:
        """What a pickle calls to fill a list, or by another name a set."""
        self[len(self)] = value

    add = append


class StandIn(Held):
    """What stands for an object that only code of others could make; a subclass stands for its class.

    Attributes:
        name: of its class, or of the function that would have made it.
    """

    name = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


class Maker(_Inert):
    """A function or class of ``MAKERS``, by name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> Any:
        return MAKERS[self.name](*args)


@dataclass(frozen=True, eq=False)
class Storage(_Inert):
    """Numbers in a file, by the ``key`` of their record: ``size`` elements of ``dtype`` from element ``shift`` on."""

    key: str
    dtype: torch.dtype
    size: int
    shift: int = 0


@dataclass(frozen=True, eq=False)
class Outline(_Inert):
    """A tensor that is described and not read: as ``torch.as_strided`` would have it, in elements of its storage.

    ``why`` says why it cannot be read, or "".
    """

    storage: Storage | None
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    why: str = ""


def _versions(metadata: dict) -> dict:
    """The versions of a state dict's modules; all but numbers are dropped, as modules compare them."""
    return OrderedDict(
        (name, dict(about))
        for name, about in metadata.items()
        if isinstance(name, str) and isinstance(about, dict) and isinstance(about.get("version"), int | None)
    )


def stored_dtype(name: str) -> torch.dtype | None:
    """The dtype of a class of storages by its full name, or None."""
    home, _, kind = name.rpartition(".")
    return _STORED.get(kind.removesuffix("Storage")) if home in ("torch", "torch.storage") else None


def are_whole(*numbers: Any) -> bool:
    """Whether all are whole numbers of at least 0."""
    return all(type(number) is int and number >= 0 for number in numbers)


def _outline(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any, why: str = "") -> Outline:
    dense = isinstance(storage, Storage) or (storage is None and why)
    if not dense or not isinstance(dtype, torch.dtype) or not are_whole(offset, *shape, *stride):
        raise pickle.UnpicklingError("a tensor whose storage, dtype, shape or stride are none")
    if len(shape) != len(stride):
        raise pickle.UnpicklingError(f"a tensor of {len(shape)} axes with {len(stride)} strides")
    return Outline(storage, dtype, offset + (storage.shift if storage else 0), tuple(shape), tuple(stride), why)


def _unread(dtype: Any, shape: Any, why: str) -> Outline:
    return _outline(None, dtype, 0, shape, [0] * len(shape), why)


# The makers of tensors take what torch's functions of the same name take; "others" are requires_grad and hooks first.
def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> Outline:
    return _outline(storage, storage.dtype, offset, shape, stride, _marks(others[2:]))


def _tensor_of_dtype(storage: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> Outline:
    return _outline(storage, others[2], offset, shape, stride, _marks(others[3:]))


def _marks(metadata: tuple) -> str:
    """Why the stored numbers are not those of the tensor: PyTorch negates and conjugates by a mark."""
    marked = [name for name in ("conj", "neg") if any(isinstance(m, dict) and m.get(name) for m in metadata)]
    return f"marked as {' and '.join(marked)}: save a resolve_conj().resolve_neg() of it" if marked else ""


def _quantized(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Outline:
    return _outline(storage, storage.dtype, offset, shape, stride, "quantized: only dense tensors are read")


def _sparse(layout: Any, data: Any) -> Outline:
    shape = next(part for part in data[::-1] if isinstance(part, tuple))
    values = next(part for part in data[::-1] if isinstance(part, Outline))
    return _unread(values.dtype, shape, "sparse: only dense tensors are read")


def _listed(items: Any = (), *_: Any) -> list:
    return list(items)


# By full name all that a pickle may call. torch's own functions are replaced by those that make outlines.
MAKERS: dict[str, Callable] = {
    "collections.OrderedDict": Held,
    "collections.defaultdict": lambda *_: Held(),
    "collections.Counter": lambda counts=None, *_: counts if isinstance(counts, dict) else Held(),
    **dict.fromkeys(
        ["collections.deque", *(f"builtins.{kind}" for kind in ["list", "tuple", "set", "frozenset"])], _listed
    ),
    **dict.fromkeys(["builtins.bytearray", "builtins.complex", "_codecs.encode"], lambda *_: None),
    **dict.fromkeys(["copyreg._reconstructor", "copyreg.__newobj__"], lambda kind, *_: kind()),
    **dict.fromkeys(["torch.device", "torch.serialization._get_layout"], lambda *words: words),
    "torch.Size": tuple,
    "torch._tensor._rebuild_from_type_v2": lambda make, kind, args, state: make(*args),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": lambda dtype, shape, *_: _unread(
        dtype, shape, "on torch's meta device: no numbers were saved"
    ),
    "torch._utils._rebuild_wrapper_subclass": lambda kind, dtype, shape, *_: _unread(
        dtype, shape, f"of the class {kind.name}: only plain tensors are read"
    ),
}
