"""What one input costs a network, layer by layer: parameters, products, additions, lookups and bytes."""

from __future__ import annotations

import copy
from collections import Counter

import pandas as pd
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils.flop_counter import FlopCounterMode

from redlab.graph import evaluating, fit_example, refusal

COSTS = ("parameters", "products", "additions", "lookups", "bytes")


def measure_cost(network: nn.Module, example: Tensor | None = None) -> pd.DataFrame:
    """The cost of one input: a row for every module that owns parameters or multiplies, in the order of the modules.

    Products are the multiplications of convolutions, linear layers and attention, as PyTorch's own
    ``FlopCounterMode`` counts them (two operations a product). Batch norm, activations and pooling count nothing.

    Arguments:
        network: left untouched; it runs on fake tensors, so that neither its size nor its device matters.
        example: what the network takes, batch first; by default ``example_input(network)``. Its first input is counted.

    Returns:
        The columns ``layer``, ``kind``, and as int64 ``parameters`` (shared ones once, where they come first),
        ``products``, ``additions`` (one for each term summed into an output, biases apart; as many as products in a
        dense layer), ``lookups`` (0 in a dense layer) and ``bytes`` (of the parameters as stored).
        ``.attrs`` holds the totals under the same names.

    Raises:
        ValueError: where the network doesn't accept ``example``.
    """
    example = fit_example(network, example)
    products = _count_products(network, example[:1])
    rows, counted = [], set()
    for path, module in network.named_modules():
        own = {id(p): p for p in module.parameters(recurse=False)}
        new = [p for key, p in own.items() if key not in counted]
        counted.update(own)
        if own or products[path]:
            kind = type_before_parametrizations(module).__name__
            rows.append({"layer": path or kind, "kind": kind, **_dense(new, products[path])})
    table = pd.DataFrame(rows, columns=["layer", "kind", *COSTS]).astype(dict.fromkeys(COSTS, "int64"))
    table.attrs = {name: int(table[name].sum()) for name in COSTS}
    return table


def _dense(parameters: list[Tensor], products: int) -> dict[str, int]:
    """The cost of a dense module: each product is one term of one sum, and nothing is looked up."""
    return {
        "parameters": sum(p.numel() for p in parameters),
        "products": products,
        "additions": products,
        "lookups": 0,
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def _count_products(network: nn.Module, example: Tensor) -> Counter:
    """Products by the dotted name of the module that asked for them."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # some networks make small tensors of numbers as they run
    try:
        with FakeCopyMode(fake):
            copied = copy.deepcopy(network)
        with fake:
            return _run_counting(copied, fake.from_tensor(example))
    except Exception:  # its path may depend on its values, which fake tensors don't have
        return _count_for_real(network, example)


def _count_for_real(network: nn.Module, example: Tensor) -> Counter:
    try:
        return _run_counting(copy.deepcopy(network), example)
    except Exception as error:  # whatever the network's own code raises
        raise ValueError(refusal(network, example, "run", error)) from error


def _run_counting(network: nn.Module, example: Tensor) -> Counter:
    """Run ``network``, a copy that may be hooked, and read the counter whenever a module starts or ends."""
    products: Counter = Counter()
    running = [""]
    with evaluating(network), FlopCounterMode(display=False) as flops:

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
        network(example)
    return products
