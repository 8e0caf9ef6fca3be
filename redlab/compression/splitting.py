"""Input splitting (RED++) and uneven depthwise separation (RED): each distinct product is computed once.

RED++, TPAMI 2022, arXiv 2110.01397; RED, NeurIPS 2021, arXiv 2105.14797, step 3. Which weights of an input count as
one *unit*, within which equal ones share a product, is our choice:

| unit | one product for all equal ... |
|---|---|
| kernel | kernels of an input channel |
| tap | weights that an input channel meets at one place of the kernel |
| channel | weights that an input channel meets at any place: a pixel is multiplied once by each |

Products are multiplications of an input value, not of padding, by a weight that is not zero; where they are shared,
each pair of values counts once: by input position, with the taps that reach it (unit channel), else by output position.
The additions stay, one for each term.

Where rows were hashed up to a scale, W[o] = s_o C[o], the codes C are compared: y_o = s_o (C * x)_o + b_o. A scale
other than 1 is one product more at each output position. A row that its scale doesn't give back to the bit (it was
merged or trained since) keeps its own values and costs no scale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from torch import nn

from redlab.compression.split_layers import SplitLayer
from redlab.compression.units import UNITS, split_layer
from redlab.network.cost import COUNTED, by_module, measure_cost
from redlab.network.example import Example, Inputs, fit_example, remember_example
from redlab.network.forwards import why_own_forward
from redlab.network.layers import (
    Layer,
    copy_network,
    replace_module,
    row_parameters,
    unwrap,
    weight_layers,
)
from redlab.network.recipe import append_step, drop_steps
from redlab.network.result import Result, with_others
from redlab.network.row_scales import count_codes
from redlab.network.trial_run import NEVER, culprits, record_calls, record_uses, why_not_run
from redlab.options import check_one_of, plain_options
from redlab.progress import progress

STEPS = ("split", "separate")
_COLUMNS = ["layer", "kind", "weights", "distinct", "scales", "channels_before", "channels_after"]
_COLUMNS += ["products_before", "products_after", "products_unsigned", "macs_before", "macs_after"]
_COLUMNS += ["additions_before", "additions_after", "lookups", "parameters_before", "parameters_after", "skipped"]


@plain_options
@torch.inference_mode(False)  # whatever the caller's mode: the new network may be trained
def split_inputs(
    network: nn.Module, unit: str = "channel", signed: bool = False, example: Example | None = None
) -> Result:
    """Let every conv and linear layer multiply each input value once by each distinct weight of a unit.

    The function stays the same, to rounding. What pays is hashing first: the weights are taken as they come.
    ``as_dense`` goes back to ordinary layers, on which accuracy is measured: a tuned convolution is faster.

    Arguments:
        network: left untouched.
        unit: "channel" (default; it leaves the fewest multiplications, docs/defaults.md), "tap" or "kernel": see the
            module's table.
        signed: let w and -w share a multiplication, and subtract in place of adding (our choice; off by default, on in
            ``red_plus_plus``).
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.

    Returns:
        ``layers`` has a row per conv and linear layer: layer, kind, weights, ``distinct`` values (codes, if its rows
            have scales), how many rows have ``scales`` other than 1, channels, products before and after
            (``products_unsigned``: without sharing w and -w), macs, additions, lookups (products that are read),
            parameters, and why a layer is ``skipped``: it is never called in a trial run, say.

    Raises:
        ValueError: NaN or inf weights, with the layer's name; an unknown unit; a network that doesn't take ``example``.

    Example:
        >>> print(split_inputs(hash_network(load_network("digits/resnet")).network))
        split(unit='channel', signed=False)
        channels: 250 -> 250 (100.000% left)
        parameters: 74,522 -> 9,902 (13.287% left)
        multiplications: 537,280 -> 156,718 (29.169% left)
        operations (multiplications + additions): 1,074,560 -> 693,998 (64.584% left)
        conv and linear weights: 99.347% of all 75,002 parameters
        8 layers, none skipped
    """
    check_one_of("unit", unit, UNITS)
    return _take(network, {"step": "split", "options": {"unit": unit, "signed": signed}}, example)


@plain_options
@torch.inference_mode(False)
def separate_kernels(network: nn.Module, up_to_scale: bool = False, example: Example | None = None) -> Result:
    """Separate every convolution into an uneven depthwise one and sums: y_o = b_o + sum_i U_{i, c(o, i)} * x_i.

    U_i are the r_i distinct kernels of input channel i. The third step of RED; the function stays the same.

    Arguments:
        up_to_scale: kernels that are multiples of one another (to 6 digits) share a class too, and the sums carry the
            factors, which take in the scales of the rows. That takes n_out n_in more multiplications a position, so a
            layer does it only where it saves some.
            Our choice; off by default, as in RED (docs/defaults.md).

    Returns, raises, other arguments: as ``split_inputs``.

    Example:
        >>> hashed = hash_network(load_network("digits/mobilenet"), rule="uniform", levels=3).network
        >>> result = separate_kernels(hashed)
        >>> before, after = result.layers["products_before"].sum(), result.layers["products_after"].sum()
        >>> f"{after / before:.0%} of the products are left"
        '42% of the products are left'
    """
    return _take(network, {"step": "separate", "options": {"up_to_scale": up_to_scale}}, example)


@torch.inference_mode(False)
def as_dense(network: nn.Module) -> nn.Module:
    """The same function with every split or separated layer as an ordinary one; ``network`` is left untouched.

    Example:
        >>> network = hash_network(load_network("digits/mlp")).network
        >>> split = split_inputs(network).network
        >>> type(split.classifier).__name__, type(as_dense(split).classifier).__name__
        ('TapSplit', 'Linear')
        >>> torch.equal(as_dense(split).classifier.weight, network.classifier.weight)
        True
    """
    network = unwrap(network)
    dense = copy_network(network)
    for layer in [module for module in dense.modules() if isinstance(module, SplitLayer)]:
        dense = replace_module(dense, layer, layer.dense())
    drop_steps(dense, STEPS)
    return dense


def retake(network: nn.Module, step: dict) -> nn.Module:
    """A recorded step once more, in place, on a network that the caller owns and that has its values."""
    layers = {layer.name: layer for layer in weight_layers(network)}
    for name in progress(step["layers"], "splitting"):
        network = replace_module(network, layers[name].module, _maker(step)(layers[name].module))
    return network


def _maker(step: dict) -> Callable[[nn.Module], SplitLayer]:
    options = step["options"]
    if step["step"] == "split":
        if options["unit"] not in UNITS or type(options["signed"]) is not bool:
            raise ValueError(f"unit must be one of {', '.join(UNITS)} and signed true or false, not {options}")
        return lambda layer: split_layer(layer, options["unit"], options["signed"])
    return lambda layer: split_layer(layer, "kernel", up_to_scale=options["up_to_scale"])


def _take(network: nn.Module, step: dict, example: Example | None) -> Result:
    network = unwrap(network)
    split = copy_network(network)
    called = record_calls(network, example)
    layers = list(weight_layers(split))
    for layer in layers:
        if not layer.lazy and not layer.weight.isfinite().all():
            raise ValueError(f"layer {layer.name}: NaN or inf among its weights")
    skipped = {layer.name: _why_not(layer, called) for layer in layers}
    if NEVER in skipped.values():
        skipped |= _otherwise_used(split, skipped, example)
    step["layers"] = [name for name, why in skipped.items() if not why]
    originals = {layer.name: layer.module for layer in layers if not skipped[layer.name]}
    split = retake(split, step)
    if refused := _refused(split, originals, fit_example(network, example).first()):
        skipped |= {name: f"the network does not run with it split: {why}" for name, why in refused.items()}
        step["layers"] = [name for name in step["layers"] if name not in refused]
        split = _with(split, originals, refused)
    append_step(split, step)
    remember_example(split, example)
    before = measure_cost(network, example)
    table = _table(network, split, skipped, called, before)
    return Result(split, with_others(table, network, split), step)


def _otherwise_used(network: nn.Module, skipped: dict[str, str], example: Example | None) -> dict[str, str]:
    """The layers that are never called, and whose weight is used all the same."""
    uses = record_uses(network, example)
    never = [name for name, why in skipped.items() if why == NEVER]
    by = {name: uses.get(f"{name}.weight", []) for name in never}
    return {
        name: f"its weight is used by {', '.join(own)}, without a call of the layer" for name, own in by.items() if own
    }


def _refused(split: nn.Module, originals: dict[str, nn.Module], inputs: Inputs) -> dict[str, str]:
    """The layers that the network doesn't run with once they are split, and why: its code asks for what they lack."""

    def why_not(names: Sequence[str]) -> str:
        ordinary = [name for name in originals if name not in names]
        return why_not_run(split, inputs, partial(_with, originals=originals, names=ordinary))

    return culprits(list(originals), why_not)


