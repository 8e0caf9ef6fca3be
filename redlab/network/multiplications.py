"""The multiplications of a forward pass: uses of weights while the network runs, and zeros of weights afterwards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from redlab.network.geometry import meetings
from redlab.network.origins import COMPUTED, Origins, leaves, storage_key

aten = torch.ops.aten
_LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
_CONVOLUTIONS = {aten.convolution, aten._convolution}
# The place of the first of two matrices, or of a matrix and a vector, among the arguments.
_MATRICES = {aten.mm: 0, aten.bmm: 0, aten.mv: 0, aten.addmm: 1, aten.baddbmm: 1, aten.addmv: 1}
# The operations that PyTorch's counter has no formula for: two a multiplication, as it counts.
_FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mv: lambda matrix, *_, **__: 2 * matrix.numel(),
    aten.addmv: lambda _, matrix, *__, **___: 2 * matrix.numel(),
    aten._trilinear: lambda x, weight, *_, **__: 2 * len(x) * weight.numel(),
}
# By our convention, to move, add or compare a weight multiplies nothing, and neither does a norm.
_HARMLESS = {
    *("add", "sub", "rsub", "eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum"),
    *("cat", "stack", "where", "copy", "clone", "masked_fill", "topk", "sort", "argmax", "argmin"),
    *("index", "index_select", "index_put", "gather", "scatter"),
    *("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"),
    *("native_layer_norm", "native_group_norm", "_fused_rms_norm"),
}
# Questions that PyTorch asks nested tensors.
_QUESTIONS = {
    *(aten.is_contiguous, aten.is_strides_like_format, aten.is_non_overlapping_and_dense, aten.sym_is_contiguous),
    *(aten.size, aten.sym_size, aten.stride, aten.sym_stride, aten.storage_offset, aten.sym_storage_offset),
    *(aten.numel, aten.sym_numel, aten.dim, torch.ops.prim.layout),
}


class Use(NamedTuple):
    """A weight as some module multiplies by it.

    Attributes:
        module: the dotted name of the module that asks for it.
        weight: the name of the parameter that it is a view of, or "" where it is computed at every call.
        shape, stride, offset: of the view; the offset is counted from where the parameter begins.
        spatial: how many of its last dimensions are those of a kernel.
    """

    module: str
    weight: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    spatial: int

    def terms(self, values: Mapping[str, Tensor]) -> ndarray:
        """(*kernel) how many non-zero weights each tap has; all of them if the values are not known."""
        inner = len(self.shape) - self.spatial
        every = np.full(self.shape[inner:], prod(self.shape[:inner]), np.int64)
        real = values.get(self.weight)
        if real is None or real.is_meta:
            return every
        view = real.detach().as_strided(self.shape, self.stride, real.storage_offset() + self.offset)
        # In the order of memory: a transposed matrix would take ten times as long.
        order = sorted(range(len(self.shape)), key=self.stride.__getitem__, reverse=True)
        if int(view.permute(order).count_nonzero()) == view.numel():
            return every
        return (view != 0).sum(dim=tuple(range(inner))).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Multiplied:
    """What a forward multiplied.

    Attributes:
        uses: by each use of a weight, (*kernel) how many inputs each of its taps is multiplied by.
        macs: by module, multiplications as PyTorch's ``FlopCounterMode`` counts them.
        unknown: by module, the operations on weights, or on what a library has packed, that no rule counts.
    """

    uses: dict[Use, ndarray]
    macs: Counter[str]
    unknown: dict[str, set[str]]

    def products(self, values: Mapping[str, Tensor]) -> Counter[str]:
        """By module, with these ``values`` of the parameters."""
        found: Counter[str] = Counter()
        for use, positions in self.uses.items():
            found[use.module] += int((use.terms(values) * positions).sum())
        return found


class Multiplications(TorchDispatchMode):
    """Inside ``counting()`` every product is recorded, whichever code of a network computes it.

    Products of two tensors that are no weights, as in attention, are only macs; so are those of two weights.

    Attributes:
        running: the dotted names of the modules that run, the innermost last, as the caller's hooks set them.
        found: what was recorded.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[tuple[str, Tensor]], inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.running = [""]
        self.found = Multiplied({}, Counter(), defaultdict(set))
        self._origins, self._layer = Origins(tensors, inputs), _Layer()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Recurrent layers run as separate operations inside: libraries would compute each as one."""
        backends: Any = torch.backends
        before = backends.mkldnn.enabled, backends.cudnn.enabled
        try:
            backends.mkldnn.enabled = backends.cudnn.enabled = False
            with self._layer, self:
                yield
        finally:
            backends.mkldnn.enabled, backends.cudnn.enabled = before

    def leave(self) -> None:
        """A module has ended."""
        self.running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, packet = kwargs or {}, getattr(func, "_overloadpacket", func)
        if packet in _QUESTIONS:
            return NotImplemented
        if packet is not func and packet not in flop_registry and packet is not torch.ops.prim.device:
            with self:
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        out = func(*args, **kwargs)
        given = [*args, *kwargs.values()]
        self._origins.follow(given, out, made=self._count(packet, args, kwargs, out))
        return out

    def _count(self, packet: Any, args: tuple, kwargs: dict, out: Any) -> bool:
        """Whether ``packet`` multiplies tensors with one another; if so, it is recorded."""
        formula = flop_registry.get(packet) or _FORMULAS.get(packet)
        if formula is None:
            self._look_at(packet, [*args, *kwargs.values()])
            return False
        self.found.macs[self.running[-1]] += formula(*args, **kwargs, out_val=out) // 2
        if packet in _CONVOLUTIONS:
            self._convolve(args, out)
        elif packet in _MATRICES:
            self._multiply(*args[_MATRICES[packet] :][:2])
        elif packet is aten._trilinear:
            self._use(args[1], np.array(len(args[0])))
        return True

    def _convolve(self, args: tuple, out: Tensor) -> None:
        x, weight, _, *numbers = args[:6]
        sizes = [self._layer.space or tuple(x.shape[2:]), tuple(out.shape[2:])]
        if args[6]:  # transposed: each input meets a place of the output at every tap
            sizes.reverse()
        positions = np.array(len(x))
        for axis, kernel in enumerate(weight.shape[2:]):
            stride, padding, dilation = (each[axis % len(each)] for each in numbers)
            own = meetings(sizes[0][axis], sizes[1][axis], kernel, stride, padding, dilation)
            positions = np.multiply.outer(positions, own)
        self._use(weight, positions)

    def _multiply(self, first: Tensor, second: Tensor) -> None:
        """A matrix times a matrix, in batches too, or a vector."""
        weight = self._weight_of(first, second)
        if weight is first:
            self._use(first, np.array(second.shape[-1] if second.ndim > 1 else 1))
        elif weight is second:
            self._use(second, np.array(first.shape[-2]))

    def _weight_of(self, first: Tensor, second: Tensor) -> Tensor | None:
        for tensor in (second, first):
            if self._layer.weight is not None and storage_key(tensor) == self._layer.weight:
                return tensor
        ranks = [self._origins.rank(tensor) for tensor in (first, second)]
        return None if ranks[0] == ranks[1] else (first, second)[ranks[1] > ranks[0]]

    def _use(self, weight: Tensor, positions: ndarray) -> None:
        name, offset = self._origins.place(weight)
        use = Use(self.running[-1], name, tuple(weight.shape), weight.stride(), offset, positions.ndim)
        self.found.uses[use] = self.found.uses.get(use, 0) + positions

    def _look_at(self, packet: Any, given: list[Any]) -> None:
        """Note an operation that may multiply by a weight in another way."""
        tensors = list(leaves(given, Tensor))
        if packet.__name__.rstrip("_") in _HARMLESS or all(self._origins.rank(t) != COMPUTED for t in tensors):
            return
        names = {name.rpartition(".")[0] for tensor in tensors for name in self._origins.sources(tensor)}
        for module in names | ({self.running[-1]} if [*leaves(given, torch.ScriptObject)] else set()):
            self.found.unknown[module].add(packet.__name__)


class _Layer(TorchFunctionMode):
    """What the operations inside the function of a layer do not show.

    Attributes:
        weight: the storage of the weight of the linear layer that runs, or None.
        space: of a running convolution with padding="same", the sizes of the input before padding; or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight: int | None = None
        self.space: tuple[int, ...] | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _LAYERS:
            given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
            if func is F.linear:
                self.weight = storage_key(given["weight"])
            elif "same" in [value for value in (*args, *kwargs.values()) if isinstance(value, str)]:
                self.space = tuple(given["input"].shape[2 - given["weight"].ndim :])
        try:
            return func(*args, **kwargs)
        finally:
            self.weight = self.space = None
