"""Pickles read as outlines: their dicts, lists and numbers, where their tensors lie, and the names of all else.

A pickle is a program. Here it can call what ``outlines.MAKERS`` holds and nothing else: any other function or class
that it names is never imported. Where it would call one, an ``Odd`` with that name stands in its place.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import torch

from redlab.files.outlines import MAKERS, Named, Odd, Storage, are_whole, fill, part_of, stored_dtype

_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.cuda": "torch"}  # as Python 2 and CUDA had them
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_TENSORS = {_FROM_TYPE, "torch.Tensor", "torch.nn.parameter.Parameter"}
_NUMPY = {
    f"numpy.{core}.{name}": f"a numpy {what}"
    for core in ("core", "_core")
    for name, what in (
        ("multiarray.scalar", "number"),
        ("multiarray._reconstruct", "array"),
        ("numeric._frombuffer", "array"),
    )
}
# A file that names one of these is no accident.
_HARM = {"os", "posix", "nt", "sys", "subprocess", "pty", "shutil", "socket", "importlib", "runpy", "ctypes"}
_HARM |= {f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__", "breakpoint")}
_HARM |= {"io.open", "_io.open"}


def harmful(names: set[str]) -> list[str]:
    """Those functions and classes that no honest checkpoint names."""
    return sorted(name for name in names if name in _HARM or name.partition(".")[0] in _HARM)


class Unpickler(pickle._Unpickler):  # Python's own, which has a method an opcode; the one in C would import and call
    """One pickle as an outline; ``load`` may be called again for a pickle that follows in the same file.

    Attributes:
        names: the set that it was given, with the functions and classes that the pickle names, none of a plain tensor.
        storages: by their keys those that its tensors lie in.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list]
    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, names: set[str]) -> None:
        super().__init__(file, encoding="latin1")
        self.names = names
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A storage's or tensor's type where it is one of torch's; else its name."""
        full = f"{_MODULES.get(module, module)}.{name}"
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype | torch.layout):
            return found
        if full not in MAKERS and not stored_dtype(full) and full not in _TENSORS:
            self.names.add(full)
        return Named(full)

    def persistent_load(self, pid: Any) -> Any:
        """The storage of ("storage", type, key, place, size); a class of ("module", class, source, its text)."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]
        _, kind, key, _, size, *view = pid
        if isinstance(view[0] if view else None, tuple):  # before PyTorch 1.0: a part of another storage
            view_key, shift, size_of_view = view[0]
            base = self._storage(kind, key, size)
            return self.storages.setdefault(str(view_key), part_of(base, shift, size_of_view))
        return self._storage(kind, key, size)

    def _storage(self, kind: Any, key: Any, size: Any) -> Storage:
        dtype = stored_dtype(kind.name)
        if dtype is None or not are_whole(size):
            raise pickle.UnpicklingError(f"a storage of {size!r} {kind.name}")
        return self.storages.setdefault(str(key), Storage(str(key), dtype, size))

    def _make(self, what: Any, args: Any) -> Any:
        if not isinstance(what, Named):
            raise pickle.UnpicklingError(f"it calls a {type(what).__name__}")
        if what.name in ("copyreg._reconstructor", "copyreg.__newobj__") and args and isinstance(args[0], Named):
            self.names.discard(what.name)
            return self._make(args[0], ())
        if what.name == _FROM_TYPE:
            return self._make(args[0], args[2])
        return MAKERS[what.name](*args) if what.name in MAKERS else Odd(_NUMPY.get(what.name, what.name))

    # Opcodes that call something, of which only the makers may be called.
    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], args)

    def _reduce_named(self) -> None:
        args, _ = self.stack.pop(-2), self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], args)

    def _instance(self) -> None:
        module, name = (self.readline()[:-1].decode("utf-8") for _ in range(2))
        args = self.pop_mark()
        self.append(self._make(self.find_class(module, name), args))

    def _object(self) -> None:
        what, *args = self.pop_mark()
        self.append(self._make(what, args))

    def _build(self) -> None:
        """What an object gets beside its content: of a state dict the versions of its modules, of others nothing."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is OrderedDict and isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
            target._metadata = _versions(state["_metadata"])  # type: ignore[attr-defined]

    # Opcodes that hash what is in a dict or set: keys of depth 10^5 would end the process.
    def _set_items(self) -> None:
        items = self.pop_mark()
        fill(self.stack[-1], items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        fill(self.stack[-1], [key, value])

    def _dict(self) -> None:
        items = self.pop_mark()  # which also puts another stack in place
        self.append(fill({}, items))

    def _frozenset(self) -> None:
        items = self.pop_mark()
        self.append(items)

    def _empty_set(self) -> None:
        self.append([])

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list) -> None:
        if not isinstance(self.stack[-1], list | Odd):
            raise pickle.UnpicklingError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _extension(self) -> None:
        raise pickle.UnpicklingError("it names a class by a number of this process")

    for _codes, _method in (  # the opcodes of each
        (pickle.REDUCE + pickle.NEWOBJ, _reduce),
        (pickle.NEWOBJ_EX, _reduce_named),
        (pickle.INST, _instance),
        (pickle.OBJ, _object),
        (pickle.BUILD, _build),
        (pickle.SETITEMS, _set_items),
        (pickle.SETITEM, _set_item),
        (pickle.DICT, _dict),
        (pickle.FROZENSET, _frozenset),
        (pickle.EMPTY_SET, _empty_set),
        (pickle.APPEND, _append),
        (pickle.APPENDS + pickle.ADDITEMS, _appends),
        (pickle.EXT1 + pickle.EXT2 + pickle.EXT4, _extension),
    ):
        dispatch.update(dict.fromkeys(_codes, _method))


def _versions(metadata: dict) -> dict:
    """The versions of a state dict's modules: what is no number would break whoever compares it."""
    return OrderedDict(
        (name, about)
        for name, about in metadata.items()
        if isinstance(name, str) and isinstance(about, dict) and isinstance(about.get("version"), int | None)
    )