def _with(network: nn.Module, originals: dict[str, nn.Module], names: Iterable[str]) -> nn.Module:
    """``network``, in place, with the ordinary layers of these names again."""
    for name in names:
        split = network if isinstance(network, SplitLayer) else network.get_submodule(name)
        network = replace_module(network, split, originals[name])
    return network


def _why_not(layer: Layer, called: dict[str, list[torch.Size]]) -> str:
    if layer.skipped:
        return layer.skipped
    if layer.shared:
        return f"shares its weight with {' and '.join(layer.shared)}"
    if layer.parameter != "weight":
        return "its weight is used without a call of the layer"
    if getattr(layer.module, "transposed", False):
        return "transposed convolutions are not split"
    if layer.name not in called:
        return NEVER
    if layer.module.bias is not None and "bias" not in layer.module._parameters:
        return "its bias is computed at every call"
    return why_own_forward(layer.module)


def _table(
    network: nn.Module,
    split: nn.Module,
    skipped: dict[str, str],
    called: dict[str, list[torch.Size]],
    before: pd.DataFrame,
) -> pd.DataFrame:
    was = by_module(network, before)
    paths = {module: path for path, module in network.named_modules()}
    layers, rows = list(weight_layers(network)), []
    made = [replace(layer, module=split.get_submodule(paths[layer.module])) for layer in layers]
    parameters = {"before": row_parameters(layers), "after": row_parameters(made)}
    for layer in layers:
        path, why = paths[layer.module], skipped[layer.name]
        # An attention's projections are one module: the first of them stands for its cost.
        old = was.pop(path, Counter())
        new = old | Counter(unsigned=old["products"]) if why else _cost(split.get_submodule(path), called[layer.name])
        row = {"layer": layer.name, "kind": layer.kind, "skipped": why} | _sizes(layer)
        row |= {f"parameters_{when}": counts[layer.name] for when, counts in parameters.items()}
        row |= {f"{name}_before": old[name] for name in COUNTED}
        row |= {f"{name}_after": new[name] for name in COUNTED}
        rows.append(row | {"products_unsigned": new["unsigned"], "lookups": new["lookups"]})
    return pd.DataFrame(rows, columns=_COLUMNS)


def _cost(module: SplitLayer, shapes: list[torch.Size]) -> Counter:
    calls = sum((Counter(module.cost(shape)) for shape in shapes), Counter())
    calls["macs"] = sum(module.macs(shape) for shape in shapes)
    return calls


def _sizes(layer: Layer) -> dict[str, int]:
    channels = 0
    if not layer.lazy:
        module = layer.module
        channels = module.out_channels if getattr(module, "transposed", False) else len(layer.weight)
    return {"weights": layer.size} | count_codes(layer) | {"channels_before": channels, "channels_after": channels}
