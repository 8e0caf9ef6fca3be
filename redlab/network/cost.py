"""The cost of one input, layer by layer: parameters, products, macs, additions, lookups and bytes."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import type_before_parametrizations

from redlab.network.example import Example, Inputs, fit_example
from redlab.network.layers import unwrap
from redlab.network.multiplications import Multiplications, Multiplied
from redlab.network.origins import tensors_of
from redlab.network.result import first_names
from redlab.network.trial_run import idle, try_out

COSTS = ("parameters", "products", "macs", "additions", "lookups", "bytes")
COUNTED = ("products", "macs", "additions")  # what tables of layers hold before and after


def measure_cost(network: nn.Module, example: Example | None = None) -> pd.DataFrame:
    """The cost of one input: a row for every module that owns parameters or multiplies, in the order of the modules.

    A product is one multiplication of an input value by a weight that is not zero and that a valid output uses. The
    zero padding of convolutions, transposed or not, has no products. Zeros that the network adds beforehand (``F.pad``,
    ``ZeroPad2d``) are values like any other, and so are reflected or repeated borders. Linear, bilinear and recurrent
    layers count by the same rule. A weight that is computed at every call counts as if it had no zeros. Batch norm,
    activations, pooling and embeddings count nothing. A module with its own ``cost`` and ``macs``, such as a split
    layer, is asked for them with the shape of its input.

    Arguments:
        network: left untouched; it runs on fake tensors, so its size and device do not matter.
        example: what the network takes, batch first: a tensor, a tuple of positional inputs or a dict of keyword
            inputs; by default ``example_input(network)``. Its first input is counted.

    Returns:
        The columns ``layer``, ``kind``, and as int64 ``parameters`` (shared ones once, in the first row),
        ``products``, ``macs`` (multiplications as PyTorch's ``FlopCounterMode`` and papers count them: with padding,
        zeros, and those of attention between two inputs; of a split layer those of the ordinary one), ``additions``
        (one for each term summed into an output, without biases; as many as products in a dense layer), ``lookups`` (0
        in a dense layer) and ``bytes`` (of the parameters as stored). ``skipped`` says what a row leaves out, or "".
        ``.attrs`` holds the totals of the numbers under the same names.

    Warns:
        UserWarning: some modules multiply by weights in a way that is not counted; ``skipped`` names them too.

    Raises:
        ValueError: the network does not accept ``example``.

    Example:
        >>> cost = measure_cost(load_network("cifar10/resnet20", weights=None))
        >>> cost.attrs["products"], cost["products"].sum().item(), cost.attrs["macs"]
        (36957504, 36957504, 40551040)
    """
    network = unwrap(network)
    found, calls = run_once(network, example)
    products = found.products(dict(tensors_of(network)))
    rows: list[dict[str, Any]] = []
    counted: set[int] = set()
    for path, module in _modules(network):
        parameters = module.parameters(recurse=hasattr(module, "cost"))
        own = {id(p): p for p in parameters if not isinstance(p, UninitializedParameter)}  # lazy: no shape yet
        new = [p for key, p in own.items() if key not in counted]
        counted.update(own)
        unknown = ", ".join(sorted(found.unknown.get(path, ())))
        why = f"its multiplications by {unknown} are not counted" if unknown else ""
        if own or found.macs[path] or products[path] or why:
            kind = type_before_parametrizations(module).__name__
            stored = {"parameters": sum(p.numel() for p in new), "bytes": sum(p.nbytes for p in new)}
            cost = stored | _own_cost(module, products[path], found.macs[path], calls[path])
            rows.append({"layer": path or kind, "kind": kind, **cost, "skipped": why})
    table = pd.DataFrame(rows, columns=["layer", "kind", *COSTS, "skipped"]).astype(dict.fromkeys(COSTS, "int64"))
    table.attrs = {name: int(table[name].sum()) for name in COSTS}
    if left := table.loc[table["skipped"] != "", "layer"].tolist():
        warnings.warn(f"not all multiplications are counted, see `skipped`: {first_names(left)}", stacklevel=2)
    return table


def by_module(network: nn.Module, cost: pd.DataFrame) -> dict[str, Counter[str]]:
    """The row of ``measure_cost`` of each module of ``network``, by its path; modules without a cost are left out."""
    counts = {row["layer"]: Counter({name: row[name] for name in COSTS}) for row in cost.to_dict("records")}
    names = {path: path or type_before_parametrizations(network).__name__ for path, _ in network.named_modules()}
    return {path: counts[name] for path, name in names.items() if name in counts}


def _modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module by its path, without the parts of modules that have a cost of their own."""
    inside: set[nn.Module] = set()
    for path, module in network.named_modules():
        if module not in inside:
            yield path, module
            inside |= set(module.modules()) if hasattr(module, "cost") else set()


def _own_cost(module: nn.Module, products: int, macs: int, calls: list[torch.Size]) -> dict[str, int]:
    """In a dense module, each product is one term of one sum and nothing is looked up."""
    if not hasattr(module, "cost"):
        return {"products": products, "macs": macs, "additions": products, "lookups": 0}
    total = sum((Counter(module.cost(shape)) for shape in calls), Counter())
    own = {name: total[name] for name in ("products", "additions", "lookups")}
    return own | {"macs": sum(module.macs(shape) for shape in calls)}


def run_once(network: nn.Module, example: Example | None = None) -> tuple[Multiplied, dict[str, list[torch.Size]]]:
    """What one input multiplies in a copy of ``network``, and by module with its own cost, the shapes of its inputs.

    Arguments and errors as of ``measure_cost``.
    """

    def run(copied: nn.Module, inputs: Inputs) -> tuple[Multiplied, dict[str, list[torch.Size]]]:
        mode = Multiplications(tensors_of(copied), inputs.tensors)
        calls: dict[str, list[torch.Size]] = defaultdict(list)
        for path, module in copied.named_modules():
            if hasattr(module, "cost"):
                module.forward = partial(_noted, module, calls[path])
            if not isinstance(module, torch.jit.ScriptModule):  # those cannot be hooked
                module.register_forward_pre_hook(lambda *_, path=path: mode.running.append(path))
                module.register_forward_hook(lambda *_: mode.leave())
        with mode.counting():
            inputs.run(copied)
        return mode.found, calls

    return try_out(network, fit_example(network, example).first(), run)


def _noted(module: nn.Module, shapes: list[torch.Size], input: Tensor) -> Tensor:
    """The forward of a module with its own cost: notes the shape, also where no hook would see the call."""
    shapes.append(input.shape)
    return idle(module, input)
