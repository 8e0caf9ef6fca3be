"""Networks as people bring them, odd ones too, with batch norms that fit; and what a file in bytes computes inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from nets import Net
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from redlab.network.recipe import Recipe

SHAPE = (3, 16, 16)


def smooth(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> torch.Tensor:
    """(count, *shape): random fields, coarse and fine, of mean 0 and variance 1."""
    made = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, shape[0], *[4] * (len(shape) - 1), generator=made)
    mode = {2: "linear", 3: "bilinear", 4: "trilinear"}[len(shape)]
    fields = F.interpolate(coarse, shape[1:], mode=mode) + 0.3 * torch.randn(count, *shape, generator=made)
    return fields / fields.std()


@torch.no_grad()
def settled(network: nn.Module, *images: torch.Tensor, mean: float | None = 0.0) -> nn.Module:
    """The network itself in eval mode; its batch norms fit these images. Stamped with the mean of its input."""
    made = torch.Generator().manual_seed(5)
    for norm in (own for own in network.modules() if isinstance(own, _BatchNorm)):
        norm.weight.uniform_(0.6, 1.4, generator=made)
        norm.bias.normal_(0, 0.3, generator=made)
        norm.momentum, norm.training = 1.0, True
    network(*images)
    network.redlab = Recipe(input_mean=None if mean is None else (mean,))
    return network.eval()


def conv(into: int, out: int, size: int = 3, act: nn.Module | None = None, axes: int = 2, **options) -> nn.Sequential:
    """A convolution, its batch norm, and an activation: ReLU if none is given; ``nn.Identity()`` for none."""
    kind, norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"BatchNorm{axes}d")
    layer = kind(into, out, size, bias=False, **{"padding": size // 2, **options})
    return nn.Sequential(layer, norm(out), nn.ReLU() if act is None else act)


def chain(*body: nn.Module, channels: int = 16, axes: int = 2) -> nn.Sequential:
    """The body between a first convolution to 16 channels and a classifier."""
    pool = getattr(nn, f"AdaptiveAvgPool{axes}d")(1)
    return nn.Sequential(conv(3, 16, axes=axes), *body, pool, nn.Flatten(), nn.Linear(channels, 10))


def linear(into: int = 16, out: int = 16) -> nn.Sequential:
    return conv(into, out, act=nn.Identity())


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.squeeze, self.excite, self.gate = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1), gate

    def forward(self, x):
        return x * self.gate(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class ConvNeXt(nn.Module):
    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.up = nn.LayerNorm(channels), nn.Linear(channels, 4 * channels)
        self.down, self.scale = nn.Linear(4 * channels, channels), nn.Parameter(torch.rand(channels))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


def residual(act: nn.Module) -> Net:
    return Net(lambda self, x: self.act(x + self.b(self.a(x))), a=conv(16, 16, act=act), b=linear(), act=act)


def twice() -> Net:
    """What a convolution puts out is read as it is, and behind a ReLU."""
    return Net(lambda self, x: self.b(F.relu(y := self.a(x))) + self.c(y), a=linear(), b=linear(), c=linear())


def scaled() -> Net:
    """Branches of which one is 100 times larger."""
    return Net(lambda self, x: torch.cat([self.a(x), 100 * self.b(x)], 1), a=conv(16, 8), b=conv(16, 8, 1))


def padded() -> Net:
    """A shortcut without weights: every second pixel, and channels of zeros."""

    def run(self, x):
        return F.relu(self.a(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))

    return Net(run, a=conv(16, 32, act=nn.Identity(), stride=2))


def shared() -> Net:
    """One layer, called on values of which the second are 20 times larger."""

    def run(self, x):
        return F.relu(self.second(self.layer(20 * F.relu(self.first(self.layer(x))))))

    return Net(run, layer=nn.Conv2d(16, 16, 3, padding=1), first=nn.BatchNorm2d(16), second=nn.BatchNorm2d(16))


def tied_bias() -> Net:
    """Two layers of one bias: a few rows of the first do nothing else, and the second reads larger values."""
    network = Net(
        lambda self, x: F.relu(self.p(x)) + F.relu(self.q(100 * self.a(x))),
        a=conv(16, 16), p=nn.Conv2d(16, 16, 1), q=nn.Conv2d(16, 16, 1),
    )  # fmt: skip
    network.q.bias = network.p.bias
    network.p.weight.data[:4] *= 1e-8
    return network


def tied_weight() -> Net:
    """Two layers of one weight, of which only the second has a large bias."""
    network = Net(
        lambda self, x: F.relu(self.p(x)) + F.relu(self.q(100 * self.a(x))),
        a=conv(16, 16), p=nn.Conv2d(16, 16, 1), q=nn.Conv2d(16, 16, 1),
    )  # fmt: skip
    network.q.weight = network.p.weight
    network.q.bias.data += 50
    return network


def clipped(low: float, high: float) -> Net:
    return Net(lambda self, x: self.b(self.a(x).clamp(low, high)), a=linear(), b=conv(16, 16))


def equal(value: float) -> nn.Sequential:
    """A layer of weights that are all the same, and a second that is its copy."""
    layers = [conv(16, 16), conv(16, 16)]
    for layer in layers:
        nn.init.constant_(layer[0].weight, value)
    return nn.Sequential(*layers)


def dead_rows() -> nn.Sequential:
    """Half of the rows have weights of 1e-9, so that they add their bias alone."""
    layer = nn.Conv2d(16, 16, 3, padding=1)
    layer.weight.data[::2] *= 1e-9
    return nn.Sequential(layer, nn.ReLU(), conv(16, 16))


def huge(factor: float) -> Net:
    return Net(lambda self, x: self.a(factor * x), a=conv(16, 16))


def glu() -> nn.Sequential:
    return nn.Sequential(linear(16, 32), nn.GLU(1), conv(16, 16))


def normed(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), norm, nn.ReLU(), conv(16, 16))


def upsampled() -> nn.Sequential:
    return nn.Sequential(conv(16, 16, stride=2), nn.Upsample(scale_factor=2.0, mode="nearest"), conv(16, 16))


def transposed(groups: int) -> nn.Sequential:
    layer = nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=groups)
    return nn.Sequential(layer, nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16))


def channels_last() -> Net:
    """Linear layers of a picture's channels: products of matrices with a sum behind."""

    def run(self, x):
        y = self.b(F.relu(self.a(x.permute(0, 2, 3, 1))))
        return self.c(y.permute(0, 3, 1, 2))

    return Net(run, a=nn.Linear(16, 16), b=nn.Linear(16, 16), c=conv(16, 16))


