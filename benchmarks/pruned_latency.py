"""Latency after pruning: what a share of the products saves in time depends on which channels go.

``python -m benchmarks.pruned_latency``. Networks by several criteria and shares, interleaved, batch 1, against the
network as it came; ResNet-20 where the data root holds its weights. Folded before they are timed.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.splitting import compare, publish
from redlab import default_dataset, fold_batchnorm, load_dataset, load_network
from redlab.paths import data_root
from redlab.pruning.channels import prune_channels
from redlab.pruning.scores import score_channels

KEEPS = (0.75, 0.6, 0.45, 0.3)
METHODS = {
    "magnitude": {"criterion": "magnitude", "scope": "layer"},
    "Srinivas-Babu": {"criterion": "srinivas_babu"},
    "reconstruction": {"criterion": "reconstruction"},
    "Taylor": {"criterion": "taylor"},
}


def main() -> None:
    torch.manual_seed(0)
    for name in ("digits/resnet", "cifar10/resnet20"):
        if name.startswith("cifar10/") and not any((data_root() / "weights" / "cifar10").glob("*.th")):
            print(f"\n{name} is left out: set REDLAB_DATA to a folder with weights/cifar10")
            continue
        table = compare({key: fold_batchnorm(own).network for key, own in pruned(name).items()}, 1)
        table[["method", "share"]] = table["contestant"].str.split(": ", expand=True).to_numpy()
        publish(f"latency after pruning, {name}", table.astype({"share": float}))


def pruned(name: str) -> dict[str, nn.Module]:
    """The network, and what each method makes of it at each share, by "method: share"."""
    network, networks = load_network(name), {}
    images = load_dataset(default_dataset(name), "train", limit=1024)
    for method, options in METHODS.items():
        scores = score_channels(network, options["criterion"], images)
        for keep in KEEPS:
            small = prune_channels(network, scores, products=keep, scope=options.get("scope", "global")).network
            networks[f"{method}: {keep}"] = small
    return {"as trained: 1": network} | networks


if __name__ == "__main__":
    main()
