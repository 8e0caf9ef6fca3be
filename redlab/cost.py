"""What one input costs a network, layer by layer: parameters, products, additions, lookups and bytes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils.flop_counter import FlopCounterMode

from redlab.calls import try_out
from redlab.example import Example, Inputs, fit_example
from redlab.layers import unwrap

COSTS = ("parameters", "products", "additions", "lookups", "bytes")


def measure_cost(network: nn.Module, example: Example | None = None) -> pd.DataFrame:
    """The cost of one input: a row for every module that owns parameters or multiplies, in the order of the modules.

    Products are the multiplications of convolutions, linear layers and attention, as PyTorch's own
    ``FlopCounterMode`` counts them (two operations a product). Batch norm, activations and pooling count nothing.
    A module with a ``cost`` of its own, such as a split layer, is asked for it with the shape of its input.

    Arguments:
        network: left untouched; it runs on fake tensors, so that neither its size nor its device matters.
        example: what the network takes, batch first: a tensor, a tuple of positional inputs or a dict of keyword
            inputs; by default ``example_input(network)``. Its first input is counted.

    Returns:
        The columns ``layer``, ``kind``, and as int64 ``parameters`` (shared ones once, where they come first),
        ``products``, ``additions`` (one for each term summed into an output, biases apart; as many as products in a
        dense layer), ``lookups`` (0 in a dense layer) and ``bytes`` (of the parameters as stored).
        ``.attrs`` holds the totals under the same names.

    Raises:
        ValueError: where the network doesn't accept ``example``.

    Example:
        >>> cost = measure_cost(load_network("cifar10/resnet20", weights=None))
        >>> cost.attrs["products"], cost["products"].sum().item()
        (40551040, 40551040)
    """
    network = unwrap(network)
    products, calls = _run(network, fit_example(network, example).first())
    rows: list[dict[str, Any]] = []
    counted: set[int] = set()
    for path, module in _modules(network):
        parameters = module.parameters(recurse=hasattr(module, "cost"))
        own = {id(p): p for p in parameters if not isinstance(p, UninitializedParameter)}  # lazy: no shape yet
        new = [p for key, p in own.items() if key not in counted]
        counted.update(own)
        if own or products[path]:
            kind = type_before_parametrizations(module).__name__
            rows.append({"layer": path or kind, "kind": kind, **_own_cost(module, new, products[path], calls[path])})
    table = pd.DataFrame(rows, columns=["layer", "kind", *COSTS]).astype(dict.fromkeys(COSTS, "int64"))
    table.attrs = {name: int(table[name].sum()) for name in COSTS}
    return table


def by_module(network: nn.Module, cost: pd.DataFrame) -> dict[str, Counter[str]]:
    """What ``measure_cost`` says of each module of ``network``, by its path; modules without a cost are left out."""
    counts = {row["layer"]: Counter({name: row[name] for name in COSTS}) for row in cost.to_dict("records")}
    names = {path: path or type_before_parametrizations(network).__name__ for path, _ in network.named_modules()}
    return {path: counts[name] for path, name in names.items() if name in counts}


def _modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module by its path, but for the parts of those that answer for themselves."""
    inside: set[nn.Module] = set()
    for path, module in network.named_modules():
        if module not in inside:
            yield path, module
            inside |= set(module.modules()) if hasattr(module, "cost") else set()


def _own_cost(module: nn.Module, parameters: list[Tensor], products: int, calls: list[torch.Size]) -> dict[str, int]:
    """In a dense module each product is one term of one sum, and nothing is looked up."""
    stored = {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }
    if not hasattr(module, "cost"):
        return stored | {"products": products, "additions": products, "lookups": 0}
    total = sum((Counter(module.cost(shape)) for shape in calls), Counter())
    return stored | {name: total[name] for name in ("products", "additions", "lookups")}


def _run(network: nn.Module, inputs: Inputs) -> tuple[Counter, dict[str, list[torch.Size]]]:
    """Products by the dotted name of the module that asked for them, and the inputs' shapes of those that count
    themselves.
    """
    products: Counter = Counter()
    calls: dict[str, list[torch.Size]] = defaultdict(list)

    def run(copied: nn.Module, inputs: Inputs) -> None:
        products.clear()
        calls.clear()
        for path, module in copied.named_modules():
            if hasattr(module, "cost"):
                _stand_in(module, calls[path])
        _count(copied, inputs, products)

    try_out(network, inputs, run)
    return products, calls


def _stand_in(module: nn.Module, calls: list[torch.Size]) -> None:
    """Let a module that counts itself take down what it is called with, and compute nothing."""

    def forward(input: Tensor) -> Tensor:
        calls.append(input.shape)
        return input.new_zeros(module.output_shape(input.shape))

    module.forward = forward


def _count(network: nn.Module, inputs: Inputs, products: Counter) -> None:
    """Run ``network``, a copy that may be hooked, and read the counter whenever a module starts or ends."""
    running = [""]
    with FlopCounterMode(display=False) as flops:

        def charge(path: str) -> None:
            # What was counted since the last reading belongs to the module that was running meanwhile.
            products[path] += flops.get_total_flops() // 2 - products.total()

        def started(path: str) -> None:
            charge(running[-1])
            running.append(path)

        def ended() -> None:
            charge(running.pop())

        for path, module in network.named_modules():
            module.register_forward_pre_hook(lambda *_, path=path: started(path))
            module.register_forward_hook(lambda *_: ended())
        inputs.run(network)
