"""One step of a slider, on a layer of 590 thousand weights; ``python -m benchmarks.exploring``.

To compute is all that comes before pixels: density, hashing, clusters, products, and the curves made of them. The
picture is that and its PNG. Every call takes the next place of the slider, so that nothing is answered from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.timing import interleaved, store
from redlab import explore_density, explore_hashing, explore_merging, explore_splitting
from redlab.lab.explore.explorer import Explorer
from redlab.network.recipe import Recipe

SORT = "np.sort of the weights"
LAYER = "0"


def main() -> None:
    network = _network()
    sliders = {
        "density, bandwidth": (explore_density(network, LAYER), "bandwidth"),
        "hashing, bandwidth": (explore_hashing(network, LAYER), "bandwidth"),
        "hashing, contrast": (explore_hashing(network, LAYER), "contrast"),
        "merging, alpha": (explore_merging(network, LAYER), "alpha"),
        "splitting, bandwidth": (explore_splitting(network, LAYER), "bandwidth"),
        "splitting, unit": (explore_splitting(network, LAYER), "unit"),
    }
    weights = network[0].weight.detach().numpy().ravel()
    contestants = {SORT: lambda: np.sort(weights)}
    for name, (explorer, slider) in sliders.items():
        contestants[f"{name}: compute"] = _stepping(explorer, slider, lambda at, own=explorer: _compute(own, at))
        contestants[f"{name}: picture"] = _stepping(explorer, slider, explorer.png)
    table = interleaved(contestants, 12, SORT).assign(threads=torch.get_num_threads(), weights=weights.size)
    print(table.to_string(index=False))
    store("a step of a slider, 590 k weights", table)


def _network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 16, 1)).eval()
    with torch.no_grad():
        network[0].weight.normal_().mul_(0.02 * (1 + torch.rand(256, 1, 1, 1)))
    network.redlab = Recipe("two layers", (256, 8, 8))
    return network


def _stepping(explorer: Explorer, slider: str, draw: Callable[[dict], object]) -> Callable[[], None]:
    places = cycle(explorer.offered(explorer.values)[slider].values())
    return lambda: draw(explorer.settle({**explorer.values, slider: next(places)}))


def _compute(explorer: Explorer, values: dict) -> None:
    explorer.see(Figure(figsize=explorer.size), **values)


if __name__ == "__main__":
    main()
