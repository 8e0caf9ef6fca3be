"""Comparisons of hash settings: one network, many settings, one tidy frame."""

from __future__ import annotations

import pandas as pd
from torch import nn
from torch.utils.data import Dataset

from redlab.hashing.networks import hash_network
from redlab.network.result import of_layers
from redlab.progress import progress
from redlab.studies.accuracy import Reference


def compare_hashes(network: nn.Module, dataset: Dataset, settings: list[dict]) -> pd.DataFrame:
    """Hash ``network`` once for each of ``settings`` (keywords of ``hash_network``) and measure what is left of it.

    Returns:
        A row a setting: the setting itself; ``distinct`` values summed over layers and ``share`` of those before;
        ``modes`` and ``error``, means over the layers that are hashed; the accuracy (``Reference.columns``).
        ``attrs["before"]`` holds the accuracy of the network before, ``attrs["of"]`` what ``share`` is a share of.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> settings = [{"rule": "uniform", "levels": levels} for levels in (4, 16)]
        >>> compare_hashes(network, images, settings)[["rule", "levels", "distinct"]]
              rule  levels  distinct
        0  uniform       4        12
        1  uniform      16        48
    """
    reference = Reference(network, dataset)
    rows = [_row(network, reference, setting) for setting in progress(settings, "hash settings")]
    return reference.frame(rows, of="distinct weight values")


def _row(network: nn.Module, reference: Reference, setting: dict) -> dict:
    result = hash_network(network, **setting)
    layers = of_layers(result.layers)
    own = layers.loc[layers["modes"] > 0, ["modes", "error"]].mean().fillna(0)  # others would pull them to 0
    return setting | {
        "distinct": int(layers["distinct"].sum()),
        "share": layers["distinct"].sum() / layers["distinct_before"].sum(),
        **own.to_dict(),
        **reference.columns(result.network),
    }
