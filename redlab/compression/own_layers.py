"""The plain layer that does what a module with a forward of its own does: proposed, and compared in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redlab.compression.own_forwards import Call, watch
from redlab.compression.plain_layers import Spec, build, layer_in, spec_of, spec_of_call
from redlab.network.evaluating import evaluating, first_line
from redlab.network.forwards import runs_own_forward
from redlab.network.layers import copy_network

TOLERANCE = 1e-9  # relative, in float64
_PIXELS = 24  # along an axis of the random inputs, at least
_GROWS = 4  # at most: by so many pixels an input grows, to see padding that changes with its size
_SCALES = (1e4, 1e-4)  # of the random inputs: a bound, such as that of clamp, may be out of reach at 1
_MANY = 32**2  # positions in space: an input that has more is not doubled along all axes
BATCH = "what it does changes with the size of its batch"
IGNORES = "its forward does not use its bias: other code may"
CHANGES = (
    "what it does changes with the size of its input, as its padding may: prepare(network, fixed_size=True) takes "
    "the size of the example"
)


@dataclass(frozen=True, eq=False)
class Plain:
    """A replacement: what it is made of, and itself, in float64."""

    spec: Spec
    module: nn.Module


def propose(module: nn.Module, inputs: Sequence[Tensor], fixed_size: bool) -> Plain | str | None:
    """The plain layer that does what ``module`` does; why there is none; or None where it multiplies by no weight.

    Arguments:
        inputs: one of each of its calls.
        fixed_size: inputs of other sizes don't matter.
    """
    try:
        own = copy_network(module).double()
        with evaluating(own):
            return _propose(own, [x.double() for x in inputs], fixed_size)
    except Exception as error:  # whatever the module's own code raises
        return f"it cannot be tried in float64: {first_line(error)}"


def _propose(own: nn.Module, inputs: list[Tensor], fixed_size: bool) -> Plain | str | None:
    found = watch(own, inputs[0])
    if not found.calls:
        return found.why or None
    if found.why or len(found.calls) > 1:
        return found.why or f"its forward multiplies by {len(found.calls)} weights"
    made = _made(own, found.calls[0])
    _fit(made, own, inputs[0])
    noise = _noise(made, inputs[0], 0)
    far = max(_distance(own, made.module, x) for x in [*inputs, noise, *(noise * scale for scale in _SCALES)])
    if not far <= TOLERANCE:
        return f"its forward does more than one layer does (a relative difference of {far:.1e})"
    if not _same(own, made, _batches(made, noise)):
        return BATCH
    if not fixed_size and not _same(own, made, _sizes(made, inputs[0])):
        return CHANGES
    if found.others:
        return f"its forward does more than one layer does: {', '.join(dict.fromkeys(found.others))}"
    return IGNORES if _ignores_bias(own, noise) else made


def _same(own: nn.Module, made: Plain, inputs: Iterable[Tensor]) -> bool:
    return all(_distance(own, made.module, x) <= TOLERANCE for x in inputs)


def _ignores_bias(own: nn.Module, x: Tensor) -> bool:
    """Whether a module has a bias that its forward does not add. It is changed: this comes last."""
    bias = own._parameters.get("bias")
    if bias is None or not bias.any():
        return False
    before = own(x.clone())
    bias.data.add_(1.0)
    return bool(torch.equal(before, own(x.clone())))


def _made(own: nn.Module, call: Call) -> Plain:
    """The layer of one call, with the weight and bias that the call had."""
    if runs_own_forward(own):
        spec = spec_of_call(call.name, call.weight, call.options, call.pad, call.mode)
    else:  # only its weight is computed
        spec = spec_of(own)
    spec["options"]["bias"] = True
    module = build(spec, call.weight)
    layer = layer_in(module)
    layer.weight = nn.Parameter(call.weight.clone(memory_format=torch.contiguous_format))
    bias = call.bias if call.bias is not None else call.weight.new_zeros(layer.bias.shape)
    layer.bias = nn.Parameter(bias.detach().clone())
    return Plain(spec, module)


def _fit(made: Plain, own: nn.Module, like: Tensor) -> None:
    """Take in what the forward does after the call: a factor and a summand for each channel; in place.

    The summand is what the module makes of zeros. The factor is by least squares, on random inputs.
    """
    layer = layer_in(made.module)
    x = _noise(made, like, 1)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    rest, moved = (run(torch.zeros_like(x)).movedim(axis, -1).flatten(0, -2) for run in (own, made.module))
    if (
        rest.shape[-1] == len(layer.bias)
        and rest.numel()
        and "value" not in made.spec.get("pad", {}).get("options", {})
    ):
        wanted, got = (run(x).movedim(axis, -1).flatten(0, -2) for run in (own, made.module))
        wanted, got = wanted - rest, got - moved
        if wanted.shape == got.shape:
            factor = (wanted * got).sum(0) / (got * got).sum(0).clamp_min(1e-300)
            if float((factor - 1).abs().max()) > TOLERANCE:
                layer.weight.data *= _along_outputs(factor, layer)
        if float((rest[0] - layer.bias).abs().max()) > TOLERANCE * float(rest[0].abs().max()):
            layer.bias.data = rest[0].clone()
    if not layer.bias.any() and not _has_bias(own):
        layer.bias, made.spec["options"]["bias"] = None, False


def _noise(made: Plain, like: Tensor, seed: int) -> Tensor:
    """Random numbers, on a part of the input's space that holds the kernel several times."""
    reach = [size * step for size, step in _kernel(layer_in(made.module))]
    sizes = [min(size, max(_PIXELS, 3 * own)) for size, own in zip(like.shape[2:], reach, strict=False)]
    shape = [*like.shape[:2], *sizes] if reach else like.shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like.device)


