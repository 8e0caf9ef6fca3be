"""Relevance: how much of a network's answer rests on the inputs and on the outputs of each layer.

    gradient: rel(x) = |x dL/dx|
    lrp:      rel(a_k) = sum_j a_k w_kj / (b_j + epsilon sign(b_j)) rel(b_j),  b with its bias, sign(0) = 1

L is the logit of the predicted class, so no labels are needed. The second is the epsilon rule of layer-wise relevance
propagation (Bach et al., PLoS ONE 2015, doi:10.1371/journal.pone.0130140). It runs as ordinary backpropagation with
some slopes replaced (Ancona et al., ICLR 2018, arXiv 1711.06104), and rel(x) = x dL/dx with its sign. With ReLUs only,
and as epsilon approaches 0, it is the signed form of the first.

Where the rule says nothing, the choices are ours. Batch norms are folded first. Activations hand their relevance on
unchanged. A gate (a sigmoid or hard sigmoid that multiplies another activation) counts as a constant: all relevance
goes to the other factor, and the layers that compute the gate get none. Sums, poolings and batch norms that do not fold
keep their own slopes, which conserves relevance except for what shifts take. So do layer norms, softmax and other
products of two activations, which do not conserve it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.network.example import Example, answer
from redlab.network.operations import named
from redlab.options import check_one_of
from redlab.pruning.gates import LAYERS, Call, Watch
from redlab.pruning.subject import Subject

BACKENDS = ("lrp", "gradient")


def _called(*names: str) -> frozenset[Callable]:
    """Every function of these names, those that work in place too."""
    every = [name + tail for name in names for tail in ("", "_")]
    return frozenset(getattr(home, name) for home in (F, torch, Tensor) for name in every if hasattr(home, name))


_GATES = _called("sigmoid", "hardsigmoid")
# What does not multiply by one slope above zero and one below: ReLU and its leaky kin conserve relevance by themselves.
_ACTIVATIONS = _called(*named("activation zero", "activation"), "clamp", "logsigmoid", "softsign", "tanhshrink")
_PRODUCTS = _called(*named("product zero"))
_TRANSPOSED = frozenset((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d))


@dataclass(frozen=True, eq=False)
class LayerRelevance:
    """The relevance of one layer B = A W (im2col), summed over the rows i of A: images and output positions.

    Attributes:
        inputs: u_k = sum_i rel(a_ik), float64 (groups, 1, inputs of a group, *taps): a value that lies under several
            taps counts under each; (groups, inputs of a group, 1, *taps) of a transposed convolution.
        outputs: v_j = sum_i rel(b_ij), float64 (groups, outputs of a group, 1, ...), the second and third axis
            swapped for a transposed convolution.
        shape: of the layer's weight.
    """

    inputs: Tensor
    outputs: Tensor
    shape: torch.Size

    def of_weights(self) -> Tensor:
        """rel(w_kj) = u_k + v_j, float64, as the weight lies in memory."""
        return (self.inputs + self.outputs).reshape(self.shape)

    def __add__(self, other: LayerRelevance) -> LayerRelevance:
        return LayerRelevance(self.inputs + other.inputs, self.outputs + other.outputs, self.shape)


@dataclass(frozen=True, eq=False)
class Trace:
    """One call of a layer, and the relevance of each value that it got and gave.

    Attributes:
        name: the dotted name of its weight, "" where that is no parameter of the network.
        inputs, outputs: relevance of the layer's input and output, batch first; of a shared input, the layer's share.
        layer: the layer without its bias, as a function of (input, weight); ``transposed`` if it is of that kind.
        shape: of its weight.
    """

    name: str
    inputs: Tensor
    outputs: Tensor
    layer: Callable[[Tensor, Tensor], Tensor]
    transposed: bool
    shape: torch.Size

    @torch.enable_grad()
    def summed(self) -> LayerRelevance:
        """Over images and positions."""
        given, made = self._over_images(self.inputs), self._over_images(self.outputs)
        groups = (made if self.transposed else given).shape[1] // self.shape[1]
        # The sum of what lies under each tap is the gradient of its weight: of one output channel a group, or of a
        # transposed convolution one a group for each input channel.
        rows = (self.shape[0], 1) if self.transposed else (groups, self.shape[1])
        ones = given.new_ones((*rows, *self.shape[2:])).requires_grad_()
        (under,) = torch.autograd.grad(self.layer(given, ones).sum(), ones)
        under = under.reshape(groups, -1, *self.shape[2:])
        made = made.reshape(groups, -1, math.prod(made.shape[2:])).sum(2).reshape(groups, -1, *[1] * under[0, 0].ndim)
        axis = 2 if self.transposed else 1
        return LayerRelevance(under.unsqueeze(axis), made.unsqueeze(3 - axis), self.shape)

    def _over_images(self, values: Tensor) -> Tensor:
        """float64 (1, channels, *positions), or (1, features): axes before the channels count as images."""
        axis = values.ndim - len(self.shape) + 1
        return values.double().reshape(-1, *values.shape[axis:]).sum(0, keepdim=True)


@torch.inference_mode(False)
def layer_relevance(
    subject: Subject, backend: str = "lrp", epsilon: float = 1e-6, chunk: int = 128
) -> dict[str, LayerRelevance]:
    """By the dotted name of its weight the relevance of every layer that is called, summed over all images.

    Arguments:
        subject: its labels are not used. Of each image only the logit of the predicted class counts, the largest along
            axis 1 of the network's answer.
        backend: "lrp" or "gradient".
        epsilon: of "lrp", in units of a layer's output; relevance of outputs much smaller than it is absorbed.
        chunk: images at once; memory only.

    Raises:
        ValueError: an unknown backend, an epsilon that is not positive and finite, a network that can't be traced.
    """
    check_options(backend, epsilon)
    found: dict[str, LayerRelevance] = {}
    for inputs in subject.inputs(chunk, "relevance"):
        for trace in trace_relevance(subject.folded, inputs, backend, epsilon):
            if trace.name:
                own = trace.summed()
                found[trace.name] = found[trace.name] + own if trace.name in found else own
    return found


def check_options(backend: str, epsilon: float) -> None:
    """Raises ValueError where ``layer_relevance`` would."""
    check_one_of("relevance", backend, BACKENDS)
    if not 0 < epsilon < math.inf:  # NaN too
        raise ValueError(f"epsilon must be positive and finite, not {epsilon!r}")


@torch.inference_mode(False)
@torch.enable_grad()
def trace_relevance(network: nn.Module, inputs: Example, backend: str = "lrp", epsilon: float = 1e-6) -> list[Trace]:
    """Every call of a conv or linear layer of ``network`` on ``inputs``, in order. Options as in ``layer_relevance``.

    Arguments:
        network: in eval mode, its batch norms folded. Not changed.
    """
    with _Recorder(network, epsilon if backend == "lrp" else None) as watch:
        logits = answer(network, inputs)
    tensors = [tensor for call, _ in watch.records for tensor in (call.input, call.output)]
    gradients = torch.autograd.grad(logits.max(1).values.sum(), tensors, allow_unused=True, materialize_grads=True)
    values = [(t * g).detach() for t, g in zip(tensors, gradients, strict=True)]
    values = [value.abs() for value in values] if backend == "gradient" else values
    rows = zip(watch.records, values[::2], values[1::2], strict=True)
    return [trace(inputs=given, outputs=made) for (_, trace), given, made in rows]


class _Slope(torch.autograd.Function):
    """``output``, a function of ``given``, with ``slope`` for its derivative."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, output: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None


