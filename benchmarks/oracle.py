"""First-order Taylor scores against the oracle, by the size of the minibatch, on test and training images.

    python -m benchmarks.oracle                       ResNet-20 on CIFAR-10, 1,000 images of each kind
    python -m benchmarks.oracle digits/resnet 360

Channels inside blocks only (one layer makes them, one reads them). The table is kept in oracle.csv.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from redlab import default_dataset, load_dataset, load_network
from redlab.studies.pruning import correlations, inner_groups, oracle_agreement

TABLE = Path(__file__).with_name("oracle.csv")
BATCHES = (1, 4, 16, 64, 256)


def main(name: str = "cifar10/resnet20", images: str = "1000") -> None:
    rows = pd.concat([measure(name, split, int(images)) for split in ("test", "train")], ignore_index=True)
    print(rows.to_string(index=False, float_format="{:.3f}".format))
    if TABLE.exists():
        old = pd.read_csv(TABLE)
        rows = pd.concat([old[old["network"] != name], rows], ignore_index=True)
    rows.to_csv(TABLE, index=False, float_format="%.4f")


def measure(name: str, split: str, images: int) -> pd.DataFrame:
    """Correlations by minibatch size, all images in one minibatch last."""
    network, dataset = load_network(name), load_dataset(default_dataset(name), split, limit=images)
    sizes = dict.fromkeys([*BATCHES, len(dataset)])
    methods = {size: {"criterion": "taylor", "batch_size": size} for size in sizes}
    found = correlations(oracle_agreement(network, dataset, methods, inner_groups(network)))
    return found.rename(columns={"method": "batch"}).assign(network=name, split=split, images=len(dataset))


if __name__ == "__main__":
    main(*sys.argv[1:])