def _kernel(layer: nn.Module) -> list[tuple[int, int]]:
    return [] if isinstance(layer, nn.Linear) else list(zip(layer.kernel_size, layer.dilation, strict=True))


def _along_outputs(factor: Tensor, layer: nn.Module) -> Tensor:
    """One number a channel, as the weight of a layer has them: that of a transposed conv is (n_in, n_out / groups)."""
    if getattr(layer, "transposed", False):
        per_group = factor.view(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1).flatten(0, 1)
        return per_group[(..., *[None] * (layer.weight.ndim - 2))]
    return factor.view(-1, *[1] * (layer.weight.ndim - 1))


def _has_bias(own: nn.Module) -> bool:
    return getattr(own, "bias", None) is not None


def _distance(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """The largest difference of what two modules make of ``x``, relative; inf where shapes differ."""
    try:
        wanted = one(x.clone())
    except Exception:  # its code takes no input of this size: then it doesn't matter
        return 0.0
    try:
        got = other(x.clone())
    except Exception:  # the one takes this input, the other doesn't
        return float("inf")
    if not isinstance(wanted, Tensor) or wanted.shape != got.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    return float((wanted - got).abs().max() / wanted.abs().max().clamp_min(1e-300))


def _batches(made: Plain, like: Tensor) -> Iterator[Tensor]:
    """Random inputs of one more and of a single one, where the first axis is the batch."""
    layer = layer_in(made.module)
    if like.ndim >= (2 if isinstance(layer, nn.Linear) else layer.weight.ndim):
        for batch in dict.fromkeys((len(like) + 1, 1)):
            yield _random([batch, *like.shape[1:]], like)


def _sizes(made: Plain, like: Tensor) -> Iterator[Tensor]:
    """Random inputs that are some pixels larger along every axis of space, or longer by some positions; others too.

    These are of half and of twice the size, and of twice the size along one axis, half along the others.
    """
    layer = layer_in(made.module)
    axes = range(2, like.ndim) if not isinstance(layer, nn.Linear) else range(max(like.ndim - 2, 0), like.ndim - 1)
    steps = min(max(2, *getattr(layer, "stride", (1,))), _GROWS)
    shapes = [[size + step * (axis in axes) for axis, size in enumerate(like.shape)] for step in range(1, steps + 1)]
    twice = [[axis] for axis in axes] + [[]] + ([list(axes)] if math.prod(like.shape[a] for a in axes) <= _MANY else [])
    shapes += [[_resized(size, axis, axes, own) for axis, size in enumerate(like.shape)] for own in twice]
    for shape in {tuple(shape): None for shape in shapes}:
        yield _random(shape, like)


def _resized(size: int, axis: int, axes: Sequence[int], doubled: Sequence[int]) -> int:
    return 2 * size if axis in doubled else max(size // 2, 1) if axis in axes else size


def _random(shape: Sequence[int], like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like.device)
