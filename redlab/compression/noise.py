"""How much noise a layer's weight errors make in what the network computes, without data.

An error of a weight, independent of the others, adds its square times the variance of its input to the variance of the
output; what it adds to the mean is taken off the bias (``bias``). From there it is carried on as the moments are
(``moments``, after Nagel et al., ICCV 2019): by squared weights through layers, by E[f'(x)^2] through functions. It is
compared with the variance of the signal where the layer's block ends: at the next place that all of the network's
paths share. Further on, noise and signal are taken to go the same way. All of this is our choice.

One number for one image's worth of errors: 0.01 says that the errors of a layer make a hundredth of the variance there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from redlab.compression.moments import (
    FUNCTIONS,
    MOVEMENTS,
    MeanInputs,
    Moments,
    called_layer,
    moved_variance,
    normal_points,
)
from redlab.network.trace import is_layer, operation

_COARSE = 1e-6  # types of fewer digits: small gains would vanish in them


@dataclass(frozen=True)
class LayerNoise:
    """What the errors of one layer's weights do.

    Attributes:
        gain: (outputs,) the share of the signal's variance, at the end of the block, that a variance of 1 on each
            output of the layer adds.
        calls: for each call of the layer, the operation and the variance of its input.
    """

    gain: Tensor
    calls: tuple[tuple[Node, Tensor], ...]

    def rows(self, squares: Tensor) -> Tensor:
        """(outputs,) the noise that each row adds, of weights with these squared errors (the weight's own shape)."""
        made = [
            _per_output(node, node.target(variance, squares, None, *node.args[3:])) for node, variance in self.calls
        ]
        return self.gain * torch.stack(made).mean(0)


def layer_noise(inputs: MeanInputs) -> dict[str, LayerNoise]:
    """By name, the layers whose errors can be followed to the end of their blocks; the others aren't among them.

    Arguments:
        inputs: of a network whose batch norms were folded where they could be.

    Raises:
        RuntimeError: in a process that was forked from one that differentiated.
    """
    try:
        with torch.enable_grad():
            gains = _Noise(inputs).gains()
    except RuntimeError as error:
        if "fork" not in str(error):
            raise
        how = "multiprocessing with the start method 'spawn' can"
        raise RuntimeError(f"PyTorch can't differentiate in a process forked from one that did; {how}") from error
    calls = {name: tuple((node, given.variance) for node, given in inputs.calls[name]) for name in gains}
    return {name: LayerNoise(gain, calls[name]) for name, gain in gains.items()}


class _Noise:
    """A variance pushed through the graph from every layer's outputs, where it is 0, to be differentiated by.

    Attributes:
        made: by layer, the variance on its outputs; ``calls``, its calls.
        values: the noise of every operation that it reaches.
        lost: the operations beyond which it can't be followed.
    """

    def __init__(self, inputs: MeanInputs) -> None:
        self.inputs, self.graph, self.known = inputs, inputs.graph, inputs.values
        self.made: dict[str, Tensor] = {}
        self.calls: dict[str, list[Node]] = {}
        self.values: dict[Node, Any] = {}
        self.lost: set[Node] = set()
        for node in self.graph.fx.nodes:
            if node.op == "call_function":
                self._push(node)
        output = next(node for node in self.graph.fx.nodes if node.op == "output")
        self.ends = [node for node in output.all_input_nodes if node in self.values and self._is_known(node)]

    def gains(self) -> dict[str, Tensor]:
        """By layer, what a variance on each of its outputs adds at the end of its block, as a share of the signal's."""
        blocks = self._blocks()
        if not blocks:
            return {}
        total = sum(self.values[end].mean() / self.known[end].variance.mean() for end in self.ends)
        places = [place for place in dict.fromkeys(blocks.values()) if place is not None]
        wanted = [self.made[name] for name in blocks] + [self.values[place] for place in places]
        grads = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
        own, later = grads[: len(blocks)], grads[len(blocks) :]
        signal: dict[Node | None, Any] = {None: len(self.ends)}
        signal |= {place: (grad * self.known[place].variance).sum() for place, grad in zip(places, later, strict=True)}
        gains = {name: grad / signal[blocks[name]] for name, grad in zip(blocks, own, strict=True)}
        return {name: gain for name, gain in gains.items() if gain.isfinite().all()}

    def _blocks(self) -> dict[str, Node | None]:
        """For each layer whose noise is followed to an end, the next operation on all paths; None: the end itself.

        An operation is on all paths if as many paths lead through it as there are: those to it times those from it.
        """
        order = [node for node in self.graph.fx.nodes if node in self.values or node in self.lost]
        place = {node: k for k, node in enumerate(order)}
        to: dict[Node, int] = {}
        onward: dict[Node, int] = {}
        followed: dict[Node, bool] = {}
        for node in order:
            to[node] = sum(to[read] for read in node.all_input_nodes if read in place) or 1
        for node in reversed(order):
            users = [user for user in node.users if user in place]
            onward[node] = sum(onward[user] for user in users) + (node in self.ends)
            followed[node] = node not in self.lost and all(followed[user] for user in users) and onward[node] > 0
        paths = sum(to[end] for end in self.ends)
        shared = [n for n in order if to[n] * onward[n] == paths and self._is_known(n) and n not in self.ends]
        return {
            name: next((own for own in shared if place[own] >= place[calls[0]]), None)
            for name, calls in self.calls.items()
            if all(followed[call] for call in calls)
        }

    def _is_known(self, node: Node) -> bool:
        return isinstance(self.known.get(node), Moments)

    def _push(self, node: Node) -> None:
        layer = is_layer(node) and node.args[1] in self.graph.layers
        if layer:
            self.calls.setdefault(called_layer(self.graph, node).name, []).append(node)
        reached = layer or any(read in self.values for read in node.all_input_nodes)
        if any(read in self.lost for read in node.all_input_nodes):
            made = None
        elif layer:
            made = self._through_layer(node)
        elif reached:
            args, kwargs = map_arg((node.args, node.kwargs), self.known.get)
            made = _carried(node, args, kwargs, self.values)
        else:
            return
        if made is None:
            self.lost.add(node)
        else:
            self.values[node] = made

    def _through_layer(self, node: Node) -> Tensor | None:
        layer = called_layer(self.graph, node)
        if layer.name not in self.inputs.calls or not self._is_known(node):
            return None
        like = node.meta["val"]
        if torch.finfo(like.dtype).eps > _COARSE:
            return None
        axis = _channels(node, like)
        zeros = torch.zeros(like.shape[axis], dtype=like.dtype, device=like.device, requires_grad=True)
        own = self.made.setdefault(layer.name, zeros)
        own = own.view([-1 if k == axis else 1 for k in range(like.ndim)]).expand(like.shape)
        if (given := self.values.get(node.args[0])) is None:
            return own
        return own + node.target(given, self.known[node.args[1]].square(), None, *node.args[3:])


def _carried(node: Node, args: tuple, kwargs: dict, noise: dict[Node, Any]) -> Any:
    """The noise of what ``node`` puts out; None where that isn't known."""
    name, first = operation(node), node.args[0]
    own: Any = noise.get(first) if isinstance(first, Node) else None
    if node.target is operator.getitem:
        return own[node.args[1]]
    if name in FUNCTIONS and isinstance(args[0], Moments):
        return own * _squared_slope(node, args, kwargs)
    if name in MOVEMENTS and isinstance(args[0], Moments):
        return moved_variance(node, own, args, kwargs)
    if name == "batch_norm" and args[4] is not None:
        return own * _squared_scale(args).view([1, -1, *[1] * (own.ndim - 2)])
    return _RULES[name](node, args, noise) if name in _RULES else None


def _squared_slope(node: Node, args: tuple, kwargs: dict) -> Tensor:
    """E[f'(x)^2] for normal x."""
    total = torch.zeros_like(args[0].mean)
    for share, x in normal_points(args[0]):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(node.target(x.clone(), *args[1:], **kwargs).sum(), x)
        total += share * slope.square()
    return total


def _squared_scale(args: tuple) -> Tensor:
    weight, variance, eps = args[1], args[4], args[7]
    return (1 if weight is None else weight.square()) / (variance + eps)


def _sum(node: Node, args: tuple, noise: dict[Node, Any]) -> Tensor:
    factors = (1.0, float(node.kwargs.get("alpha", 1)) ** 2)
    parts = [factor * noise[read] for factor, read in zip(factors, node.args, strict=False) if read in noise]
    shape = node.meta["val"].shape
    return sum(part.expand(shape) for part in parts)


def _product(node: Node, args: tuple, noise: dict[Node, Any]) -> Tensor:
    """Each factor's noise, times the mean square of the other."""
    pairs = ((node.args[0], args[1]), (node.args[1], args[0]))
    parts = [noise[own] * _mean_square(other) for own, other in pairs if isinstance(own, Node) and own in noise]
    return sum(parts)


def _quotient(node: Node, args: tuple, noise: dict[Node, Any]) -> Tensor | None:
    return None if isinstance(args[1], Moments) or node.args[0] not in noise else noise[node.args[0]] / args[1] ** 2


def _mean_square(value: Any) -> Any:
    return value.mean.square() + value.variance if isinstance(value, Moments) else value**2


def _joined(node: Node, args: tuple, noise: dict[Node, Any]) -> Tensor:
    parts = [noise[read] if read in noise else _zeros(read.meta["val"]) for read in node.args[0]]
    return torch.cat(parts, *node.args[1:], **node.kwargs)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)


_RULES: dict[str, Callable[..., Any]] = {
    "add": _sum,
    "sub": _sum,
    "mul": _product,
    "div": _quotient,
    "cat": _joined,
    "concat": _joined,
}


def _per_output(node: Node, made: Tensor) -> Tensor:
    """The mean over all but the outputs."""
    return made.mean([k for k in range(made.ndim) if k != _channels(node, made)])


def _channels(node: Node, out: Tensor) -> int:
    """The axis of a layer's outputs: the last of a linear one, else the second."""
    return out.ndim - 1 if operation(node) == "linear" else 1
