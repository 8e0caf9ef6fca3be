"""A pickle read as plain data: nothing that it names is imported, and only the makers below are called.

A pickle is a program that names functions and classes, and calls them. Here each name gets an inert stand-in. Tensors
become outlines that say where their numbers lie. ``torch.load(weights_only=True)`` with stand-ins in ``safe_globals``
does not do for this: it refuses a whole file for one set, deque or dict of another class, and all files of pickle
protocol 4 and 5; it reads old files whole; and a key of tuples nested 150,000 deep ends the process.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import torch

from redlab.files.outlines import MAKERS, Held, Maker, StandIn, Storage, are_whole, stored_dtype

_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.cuda": "torch"}  # as Python 2 and CUDA had them
_TENSORS = {"torch.Tensor", "torch.nn.parameter.Parameter"}
_NUMPY = {
    f"numpy.{core}.{name}": f"a numpy {what}"
    for core in ("core", "_core")
    for name, what in {
        "multiarray.scalar": "number",
        "multiarray._reconstruct": "array",
        "numeric._frombuffer": "array",
    }.items()
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
        return type("StandIn", (StandIn,), {"name": _NUMPY.get(full, full)})

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
