"""Comparisons that several notebooks draw: one network, many settings, one tidy frame."""

from __future__ import annotations

import pandas as pd
from torch import nn
from torch.utils.data import Dataset

from redlab.evaluation import evaluate
from redlab.hashing import hash_network
from redlab.progress import progress


def compare_hashes(network: nn.Module, dataset: Dataset, settings: list[dict]) -> pd.DataFrame:
    """Hash ``network`` once for each of ``settings`` (keywords of ``hash_network``) and measure what is left of it.

    Returns:
        A row a setting: the setting itself; ``distinct`` values summed over layers and ``share`` of those before;
        ``modes`` and ``error``, means over layers; ``accuracy`` in percent. ``attrs["before"]`` holds the accuracy of
        the network as it came, ``attrs["of"]`` what share is a share of.
    """
    rows = [_row(network, dataset, setting) for setting in progress(settings, "hash settings")]
    frame = pd.DataFrame(rows)
    frame.attrs = {"of": "distinct weight values", "before": evaluate(network, dataset).accuracy}
    return frame


def _row(network: nn.Module, dataset: Dataset, setting: dict) -> dict:
    result = hash_network(network, **setting)
    layers = result.layers
    return setting | {
        "distinct": int(layers["distinct"].sum()),
        "share": layers["distinct"].sum() / layers["distinct_before"].sum(),
        "modes": layers["modes"].mean(),
        "error": layers["error"].mean(),
        "accuracy": evaluate(result.network, dataset).accuracy,
    }
