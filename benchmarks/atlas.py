"""How redundant every network is that redlab knows, layer by layer: the sweep behind notebook 11.

    python -m benchmarks.atlas                          goes on where the last run stopped
    python -m benchmarks.atlas torchvision/resnet18     this one again

redlab's own networks are measured twice, trained and with random initial weights. So are torchvision's where their
trained weights lie under the data root or may be downloaded; where not, with random initial weights only, and the next
run asks again. One file, atlas.parquet; the rows of a network are in it as soon as it is measured, the small networks
first, so that a run may be stopped at any time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd
from torchvision import models
from tqdm import tqdm

from redlab import list_networks
from redlab.studies.atlas import atlas_rows
from redlab.zoo import networks

ATLAS = Path(__file__).with_name("atlas.parquet")
KEY = ["network", "trained"]


def main(names: list[str]) -> None:
    kept = _read()
    done = set(kept) - {(name, trained) for name in names for trained in (True, False)}
    for name in (bar := tqdm(names or sorted(list_networks(), key=_size), unit="network")):
        bar.set_description(name)
        for trained in (True, False):
            if (name, trained) not in done and (not trained or _trained_weights_are_here(name)):
                kept[name, trained] = atlas_rows(name, trained)
                _write(kept)


def _size(name: str) -> int:
    """Parameters, as torchvision states them; redlab's own come first."""
    short = name.removeprefix("torchvision/")
    return 0 if short == name else models.get_model_weights(short).DEFAULT.meta["num_params"]


def _trained_weights_are_here(name: str) -> bool:
    try:
        networks.default_weights(name)
    except (ConnectionError, FileNotFoundError) as reason:
        tqdm.write(f"{name}: no trained weights: {reason}")
        return False
    return True


def _read() -> dict[tuple[str, bool], pd.DataFrame]:
    """The rows that are there, by network and whether it is trained."""
    if not ATLAS.exists():
        return {}
    rows = pd.read_parquet(ATLAS)
    return dict(list(rows.astype(dict.fromkeys(rows.select_dtypes("category"), str)).groupby(KEY, sort=False)))


def _write(kept: dict[tuple[str, bool], pd.DataFrame]) -> None:
    """Written beside the file and moved there: a run that is stopped leaves the old rows or the new ones."""
    order = list_networks()
    keys = sorted(kept, key=lambda key: (order.index(key[0]), not key[1]))
    atlas = pd.concat([kept[key] for key in keys], ignore_index=True)
    small = dict.fromkeys(atlas.select_dtypes("float"), "float32")
    small |= dict.fromkeys(atlas.select_dtypes("int"), "int32") | dict.fromkeys(
        atlas.select_dtypes("object"), "category"
    )
    draft = ATLAS.with_suffix(".part")
    atlas.astype(small).to_parquet(draft, index=False, compression="zstd")
    os.replace(draft, ATLAS)


if __name__ == "__main__":
    main(sys.argv[1:])
