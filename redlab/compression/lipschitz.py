"""How far each operation of a network can stretch a difference between two of its inputs.

Every factor bounds ||f(a) - f(b)|| / ||a - b|| over all a and b, in L2 norms of whole tensors, up to the rounding of
float64. Which operations have none: dot-product attention (Kim et al. 2021, "The Lipschitz constant of
self-attention", arXiv 2006.04710) and, for the same reason, every product of two activations.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node

from redlab.network.operations import KINDS, named
from redlab.network.trace import in_place, module_path, operation

Constants = Mapping[Node, Tensor]

# The largest slope of each function of one value, rounded up. GELU: at sqrt(2) its derivative Phi(x) + x phi(x) is
# 1.12891, and less than 1.12900 in its tanh form; SiLU: 1.09984 at 2.39936; hardswish: (2x + 3) / 6 at 3; SELU: its
# scale times its alpha, 1.05070 * 1.67326; mish: 1.08850, found on a grid as the tests do.
SLOPES = {
    **dict.fromkeys(("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "tanh", "abs", "neg"), 1.0),
    **{"gelu": 1.1291, "silu": 1.0999, "hardswish": 1.5, "sigmoid": 0.25, "hardsigmoid": 1 / 6},
    **{"selu": 1.7581, "mish": 1.0886},
}
_MOVEMENT = frozenset((
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "mT", "movedim", "squeeze",
    "unsqueeze", "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "tensor_split", "unbind", "flip",
    "contiguous", "clone", "alias", "detach", "to", "_to_copy", "roll", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle",
))  # fmt: skip
_DROPOUTS = named("dropout", "alpha dropout")
_PRODUCTS = frozenset(("mul", "div", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "bilinear", "dot"))
_ATTENTION = "attention multiplies activations by one another and is not Lipschitz (arXiv 2006.04710)"
_STATISTIC = "it divides by a statistic of its own input, which only eps keeps from 0"
_REFUSED = {
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "rms_norm"), _STATISTIC),
    **dict.fromkeys(("scaled_dot_product_attention", "softmax", "_softmax", "_safe_softmax"), _ATTENTION),
    "lift_fresh_copy": "forward makes a constant tensor: make it a buffer",
}


def operator_norm(weight: Tensor, stride: Any = 1, dilation: Any = 1, groups: int = 1) -> float:
    """An upper bound on the L2 operator norm of a linear layer or convolution, transposed or not; exact for a linear.

    A convolution is a sum over its taps of a shift, which moves every input position to one output position at most,
    times W[:, :, u, v]: its norm is at most the sum of theirs, with any stride, dilation and zero padding. It is also
    at most ||W as a matrix (n_out, n_in taps)|| times the root of how many patches a position lies in, since the
    layer is that matrix on every patch. The smaller of the two is taken, the largest over the groups, which are
    independent. A transposed convolution is the adjoint, of the same norm. The matrix alone bounds nothing.

    Arguments:
        weight: (n_out, n_in / groups, *taps), or (n_in, n_out / groups, *taps) of a transposed convolution.
        stride, dilation: one number, or one for each dimension of the taps.
    """
    grouped = weight.detach().double().reshape(groups, len(weight) // groups, weight.shape[1], -1)
    taps = _spectral(grouped.permute(3, 0, 1, 2)).sum(0)
    if grouped.shape[-1] == 1:
        return float(taps.max())
    patches = _spectral(grouped.flatten(2)) * math.sqrt(_overlap(list(weight.shape[2:]), stride, dilation))
    return float(torch.minimum(taps, patches).max())


def _spectral(matrices: Tensor) -> Tensor:
    """The largest singular value of each of (..., rows, columns), by the smaller Gram matrix: far faster than SVD."""
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mT
    return torch.linalg.eigvalsh(matrices @ matrices.mT)[..., -1].clamp(min=0).sqrt()


def _overlap(kernel: list[int], stride: Any, dilation: Any) -> int:
    """How many windows can hold one and the same position: ceil(k / s) a dimension where nothing is dilated."""
    count, dims = 1, len(kernel)
    for size, step, gap in zip(kernel, _each(stride, dims), _each(dilation, dims), strict=True):
        # Tap u of window o lies at step o + gap u: the same position for every (step / gcd)-th tap.
        count *= -(-size // (step // math.gcd(step, gap)))
    return count


def _each(value: Any, dims: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * dims if len(values) == 1 else values


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an ATen operation by their names, defaults too."""
    schema = node.target._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def refuse(node: Node, why: str) -> NoReturn:
    """Raise the NotImplementedError that names the operation, the module in which it runs, and the reason."""
    place = module_path(node) or "the network itself"
    raise NotImplementedError(f"no error bound for {operation(node)} in {place}: {why}")


