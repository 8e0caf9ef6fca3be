"""Networks with two sets each: one on which defaults are chosen, another on which they are reported, once.

| network | chosen on | reported on |
|---|---|---|
| digits/ | the training images | the 360 test images |
| cifar10/ | the last 5,000 of the training images | the 10,000 test images |
| imagenet/ | val250 | val750, which shares no image with it |
| MiniLM-L6 | STS 2014 | STS 2015 |

The digits and CIFAR-10 networks were trained on the images that they are chosen on: an accuracy there is too high, and
what is read off it is the loss. ImageNet's images are an easier sample than the whole validation set. MiniLM-L6 answers
with embeddings: its score is Spearman's correlation x 100, see ``sentences``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from benchmarks.intervals import wilson
from benchmarks.sentences import compare_spearman, cosines, minilm, spearman
from redlab import load_dataset, load_network
from redlab.network.evaluation import right_images
from redlab.studies.accuracy import compare_right
from redlab.studies.splitting import ordinary

MINILM = "MiniLM-L6"
NETWORKS = (
    "digits/mobilenet",
    "cifar10/resnet20",
    "imagenet/mobilenet_v1_0.75",
    "imagenet/efficientnet_lite0",
    MINILM,
    "cifar10/resnet56",
)
STAGES = ("choose", "report")
_CHOOSE_IMAGES = 5_000
_YEARS = {"choose": "2014", "report": "2015"}


@cache
def original(name: str) -> nn.Module:
    """The network as it came; never changed."""
    return load_network(minilm() if name == MINILM else name).eval()


@cache
def images_of(name: str, stage: str) -> Dataset:
    family = name.split("/")[0]
    if family == "imagenet":
        return load_dataset("imagenet_folder" if stage == "choose" else "imagenet_folder:val750")
    if stage == "report":
        return load_dataset(family)
    training = load_dataset(family, "train")
    return Subset(training, range(max(0, len(training) - _CHOOSE_IMAGES), len(training)))


def answers(name: str, network: nn.Module, stage: str) -> np.ndarray:
    """Of each image, whether the network is right; of each pair of sentences, the cosine."""
    network = ordinary(network).eval()
    if name == MINILM:
        return cosines(network, _YEARS[stage])
    return right_images(network, images_of(name, stage)).numpy()


@cache
def answers_before(name: str, stage: str) -> np.ndarray:
    return answers(name, original(name), stage)


def score(name: str, network: nn.Module, stage: str) -> dict[str, Any]:
    """Score after and before, and the paired difference, in points, with 95 % intervals.

    Returns:
        score, low, high, before, count (images or pairs), difference, difference_low, difference_high, and p: of
        McNemar's exact test on images, of the paired bootstrap on sentences.
    """
    before, after = answers_before(name, stage), answers(name, network, stage)
    if name == MINILM:
        year = _YEARS[stage]
        found = {"score": spearman(year, after), "before": spearman(year, before)}
        return found | {"count": len(after)} | compare_spearman(year, before, after)
    low, high = wilson(100 * after.mean(), len(after))
    found = {"score": 100 * after.mean(), "low": low, "high": high, "before": 100 * before.mean(), "count": len(after)}
    return found | compare_right(*map(torch.from_numpy, (before, after))).columns()
