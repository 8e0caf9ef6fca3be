"""Any network in plain layers: modules with forwards of their own replaced by the layer that does the same."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from redlab.compression.folding import fold_batchnorm, layers_table
from redlab.compression.own_modules import Found, look
from redlab.compression.plain_layers import Spec, build, describe
from redlab.network.evaluating import evaluating
from redlab.network.example import Example, Inputs, fit_example, remember_example
from redlab.network.forwards import runs_own_forward
from redlab.network.layers import copy_network, kind_of, replace_module, unwrap
from redlab.network.recipe import append_step
from redlab.network.result import OTHER, Result, with_others
from redlab.network.trial_run import culprits, why_not_run
from redlab.options import plain_options

_WARN = 1e-4  # a relative difference of the whole network above it is reported
_ROUNDINGS = 8  # so many roundings of the dtype are no finding either: every layer of a network rounds


@plain_options
@torch.inference_mode(False)  # whatever the caller's mode: the new network may be trained
def prepare(network: nn.Module, example: Example | None = None, fold: bool = True, fixed_size: bool = False) -> Result:
    """Replace every layer with a forward of its own by the plain one that does the same, and fold batch norm.

    Steps that replace or shrink layers want plain ones: one parameter as the weight, PyTorch's own forward. Many
    networks have others: weight norm, spectral norm, weight standardisation, pruning masks, Hugging Face's Conv1D,
    SAME padding. Each module is watched while it runs. If it multiplies its input by one weight that does not depend
    on it, behind fixed padding at most, a plain layer is proposed. Both are compared in float64, on other sizes too;
    at most 1e-9 may be between them, relative. The proposal is ours; nothing is taken from the class of a module.

    Arguments:
        network: left untouched; the result is in eval mode.
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``. The
            network runs on its first input.
        fold: fold batch norm too, as ``fold_batchnorm`` does. False for pruning and fine-tuning, which need the norms.
        fixed_size: also replace layers whose padding changes with the size of the image; the result is for images of
            the size of ``example`` then.

    Returns:
        ``layers`` has the rows of ``fold_batchnorm``, and ``replaced`` says what a layer was and is. Modules that are
        left are there with the reason. ``plan["achieved"]`` holds the relative ``difference`` of the network's outputs
        in its own dtype. A prepared network is returned as it is.

    Warns:
        the difference is above 1e-4, or above 8 roundings of the outputs' dtype in half precision.

    Raises:
        ValueError: the network doesn't run on ``example``; its masks still learn; or as ``fold_batchnorm``.

    Example:
        >>> layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        >>> prepared = prepare(torch.nn.Sequential(layer, torch.nn.ReLU()), torch.zeros(1, 3))
        >>> prepared.network
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): ReLU()
        )
        >>> prepared.layers[["layer", "replaced"]].values.tolist()
        [['0', 'Linear (computed weight) -> Linear']]
    """
    return prepare_for(network, example, fold, fixed_size, measured=True)


def prepare_for(
    network: nn.Module, example: Example | None, fold: bool = True, fixed_size: bool = False, measured: bool = False
) -> Result:
    """``prepare`` for another step: the difference is measured only where a layer was replaced, or if asked for."""
    original = unwrap(network)
    network = copy_network(original).eval()
    found = look(network, example, fixed_size)
    if found.plain:
        network = _replace(network, found, fit_example(original, example).first())
    step = {"step": "prepare", "modules": {path: plain.spec for path, plain in found.plain.items()}}
    if found.plain:
        append_step(network, step)
    remember_example(network, example)
    result = fold_batchnorm(network, example) if fold else _unfolded(network)
    plan = step | {"options": {"fold": fold, "fixed_size": fixed_size}, "fold": result.plan}
    if found.plain or measured:
        plan |= _compare(original, result.network, fit_example(original, example).first())
    table = _table(result.layers, found)
    table.attrs["parameters"] = sum(parameter.numel() for parameter in original.parameters() if not is_lazy(parameter))
    return Result(result.network, table, plan, graph=result.graph)


def _unfolded(network: nn.Module) -> Result:
    return Result(network, with_others(layers_table(network), network, network), {})


def apply_prepare(network: nn.Module, modules: Mapping[str, Spec]) -> nn.Module:
    """The replacements of a recorded step, in place, on the meta device: their values come later.

    Raises:
        ValueError: a class that is no plain layer.
    """
    for path, spec in modules.items():
        old = network.get_submodule(path)
        like = next((tensor for tensor in old.parameters() if tensor.is_floating_point()), torch.empty(0))
        network = replace_module(network, old, build(spec, like.to("meta")))
    return network


def _replace(network: nn.Module, found: Found, inputs: Inputs) -> nn.Module:
    """The network with its plain layers. Where its code asks a module for what a plain one lacks, that one is left."""
    for path, plain in found.plain.items():
        _take_over(plain.module, found.before[path])
    network = _with(network, {path: plain.module for path, plain in found.plain.items()})
    try:
        with evaluating(copied := copy_network(network)):  # a norm may change its statistics as it runs
            inputs.run(copied)
    except Exception:  # whatever the network's own code raises
        refused = culprits(list(found.plain), partial(_why_not, network, found, inputs))
        network = _with(network, {path: found.before[path] for path in refused})
        found.left |= {path: f"the network does not run with it replaced: {why}" for path, why in refused.items()}
        found.plain = {path: plain for path, plain in found.plain.items() if path not in refused}
    return network


def _take_over(made: nn.Module, old: nn.Module) -> None:
    """Give a replacement the dtype of the old module, and let it learn if that did."""
    tensors = [*old.parameters(), *old.buffers()]
    made.to(next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype()))
    made.requires_grad_(any(parameter.requires_grad for parameter in old.parameters())).eval()


def _with(network: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    for path, module in modules.items():
        network = replace_module(network, network.get_submodule(path), module)
    return network


def _why_not(network: nn.Module, found: Found, inputs: Inputs, names: Sequence[str]) -> str:
    """The error of the network where only ``names`` are replaced."""
    rest = {path: own for path, own in found.before.items() if path in found.plain and path not in names}
    return why_not_run(network, inputs, lambda copied: _put_back(copied, rest))


def _put_back(network: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for path, module in modules.items():
        network.set_submodule(path, copy_network(module))


def _compare(original: nn.Module, prepared: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The largest difference of the outputs, relative, as an entry of a plan; a warning if it is large."""
    answers = []
    for network in (copy_network(original), copy_network(prepared)):  # a norm may change its statistics as it runs
        with evaluating(network):
            answers.append([leaf for leaf in tree_leaves(inputs.run(network)) if _has_numbers(leaf)])
    pairs = [(one.double(), other.double()) for one, other in zip(*answers, strict=True)]
    far = [float((one - other).abs().max() / one.abs().max().clamp_min(1e-30)) for one, other in pairs]
    difference = max(far, default=0.0)
    dtypes = [leaf.dtype for answer in answers for leaf in answer]
    if not difference <= max([_WARN, *(_ROUNDINGS * torch.finfo(dtype).eps for dtype in dtypes)]):
        warnings.warn(f"the prepared network's outputs differ by {difference:.1e}, relative", stacklevel=4)
    return {"achieved": {"difference": float(f"{difference:.3g}")}}


def _has_numbers(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 0 and not leaf.is_meta


def _table(table: pd.DataFrame, found: Found) -> pd.DataFrame:
    """The rows of folding, with what was replaced by what and why other modules are left."""
    attrs, table = table.attrs, table.copy()
    table.insert(table.columns.get_loc("folded") + 1, "replaced", "")
    for path, plain in found.plain.items():
        row, old = table["layer"] == (found.layer(path) or plain.spec["class"]), found.before[path]
        table.loc[row, "replaced"] = f"{_describe(old)} -> {describe(plain.spec)}"
        gone = sum(tensor.numel() for tensor in old.parameters())
        table.loc[row, "parameters_before"] += gone - sum(tensor.numel() for tensor in plain.module.parameters())
    for path, why in found.left.items():
        name = path or kind_of(found.before[path])
        rows = (table["layer"] == name) | ((table["kind"] == OTHER) & table["layer"].str.startswith(f"{path}."))
        table.loc[rows, "skipped"] = why
    table.attrs = attrs
    return table


def _describe(old: nn.Module) -> str:
    kind = kind_of(old)
    return kind if runs_own_forward(old) else f"{kind} (computed weight)"
