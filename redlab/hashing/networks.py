"""Hash every conv and linear weight of a network: see ``weights`` for one tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from redlab.hashing.chance import Draw, RandomTwin
from redlab.hashing.rules import Rule
from redlab.hashing.vector import as_vector
from redlab.hashing.weights import as_numpy, hash_vector, relative_error
from redlab.network.layers import Layer, copy_network, count_distinct, is_batch_norm, unwrap, weight_layers
from redlab.network.recipe import append_step, recipe_of
from redlab.network.result import Result, of_layers, report_unfolded, with_others
from redlab.options import plain_options
from redlab.progress import progress


@plain_options
@torch.inference_mode(False)  # whatever the caller's mode: the new network may be trained
def hash_network(
    network: nn.Module,
    rule: str = "kde",
    bandwidth: str | float = "silverman/8",
    max_error: float | dict[str, float] | None = None,
    levels: int | None = None,
    contrast: float = 0.0,
    representative: str = "mode",
    force: bool = False,
    rounding: str = "nearest",
) -> Result:
    """Hash every conv and linear weight of a copy of ``network``; biases and norms stay.

    Batch norm is not folded: call ``prepare`` first, as ``red`` does. Arguments are those of ``hash_weights``;
    ``max_error`` may also be a dict by layer name: 0 leaves a layer as it is, and layers that are not in it follow
    ``bandwidth``. The defaults are those of ``hash_weights``, whose docstring says why.

    Returns:
        ``layers`` holds layer, kind, weights, distinct_before, distinct, modes, error (relative L2) and skipped;
        ``plan`` the options and each layer's codebook.

    Warns:
        batch norms are there and nothing was folded yet. ``plan["unfolded"]`` says it too.

    Raises:
        ValueError: NaN or inf weights, with the layer's name; a max_error for a layer that does not exist.

    Example:
        >>> result = hash_network(load_network("digits/mlp"))
        >>> result.layers[["layer", "weights", "distinct_before", "distinct"]]
                     layer  weights  distinct_before  distinct
        0  hidden.0.linear    16384            16382        88
        1  hidden.1.linear    32768            32760       100
        2       classifier     1280             1280        39
    """
    options = {name: value for name, value in locals().items() if name != "network"}
    result = hash_layers(network, **options)
    unfolded = {} if _is_prepared(network) else report_unfolded(_norms(unwrap(network)))
    return replace(result, plan=result.plan | unfolded)


def _is_prepared(network: nn.Module) -> bool:
    """Whether its batch norms were folded as far as they can be."""
    recipe = recipe_of(unwrap(network))
    return recipe is not None and any(step.get("step") in ("fold", "prepare") for step in recipe.steps)


def _norms(network: nn.Module) -> list[str]:
    return [path for path, module in network.named_modules() if is_batch_norm(module)]


@plain_options
@torch.inference_mode(False)
def hash_layers(
    network: nn.Module,
    rule: str = "kde",
    bandwidth: str | float = "silverman/8",
    max_error: float | dict[str, float] | None = None,
    levels: int | None = None,
    contrast: float = 0.0,
    representative: str = "mode",
    force: bool = False,
    rounding: str = "nearest",
) -> Result:
    """``hash_network`` of a network that was prepared: nothing is said of batch norms that are left."""
    network = unwrap(network)
    bounds = max_error if isinstance(max_error, dict) else {}
    bound = None if isinstance(max_error, dict) else max_error
    default = Rule(rule, bandwidth, bound, levels, contrast, representative, rounding)
    hashed = copy_network(network)
    layers = list(weight_layers(hashed))
    _check_bounds(bounds, [layer.name for layer in layers])
    rows, codebooks, draws = [], {}, {}
    for layer in progress(layers, "hashing"):
        own = replace(default, max_error=bounds[layer.name]) if bounds.get(layer.name) else default
        if skipped := layer.skipped or ("its max_error is 0" if bounds.get(layer.name) == 0 else ""):
            rows.append(_left(layer, skipped))
            continue
        row, codebook, draw = _hash_layer(layer, own, force)
        rows.append(row)
        codebooks[layer.name] = codebook.tolist()
        if not row["skipped"]:
            draws[layer.name] = draw
    options = default.options() | ({"max_error": bounds} if bounds else {}) | ({"force": True} if force else {})
    plan = {"step": "hash", "options": options, "codebooks": codebooks}
    append_step(hashed, plan)
    table = with_others(pd.DataFrame(rows, columns=_COLUMNS), network, hashed)
    return Result(hashed, table, plan, RandomTwin(draws, table))


def _check_bounds(bounds: dict[str, float], layers: list[str]) -> None:
    if unknown := set(bounds) - set(layers):
        known = ", ".join(layers)
        raise ValueError(f"max_error names layers that do not exist: {', '.join(sorted(unknown))}; there are {known}")
    for name, bound in bounds.items():
        if not 0 <= bound < np.inf:  # NaN too
            right = "a positive number (0.05 is 5 %), or 0 to leave a layer alone"
            raise ValueError(f"max_error must be {right}, not {bound} for {name}")


_COLUMNS = ["layer", "kind", "weights", "distinct_before", "distinct", "modes", "error", "skipped"]


def _left(layer: Layer, skipped: str) -> dict[str, Any]:
    """The row of a layer that stays as it is."""
    distinct = count_distinct(layer.weight) if layer.size else 0
    sizes = {"weights": layer.size, "distinct_before": distinct, "distinct": distinct, "modes": 0, "error": 0.0}
    return {"layer": layer.name, "kind": layer.kind, **sizes, "skipped": skipped}


def _hash_layer(layer: Layer, rule: Rule, force: bool) -> tuple[dict[str, Any], torch.Tensor, Draw]:
    """Hash one layer in place: its row of the table, its codebook, and what a random twin of it needs."""
    rows = _rows(layer)
    weights = rows.reshape(-1, *rows.shape[-layer.weight.ndim + 1 :])
    try:
        vector = as_vector(weights)
    except ValueError as error:
        raise ValueError(f"layer {layer.name}: {error}") from None
    hashed = hash_vector(vector, weights, rule, force)
    before = vector.whole(vector.weights)  # a view of the layer's own memory: compare before it is overwritten
    row = {
        "layer": layer.name,
        "kind": layer.kind,
        "weights": before.size,
        "distinct_before": vector.distinct + (vector.zeros > 0),
        "distinct": len(hashed.codebook),
        "modes": hashed.modes,
        "error": relative_error(before, as_numpy(hashed.values).ravel()),
        "skipped": hashed.unchanged,
    }
    draw = Draw.like(before, layer.weight.dtype, rule)
    with torch.no_grad():
        rows.copy_(torch.as_tensor(hashed.values).reshape(rows.shape))
    return row, torch.as_tensor(hashed.codebook), draw


def _rows(layer: Layer) -> torch.Tensor:
    """The weight as (outputs, inputs, kernel), which balanced rounding needs; a view.

    A transposed convolution has its outputs along the second axis: its view is (groups, outputs, inputs, kernel).
    """
    if not getattr(layer.module, "transposed", False):
        return layer.weight
    return layer.weight.unflatten(0, (layer.module.groups, -1)).transpose(1, 2)


def compare_with_random(network: nn.Module, **settings: Any) -> pd.DataFrame:
    """How many distinct values hashing leaves of each layer, and of Gaussian random weights of the same size.

    Few values are left of any large sample. What is left of random weights is the chance level: only the difference
    says something about training.

    Arguments:
        settings: those of ``hash_network``.

    Returns:
        Two rows a conv or linear layer: ``layer``, ``kind``, ``weights``, ``drawn`` ("trained" for the network as it
        was passed in, "random" for its twin), ``distinct_before`` and ``distinct`` after hashing, and ``skipped``: why
        hashing leaves the layer alone (its twin then counts as the layer does), or "".
        ``attrs["share"]`` has what is left of the distinct values of all layers, by ``drawn``.

    Example:
        >>> frame = compare_with_random(load_network("digits/mlp"))
        >>> frame[["layer", "drawn", "weights", "distinct"]]
                     layer    drawn  weights  distinct
        0  hidden.0.linear  trained    16384        88
        1  hidden.1.linear  trained    32768       100
        2       classifier  trained     1280        39
        3  hidden.0.linear   random    16384        83
        4  hidden.1.linear   random    32768        99
        5       classifier   random     1280        45
        >>> {drawn: f"{share:.2%}" for drawn, share in frame.attrs["share"].items()}
        {'trained': '0.45%', 'random': '0.45%'}
    """
    result = hash_layers(network, **settings)
    twin = result.chance.layers
    own = of_layers(result.layers)[twin.columns]
    frame = pd.concat({"trained": own, "random": twin}, names=["drawn"]).reset_index("drawn").reset_index(drop=True)
    sums = frame.groupby("drawn", sort=False)[["distinct_before", "distinct"]].sum()
    frame = frame[["layer", "kind", "weights", "drawn", "distinct_before", "distinct", "skipped"]]
    frame.attrs["share"] = (sums["distinct"] / sums["distinct_before"]).to_dict()
    return frame
