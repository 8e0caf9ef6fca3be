"""Comparisons of splitting that the notebooks draw: one network, many settings, one tidy frame."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset

from redlab.compression.pipeline import Step, red_plus_plus_steps, take_all
from redlab.compression.split_layers import SplitLayer
from redlab.compression.splitting import as_dense, split_inputs
from redlab.compression.units import UNITS, split_layer
from redlab.hashing.chance import expected_unique
from redlab.names import unknown
from redlab.network.cost import measure_cost
from redlab.network.example import answer
from redlab.network.layers import Layer, unwrap, weight_layers
from redlab.network.result import of_layers
from redlab.network.samples import as_dataset, first_of
from redlab.progress import progress
from redlab.studies.accuracy import Reference
from redlab.zoo.saving import save_network

_IMAGES = 64  # on which the logits of split and ordinary layers are compared


def layer_to_draw(network: nn.Module, name: str | None = None) -> Layer:
    """The conv or linear layer of that name; by default the first one with several input channels to each filter.

    Raises:
        ValueError: there is no such layer, or it is none that can be split, with the reason.

    Example:
        >>> layer_to_draw(load_network("digits/resnet")).name
        'layer1.0.conv1'
    """
    layers = {layer.name: layer for layer in weight_layers(network)}
    plain = {own: layer for own, layer in layers.items() if not layer.skipped}
    if name in plain:
        return plain[name]
    if name in layers:
        raise ValueError(f"the layer {name} can't be split: {layers[name].skipped}")
    if name is not None or not plain:
        raise ValueError(unknown("layer", str(name), list(plain)))
    return next((layer for layer in plain.values() if layer.weight.shape[1] > 1), next(iter(plain.values())))


def unit_map(layer: Layer, channel: int = 0, units: tuple[str, ...] = UNITS) -> pd.DataFrame:
    """The weights that input ``channel`` of a plain conv or linear layer meets, and which of them are multiplied.

    Raises:
        ValueError: the layer has no such input channel.

    Returns:
        One row a weight and unit: unit, output, tap, value (the code, where the row has a scale), and whether it
        ``multiplies``: the first weight of its value in its unit does, the others look the result up, and zeros need
        nothing. ``uses``: how many weights share that multiplication, itself included; 0 where it does not multiply.

    Example:
        >>> layer = next(weight_layers(hash_network(load_network("digits/resnet")).network))
        >>> frame = unit_map(layer, units=("channel",))
        >>> len(frame), frame["multiplies"].sum().item()
        (144, 24)
    """
    own = layer.module
    outputs = own.weight.shape[0] // getattr(own, "groups", 1)
    per_group = own.weight.shape[1]
    if not 0 <= channel < (channels := per_group * getattr(own, "groups", 1)):
        raise ValueError(f"{layer.name} has the input channels 0 to {channels - 1}, and no {channel}")
    group, place = divmod(channel, per_group)
    frames = []
    for unit in units:
        codes = split_layer(own, unit).codes.detach().cpu()
        codes = codes.reshape(*codes.shape[:2], -1)  # a linear layer has one tap
        rows = codes[group * outputs :][:outputs, place].numpy()
        output, tap = np.indices(rows.shape)
        columns = {"output": output.ravel(), "tap": tap.ravel(), "value": rows.ravel()}
        frames.append(pd.DataFrame(columns).assign(unit=unit, uses=_uses(rows, unit).ravel()))
    return pd.concat([frame.assign(multiplies=frame["uses"] > 0) for frame in frames])


def _uses(rows: np.ndarray, unit: str) -> np.ndarray:
    """(outputs, taps): at the first non-zero weight of its value in its unit, how many there are; 0 elsewhere."""
    first: dict[object, tuple[int, ...]] = {}
    uses = np.zeros(rows.shape, int)
    for (output, tap), value in np.ndenumerate(rows):
        key = {"channel": value, "tap": (tap, value), "kernel": (tap, rows[output].tobytes())}[unit]
        uses[first.setdefault(key, (output, tap))] += value != 0
    return uses


def channel_products(layer: nn.Module, unit: str) -> pd.DataFrame:
    """By input ``channel`` of a conv or linear layer: the ``weights`` that it meets, and the ``products`` left.

    These are multiplications at each position when equal weights (or codes) of a ``unit`` share one;
    ``attrs["scales"]`` are those by the scales of rows, one at each output position.

    Example:
        >>> layer = torch.nn.Linear(2, 3, bias=False)
        >>> layer.weight.data = torch.tensor([[0.5, 0.1], [0.5, 0.2], [0.5, 0.3]])
        >>> channel_products(layer, "channel")
           channel  weights  products
        0        0        3         1
        1        1        3         3
    """
    split = split_layer(layer, unit)
    inputs, products = split.geometry.inputs, np.zeros(split.geometry.inputs, int)
    for table in split.tables:
        spent = table.values.detach().reshape(len(table), -1).count_nonzero(1)
        products += np.bincount(table.channels.cpu(), spent.cpu(), inputs).astype(int)
    frame = pd.DataFrame({"channel": range(inputs), "weights": layer.weight.numel() // inputs, "products": products})
    frame.attrs["scales"] = split.scaled_rows
    return frame


def distinct_products(network: nn.Module) -> pd.DataFrame:
    """Distinct multiplications of each layer of a hashed network: as measured, and as expected by chance.

    Returns:
        A row a layer and unit: layer, unit, ``weights`` in a unit, and the mean number of distinct non-zero values (or
        kernels) a unit: ``measured``, and ``expected`` if the layer's weights were shuffled (``expected_unique``).
        Where rows have scales, both are of the codes.

    Example:
        >>> frame = distinct_products(hash_network(load_network("digits/mlp")).network)
        >>> frame[frame["unit"] == "channel"].round(1)
                     layer     unit  weights  measured  expected
        0  hidden.0.linear  channel      256      49.4      50.7
        3  hidden.1.linear  channel      128      46.4      46.6
        6       classifier  channel       10       8.3       8.1
    """
    plain = {layer.name: layer for layer in weight_layers(network) if not layer.skipped}
    called = split_inputs(network).plan["layers"]
    rows = [_chance(plain[name], unit) for name in progress(called, "distinct products") for unit in UNITS]
    return pd.DataFrame(rows)


def _chance(layer: Layer, unit: str) -> dict:
    split = split_layer(layer.module, unit)
    units = split.geometry.inputs * (len(split.geometry.taps) if unit == "tap" else 1)
    values = split.codes.detach().double().cpu().numpy().reshape(-1, prod(split.geometry.kernel))
    if unit != "kernel":
        values = values.reshape(-1, 1)
    distinct, counts = np.unique(values, axis=0, return_counts=True)
    n = len(values) // units
    return {
        "layer": layer.name,
        "unit": unit,
        "weights": n,
        "measured": sum(map(len, split.tables)) / units,
        "expected": expected_unique(counts[distinct.any(1)], n, total=len(values)),
    }


def compare_splits(network: nn.Module, dataset: Dataset, settings: list[dict], units: tuple = UNITS) -> pd.DataFrame:
    """``red_plus_plus`` once for each of ``settings`` (its keywords) and each unit, and what is left of ``network``.

    Returns:
        A row a setting and unit: the setting, ``unit``, the mean ``error`` of the layers that are hashed, ``share`` of
        the multiplications that is left (``unsigned``: w and -w apart), that of all ``operations``, ``distinct`` values
        or codes, rows with ``scales``, the ``noise`` expected without data (NaN as published), and the accuracy
        (``Reference.columns``) in ordinary layers. ``attrs["before"]`` is that of ``network``, ``attrs["of"]``: shares.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> frame = compare_splits(network, images, [{"max_error": 0.1}], units=("channel", "tap"))
        >>> frame[["max_error", "unit", "share"]].round(2)
           max_error     unit  share
        0        0.1  channel   0.06
        1        0.1      tap   0.06
    """
    reference = Reference(network, dataset)
    rows = [row for setting in progress(settings, "settings") for row in _splits(network, reference, setting, units)]
    return reference.frame(rows, of="products")


def _splits(network: nn.Module, reference: Reference, setting: dict, units: tuple) -> Iterator[dict]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the errors of the weights are expected")  # it is measured here
        results = list(take_all(network, red_plus_plus_steps(**setting)[:-1]))
    hashed, table = results[-1].network, of_layers(results[1].layers)
    error = table.loc[table["modes"] > 0, "error"].mean() if table["modes"].any() else 0.0
    products, accuracy = measure_cost(network).attrs["products"], reference.columns(hashed)
    signed = not setting.get("as_published", False) and setting.get("signed", True)
    for unit in units:
        layers = of_layers(split_inputs(hashed, unit, signed).layers)
        yield setting | {
            "unit": unit,
            "error": error,
            "share": layers["products_after"].sum() / products,
            "unsigned": layers["products_unsigned"].sum() / products,
            "operations": int(layers[["products_after", "additions_after"]].to_numpy().sum()) / (2 * products),
            **layers[["distinct", "scales"]].sum().astype(int).to_dict(),
            "noise": results[1].plan.get("noise", np.nan),
            **accuracy,
        }


def split_differences(network: nn.Module, dataset: Dataset) -> pd.DataFrame:
    """By unit, the largest relative difference of the logits of split and ordinary layers, on 64 images.

    Example:
        >>> hashed = hash_network(load_network("digits/mlp")).network
        >>> frame = split_differences(hashed, load_dataset("digits"))
        >>> frame["unit"].tolist(), bool((frame["difference"] < 1e-5).all())
        (['channel', 'tap', 'kernel'], True)
    """
    network = unwrap(network)
    inputs = first_of(as_dataset(dataset), _IMAGES).to(network)
    with torch.inference_mode():
        wanted = answer(network, inputs)
        apart = [(answer(split_inputs(network, unit).network, inputs) - wanted).abs().max() for unit in UNITS]
    return pd.DataFrame({"unit": UNITS, "difference": [float(own / wanted.abs().max()) for own in apart]})


def step_by_step(network: nn.Module, dataset: Dataset, methods: dict[str, list[Step]]) -> pd.DataFrame:
    """What each step of several methods leaves of ``network``.

    Arguments:
        methods: by name, the steps (``red_steps``, ``red_plus_plus_steps``).

    Returns:
        A row a method and step, the network before first: method, step, products, additions, ``operations`` (both
        together), lookups, parameters, bytes (of the folder that ``save_network`` writes; 0 where the network has no
        recipe), and the accuracy (``Reference.columns``).

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> frame = step_by_step(network, images, {"RED": red_steps()})
        >>> frame[["method", "step", "products", "lookups"]]
          method              step  products  lookups
        0    RED        as trained     50432        0
        1    RED  fold batch norms     50432        0
        2    RED      hash weights     50432        0
        3    RED     merge neurons     50432        0
        4    RED  separate kernels     15629    50432
    """
    rows, reference = [], Reference(network, dataset)
    for method, steps in methods.items():
        results = [result.network for result in take_all(network, progress(steps, method))]
        titles = ["as trained", *(step.title for step in steps)]
        rows += [_left(own, reference, method, title) for own, title in zip([network, *results], titles, strict=True)]
    return pd.DataFrame(rows)


def _left(network: nn.Module, reference: Reference, method: str, step: str) -> dict:
    cost, names = totals(network), ("products", "additions", "lookups", "parameters", "operations", "bytes")
    row = {"method": method, "step": step, **{name: cost[name] for name in names}}
    return row | reference.columns(ordinary(network))


def totals(network: nn.Module) -> dict[str, int]:
    """The sums of ``measure_cost``; ``operations``, multiplications and additions; ``bytes``, of the saved folder."""
    cost = measure_cost(network).attrs
    return cost | {"operations": cost["products"] + cost["additions"], "bytes": folder_bytes(network)}


def is_split(network: nn.Module) -> bool:
    """Whether any layer is split or separated: that saves multiplications, and hardly any additions."""
    return any(isinstance(module, SplitLayer) for module in network.modules())


def ordinary(network: nn.Module) -> nn.Module:
    """The network with split layers as ordinary ones: the same function, and faster."""
    return as_dense(network) if is_split(network) else network


def folder_bytes(network: nn.Module) -> int:
    """The bytes of the folder that ``save_network`` writes."""
    with TemporaryDirectory() as folder:
        return sum(path.stat().st_size for path in save_network(network, Path(folder) / "network").iterdir())
