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
from redlab.hashing.weights import Hashed, as_numpy, hash_vector, left_alone, relative_error, why_unchanged
from redlab.network.layers import (
    Layer,
    by_outputs,
    codes_of,
    copy_network,
    count_distinct,
    is_batch_norm,
    out_scale,
    rows_of,
    unwrap,
    weight_layers,
)
from redlab.network.recipe import append_step, recipe_of
from redlab.network.result import Result, of_layers, report_unfolded, with_others
from redlab.options import fitted, plain_options
from redlab.progress import progress


@plain_options
@torch.inference_mode(False)  # whatever the caller's mode: the new network may be trained
def hash_network(
    network: nn.Module,
    rule: str = "kde",
    bandwidth: str | float = "silverman/8",
    max_error: float | dict[str, float] | None = None,
    levels: int | dict[str, int] | None = None,
    contrast: float = 0.0,
    representative: str = "mode",
    force: bool = False,
    rounding: str = "nearest",
    scale: str | dict[str, str] = "none",
    clip: str | dict[str, str] = "max",
) -> Result:
    """Hash every conv and linear weight of a copy of ``network``; biases and norms stay.

    Batch norm is not folded: call ``prepare`` first, as ``red`` does. Arguments are those of ``hash_weights``;
    ``max_error``, ``levels``, ``scale`` and ``clip`` may also be dicts by layer name. A ``max_error`` of 0 leaves a
    layer as it is. Layers that are not in a dict follow the default. The defaults are those of ``hash_weights``,
    whose docstring says why.

    With ``scale="row"`` a hashed layer keeps the scales of its rows, one an output, in the buffer ``out_scale`` beside
    ``weight``. The weight over its scales is a code; a layer whose codes are hashed already is left as it is.

    Returns:
        ``layers`` holds layer, kind, weights, distinct_before, distinct, modes, error (relative L2), scales and
        skipped; ``plan`` the options and each layer's codebook. ``distinct`` counts codes where rows have scales, and
        ``scales`` the rows whose scale is not 1.

    Warns:
        batch norms are there and nothing was folded yet. ``plan["unfolded"]`` says it too.

    Raises:
        ValueError: NaN or inf weights, with the layer's name; an option for a layer that does not exist.

    Example:
        >>> result = hash_network(load_network("digits/mlp"))
        >>> result.layers[["layer", "weights", "distinct_before", "distinct"]]
                     layer  weights  distinct_before  distinct
        0  hidden.0.linear    16384            16382        88
        1  hidden.1.linear    32768            32760       100
        2       classifier     1280             1280        39
    """
    result = hash_layers(**locals())
    unfolded = {} if _is_prepared(network) else report_unfolded(_norms(unwrap(network)))
    return replace(result, plan=result.plan | unfolded)


def _is_prepared(network: nn.Module) -> bool:
    """Whether its batch norms were folded as far as they can be."""
    recipe = recipe_of(unwrap(network))
    return recipe is not None and any(step.get("step") in ("fold", "prepare") for step in recipe.steps)


def _norms(network: nn.Module) -> list[str]:
    return [path for path, module in network.named_modules() if is_batch_norm(module)]


@torch.inference_mode(False)
def hash_layers(network: nn.Module, force: bool = False, **options: Any) -> Result:
    """``hash_network`` of a network that was prepared: nothing is said of batch norms that are left."""
    options, network = fitted(hash_network, options), unwrap(network)
    own = {name: value for name, value in options.items() if isinstance(value, dict)}
    default = Rule(**{name: value for name, value in options.items() if name not in own})
    hashed = copy_network(network)
    layers = list(weight_layers(hashed))
    _check_names(own, [layer.name for layer in layers])
    rules = {layer.name: _rule_of(layer.name, default, own) for layer in layers}
    rows, codebooks, draws = [], {}, {}
    for layer in progress(layers, "hashing"):
        if (rule := rules[layer.name]) is None or layer.skipped:
            rows.append(_left(layer, layer.skipped or "its max_error is 0"))
            continue
        row, codebook, draw = _hash_layer(layer, rule, force)
        rows.append(row)
        codebooks[layer.name] = codebook.tolist()
        if not row["skipped"]:
            draws[layer.name] = draw
    options = (
        default.options() | {name: value for name, value in own.items() if value} | ({"force": True} if force else {})
    )
    scaled = [layer.name for layer in layers if out_scale(layer) is not None]
    plan = {"step": "hash", "options": options, "codebooks": codebooks} | ({"scaled": scaled} if scaled else {})
    append_step(hashed, plan)
    table = with_others(pd.DataFrame(rows, columns=_COLUMNS), network, hashed)
    return Result(hashed, table, plan, RandomTwin(draws, table))


