"""Which filters are alike, against one read of them, one matrix product and scikit-learn.

``python -m benchmarks.merging``. Random normal weights, the largest layer of ResNet-50's shape: 2,048 x 4,608 float32.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy import ndarray
from sklearn.cluster import AgglomerativeClustering

from benchmarks.timing import interleaved, store
from redlab.compression.similarity import clusters_at, dendrogram, exact_duplicates, pairwise_distances

FILTERS, WEIGHTS = 2_048, 4_608


def main() -> None:
    rows = np.random.default_rng(0).standard_normal((FILTERS, WEIGHTS), dtype=np.float32)
    copied = np.concatenate([rows[: FILTERS // 2]] * 2)
    publish("duplicates, 2,048 x 4,608, none alike", interleaved(duplicates(rows), 9, "one read"))
    publish("duplicates, 2,048 x 4,608, every filter twice", interleaved(duplicates(copied), 9, "one read"))
    publish("distances, 2,048 x 4,608", interleaved(distances(rows), 7, "sgemm"))
    for n in (512, FILTERS):
        publish(f"clusters, {n:,} x 4,608", interleaved(clusters(rows[:n].copy()), 3, "scikit-learn"))


def publish(benchmark: str, frame) -> None:
    print(f"\n{benchmark}\n{frame.to_string(index=False, float_format='{:.3g}'.format)}", flush=True)
    store(benchmark, frame)


def duplicates(rows: ndarray) -> dict:
    tensor = torch.from_numpy(rows)
    return {
        "one read": rows.sum,
        "redlab": partial(exact_duplicates, rows),
        "dict of row bytes": lambda: {row.tobytes(): k for k, row in enumerate(rows)},
        "torch.unique": lambda: torch.unique(tensor, dim=0, return_inverse=True),
    }


def distances(rows: ndarray) -> dict:
    other = rows.copy().T  # of its own memory, so that no half of the product is spared
    tensor = torch.from_numpy(rows)
    return {
        "sgemm": lambda: rows @ other,
        "redlab": partial(pairwise_distances, rows),
        "torch.cdist": lambda: torch.cdist(tensor, tensor),
    }


def clusters(rows: ndarray) -> dict:
    left = len(rows) // 2
    peer = AgglomerativeClustering(left, linkage="complete")
    return {
        "scikit-learn": partial(peer.fit_predict, rows),
        "redlab": lambda: clusters_at(dendrogram(rows), left),
    }


if __name__ == "__main__":
    main()
