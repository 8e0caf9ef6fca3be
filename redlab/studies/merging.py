"""Comparisons of merge settings, and which filters merge: one network, many settings, one tidy frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import nn
from torch.utils.data import Dataset

from redlab.compression.merging import merge_each, merge_trees
from redlab.compression.similarity import Dendrogram, clusters_at
from redlab.network.layers import Layer, weight_layers
from redlab.network.result import of_layers
from redlab.progress import progress
from redlab.studies.accuracy import Reference, shares_left

_ALIKE = 16  # filters of one cluster that are drawn
_OF_FILTERS = ["cluster", "size", "filter", "row", "column", "value"]


def compare_merges(network: nn.Module, dataset: Dataset, settings: list[dict]) -> pd.DataFrame:
    """Merge ``network`` once for each of ``settings`` (keywords of ``merge_neurons``) and measure what is left of it.

    Returns:
        A row a setting: the setting itself; ``merged`` and ``dead`` channels, summed over layers, and ``share``, the
        channels left; ``products`` and ``parameters``, the shares of those before; the accuracy
        (``Reference.columns``). ``attrs["before"]`` holds the accuracy of the network before, ``attrs["of"]`` what
        ``share`` is a share of.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> frame = compare_merges(network, images, [{"alpha": 0.1}, {"alpha": 0.2}])
        >>> frame[["alpha", "merged", "share"]].round(2)
           alpha  merged  share
        0    0.1      37   0.91
        1    0.2      76   0.81
    """
    results = zip(progress(settings, "merge settings"), merge_each(network, settings), strict=True)
    reference = Reference(network, dataset)
    rows = [setting | _left(result.layers) | reference.columns(result.network) for setting, result in results]
    return reference.frame(rows, of="channels")


def _left(layers: pd.DataFrame) -> dict:
    removed = of_layers(layers)[["merged", "dead"]].sum().astype(int).to_dict()
    left = shares_left(layers, "channels", "products", "parameters")
    return {**removed, "share": left.pop("channels"), **left}


def merged_filters(layer: Layer, tree: Dendrogram, merged: int, most: int = 12) -> pd.DataFrame:
    """The filters of the clusters that form once ``merged`` filters are merged away, the tightest cluster first.

    Returns:
        One row a weight: cluster, its ``size`` in filters, filter, row (input channel), column (tap), value. At most
        ``most`` clusters, 16 filters of each, and no further cluster after 32 filters.

    Example:
        >>> network = load_network("digits/resnet")
        >>> first, tree = next(weight_layers(network)), merge_trees(network)["conv1"]
        >>> merged_filters(first, tree, merged=2).groupby("cluster")["filter"].nunique().tolist()
        [2, 2]
    """
    # With clusters {3, 7} and {1, 4, 9}, the first one tighter, the images are of the filters 3, 7, 1, 4, 9. Filter 4,
    # a 3x3 kernel on two channels, gives 18 rows: cluster 1, size 3, filter 4, row 0 and 1, column 0 to 8.
    images, frames, shown = _images(layer), [], 0
    for cluster, members in enumerate(_tightest_first(tree, merged)[:most]):
        if shown >= 2 * _ALIKE:
            break
        for number in members[:_ALIKE].tolist():
            row, column = np.indices(images[number].shape).reshape(2, -1)
            about = {"cluster": cluster, "size": len(members), "filter": number}
            frames.append(pd.DataFrame(about | {"row": row, "column": column, "value": images[number].ravel()}))
            shown += 1
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_OF_FILTERS)


def _images(layer: Layer) -> np.ndarray:
    """The filters of a layer, (filters, input channels, taps); a linear layer has one tap."""
    weight = layer.weight.detach().cpu().float()
    return (weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]).numpy()


def _tightest_first(tree: Dendrogram, merged: int) -> list[np.ndarray]:
    """The members of every cluster of several, the cluster of the smallest diameter first."""
    clusters, distances = clusters_at(tree, merged), _distances(tree)
    groups = [np.flatnonzero(clusters == cluster) for cluster in range(clusters.max() + 1)]
    return sorted((own for own in groups if len(own) > 1), key=lambda own: distances[np.ix_(own, own)].max())


def _distances(tree: Dendrogram) -> np.ndarray:
    """(n, n) between all filters; the tree holds those between filters that differ."""
    place = np.searchsorted(tree.leaves, tree.first)
    return tree.distances[np.ix_(place, place)]


def nearest_filters(network: nn.Module, linkage: str = "complete") -> tuple[Layer, Dendrogram]:
    """The layer whose nearest two filters are nearest, in units of its median distance, and its dendrogram.

    Example:
        >>> layer, tree = nearest_filters(load_network("digits/mlp"))
        >>> layer.name
        'hidden.1.linear'
    """
    trees, layers = merge_trees(network, linkage), {layer.name: layer for layer in weight_layers(network)}
    name = max(sorted(layers.keys() & trees), key=lambda own: trees[own].closeness)
    return layers[name], trees[name]


def filter_pairs(layer: Layer, tree: Dendrogram, pairs: int = 1, seed: int = 0) -> pd.DataFrame:
    """The nearest pairs of filters, and as many pairs at random, weight by weight.

    Returns:
        One row a weight of a pair: ``pair`` ("nearest 1", ..., "random 1", ...), the numbers ``filter`` and ``other``,
        their weights ``value`` and ``other_value``, and ``distance``: theirs over the median of all pairs. No filter is
        in two of the nearest pairs.

    Example:
        >>> network = load_network("digits/resnet")
        >>> first, tree = next(weight_layers(network)), merge_trees(network)["conv1"]
        >>> filter_pairs(first, tree).groupby("pair", sort=False)["distance"].first().round(1).tolist()
        [0.7, 1.0]
    """
    images, distances = _images(layer), _distances(tree)
    one, other = np.triu_indices(len(distances), 1)
    apart = distances[one, other]
    chosen: dict[str, int] = {}
    used: set[int] = set()
    for k in np.argsort(apart, kind="stable").tolist():
        if len(chosen) < pairs and not used & {one[k], other[k]}:
            used |= {one[k], other[k]}
            chosen[f"nearest {len(chosen) + 1}"] = k
    drawn = np.random.default_rng(seed).choice(len(apart), min(pairs, len(apart)), replace=False)
    chosen |= {f"random {number + 1}": k for number, k in enumerate(drawn.tolist())}
    median = float(np.median(apart)) or 1.0
    frames = []
    for pair, k in chosen.items():
        values = {"value": images[one[k]].ravel(), "other_value": images[other[k]].ravel()}
        about = {"pair": pair, "filter": one[k], "other": other[k], "distance": float(apart[k]) / median}
        frames.append(pd.DataFrame(values | about))
    return pd.concat(frames, ignore_index=True)


def filter_distances(tree: Dendrogram) -> pd.DataFrame:
    """All distances between filters in the order of the dendrogram: columns filter, other, distance.

    Example:
        >>> trees = merge_trees(load_network("digits/resnet"))
        >>> frame = filter_distances(trees["conv1"])
        >>> frame.columns.tolist(), frame["distance"].min().item()
        (['filter', 'other', 'distance'], 0.0)
    """
    order = tree.order
    columns = {"filter": np.repeat(order, len(order)), "other": np.tile(order, len(order))}
    return pd.DataFrame(columns | {"distance": _distances(tree)[np.ix_(order, order)].ravel()})