def factors(node: Node, constants: Constants) -> list[tuple[Node, float]]:
    """Each activation that ``node`` reads, with the factor by which a difference in it reaches the output at most.

    The contributions add up, except where ``joins(node)``. Conv and linear layers aren't answered here.

    Arguments:
        constants: the nodes whose values no input changes (parameters, buffers, what is computed from them).

    Raises:
        NotImplementedError: an operation that has no finite factor or that isn't known here.
    """
    name = operation(node)
    data = [read for read in node.all_input_nodes if read not in constants]
    if name in _REFUSED:
        refuse(node, _REFUSED[name])
    before, after = (getattr(value.meta["val"], "dtype", None) for value in (data[0], node))
    if before and after and before != after:
        refuse(node, f"it turns {before} into {after}")
    if in_place(node) and node.args[0] is not data[0]:
        refuse(node, "it overwrites a constant")
    if name in ("add", "sub", "rsub"):
        return _added(node, constants)
    if name in _PRODUCTS:
        return [(data[0], _scaled(node, constants))]
    if joins(node):
        return [(part, 1.0) for part in arguments(node)["tensors"] if part not in constants]
    if len(data) == 1 and name in _RULES:
        return [(data[0], _RULES[name](node, constants))]
    if len(data) == 1 and (name in _MOVEMENT or name in SLOPES):
        return [(data[0], SLOPES.get(name, 1.0))]
    refuse(node, "its Lipschitz constant is not known here")


def joins(node: Node) -> bool:
    """Whether ``node`` puts its inputs side by side, so that squares of differences add up."""
    return operation(node) in KINDS["join"] or operation(node) == "stack"


def refuse_overwriting(graph: Graph) -> None:
    """Refuse an operation in place whose tensor, or a view of it, is read again afterwards: its bound has changed."""
    position = {node: k for k, node in enumerate(graph.nodes)}
    shared: dict[Node, list[Node]] = {}  # the nodes of one memory, the same list for each of them
    for node in position:
        is_view = getattr(node.target, "is_view", False) or node.target is operator.getitem
        alias = in_place(node) or is_view or operation(node) in _DROPOUTS  # which hand on their input in eval mode
        shared[node] = shared[node.args[0]] if alias else []
        if in_place(node) and any(position[user] > position[node] for n in shared[node] for user in n.users):
            refuse(node, "it overwrites what is read again afterwards")
        shared[node].append(node)


def _spread(node: Node, source: Node) -> float:
    """How far broadcasting ``source`` to the shape of ``node`` stretches it: every value is repeated equally often."""
    return math.sqrt(node.meta["val"].numel() / source.meta["val"].numel())


def _added(node: Node, constants: Constants) -> list[tuple[Node, float]]:
    given = arguments(node)
    one, scaled = (given["self"], given["other"])[:: -1 if operation(node) == "rsub" else 1]
    terms = (one, 1.0), (scaled, abs(float(given["alpha"])))
    return [(n, k * _spread(node, n)) for n, k in terms if isinstance(n, Node) and n not in constants]


def _scaled(node: Node, constants: Constants) -> float:
    """x * c, c * x or x / c: the largest factor in c."""
    given, name = arguments(node), operation(node)
    operands = [value for value in node.args if isinstance(value, Node) and value not in constants]
    if len(operands) != 1 or (name == "div" and operands[0] is given["other"]):
        refuse(node, "products and quotients of activations are not Lipschitz over all inputs")
    if name not in ("mul", "div") or given.get("rounding_mode"):
        refuse(node, "its Lipschitz constant is not known here")
    constant = given["other"] if operands[0] is given["self"] else given["self"]
    sizes = torch.as_tensor(constants[constant] if isinstance(constant, Node) else constant).double().abs()
    return float(sizes.max() if name == "mul" else 1 / sizes.min()) * _spread(node, operands[0])


