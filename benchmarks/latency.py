"""Latency before and after merging, with and without channels rounded to multiples of 16.

``python -m benchmarks.latency``. ResNet-20 where the data root holds its weights, and torchvision's ResNet-18 with
random ones: how fast a network runs depends on its shapes alone. All are folded first: the ratio is merging's own.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import nn

from benchmarks.timing import store
from redlab import fold_batchnorm, load_network, measure_cost
from redlab.compression.merging import merge_neurons
from redlab.network.latency import compare_latency
from redlab.paths import data_root

ALPHAS = (0.1, 0.3, 0.5)
_COLUMNS = ["contestant", "products", "seconds", "q25", "q75", "ratio", "faster", "layout", "threads", "against"]


def main() -> None:
    for name, batch in (("cifar10/resnet20", 1), ("cifar10/resnet20", 32), ("torchvision/resnet18", 1)):
        if name.startswith("cifar10/") and not any((data_root() / "weights" / "cifar10").glob("*.th")):
            print(f"\n{name} is left out: set REDLAB_DATA to a folder with weights/cifar10")
            continue
        table = compare(merged(name), batch)
        publish(f"latency after merging {name}, batch {batch}", table)


def merged(name: str) -> dict[str, nn.Module]:
    """The folded network by "alpha 0", and what merging makes of it at every alpha, rounded and not."""
    torch.manual_seed(0)
    folded = fold_batchnorm(load_network(name, None if name.startswith("torchvision/") else "default")).network
    networks = {"alpha 0": folded}
    for alpha in ALPHAS:
        for round_to in (1, 16):
            title = f"alpha {alpha}" + (f", round_to={round_to}" if round_to > 1 else "")
            networks[title] = merge_neurons(folded, alpha, round_to=round_to).network
    return networks


def compare(networks: dict[str, nn.Module], batch: int) -> pd.DataFrame:
    """Times in seconds as the other benchmarks have them, beside the share of products that is left."""
    table = compare_latency(networks, batch=batch, repeats=40).rename(columns={"network": "contestant"})
    products = [measure_cost(network).attrs["products"] for network in networks.values()]
    table["products"] = [count / products[0] for count in products]
    table["seconds"], table["against"] = table["median"] / 1000, "alpha 0"
    table[["q25", "q75"]] /= 1000
    return table[_COLUMNS]


def publish(benchmark: str, table: pd.DataFrame) -> None:
    print(f"\n{benchmark}\n{table.to_string(index=False, float_format='{:.3g}'.format)}")
    slower = table["contestant"][1:][table["faster"][1:] != "yes"]
    print(f"not faster than the unmerged network: {'; '.join(slower) or 'none'}", flush=True)
    store(benchmark, table)


if __name__ == "__main__":
    main()
