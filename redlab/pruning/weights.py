"""Pruning of single weights: they become zero, and the network keeps its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from torch import Tensor, nn

from redlab.network.layers import Layer, copy_network, unwrap, weight_layers
from redlab.network.recipe import append_step
from redlab.network.result import Result, report_short, with_others
from redlab.network.row_scales import count_codes
from redlab.options import check_one_of, count_of, plain_options
from redlab.pruning.scores import Scores
from redlab.pruning.selection import SCOPES, check_share, lowest

_COLUMNS = ["layer", "kind", "weights", "zeros", "distinct", "error"]
_COLUMNS += ["parameters_before", "parameters_after", "skipped"]


@plain_options
@torch.inference_mode(False)
@torch.no_grad()
def prune_weights(network: nn.Module, scores: Scores, ratio: float, scope: str = "global") -> Result:
    """Set the weights of lowest scores to zero: exactly the share asked for, ties in the order of the weights.

    Arguments:
        network: left untouched; the one that ``scores`` are of.
        ratio: the share of the scored weights to set to zero, in [0, 1], rounded down.
        scope: "global", one order over all layers; "layer", the same share of each.

    Returns:
        ``layers`` has a row per conv and linear layer: layer, kind, weights, the ``zeros`` among them, the ``distinct``
        values left, ``error`` (relative L2), parameters before and after (those that are not zero), ``skipped``.

    Raises:
        ValueError: a share out of range, an unknown scope, scores of channels or of another network.

    Example:
        >>> network = load_network("digits/mlp")
        >>> pruned = prune_weights(network, score_weights(network, "magnitude"), ratio=0.9)
        >>> pruned.layers[["layer", "weights", "zeros"]]
                     layer  weights  zeros
        0  hidden.0.linear    16384  13117
        1  hidden.1.linear    32768  31625
        2       classifier     1280    646
    """
    network = unwrap(network)
    scores.check_of("weights")
    check_share("ratio", ratio)
    check_one_of("scope", scope, SCOPES)
    zeros = _zeros(scores, ratio, scope)
    pruned = copy_network(network)
    _check_layers(pruned, scores)
    scores.check_network(network)
    for layer in weight_layers(pruned):
        if layer.name in zeros:
            places = np.unravel_index(zeros[layer.name], layer.weight.shape)  # whatever its strides
            layer.weight[tuple(torch.from_numpy(place).to(layer.weight.device) for place in places)] = 0
    step = {"step": "prune_weights"}
    append_step(pruned, step)
    options = {"criterion": scores.criterion, **scores.options, "ratio": ratio, "scope": scope}
    achieved = {"ratio": round(sum(map(len, zeros.values())) / max(len(scores), 1), 6)}
    table = with_others(weight_table(network, pruned, scores.skipped), network, pruned)
    short = report_short("weights", ratio, achieved["ratio"] if len(scores) else 0.0, scores.skipped)
    return Result(pruned, table, step | {"options": options, "achieved": achieved} | short)


def _zeros(scores: Scores, ratio: float, scope: str) -> dict[str, ndarray]:
    """By layer the flat indices of the weights that become zero."""
    if scope == "layer":
        return {name: lowest(values, count_of(ratio, values.size)) for name, values in scores.values.items()}
    starts = np.cumsum([0, *(values.size for values in scores.values.values())])
    values = np.concatenate([np.zeros(0), *(values.ravel() for values in scores.values.values())])
    chosen = np.sort(lowest(values, count_of(ratio, len(scores))))
    places = np.searchsorted(chosen, starts)
    return {name: chosen[places[k] : places[k + 1]] - starts[k] for k, name in enumerate(scores.values)}


def _check_layers(network: nn.Module, scores: Scores) -> None:
    shapes = {layer.name: tuple(layer.weight.shape) for layer in weight_layers(network) if not layer.lazy}
    for name, values in scores.values.items():
        if shapes.get(name) != values.shape:
            raise ValueError(f"the scores are of another network: {name} is {shapes.get(name)}, not {values.shape}")


def weight_table(before: nn.Module, after: nn.Module, skipped: Mapping[str, str]) -> pd.DataFrame:
    """What setting weights to zero did to each layer: the table of every step that does so."""
    pairs = zip(weight_layers(before), weight_layers(after), strict=True)
    rows = [_weight_row(old, new, skipped.get(old.name, "")) for old, new in pairs]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _weight_row(old: Layer, new: Layer, skipped: str) -> dict[str, Any]:
    before, after = (torch.zeros(0) if layer.lazy else layer.weight for layer in (old, new))
    length = float(before.double().norm())
    return {
        "layer": old.name,
        "kind": old.kind,
        "weights": before.numel(),
        "zeros": int((after == 0).sum()),
        "distinct": count_codes(new)["distinct"],
        "error": float((after.double() - before.double()).norm()) / length if length else 0.0,
        "parameters_before": int((before != 0).sum()),
        "parameters_after": int((after != 0).sum()),
        "skipped": skipped,
    }


def hold_zeros(pruned: nn.Module) -> Callable[..., None]:
    """A hook for ``train(on_batch=...)``: the zeros in the conv and linear weights of ``pruned`` become zero again.

    Call it once more on the trained network, for the last minibatch.
    """
    kept = {layer.name: layer.weight.detach() != 0 for layer in weight_layers(pruned) if not layer.skipped}

    @torch.no_grad()
    def hold(network: nn.Module, _: int = 0) -> None:
        for layer in weight_layers(network):
            if layer.name in kept:
                layer.weight.mul_(kept[layer.name])

    return hold


def sparse_bytes(network: nn.Module) -> int:
    """How many bytes the tensors of ``network`` take without their zeros (our convention).

    A conv or linear weight takes one bit a place and its non-zero numbers, or all its numbers, whichever is less. Other
    tensors take all their numbers. A tensor with two names counts once.

    Example:
        >>> network = load_network("digits/mlp")
        >>> pruned = prune_weights(network, score_weights(network, "magnitude"), ratio=0.9).network
        >>> sparse_bytes(network), sparse_bytes(pruned)
        (207928, 32680)
    """
    weights = {id(layer.weight) for layer in weight_layers(network) if not layer.lazy}
    tensors = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    return sum(_sparse(tensor) if key in weights else _dense(tensor) for key, tensor in tensors.items())


def _dense(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _sparse(tensor: Tensor) -> int:
    return min(_dense(tensor), -(-tensor.numel() // 8) + int((tensor != 0).sum()) * tensor.element_size())
