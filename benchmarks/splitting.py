"""What split and separated layers cost in time, against the ordinary ones in their better layout.

``python -m benchmarks.splitting``. Whole networks, hashed and split by each unit; after every step of RED and RED++;
and single 3x3 layers of few distinct kernels, where separation should do best.
"""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch
from torch import nn

from benchmarks.timing import store
from redlab import fold_batchnorm, hash_network, load_network, split_inputs
from redlab.compression.pipeline import red_plus_plus_steps, red_steps, take_all
from redlab.compression.units import UNITS, split_layer
from redlab.network.latency import compare_latency
from redlab.paths import data_root

CHANNELS, SIZE = 64, 28
METHODS = {
    "RED": red_steps,
    "RED++ as published": partial(red_plus_plus_steps, as_published=True),
    "RED++ by default": red_plus_plus_steps,
}
_COLUMNS = ["contestant", "seconds", "q25", "q75", "ratio", "faster", "layout", "threads", "against"]


def main() -> None:
    for name, batch in (("digits/resnet", 1), ("digits/resnet", 32), ("cifar10/resnet20", 1)):
        if name.startswith("cifar10/") and not any((data_root() / "weights" / "cifar10").glob("*.th")):
            print(f"\n{name} is left out: set REDLAB_DATA to a folder with weights/cifar10")
            continue
        publish(f"latency after splitting {name}, batch {batch}", compare(split(name), batch))
        if batch == 1:
            table = compare(stepwise(load_network(name)), batch)
            table[["method", "step"]] = table["contestant"].str.split(": ", expand=True).to_numpy()
            publish(f"latency step by step, {name}", table)
    image = torch.randn(1, CHANNELS, SIZE, SIZE)
    for share in (0.05, 0.25):
        title = f"latency of a 3x3 layer of {CHANNELS} channels, {share:.0%} of its kernels distinct, {SIZE}x{SIZE}"
        publish(title, compare(layers(share), 1, image))


def split(name: str) -> dict[str, nn.Module]:
    """The hashed network in ordinary layers, and split by every unit."""
    hashed = hash_network(fold_batchnorm(load_network(name)).network, rule="uniform", max_error=0.15).network
    return {"ordinary layers": hashed} | {f"split, {unit}": split_inputs(hashed, unit).network for unit in UNITS}


def stepwise(network: nn.Module) -> dict[str, nn.Module]:
    """The network as trained, and after every step of each method, by "method: step"."""
    networks = {"as trained: as trained": network}
    for method, steps in METHODS.items():
        results = take_all(network, steps())
        networks |= {f"{method}: {step.title}": own.network for step, own in zip(steps(), results, strict=True)}
    return networks


def layers(share: float) -> dict[str, nn.Module]:
    """A 3x3 convolution of few distinct kernels for each input channel, as it is and split."""
    torch.manual_seed(0)
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    few = round(share * CHANNELS)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[torch.arange(CHANNELS) % few])
    made = {f"split, {unit}": split_layer(layer, unit) for unit in UNITS}
    return {"ordinary layers": made["split, kernel"].dense()} | made


def compare(networks: dict[str, nn.Module], batch: int, example: torch.Tensor | None = None) -> pd.DataFrame:
    """Times in seconds, as the other benchmarks have them."""
    table = compare_latency(networks, example, batch=batch, repeats=15).rename(columns={"network": "contestant"})
    table["seconds"], table["against"] = table["median"] / 1000, table["contestant"].iloc[0]
    table[["q25", "q75"]] /= 1000
    return table[_COLUMNS]


def publish(benchmark: str, table: pd.DataFrame) -> None:
    print(f"\n{benchmark}\n{table.to_string(index=False, float_format='{:.3g}'.format)}", flush=True)
    store(benchmark, table)


if __name__ == "__main__":
    main()
