"""What a module's own forward does with its input: which layer it is, if it is one, found by watching it run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from redlab.network.origins import COMPUTED, Origins, leaves, tensors_of

_CONV, _TRANSPOSED = (
    "input weight bias stride padding dilation groups",
    ("input weight bias stride padding output_padding groups dilation"),
)
# By the name of a function that multiplies its input by a weight: its arguments.
_ARGUMENTS = {
    "linear": "input weight bias",
    **{f"conv{axes}d": _CONV for axes in (1, 2, 3)},
    **{f"conv_transpose{axes}d": _TRANSPOSED for axes in (1, 2, 3)},
    "addmm": "bias input weight beta alpha",
    **dict.fromkeys(("matmul", "__matmul__", "mm"), "input weight"),
}
_TURNED = ("addmm", "matmul", "__matmul__", "mm")  # their weight is (inputs, outputs)
_OTHERS = frozenset(("einsum", "bmm", "baddbmm", "bilinear", "scaled_dot_product_attention", "mv", "dot", "tensordot"))
CASTS = "it casts its input to another dtype"
_VALUES = frozenset(("item", "tolist", "__bool__", "__float__", "__int__", "nonzero", "equal", "allclose"))
# What moves the numbers of a tensor, asks for its shape, or is linear in eval mode.
_MOVES = (
    "__get__ size dim ndimension numel nelement stride is_floating_point is_complex is_contiguous __len__ get_device "
    "view view_as reshape reshape_as flatten unflatten squeeze unsqueeze permute transpose t movedim moveaxis swapaxes "
    "swapdims __getitem__ narrow select chunk split expand expand_as contiguous clone detach to type type_as double "
    "float half bfloat16 batch_norm new_zeros new_ones new_empty zeros_like ones_like pad constant_pad_nd"
)
_LINEAR = "add sub mul div neg rsub true_divide subtract multiply divide"  # numbers decide what these do
_DUNDERS = "add sub mul truediv radd rsub rmul rtruediv iadd isub imul itruediv neg"
_KNOWN = {
    *_MOVES.split(),
    *_LINEAR.split(),
    *(f"{name}_" for name in _LINEAR.split()),
    *(f"__{name}__" for name in _DUNDERS.split()),
    *(f"{kind}dropout{axes}" for kind in ("", "alpha_", "feature_alpha_") for axes in ("", "1d", "2d", "3d")),
    *_ARGUMENTS,
}
_SIGNATURES = {
    name: Signature([Parameter(own, Parameter.POSITIONAL_OR_KEYWORD, default=None) for own in names.split()])
    for name, names in _ARGUMENTS.items()
}


@dataclass(frozen=True, eq=False)
class Call:
    """One call that multiplies what comes from the input by a weight.

    Attributes:
        name: "linear", "conv2d", "conv_transpose1d" and so on.
        weight, bias: as that function takes them; ``options`` the rest.
        pad: the padding before it, as ``torch.nn.functional.pad`` takes it, and its ``mode``, "constant 1.0" say.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    options: dict[str, Any]
    pad: list[int]
    mode: str


@dataclass
class Watched:
    """What a module did: its products with weights, and why it is no layer, or "".

    Attributes:
        others: operations on what comes from its input that may be no layer for some inputs, such as clamp.
    """

    calls: list[Call] = field(default_factory=list)
    why: str = ""
    others: list[str] = field(default_factory=list)


class Watch(TorchFunctionMode):
    """Inside, ``found`` is what a module does with ``inputs``.

    Arguments:
        module: in eval mode.
    """

    def __init__(self, module: nn.Module, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.found = Watched()
        self._origins = Origins(tensors_of(module), inputs)
        self._pads: dict[int, tuple[Tensor, list[int], str, Tensor]] = {}  # by the padded one, which is kept alive

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        self._note(name, args, kwargs)
        out = func(*args, **kwargs)
        self._origins.follow([*args, *kwargs.values()], out, made=False)
        self._check_dtype(given := [*args, *kwargs.values()], out)
        if name not in _KNOWN and self._computed(given):
            self.found.others.append(name)
        if name in ("pad", "constant_pad_nd") and self._computed(args[:1]):
            self._pads[id(out)] = (args[0], *_padding(*args[1:], **kwargs), out)
        return out

    def _check_dtype(self, given: list[Any], out: Any) -> None:
        before = {tensor.dtype for tensor in leaves(given, Tensor) if self._origins.rank(tensor) == COMPUTED}
        if isinstance(out, Tensor) and out.is_floating_point() and before and out.dtype not in before:
            self.found.why = CASTS

    def _computed(self, values: Iterable[Any]) -> list[bool]:
        return [True for tensor in leaves(values, Tensor) if self._origins.rank(tensor) == COMPUTED]

    def _note(self, name: str, args: tuple, kwargs: dict) -> None:
        given = [*args, *kwargs.values()]
        if not self._computed(given):
            return
        if name in _VALUES:
            self.found.why = "its code asks for the values of its input"
        elif name in _OTHERS:
            self.found.why = f"{name} is no conv or linear layer"
        elif name in _ARGUMENTS:
            bound = _SIGNATURES[name].bind(*args, **_named(name, kwargs)).arguments
            self._multiply(name, bound)

    def _multiply(self, name: str, own: dict[str, Any]) -> None:
        x, weight, bias = own.pop("input"), own.pop("weight"), own.pop("bias", None)
        if self._computed([weight]) or not isinstance(weight, Tensor):
            self.found.why = "its weight depends on the input"
            return
        pads: list[tuple[list[int], str]] = []
        while id(x) in self._pads:
            x, sizes, kind, _ = self._pads[id(x)]
            pads.append((sizes, kind))
        weight = weight.mT if name in _TURNED and weight.ndim == 2 else weight
        name = "linear" if name in _TURNED else name
        pad, mode = pads[0] if pads else ([], "zeros")
        self.found.why = self.found.why or ("it pads its input several times" if len(pads) > 1 else "")
        own = {key: value for key, value in own.items() if key not in ("beta", "alpha")}
        self.found.calls.append(Call(name, weight.detach(), bias, own, pad, mode))


def _named(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments under the names of ``_ARGUMENTS``; matrices have others, such as ``mat2``."""
    known = set(_SIGNATURES[name].parameters)
    other = {"mat1": "input", "mat2": "weight", "other": "weight"}
    return {key if key in known else other.get(key, key): value for key, value in kwargs.items()}


def _padding(pad: Any, mode: Any = "constant", value: Any = None) -> tuple[list[int], str]:
    """As a list, and the mode in one word, with the value if that isn't 0."""
    if not isinstance(mode, str):  # constant_pad_nd has the value in the mode's place
        mode, value = "constant", mode
    mode = mode if mode != "constant" else f"constant {float(value)}" if value else "zeros"
    return [int(size) for size in pad], mode


def watch(module: nn.Module, x: Tensor) -> Watched:
    """What ``module`` does with ``x``: how it multiplies it by weights.

    Raises: whatever the module's own code raises.
    """
    with torch.no_grad(), (mode := Watch(module, [x])):
        try:
            module(x)
        except Exception:
            if mode.found.why != CASTS:  # in float64 a cast is why it fails
                raise
    return mode.found