class _Recorder(Watch):
    """Records the calls of layers. With an ``epsilon``, backpropagation uses the slopes of LRP, else the true ones.

    Example of slopes, with epsilon 1: x = 3 enters a layer with weight 2 and bias -2, and a GELU follows.
        layer: b = 2 * 3 - 2 = 4. Its output passes with slope b / (b + epsilon) = 4 / 5, by ``_layer``.
        GELU: 4 becomes 3.9999. It passes with slope 3.9999 / 4 in place of its derivative, by ``_activation``. So
            x dL/dx = 4 * 3.9999 / 4: the relevance of its output goes on unchanged.
        gate: of sigmoid(u) * v, the factor sigmoid(u) is a constant, by ``_without_gates``. All relevance goes to v.
    """

    def __init__(self, network: nn.Module, epsilon: float | None) -> None:
        super().__init__(network)
        self._epsilon = epsilon
        self._gates: dict[int, Tensor] = {}  # outputs of sigmoids by their memory, which a view of them shares
        # Of every call its tensors, which nothing changes afterwards, and what makes its ``Trace``.
        self.records: list[tuple[Call, Callable[..., Trace]]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in LAYERS:
            return self._layer(func, super().__torch_function__(func, types, args, kwargs), args, kwargs)
        if self._epsilon is None or not args or not isinstance(args[0], Tensor) or not args[0].requires_grad:
            return func(*args, **kwargs)
        if func in _ACTIVATIONS:
            return self._activation(func, args, kwargs)
        return func(*(self._without_gates(func, args) if func in _PRODUCTS else args), **kwargs)

    def _layer(self, func: Callable, output: Tensor, args: tuple, kwargs: dict) -> Tensor:
        weight = args[1]
        name = self._names.get(id(weight), "")
        call = self.calls[name][-1]
        if self._epsilon is not None:
            # b / (b + epsilon sign(b)), and 0 if b is 0.
            output = _Slope.apply(output, output.detach(), 1 / (1 + self._epsilon / output.detach().abs()))
        call.output = output
        options = {key: value for key, value in kwargs.items() if key != "bias"}

        def layer(given: Tensor, weight: Tensor) -> Tensor:
            return func(given, weight, None, *args[3:], **options)

        trace = partial(Trace, name, layer=layer, transposed=func in _TRANSPOSED, shape=weight.shape)
        self.records.append((call, trace))
        return output.clone()  # the next function may work in place

    def _activation(self, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        given, before, own = args[0], args[0].detach().clone(), args[0].detach().clone()
        output = func(own, *args[1:], **kwargs).detach()
        tiny = torch.finfo(before.dtype).tiny
        passed = _Slope.apply(given, output, torch.where(before.abs() > tiny, output / before, 0))
        if output.data_ptr() == own.data_ptr():  # it works in place
            passed = given.copy_(passed)
        if func in _GATES:
            self._gates[passed.untyped_storage().data_ptr()] = passed
        return passed

    def _without_gates(self, func: Callable, args: tuple) -> tuple:
        """The factors of a product, with the one that is a gate of the other as a constant."""
        one, other, *rest = args
        if not (_varies(one) and _varies(other)) or self._is_gate(one) == self._is_gate(other):
            return args
        if self._is_gate(other):
            return (one, other.detach(), *rest)
        return args if func.__name__.endswith("_") else (one.detach(), other, *rest)  # in place, ``one`` stays itself

    def _is_gate(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._gates


def _varies(factor: Any) -> bool:
    """Whether a factor depends on the image."""
    return isinstance(factor, Tensor) and factor.requires_grad and not isinstance(factor, nn.Parameter)
