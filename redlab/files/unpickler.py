"""A pickle read as plain data: nothing that it names is imported, and only the makers below are called.

A pickle is a program that names functions and classes, and calls them. Here each name gets an inert stand-in. Tensors
become entries, which say where their numbers lie. ``torch.load(weights_only=True)`` with stand-ins in ``safe_globals``
does not do for this: it refuses a whole file for one set, deque or dict of another class, and all files of pickle
protocol 4 and 5; it reads old files whole; and a key of tuples nested 150,000 deep ends the process.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, ClassVar

import torch

from redlab.files.entries import Entry, Inert, Storage

_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.cuda": "torch"}  # as Python 2 and CUDA had them
_TENSORS = {"torch.Tensor", "torch.nn.parameter.Parameter"}
_NUMPY = {
    "numpy.core.multiarray.scalar": "a numpy number",
    "numpy.core.multiarray._reconstruct": "a numpy array",
    "numpy.core.numeric._frombuffer": "a numpy array",
}
PLAIN = (str, int, float, bool, bytes, type(None))
# torch's classes of storages, by the name before "Storage".
_SAME = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Bool")
_QUANTIZED = ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")
_STORED = {name: getattr(torch, name.lower()) for name in _SAME + _QUANTIZED}
_STORED |= {"Char": torch.int8, "Byte": torch.uint8, "Untyped": torch.uint8}
_STORED |= {"ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64}
_LISTS = ("collections.deque", "builtins.list", "builtins.tuple", "builtins.set", "builtins.frozenset")


class Held(Inert, dict):
    """A dict of any class, or a set or list of an unknown class with numbers for keys.

    A key that is no text or number gets a name: to hash tuples nested deeply enough ends the process.
    """

    versions: Any = None  # of a state dict's modules

    def __init__(self, pairs: Iterable = ()) -> None:
        super().__init__()
        for key, value in pairs:
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key if isinstance(key, PLAIN) else f"{type(key).__name__} {len(self)}", value)

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


class Maker(Inert):
    """A function or class of ``MAKERS``, by name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> Any:
        return MAKERS[self.name](*args)


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


def _entry(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any, why: str = "") -> Entry:
    dense = isinstance(storage, Storage) or (storage is None and why)
    if not dense or not isinstance(dtype, torch.dtype) or not are_whole(offset, *shape, *stride):
        raise pickle.UnpicklingError("a tensor whose storage, dtype, shape or stride are none")
    if len(shape) != len(stride):
        raise pickle.UnpicklingError(f"a tensor of {len(shape)} axes with {len(stride)} strides")
    place = {"offset": offset * dtype.itemsize, "stride": tuple(stride), "storage": storage}
    return Entry("", tuple(shape), dtype, skipped=why, **place)


def _unread(dtype: Any, shape: Any, why: str) -> Entry:
    return _entry(None, dtype, 0, shape, [0] * len(shape), why)


# The makers of tensors take what torch's functions of the same name take; "others" are requires_grad and hooks first.
def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> Entry:
    return _entry(storage, storage.dtype, offset, shape, stride, _marks(others[2:]))


def _tensor_of_dtype(storage: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> Entry:
    return _entry(storage, others[2], offset, shape, stride, _marks(others[3:]))


def _marks(metadata: tuple) -> str:
    """Why the stored numbers are not those of the tensor: PyTorch negates and conjugates by a mark."""
    marked = [name for name in ("conj", "neg") if any(isinstance(m, dict) and m.get(name) for m in metadata)]
    return f"marked as {' and '.join(marked)}: save a resolve_conj().resolve_neg() of it" if marked else ""


def _quantized(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Entry:
    return _entry(storage, storage.dtype, offset, shape, stride, "quantized: only dense tensors are read")


def _sparse(layout: Any, data: Any) -> Entry:
    shape = next(part for part in data[::-1] if isinstance(part, tuple))
    values = next(part for part in data[::-1] if isinstance(part, Entry))
    return _unread(values.dtype, shape, "sparse: only dense tensors are read")


# By full name all that a pickle may call. torch's own functions are replaced by those that make entries.
MAKERS: dict[str, Callable] = {
    "collections.OrderedDict": Held,
    "collections.defaultdict": lambda *_: Held(),
    "collections.Counter": lambda counts=None, *_: counts if isinstance(counts, dict) else Held(),
    **dict.fromkeys(_LISTS, lambda items=(), *_: list(items)),
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


class Unpickler(pickle._Unpickler):  # Python's own: the one in C has no way to replace the opcodes below
    """One pickle; ``load`` may be called again for a pickle that follows in the same file.

    Attributes:
        names: the set that it was given, with the functions and classes that the pickle names beyond plain tensors.
        storages: by their keys those that its tensors lie in, as wholes.
    """

    append: Callable[[Any], None]
    pop_mark: Callable[[], list]
    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, names: set[str]) -> None:
        super().__init__(file, encoding="latin1")
        self.names = names
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A dtype or layout of torch, a maker, or a new class that stands in."""
        full = f"{_MODULES.get(module, module)}.{name}"
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype | torch.layout):
            return found
        if full in MAKERS:
            return Maker(full)
        if not stored_dtype(full) and full not in _TENSORS:
            self.names.add(full)
        return type("StandIn", (StandIn,), {"name": _NUMPY.get(full.replace("numpy._core.", "numpy.core."), full)})

    def persistent_load(self, pid: Any) -> Any:
        """The storage of ("storage", type, key, place, size); a class of ("module", class, source, its text)."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]
        _, kind, key, _, size, *view = pid
        dtype = stored_dtype(kind.name)
        if dtype is None or not are_whole(size):
            raise pickle.UnpicklingError(f"a storage of {size!r} {kind.name}")
        base = self.storages.setdefault(str(key), Storage(str(key), dtype, size))
        if not isinstance(view[0] if view else None, tuple):
            return base
        _, shift, count = view[0]  # before PyTorch 1.0: a part of another storage
        if not are_whole(shift, count) or shift + count > base.size:
            raise pickle.UnpicklingError(f"a part of a storage that it does not have, its size is {base.size}")
        return Storage(base.key, dtype, count, shift)

    # The opcodes that make a dict or a set, whose keys would be hashed; and those that name a class by a number.
    def _empty(self) -> None:
        self.append(Held())

    def _dict(self) -> None:
        items = self.pop_mark()  # which also puts another stack in place
        self.append(Held(zip(items[::2], items[1::2], strict=True)))

    def _frozenset(self) -> None:
        items = self.pop_mark()
        self.append(items)

    def _extension(self) -> None:
        raise pickle.UnpicklingError("it names a class by a number of this process")

    dispatch |= dict.fromkeys(pickle.EMPTY_DICT + pickle.EMPTY_SET, _empty)
    dispatch |= dict.fromkeys(pickle.EXT1 + pickle.EXT2 + pickle.EXT4, _extension)
    dispatch |= {pickle.DICT[0]: _dict, pickle.FROZENSET[0]: _frozenset}