def _dropout(node: Node, constants: Constants) -> float:
    return refuse(node, "it drops values at random in eval mode too") if arguments(node)["train"] else 1.0


def _batch_norm(node: Node, constants: Constants) -> float:
    given = arguments(node)
    if given["training"] or given["running_var"] is None:
        refuse(node, "it normalises by the statistics of its own input")
    scale = (constants[given["running_var"]].double() + given["eps"]).rsqrt()
    return float((scale if given["weight"] is None else scale * constants[given["weight"]].double()).abs().max())


def _elu(node: Node, constants: Constants) -> float:
    given = arguments(node)
    return abs(float(given["scale"])) * max(1.0, abs(float(given["alpha"]) * float(given["input_scale"])))


def _max_pool(node: Node, constants: Constants) -> float:
    """Each maximum moves by no more than the largest difference in its window; windows overlap."""
    given, dims = arguments(node), int(operation(node)[-2])
    kernel = _each(given["kernel_size"], dims)
    return math.sqrt(_overlap(kernel, given["stride"] or kernel, given["dilation"]))


def _avg_pool(node: Node, constants: Constants) -> float:
    """Exact: the pool is a linear map along one axis after the other, and the norms of these multiply."""
    given, dims = arguments(node), int(operation(node)[-2])
    if given.get("divisor_override"):
        refuse(node, "it has a divisor of its own")
    kernel = _each(given["kernel_size"], dims)
    pool = partial(F.avg_pool1d, ceil_mode=given["ceil_mode"], count_include_pad=given["count_include_pad"])
    axes = zip(kernel, _each(given["stride"] or kernel, dims), _each(given["padding"], dims), strict=True)
    return _along_axes(node, [partial(pool, kernel_size=k, stride=s, padding=p) for k, s, p in axes])


def _adaptive_avg_pool(node: Node, constants: Constants) -> float:
    dims = int(operation(node)[-2])
    sizes = _each(arguments(node)["output_size"], dims)
    return _along_axes(node, [partial(F.adaptive_avg_pool1d, output_size=size) for size in sizes])


def _pad(node: Node, constants: Constants) -> float:
    """Constant padding adds no difference; every other mode copies values, axis after axis."""
    given = arguments(node)
    if given["mode"] == "constant":
        return 1.0
    pairs = list(zip(given["pad"][::2], given["pad"][1::2], strict=True))[::-1]  # torch names the last axis first
    return _along_axes(node, [partial(F.pad, pad=pair, mode=given["mode"]) for pair in pairs])


def _along_axes(node: Node, maps: list[Callable[[Tensor], Tensor]]) -> float:
    """The product of the norms of linear maps along the last axes of what ``node`` reads, each on the unit vectors."""
    sizes = node.args[0].meta["val"].shape[-len(maps) :]
    eyes = [torch.eye(size, dtype=torch.float64)[None] for size in sizes]
    return math.prod(float(_spectral(own(eye))) for own, eye in zip(maps, eyes, strict=True))


_RULES: dict[str, Callable[[Node, Constants], float]] = {
    **dict.fromkeys(_DROPOUTS, _dropout),
    **{f"max_pool{d}d": _max_pool for d in (1, 2, 3)},
    **{f"avg_pool{d}d": _avg_pool for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": _adaptive_avg_pool for d in (1, 2, 3)},
    "batch_norm": _batch_norm,
    "elu": _elu,
    "leaky_relu": lambda node, _: max(1.0, abs(float(arguments(node)["negative_slope"]))),
    "prelu": lambda node, constants: max(1.0, float(constants[arguments(node)["weight"]].abs().max())),
    "expand": lambda node, _: _spread(node, node.args[0]),
    "pad": _pad,
    "mean": lambda node, _: _spread(node, node.args[0]),  # of n values: sqrt(n) / n
    "sum": lambda node, _: 1 / _spread(node, node.args[0]),
}
