"""Whatever stands between a ReLU and the layer that reads it: removing dead channels and merging equal ones is exact.

Every operation that has a rule stands in a branch of its own, with arguments and operands drawn at random.
"""

# ruff: noqa: B008  (arguments are drawn when a case is made, so that it computes the same at every call)

import random

import pytest
import torch
import torch.nn.functional as F
from nets import randomised
from torch import nn

from redlab import fold_batchnorm, merge_neurons, red_plus_plus
from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.plan import make_plan
from redlab.channels.rules import RULES
from redlab.channels.rules_zeros import ALWAYS, PROOFS
from redlab.compression.channel_rows import dead_channels
from redlab.network.trace import operation, trace

CHANNELS, SIZE = 8, 6
DEAD, COPY, ORIGINAL = (0, 1), 2, 3

UNARY = (
    *("relu", "relu6", "silu", "gelu", "tanh", "hardswish", "leaky_relu", "elu", "celu", "selu", "mish"),
    *(
        "softsign",
        "tanhshrink",
        "hardshrink",
        "softshrink",
        "rrelu",
        "sigmoid",
        "hardsigmoid",
        "softplus",
        "logsigmoid",
    ),
)
FUNCTIONS = (
    *("abs", "neg", "positive", "sign", "sgn", "square", "sqrt", "exp", "exp2", "expm1", "log1p", "erf", "erfc"),
    *("sin", "cos", "sinh", "cosh", "atan", "asinh", "round", "floor", "ceil", "trunc", "frac", "fix", "nan_to_num"),
    *("isnan", "isinf", "isfinite", "logical_not", "deg2rad", "rad2deg", "clone", "detach", "zeros_like", "ones_like"),
)
# Where their argument is 0 or large these give inf or NaN: they get half of a number between 0 and 1.
SMALL = ("rsqrt", "reciprocal", "log", "log2", "log10", "logit", "tan", "asin", "acos", "acosh", "atanh")
SCALARS = (
    *("add", "sub", "mul", "multiply", "subtract", "div", "divide", "true_divide", "floor_divide", "remainder", "fmod"),
    *("pow", "float_power", "rsub", "eq", "ne", "lt", "le", "gt", "ge", "xlogy", "copysign", "hypot", "atan2"),
)
# What a division by 0 or its logarithm makes is no number to compare.
NONZERO = ("div", "divide", "true_divide", "floor_divide", "remainder", "fmod", "add", "xlogy")
TENSORS = (
    *("add", "sub", "subtract", "mul", "multiply", "maximum", "minimum", "fmax", "fmin", "hypot", "atan2"),
    *("logaddexp", "logaddexp2", "max", "min", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"),
    *("logical_xor", "div", "true_divide", "fmod", "remainder", "copysign"),
)
# Other names that the graph shows of operations that are here under their own.
NEVER_TRACED = {"_to_copy", "contiguous"}
SHAPES = ((), (1,), (1, 1, 1, 1), (1, 1, SIZE, SIZE), (SIZE, SIZE), (CHANNELS, 1, 1), (1, CHANNELS, 1, 1))


class Branch(nn.Module):
    """A layer, its batch norm and a ReLU; an operation; a layer that reads what that makes."""

    def __init__(self, between, operand=None):
        super().__init__()
        self.made = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.between, self.operand = between, operand
        shape = self._middle(torch.rand(1, 3, SIZE, SIZE)).shape
        kinds = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        self.read = kinds[len(shape)](shape[1], 3, *[1] * (len(shape) > 2))

    def _middle(self, x):
        made = self.made(x)
        between = self.between(made) if self.operand is None else self.between(made, self.operand)
        return between.to(x.dtype)

    def forward(self, x):
        return self.read(self._middle(x))


class Branches(nn.Module):
    """Side by side; one output each."""

    def __init__(self, branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return [branch(x) for branch in self.branches]


def operand(draw, *shapes):
    """A parameter or a constant of the network's code; 0, 1 or any number above 0."""
    shape = draw.choice(shapes or SHAPES)
    value = draw.choice([torch.zeros(shape), torch.ones(shape), torch.rand(shape) + 0.1])
    return nn.Parameter(value) if draw.random() < 0.5 else nn.Buffer(value)


def cases(draw):
    """(name, function of what the ReLU makes, operand or None) of every operation."""
    number = lambda low=-2, high=2: draw.choice([0, draw.uniform(low, high)])  # noqa: E731
    found = [(name, getattr(F, name), None) for name in UNARY]
    found += [(name, getattr(torch, name), None) for name in FUNCTIONS]
    found += [(name, lambda h, f=getattr(torch, name): f(h / (h.amax() + 1) / 2), None) for name in SMALL]
    for name in SCALARS:
        value = draw.choice([0.5, 1, 2, draw.uniform(0.2, 3)]) if draw.random() < 0.8 or name in NONZERO else 0
        own = getattr(torch, name)
        found.append((name, _with_scalar(own, name, value), None))
    for name in TENSORS:
        own = getattr(torch, name)
        found.append((name, lambda h, t, f=own: f(h, t), operand(draw)))
        found.append((name, lambda h, f=own: f(h, h.mean((2, 3), keepdim=True)), None))
        found.append((name, lambda h, f=own, k=draw.randrange(1, 3): f(h, h.flip(k % 2 + 2)), None))
    low, high = sorted((number(), number()))
    train = draw.random() < 0.5
    axis = draw.choice([2, 3, -1, -2])
    found += [
        ("clamp", lambda h: h.clamp(low, high), None),
        ("clamp", lambda h: h.clamp(min=low), None),
        ("clamp", lambda h: h.clamp(max=high), None),
        ("clamp", lambda h, t: h.clamp(t), operand(draw)),
        ("clip", lambda h: h.clip(low, high + 1), None),
        ("clamp_min", lambda h: h.clamp_min(low), None),
        ("clamp_max", lambda h: h.clamp_max(high), None),
        ("clamp_min", lambda h, t: torch.clamp_min(h, t), operand(draw)),
        ("hardtanh", lambda h: F.hardtanh(h, low, high + 0.1), None),
        ("threshold", lambda h, a=number(), b=number(): F.threshold(h, a, b), None),
        ("pow", lambda h, a=draw.choice([0, 0.5, 1, 2, 3]): h**a, None),
        ("pow", lambda h, a=draw.uniform(0.5, 2): a**h, None),
        ("pow", lambda h, t: h**t, operand(draw)),
        ("rsub", lambda h, a=number(): a - h, None),
        ("add", lambda h, a=number(): h + a, None),
        ("add", lambda h, t: h + t, operand(draw)),
        ("add", lambda h, t: torch.add(h, t, alpha=0.3), operand(draw)),
        ("add_", lambda h, a=number(): h.clone().add_(a), None),
        ("maximum", lambda h: torch.maximum(h, torch.tensor(0.5)), None),
        ("add", lambda h: h + torch.tensor(1.0), None),
        ("full_like", lambda h, a=number(): torch.full_like(h, a) * h + torch.full_like(h, a), None),
        ("where", lambda h, a=number(): torch.where(h > 0.2, h, a), None),
        ("where", lambda h, a=number(): torch.where(h > 0.2, a, h), None),
        ("where", lambda h: torch.where(h > h.mean(), h, 0.1 * h), None),
        ("where", lambda h, t: torch.where(h > 0.2, h, t), operand(draw)),
        ("where", lambda h, t: torch.where(t > 0.5, h, -h), operand(draw, (1, 1, SIZE, SIZE), (SIZE, SIZE))),
        ("masked_fill", lambda h, a=number(): h.masked_fill(h < 0.3, a), None),
        ("addcmul", lambda h, t: torch.addcmul(h, h, t, value=0.5), operand(draw)),
        ("addcmul", lambda h, t: torch.addcmul(t, h, h, value=0.5), operand(draw)),
        ("addcdiv", lambda h, t: torch.addcdiv(h, h, t + 1, value=0.5), operand(draw)),
        ("lerp", lambda h, t: torch.lerp(h, t.expand_as(h), 0.3), operand(draw)),
        ("lerp", lambda h: torch.lerp(h, 2 * h, 0.3), None),
        ("dropout", lambda h: F.dropout(h, 0.0, train), None),
        ("feature_dropout", lambda h: F.dropout2d(h, 0.0, train), None),
        ("alpha_dropout", lambda h: F.alpha_dropout(h, 0.0, train), None),
        ("feature_alpha_dropout", lambda h: F.feature_alpha_dropout(h, 0.0, train), None),
        ("bitwise_not", lambda h: ~(h > 0.1), None),
        ("bitwise_and", lambda h: torch.bitwise_and(h > 0.1, h < 0.5), None),
        ("__and", lambda h: (h > 0.1) & (h < 0.5), None),
        ("__or", lambda h: (h > 0.1) | (h < 0.05), None),
        ("__xor", lambda h: (h > 0.1) ^ (h < 0.5), None),
        ("bitwise_or", lambda h: torch.bitwise_or(h > 0.1, h < 0.05), None),
        ("bitwise_xor", lambda h: torch.bitwise_xor(h > 0.1, h < 0.5), None),
        ("type_as", lambda h: h.type_as(torch.zeros(1, dtype=torch.float64)), None),
        ("to", lambda h: h.to(torch.float64).float(), None),
        ("contiguous", lambda h: h.contiguous(), None),
        ("softmax", lambda h: h.softmax(axis), None),
        ("log_softmax", lambda h: h.log_softmax(axis), None),
        ("cumsum", lambda h: h.cumsum(axis), None),
        ("cumprod", lambda h: h.cumprod(axis), None),
        ("layer_norm", lambda h: F.layer_norm(h, h.shape[2:]), None),
        ("rms_norm", lambda h: F.rms_norm(h, h.shape[2:]), None),
        ("group_norm", lambda h: F.group_norm(h, h.shape[1]), None),
        ("group_norm", nn.GroupNorm(CHANNELS, CHANNELS), None),
        ("instance_norm", F.instance_norm, None),
        ("instance_norm", nn.InstanceNorm2d(CHANNELS, affine=True), None),
        ("batch_norm", nn.BatchNorm2d(CHANNELS), None),
        ("prelu", nn.PReLU(CHANNELS), None),
        ("prelu", nn.PReLU(), None),
        ("max", lambda h: h.max(axis)[0], None),
        ("min", lambda h: h.min(axis, keepdim=True)[0], None),
        ("glu", lambda h: F.glu(h, 1), None),
        ("chunk", lambda h: torch.cat(h.chunk(2, 1)[::-1], 1), None),
        ("cat", lambda h: torch.cat([h, h * 2], 1), None),
        ("cat", lambda h: torch.cat([h, h + 1], 1), None),
        ("cat", lambda h, t: torch.cat([h, t.expand(len(h), -1, -1, -1)], 1), operand(draw, (1, 3, SIZE, SIZE))),
        ("concat", lambda h: torch.concat([h, h], 2), None),
        ("concatenate", lambda h: torch.concatenate([h, h], 3), None),
        ("stack", lambda h: torch.stack([h, h * 2], 2).flatten(2), None),
        ("repeat", lambda h: h.repeat(1, 2, 1, 3), None),
        ("tile", lambda h: h.tile(2, 1, 2), None),
        ("repeat_interleave", lambda h: h.repeat_interleave(2, 1), None),
        ("repeat_interleave", lambda h: h.repeat_interleave(2, axis), None),
        ("flip", lambda h: h.flip(1), None),
        ("flip", lambda h: h.flip((1, axis % 4)), None),
        ("roll", lambda h: h.roll(1, axis), None),
        ("pixel_shuffle", lambda h: F.pixel_shuffle(h, 2), None),
        ("pixel_unshuffle", lambda h: F.pixel_unshuffle(h, 2), None),
        ("channel_shuffle", lambda h, k=draw.choice([2, 4]): F.channel_shuffle(h, k), None),
        (
            "grid_sampler",
            lambda h, t: F.grid_sample(h, t.tanh().expand(len(h), -1, -1, -1), align_corners=False),
            nn.Buffer(torch.randn(1, 3, 3, 2)),
        ),
        ("index_select", lambda h: h.index_select(axis, torch.tensor([0, 2, 2])), None),
        ("slice", lambda h: h[:, :, 1:, ::2], None),
        ("select", lambda h: h[:, :, 0], None),
        ("narrow", lambda h: h.narrow(axis, 1, 2), None),
        ("split", lambda h: h.split(2, axis)[1], None),
        ("split_with_sizes", lambda h: h.split([1, 5], axis)[1], None),
        ("tensor_split", lambda h: h.tensor_split(2, axis)[1], None),
        ("unbind", lambda h: h.unbind(axis)[1], None),
        ("new_zeros", lambda h: h + h.new_zeros(1), None),
        ("new_ones", lambda h: h * h.new_ones(1, 1, SIZE, SIZE), None),
        ("new_full", lambda h, a=number(): h + h.new_full((1,), a), None),
        ("new_empty", lambda h: torch.cat([h, h.new_empty(len(h), 0, SIZE, SIZE)], 1), None),
        ("mean", lambda h: h.mean((2, 3)), None),
        ("linalg_vector_norm", lambda h, p=draw.choice([0, 1, 2, 3]): torch.linalg.vector_norm(h, p, (2, 3)), None),
        ("norm", lambda h: torch.norm(h, dim=axis), None),
        ("norm", lambda h: F.normalize(h, dim=axis), None),
        ("argmax", lambda h: h.argmax(axis), None),
        ("argmin", lambda h: h.argmin(axis), None),
        ("permute", lambda h: h.permute(0, 1, 3, 2), None),
        ("transpose", lambda h: h.transpose(2, 3), None),
        ("t", lambda h: h.mean((2, 3)).t().t(), None),
        ("numpy_T", lambda h: h.mean((2, 3)).T.T, None),
        ("mT", lambda h: h.mT, None),
        ("mH", lambda h: h.mH, None),
        ("movedim", lambda h: h.movedim(2, 3), None),
        ("moveaxis", lambda h: h.moveaxis(2, 3), None),
        ("swapaxes", lambda h: h.swapaxes(2, 3), None),
        ("swapdims", lambda h: h.swapdims(2, 3), None),
        ("unsqueeze", lambda h: h.unsqueeze(3), None),
        ("squeeze", lambda h: h.mean(2, keepdim=True).squeeze(2), None),
        ("flatten", lambda h: h.flatten(1), None),
        ("unflatten", lambda h: h.unflatten(3, (2, 3)), None),
        ("expand", lambda h: h.mean((2, 3), keepdim=True).expand(-1, -1, 3, 2), None),
        ("expand_as", lambda h: h.mean((2, 3), keepdim=True).expand_as(h), None),
        ("view", lambda h: h.view(len(h), h.shape[1], -1), None),
        ("reshape", lambda h: h.reshape(len(h), -1), None),
        ("view_as", lambda h: h.view_as(h.permute(0, 1, 3, 2)), None),
        ("reshape_as", lambda h: h.reshape_as(h.permute(0, 1, 3, 2)), None),
        ("alias", lambda h: torch.ops.aten.alias(h), None),
        ("matmul", lambda h: h.mT @ h, None),
        ("bmm", lambda h: torch.bmm(h[:, :, 0], h[:, :, 1].mT), None),
        ("mm", lambda h: torch.mm(h.mean((2, 3)), h.new_ones(CHANNELS, 3)), None),
        ("addmm", lambda h: torch.addmm(h.new_ones(3), h.mean((2, 3)), h.new_ones(CHANNELS, 3)), None),
        ("baddbmm", lambda h: torch.baddbmm(h[:, 0], h[:, 1], h[:, 2]), None),
        ("einsum", lambda h: torch.einsum("nchw,nchw->nc", h, h), None),
        ("scaled_dot_product_attention", lambda h: F.scaled_dot_product_attention(h, h, h), None),
    ]
    for name in ("sum", "nansum", "nanmean", "prod", "amax", "amin", "var", "std", "any", "all", "logsumexp"):
        axes = axis if name in ("prod", "any", "all") else draw.choice([axis, (2, 3)])
        found.append((name, lambda h, f=getattr(torch, name), a=axes: f(h, a), None))
    found.append(("count_nonzero", lambda h: torch.count_nonzero(h, axis), None))
    for mode in ("constant", "reflect", "replicate", "circular"):
        found.append(("pad", lambda h, m=mode: F.pad(h, (1, 2, 0, 1), m), None))
    found.append(("pad", lambda h, a=number(): F.pad(h, (1, 1, 1, 1), value=a), None))
    found.append(("constant_pad_nd", lambda h, a=number(): torch.constant_pad_nd(h, (1, 1), a), None))
    for kind in ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool"):
        for rank, data in enumerate((lambda h: h[:, :, 0], lambda h: h, lambda h: h.unflatten(3, (2, 3))), 1):
            own, more = getattr(F, f"{kind}{rank}d"), (2.0,) * (kind == "lp_pool")
            found.append((f"{kind}{rank}d", lambda h, f=own, d=data, m=more: f(d(h), *m, 2), None))
            if kind == "max_pool":
                found.append((kind, lambda h, f=own, d=data: f(d(h), 2, return_indices=True)[0], None))
    modes = {"nearest": 1, "linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3, "nearest-exact": 2}
    spaces = {1: lambda h: h[:, :, 0], 2: lambda h: h, 3: lambda h: h[:, :, None]}
    for mode, rank in modes.items():
        for own in (1, 2, 3) if "nearest" in mode else (rank,):
            found.append((mode, lambda h, m=mode, d=spaces[own]: F.interpolate(d(h), scale_factor=2, mode=m), None))
    for mode in ("bilinear", "bicubic"):
        found.append((mode, lambda h, m=mode: F.interpolate(h, size=4, mode=m, antialias=True), None))
    return found


def _with_scalar(function, name, value):
    if name in ("hypot", "atan2", "copysign") or name.startswith("f"):
        return lambda h: function(h, torch.tensor(float(value or 1)))
    return lambda h: function(h, value)


@torch.no_grad()
def network_of(drawn):
    """Branches whose first two filters are dead."""
    network = randomised(Branches([Branch(function, tensor) for _, function, tensor in drawn])).double()
    for branch in network.branches:
        norm = branch.made[1]
        norm.weight[[*DEAD]], norm.bias[[*DEAD]] = 0.0, torch.tensor([-0.1, 0.0]).double()
    return network


@torch.no_grad()
def with_copies(network, groups):
    """``network``, in place: all that the third channel of a group owns is what the fourth one owns."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for group in groups:
        for member in group.producers if group.size == CHANNELS and not group.frozen else ():
            rows = tensors[member.tensor].index_select(member.dim, member.index[ORIGINAL])
            tensors[member.tensor].index_copy_(member.dim, member.index[COPY], rows)
    return network


def merged(network, example):
    """Folded, with a copy in every group; the same without dead channels and copies; which layers lost dead ones."""
    folded = fold_batchnorm(network, example).network
    groups = couple(folded, example)
    with_copies(folded, groups)
    found = {group.name: dead_channels(folded, group) for group in groups if not group.frozen}
    plan = make_plan(groups, {name: _places(dead) for name, dead in found.items() if len(dead) == CHANNELS})
    return folded, apply_plan(folded, plan), {name for name, dead in found.items() if dead.any()}


def _places(dead):
    """Where each channel goes: -1 if it is dead, and the copy to its original."""
    becomes = [ORIGINAL if channel == COPY else channel for channel in range(len(dead))]
    kept = sorted({channel for channel in becomes if not dead[channel]})
    return [-1 if dead[channel] else kept.index(channel) for channel in becomes]


def differing(network, other, names, tolerance=1e-6):
    """The names of the branches whose outputs differ."""
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        triples = list(zip(names, network(x), other(x), strict=True))
    return [
        name
        for name, one, two in triples
        if not torch.allclose(one, two, rtol=tolerance, atol=tolerance, equal_nan=True)
    ]


@pytest.mark.parametrize(
    ("seed", "share"), [(0, 8), *(pytest.param(k, 1, marks=pytest.mark.slow) for k in range(1, 9))]
)
def test_removing_dead_channels_and_merging_equal_ones_is_exact_behind_every_operation(seed, share):
    torch.manual_seed(seed)
    drawn = cases(random.Random(seed))[::share]
    names, network, example = (
        [name for name, *_ in drawn],
        network_of(drawn),
        torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64),
    )
    whole, smaller, lost = merged(network, example)
    assert differing(whole, smaller, names) == []
    dead = {name for k, name in enumerate(names) if f"branches.{k}.made.0" in lost}
    assert len(dead) > len(set(names)) / 4
    assert not {"sigmoid", "exp", "cos", "softmax", "ones_like", "layer_norm"} & dead
    if share == 1:
        assert {"relu", "cat", "max_pool2d", "flatten", "mean", "repeat", "sum", "view", "where"} <= dead
        assert set(RULES) - {operation(node) for node in trace(network, example).fx.nodes} <= NEVER_TRACED


def test_what_is_proved_has_a_rule():
    assert {*ALWAYS, *PROOFS} <= set(RULES)
    assert not ALWAYS & set(PROOFS)


MOVED = (
    (nn.ConstantPad2d(1, 1.0), None),
    (lambda h: h + torch.tensor(1.0), None),
    *((lambda h, t: h + t, nn.Parameter(torch.ones(shape))) for shape in SHAPES),
    (lambda h: torch.maximum(h, torch.tensor(0.5)), None),
    (lambda h: F.hardtanh(h, 0.5, 2), None),
    (lambda h: F.threshold(h, 0.5, 2), None),
    (lambda h: h.masked_fill(h < 0.1, 1.0), None),
)


def test_what_moves_zero_keeps_dead_filters_where_they_are():
    torch.manual_seed(0)
    network, example = network_of([("", *case) for case in MOVED]), torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    result = merge_neurons(network, example=example)
    assert differing(network, result.network, range(len(MOVED))) == []
    assert not result.layers["dead"].any()


def test_what_keeps_zero_loses_dead_filters():
    torch.manual_seed(0)
    cases = [nn.ConstantPad2d(1, 0.0), lambda h: h * 2 + 0, lambda h: h.clamp(-1, 2), lambda h: h.float().double()]
    network, example = (
        network_of([("", case, None) for case in cases]),
        torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64),
    )
    result = red_plus_plus(network, rule="kde", max_error=1e-4, correct_bias="none", example=example)
    made = result.layers[result.layers["layer"].str.contains("made")]
    assert (made["channels_after"] == CHANNELS - len(DEAD)).all()
    assert differing(network, result.network, range(len(cases)), tolerance=1e-2) == []