def _rule_of(name: str, default: Rule, own: dict[str, dict]) -> Rule | None:
    """The rule for the layer of that name; None leaves it alone."""
    changes = {option: values[name] for option, values in own.items() if name in values}
    bound = changes.get("max_error")
    if bound is not None and not 0 <= bound < np.inf:  # NaN too
        right = "a positive number (0.05 is 5 %), or 0 to leave a layer alone"
        raise ValueError(f"max_error must be {right}, not {bound} for {name}")
    try:
        return None if bound == 0 else replace(default, **changes)
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from None


def _check_names(own: dict[str, dict], layers: list[str]) -> None:
    for option, values in own.items():
        if unknown := set(values) - set(layers):
            known = ", ".join(layers)
            wrong = ", ".join(sorted(unknown))
            raise ValueError(f"{option} names layers that do not exist: {wrong}; there are {known}")


_COLUMNS = ["layer", "kind", "weights", "distinct_before", "distinct", "modes", "error", "scales", "skipped"]


def _left(layer: Layer, skipped: str) -> dict[str, Any]:
    """The row of a layer that stays as it is."""
    distinct = count_distinct(codes_of(layer)) if layer.size else 0
    sizes = {"weights": layer.size, "distinct_before": distinct, "distinct": distinct, "modes": 0, "error": 0.0}
    return {"layer": layer.name, "kind": layer.kind, **sizes, "scales": _scales(layer), "skipped": skipped}


def _scales(layer: Layer) -> int:
    """How many rows have a scale other than 1."""
    scales = None if layer.lazy else out_scale(layer)
    return 0 if scales is None else int((scales != 1).sum())


def _hash_layer(layer: Layer, rule: Rule, force: bool) -> tuple[dict[str, Any], torch.Tensor, Draw]:
    """Hash one layer in place: its row of the table, its codebook, and what a random twin of it needs."""
    weights, known = rows_of(layer, layer.weight), out_scale(layer)
    try:
        vector = as_vector(weights)
        codes = vector if known is None else as_vector(rows_of(layer, codes_of(layer)))
    except ValueError as error:
        raise ValueError(f"layer {layer.name}: {error}") from None
    if known is not None and (reason := why_unchanged(codes, force)):
        hashed = left_alone(codes, weights, reason, known)
    else:
        hashed = hash_vector(vector, weights, rule, force)
        _keep_scales(layer, hashed)
    before = vector.whole(vector.weights)  # a view of the layer's own memory: compare before it is overwritten
    row = {
        "layer": layer.name,
        "kind": layer.kind,
        "weights": before.size,
        "distinct_before": codes.distinct + (codes.zeros > 0),
        "distinct": len(hashed.codebook),
        "modes": hashed.modes,
        "error": relative_error(before, as_numpy(hashed.values).ravel()),
        "scales": _scales(layer),
        "skipped": hashed.unchanged,
    }
    draw = Draw.like(before, layer.weight.dtype, rule, len(weights))
    with torch.no_grad():
        rows = by_outputs(layer, layer.weight)
        rows.copy_(torch.as_tensor(hashed.values).reshape(rows.shape))
    return row, torch.as_tensor(hashed.codebook), draw


def _keep_scales(layer: Layer, hashed: Hashed) -> None:
    """The buffer of its rows' scales; none where hashing gave them none."""
    if hashed.scales is not None and not hashed.unchanged:
        layer.module.register_buffer(layer.scale_name, torch.as_tensor(hashed.scales))
    elif out_scale(layer) is not None:
        delattr(layer.module, layer.scale_name)


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
