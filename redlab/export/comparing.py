"""What a file computes beside the network that it was made of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from redlab.network.evaluating import evaluating
from redlab.network.example import Inputs
from redlab.network.onnx_network import OnnxNetwork


def compare(network: nn.Module, inputs: Inputs, path: Path) -> tuple[float, float]:
    """The largest difference of the answers over the largest magnitude; and the share whose arg max is the same.

    NaN in the file's answers alone is an infinite difference. The share is NaN where the first answer has one axis.
    """
    with evaluating(network):
        expected = _tensors(inputs.run(network))
    found = _tensors(OnnxNetwork(path)(*inputs.args, **inputs.kwargs))
    pairs = list(zip(expected, found, strict=False))
    differences = [_difference(*pair) for pair in pairs if pair[0].is_floating_point()]
    return max(differences, default=0.0), _agreement(*pairs[0]) if pairs else float("nan")


def rounding(network: nn.Module, inputs: Inputs) -> float:
    """How far float32 alone takes the network's own answers from those in float64, as ``compare`` counts."""
    exact = copy.deepcopy(network).double()
    with evaluating(network), evaluating(exact):
        own, its = _tensors(inputs.run(network)), _tensors(inputs.to(exact).run(exact))
    pairs = zip(its, own, strict=True)
    return max((_difference(*pair) for pair in pairs if pair[0].is_floating_point()), default=0.0)


def _tensors(answer: Any) -> list[Tensor]:
    answer = dict(answer) if hasattr(answer, "keys") else answer
    return [leaf.detach() for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]


def _difference(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    own, other = expected.double(), found.double()
    same = (own == other) | (own.isnan() & other.isnan())
    apart = torch.where(same, 0.0, (own - other).abs()).nan_to_num(nan=float("inf"))
    scale = own[own.isfinite()].abs().max() if own.isfinite().any() else own.new_ones(())
    return float(apart.max() / scale.clamp_min(1e-12)) if apart.numel() else 0.0


def _agreement(expected: Tensor, found: Tensor) -> float:
    if expected.ndim < 2 or expected.shape != found.shape:
        return float("nan")
    return float((expected.argmax(1) == found.argmax(1)).double().mean())
