"""Where a tensor comes from while a network runs: from the input, or from parameters and constants alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import UninitializedTensorMixin

COMPUTED, CONSTANT, PARAMETER = range(3)


class Origins:
    """The origin of every tensor of a forward pass, by its storage, which views share.

    Arguments:
        tensors: the parameters and buffers by name, and other tensors that the network holds.
        inputs: of the network.
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]], inputs: Iterable[Tensor]) -> None:
        self._parameters: dict[int, tuple[str, Tensor]] = {}
        self._sources: dict[int, frozenset[str]] = {}
        self._computed: set[int] = set()
        self._pins: list[StorageWeakRef] = []  # while it is referenced, no other storage gets its number
        for name, tensor in tensors:
            if (key := self._pinned(tensor)) is not None and key not in self._parameters:
                self._parameters[key] = name, tensor
                self._sources[key] = frozenset([name] if _is_matrix(tensor) else [])
        self._computed.update(key for tensor in inputs if (key := self._pinned(tensor)) is not None)

    def rank(self, tensor: Tensor) -> int:
        """COMPUTED from the input or by a product of tensors, CONSTANT, or part of a PARAMETER."""
        key = storage_key(tensor)
        if key is None or key in self._computed:
            return COMPUTED
        return PARAMETER if key in self._parameters else CONSTANT

    def place(self, tensor: Tensor) -> tuple[str, int]:
        """The parameter that ``tensor`` is a view of, and the offset from its first number; "" for none."""
        name, parameter = self._parameters.get(storage_key(tensor) or 0, ("", None))
        if parameter is None or self.rank(tensor) != PARAMETER or parameter.dtype != tensor.dtype:
            return "", 0
        return name, int(tensor.storage_offset() - parameter.storage_offset())

    def sources(self, tensor: Tensor) -> frozenset[str]:
        """The parameters of two or more dimensions that ``tensor`` is made of; none if the input is part of it."""
        return self._sources.get(storage_key(tensor) or 0, frozenset())

    def follow(self, given: Iterable[Any], out: Any, made: bool) -> None:
        """Record the outputs of an operation; ``made``: by a product of tensors, of whatever origin."""
        given, outputs = list(leaves(given, Tensor)), list(leaves([out], Tensor))
        computed = made or any(self.rank(tensor) == COMPUTED for tensor in given)
        names = frozenset().union(*(self.sources(tensor) for tensor in given))
        for tensor in outputs:
            if (key := self._pinned(tensor)) is not None:
                if computed:  # in place, what was a parameter isn't one any more
                    self._computed.add(key)
                    self._sources.pop(key, None)
                elif names:
                    self._sources.setdefault(key, names)

    def _pinned(self, tensor: Tensor) -> int | None:
        key = storage_key(tensor)
        if key is not None and key not in self._computed and key not in self._sources:
            self._pins.append(StorageWeakRef(tensor.untyped_storage()))
        return key


def storage_key(tensor: Tensor) -> int | None:
    """A number that views of one storage share; None if a tensor has no single storage."""
    if isinstance(tensor, UninitializedTensorMixin):
        return None
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, nested, or packed for another library
        return None


def _is_matrix(tensor: Tensor) -> bool:
    """Whether it is a parameter of two or more dimensions longer than 1; a scale a channel has one."""
    return isinstance(tensor, nn.Parameter) and sum(size > 1 for size in tensor.shape) > 1


def leaves(values: Iterable[Any], kind: type) -> Iterator[Any]:
    """The arguments of a ``kind`` of an operation, in lists too."""
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, list | tuple):
            yield from leaves(value, kind)


def tensors_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the modules of ``network`` hold, in the order of the modules."""
    for path, module in network.named_modules():
        own = vars(module).items() if not hasattr(module, "_c") else ()
        held = {name: value for name, value in own if isinstance(value, Tensor)}
        parameters = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for name, tensor in (parameters | held).items():
            yield f"{path}.{name}".lstrip("."), tensor
