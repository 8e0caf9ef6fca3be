"""Whether a torchvision classifier computes the same once it is hashed and split: one more part of the zoo's row."""

from __future__ import annotations

import copy
import time
from collections import Counter

import torch
from torch import Tensor, nn

from benchmarks.randomised import randomised
from redlab.compression.folding import fold_batchnorm
from redlab.compression.splitting import split_inputs
from redlab.compression.units import UNITS, split_layer
from redlab.hashing.networks import hash_network
from redlab.network.geometry import Geometry
from redlab.network.result import Result, of_layers

COLUMNS = {
    "hashed": "layers hashed",
    "folded": "norms folded",
    "split": "layers split",
    "removed": "products removed",
    "count": "count",
    "single": "largest relative difference after splitting, float32",
    "double": "float64",
    "split_seconds": "seconds to fold, hash, split",
    "skipped": "not split, and why",
}
TOKENS = 8
# Where the image is small a network runs in seconds; these take none smaller.
SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_b_16": 224, "vit_b_32": 224, "vit_l_16": 224, "vit_l_32": 224}
SIZES |= {"vit_h_14": 518}


def measure_split(name: str, whole: bool) -> dict[str, str]:
    """The row's part, all text. ``whole``: all layers at once, else each on its own recorded input."""
    start = time.perf_counter()
    folded = fold_batchnorm(randomised(name))
    norms = sum(bool(norms) for norms in folded.layers["folded"])
    hashed = hash_network(folded.network)
    del folded  # the largest networks take 2.6 GB
    split = split_inputs(hashed.network)
    seconds = time.perf_counter() - start
    size = SIZES.get(name, 64)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    pairs = (differences if whole else layer_differences)(hashed.network, split, image)
    single, double = map(max, zip(*pairs, strict=True))
    layers = of_layers(split.layers)
    left = layers["products_after"].sum() / layers["products_before"].sum()
    return {
        "hashed": str((of_layers(hashed.layers)["skipped"] == "").sum()),
        "folded": str(norms),
        "split": str((layers["skipped"] == "").sum()),
        "removed": f"{1 - left:.1%}",
        "count": "new",
        "single": f"{single:.1e}",
        "double": f"{double:.1e}" + ("" if whole else ", layer by layer"),
        "split_seconds": f"{seconds:.0f}",
        "skipped": reasons(split),
    }


def reasons(split: Result) -> str:
    counts = Counter(reason for reason in of_layers(split.layers)["skipped"] if reason)
    return "; ".join(f"{reason}: {count}" for reason, count in counts.most_common())


def differences(hashed: nn.Module, split: Result, image: Tensor) -> list[tuple[float, float]]:
    """In float32 and float64: of the outputs under unit "channel", and of single layers under the other units."""
    with torch.inference_mode():
        single = relative(split.network(image), hashed(image))
        exact, image = copy.deepcopy(hashed).double(), image.double()
        double = relative(copy.deepcopy(split.network).double()(image), exact(image))
    return [(single, double), *layer_differences(hashed, split, image.float(), UNITS[1:])]


def layer_differences(
    hashed: nn.Module, split: Result, image: Tensor, units: tuple[str, ...] = UNITS[:1]
) -> list[tuple[float, float]]:
    """Of the output of each split layer on the input that it really gets, of tokens the first eight; a layer of one
    tap is the same for all units and only taken under "channel".
    """
    found: list[tuple[float, float]] = []

    def compare(layer: nn.Module, inputs: tuple, _: Tensor) -> None:
        seen = inputs[0][:, :TOKENS] if isinstance(layer, nn.Linear) and inputs[0].ndim == 3 else inputs[0]
        wanted, exactly = layer.forward(seen), copy.deepcopy(layer).double().forward(seen.double())
        for unit in units:
            own = split_layer(layer, unit) if unit != UNITS[0] else split.network.get_submodule(names[layer])
            single = relative(own(seen), wanted)
            found.append((single, relative(copy.deepcopy(own).double()(seen.double()), exactly)))

    names = {hashed.get_submodule(name): name for name in split.plan["layers"]}
    chosen = [layer for layer in names if UNITS[0] in units or len(Geometry.of(layer).taps) > 1]
    handles = [layer.register_forward_hook(compare) for layer in chosen]
    with torch.inference_mode():
        hashed(image)
    for handle in handles:
        handle.remove()
    return found


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())