def shuffled() -> Net:
    """Half of the channels go on as they are, and the halves are shuffled."""

    def run(self, x):
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.a(right)], 1)
        return self.b(y.unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2))

    return Net(run, a=conv(8, 8), b=conv(16, 16))


BODIES: dict[str, Callable[[], nn.Module]] = {
    "relu6": lambda: residual(nn.ReLU6()),
    "silu": lambda: residual(nn.SiLU()),
    "hardswish": lambda: residual(nn.Hardswish()),
    "leaky": lambda: residual(nn.LeakyReLU()),
    "gelu": lambda: residual(nn.GELU()),
    "sigmoid gate": lambda: Gate(nn.Sigmoid()),
    "hard gate": lambda: Gate(nn.Hardsigmoid()),
    "twice": twice,
    "scaled": scaled,
    "shared": shared,
    "tied bias": tied_bias,
    "tied weight": tied_weight,
    "clip without zero": lambda: clipped(0.5, 2.0),
    "clip below zero": lambda: clipped(-3.0, -0.25),
    "narrow clip": lambda: clipped(-0.25, 0.5),
    "equal": lambda: equal(0.3),
    "dead rows": dead_rows,
    "huge": lambda: huge(1e6),
    "average": lambda: nn.Sequential(nn.AvgPool2d(3, 2, 1), conv(16, 16)),
    "maximum": lambda: nn.Sequential(linear(), nn.MaxPool2d(3, 2, 1), conv(16, 16)),
    "grouped": lambda: conv(16, 16, groups=4),
    "depthwise": lambda: nn.Sequential(conv(16, 32, groups=16), conv(32, 16, 1)),
    "transposed": lambda: transposed(1),
    "transposed in groups": lambda: transposed(4),
    "convnext": ConvNeXt,
    "glu": glu,
    "instance norm": lambda: normed(nn.InstanceNorm2d(16, affine=True)),
    "group norm": lambda: normed(nn.GroupNorm(4, 16)),
    "upsampled": upsampled,
    "channels last": channels_last,
    "shuffled": shuffled,
    "divided": lambda: Net(lambda self, x: self.a(x) / (1 + self.b(x)), a=conv(16, 16), b=conv(16, 16)),
    "border": lambda: Net(lambda self, x: self.a(F.pad(x, (1, 1, 1, 1), value=20.0)), a=conv(16, 16, padding=0)),
    "reflected": lambda: Net(lambda self, x: self.a(F.pad(x, (1, 1, 1, 1), mode="reflect")), a=conv(16, 16, padding=0)),
    "added": lambda: Net(lambda self, x: self.b(self.a(x) + 3.0) * 0.5 - 1, a=conv(16, 16), b=conv(16, 16)),
    "squared": lambda: Net(lambda self, x: self.a(x**2), a=conv(16, 16)),
    "larger": lambda: Net(lambda self, x: torch.maximum(self.a(x), self.b(x)), a=linear(), b=linear()),
}  # fmt: skip


def odd(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A classifier with this body, and 24 images."""
    torch.manual_seed(0)
    network = chain(BODIES[name]())
    return settled(network, smooth(48)), smooth(24, seed=9)


def inside(float_file: Path, file: Path, images: torch.Tensor) -> dict[str, tuple]:
    """By name, each activation that is kept in bytes: its values in float32, those of the bytes, and their ends."""
    import onnx
    from onnx.numpy_helper import to_array

    exact, rounded = onnx.load(float_file), onnx.load(file)
    onnx.checker.check_model(rounded, full_check=True)
    constants = {tensor.name: to_array(tensor) for tensor in rounded.graph.initializer}
    own = {name for node in exact.graph.node for name in node.output}
    turned = {node.input[0]: node.output[0] for node in rounded.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in (node for node in rounded.graph.node if node.op_type == "QuantizeLinear"):
        name = node.input[0].removesuffix("_QuantizeLinear_Input")
        if name in own and node.output[0] in turned:
            step, zero = float(constants[node.input[1]]), int(constants[node.input[2]])
            found[name] = (turned[node.output[0]], (-zero * step, (255 - zero) * step))
    values = _outputs(exact, list(found), images)
    bytes_ = _outputs(rounded, [name for name, _ in found.values()], images)
    return {name: (values[name], bytes_[made], ends) for name, (made, ends) in found.items()}


def _outputs(model, names: list[str], images: torch.Tensor) -> dict[str, np.ndarray]:
    """The values of these names, computed as the file says, node by node."""
    import onnx
    import onnxruntime

    given = {answer.name for answer in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feeds = {model.graph.input[0].name: images.numpy()}
    return dict(zip(names, session.run(names, feeds), strict=True)) if names else {}
