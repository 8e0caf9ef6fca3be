"""Comparisons of merge settings, and which filters merge: one network, many settings, one tidy frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import nn
from torch.utils.data import Dataset

from redlab.compression.merging import merge_each
from redlab.compression.similarity import Dendrogram, clusters_at
from redlab.network.evaluation import evaluate
from redlab.network.layers import Layer
from redlab.network.remainder import of_layers
from redlab.network.result import Result
from redlab.progress import progress

_ALIKE = 16  # filters of one cluster that are drawn


def compare_merges(network: nn.Module, dataset: Dataset, settings: list[dict]) -> pd.DataFrame:
    """Merge ``network`` once for each of ``settings`` (keywords of ``merge_neurons``) and measure what is left of it.

    Returns:
        A row a setting: the setting itself; ``merged`` and ``dead`` channels, summed over layers, and ``share``, the
        channels left; ``products`` and ``parameters``, the shares of those before; ``accuracy`` in percent.
        ``attrs["before"]`` holds the accuracy of the network as it came, ``attrs["of"]`` what share is a share of.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> frame = compare_merges(network, images, [{"alpha": 0.1}, {"alpha": 0.2}])
        >>> frame[["alpha", "merged", "share"]].round(2)
           alpha  merged  share
        0    0.1      37   0.91
        1    0.2      76   0.81
    """
    results = zip(progress(settings, "merge settings"), merge_each(network, settings), strict=True)
    rows = [setting | _merge_row(result, dataset) for setting, result in results]
    frame = pd.DataFrame(rows)
    frame.attrs = {"of": "channels", "before": evaluate(network, dataset).accuracy}
    return frame


def _merge_row(result: Result, dataset: Dataset) -> dict:
    total = of_layers(result.layers).sum(numeric_only=True)
    return {
        "merged": int(total["merged"]),
        "dead": int(total["dead"]),
        "share": total["channels_after"] / total["channels_before"],
        "products": total["products_after"] / total["products_before"],
        "parameters": total["parameters_after"] / total["parameters_before"],
        "accuracy": evaluate(result.network, dataset).accuracy,
    }


def merged_filters(layer: Layer, tree: Dendrogram, merged: int, most: int = 12) -> pd.DataFrame:
    """The filters of the clusters that form when ``merged`` are gone, the tightest clusters first.

    Returns:
        One row a weight: cluster, its ``size`` in filters, filter, row (input channel), column (tap), value; ``most``
        clusters at most, the first 16 filters of each, and no more clusters once 32 filters are there.

    Example:
        >>> network = load_network("digits/resnet")
        >>> first, tree = next(weight_layers(network)), merge_trees(network)["conv1"]
        >>> merged_filters(first, tree, merged=2).groupby("cluster")["filter"].nunique().tolist()
        [2, 2]
    """
    groups = _tightest_first(tree, merged)[:most]
    before = np.cumsum([0, *(min(len(members), _ALIKE) for members in groups)])
    shown = [members[:_ALIKE] for members, others in zip(groups, before, strict=False) if others < 2 * _ALIKE]
    numbers, counts = np.concatenate([*shown, np.zeros(0, int)]), [len(members) for members in shown]
    weight = layer.weight.detach().cpu()
    images = (weight.flatten(2) if weight.ndim > 2 else weight[:, :, None])[numbers].float().numpy()
    place, row, column = (index.ravel() for index in np.indices(images.shape))
    sizes = [len(members) for members in groups[: len(shown)]]
    columns = {"cluster": np.repeat(np.arange(len(shown)), counts), "size": np.repeat(sizes, counts), "filter": numbers}
    frame = {name: values.astype(int)[place] for name, values in columns.items()}
    return pd.DataFrame(frame | {"row": row, "column": column, "value": images.ravel()})


def _tightest_first(tree: Dendrogram, merged: int) -> list[np.ndarray]:
    """The members of every cluster of several, the cluster of the smallest diameter first."""
    clusters = clusters_at(tree, merged)
    place = np.searchsorted(tree.leaves, tree.first)
    distances = tree.distances[np.ix_(place, place)]
    groups = [np.flatnonzero(clusters == cluster) for cluster in range(clusters.max() + 1)]
    return sorted((own for own in groups if len(own) > 1), key=lambda own: distances[np.ix_(own, own)].max())


def filter_distances(tree: Dendrogram) -> pd.DataFrame:
    """All distances between filters in the order of the dendrogram: columns filter, other, distance.

    Example:
        >>> trees = merge_trees(load_network("digits/resnet"))
        >>> frame = filter_distances(trees["conv1"])
        >>> frame.columns.tolist(), frame["distance"].min().item()
        (['filter', 'other', 'distance'], 0.0)
    """
    order = tree.order
    place = np.searchsorted(tree.leaves, tree.first)[order]
    columns = {"filter": np.repeat(order, len(order)), "other": np.tile(order, len(order))}
    return pd.DataFrame(columns | {"distance": tree.distances[np.ix_(place, place)].ravel()})
