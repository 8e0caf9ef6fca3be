"""Plain layers of torch.nn as plain data: what a recipe records of them, and how they are built again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_LAYERS = ("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
_PADS = {"zeros": "ZeroPad", "constant": "ConstantPad", "reflect": "ReflectionPad", "replicate": "ReplicationPad"}
_PADS |= {"circular": "CircularPad"}
_PAD_CLASSES = {f"{name}{axes}d" for name in _PADS.values() for axes in (1, 2, 3)}
_OPTIONS = {
    "in_features",
    "out_features",
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
}
_OPTIONS |= {"output_padding", "groups", "bias", "padding_mode"}

# {"class": "Conv2d", "options": {...}}, and for padding before it {"pad": {"class": "ZeroPad2d", "options": {...}}}.
Spec = dict[str, Any]


def spec_of(layer: nn.Module) -> Spec:
    """The class and sizes of a conv or linear layer with PyTorch's own forward."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        options = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": bias}
        return {"class": "Linear", "options": options}
    assert isinstance(layer, _ConvNd)
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    names += ["output_padding"] if layer.transposed else []
    options = {name: _plain(getattr(layer, name)) for name in names} | {"bias": bias}
    return {"class": f"Conv{'Transpose' if layer.transposed else ''}{len(layer.kernel_size)}d", "options": options}


def spec_of_call(name: str, weight: Tensor, options: dict[str, Any], pad: Sequence[int], mode: str) -> Spec:
    """The class and sizes of the layer that makes one call of ``torch.nn.functional``.

    Arguments:
        name: of the function.
        weight: as the function takes it.
        options: the others of the function.
        pad: the padding before the call, the last axis first, as ``torch.nn.functional.pad`` takes it; ``mode`` too.
    """
    if name == "linear":
        return {"class": "Linear", "options": {"in_features": weight.shape[1], "out_features": weight.shape[0]}}
    axes, transposed, groups = weight.ndim - 2, "transpose" in name, options.get("groups", 1)
    many, few = (groups, 1) if not transposed else (1, groups)
    sizes = {"in_channels": many * weight.shape[1 - transposed], "out_channels": few * weight.shape[int(transposed)]}
    own = {key: _each(options.get(key, default), axes) for key, default in (("stride", 1), ("padding", 0))}
    own |= {"dilation": _each(options.get("dilation", 1), axes)}
    own |= {"output_padding": _each(options.get("output_padding", 0), axes)} if transposed else {}
    pad = [*pad, *[0] * (2 * axes - len(pad))]
    spec: Spec = {"class": f"Conv{'Transpose' if transposed else ''}{axes}d"}
    if mode == "zeros" and pad[::2] == pad[1::2] and not transposed and not isinstance(own["padding"], str):
        own["padding"] = [one + other for one, other in zip(own["padding"], pad[::-2], strict=True)]
    elif any(pad):
        spec["pad"] = _pad(mode, axes, pad)
    return spec | {"options": {**sizes, "kernel_size": list(weight.shape[2:]), **own, "groups": groups}}


def _pad(mode: str, axes: int, pad: list[int]) -> Spec:
    kind, _, value = mode.partition(" ")
    options: dict[str, Any] = {"padding": pad} | ({"value": float(value)} if value else {})
    return {"class": f"{_PADS[kind]}{axes}d", "options": options}


def build(spec: Spec, like: Tensor) -> nn.Module:
    """A layer of torch.nn, behind a padding if there is one; its values mean nothing yet.

    Arguments:
        like: a tensor of its dtype and device.

    Raises:
        ValueError: a class that is none of torch.nn's layers and paddings.
        TypeError: options that the class doesn't take.
    """
    pads = [spec["pad"]] if "pad" in spec else []
    strange = set(spec["options"]) - _OPTIONS if "options" in spec else {"options"}
    if spec["class"] not in _LAYERS or any(pad["class"] not in _PAD_CLASSES for pad in pads) or strange:
        raise ValueError(f"{spec['class']} is no plain layer")
    with torch.device("meta"):  # a file may ask for any size: no memory before the values are there
        layer = getattr(nn, spec["class"])(**_tuples(spec["options"]), dtype=like.dtype)
    layer = layer if like.is_meta else layer.to_empty(device=like.device)
    return (
        nn.Sequential(*(getattr(nn, pad["class"])(**_tuples(pad["options"])) for pad in pads), layer) if pads else layer
    )


def layer_in(made: nn.Module) -> nn.Module:
    """The conv or linear layer of what ``build`` made."""
    return made[-1] if isinstance(made, nn.Sequential) else made


def describe(spec: Spec) -> str:
    """Its classes, in the order in which they run."""
    return ", ".join([*([spec["pad"]["class"]] if "pad" in spec else []), spec["class"]])


def _each(value: Any, axes: int) -> Any:
    if isinstance(value, str):
        return value
    values = list(value) if isinstance(value, Sequence) else [value]
    return [int(number) for number in (values * axes if len(values) == 1 else values)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
