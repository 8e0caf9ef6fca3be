"""What comparisons measure: whether two networks differ in accuracy on the same images, and the shares left."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import pandas as pd
from scipy.stats import binomtest
from torch import Tensor, nn

from redlab.network.evaluation import Evaluation, right_images
from redlab.network.result import of_layers
from redlab.network.samples import Labelled


@dataclass(frozen=True)
class AccuracyDifference:
    """Two networks on the same images.

    Attributes:
        images: how many.
        both, first, second, neither: images on which both networks are right, only the first, only the second, neither.

    Example:
        >>> print(AccuracyDifference(images=360, both=350, first=8, second=1, neither=1))
        difference -1.94 points (95 % interval -3.6 to -0.3), 8 images lost, 1 won, McNemar p = 0.0391
    """

    images: int
    both: int
    first: int
    second: int
    neither: int

    @property
    def difference(self) -> float:
        """Accuracy of the second minus accuracy of the first, in points of percent."""
        return 100 * (self.second - self.first) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, in points (Agresti and Min 2005: half an image added to each count)."""
        n = self.images + 2
        change, discordant = (self.second - self.first) / n, (self.second + self.first + 1) / n
        reach = 1.959964 * sqrt((discordant - change**2) / n)
        return 100 * (change - reach), 100 * (change + reach)

    @property
    def p(self) -> float:
        """The exact two-sided p of McNemar's test (1947): 1 where the networks disagree nowhere."""
        disagree = self.first + self.second
        return float(binomtest(self.first, disagree).pvalue) if disagree else 1.0

    def columns(self) -> dict[str, float]:
        """The comparison as columns of a frame: ``difference``, ``difference_low``, ``difference_high``, ``p``."""
        low, high = self.interval
        return {"difference": self.difference, "difference_low": low, "difference_high": high, "p": self.p}

    def __str__(self) -> str:
        low, high = self.interval
        interval = f"(95 % interval {low:.1f} to {high:.1f})"
        counts = f"{self.first:,} images lost, {self.second:,} won"
        return f"difference {self.difference:+.2f} points {interval}, {counts}, McNemar p = {self.p:.3g}"


def compare_accuracy(network: nn.Module, other: nn.Module, dataset: Labelled) -> AccuracyDifference:
    """The accuracy of ``other`` against that of ``network``, image by image, by McNemar's test.

    Arguments and errors as in ``evaluate``.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits")
        >>> print(compare_accuracy(network, network, images))
        difference +0.00 points (95 % interval -0.5 to 0.5), 0 images lost, 0 won, McNemar p = 1
    """
    return compare_right(right_images(network, dataset), right_images(other, dataset))


def compare_right(first: Tensor, second: Tensor) -> AccuracyDifference:
    """``compare_accuracy`` of networks that are known to be right where ``first`` and ``second`` (bool) are True."""
    counts = (first & second, first & ~second, ~first & second, ~first & ~second)
    return AccuracyDifference(len(first), *(int(count.sum()) for count in counts))


class Reference:
    """A network that others are compared with, evaluated once.

    Attributes:
        before: its accuracy in percent.

    Arguments:
        before: its accuracy where it is known; it is then not evaluated, and others are not compared with it.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
        >>> list(Reference(network, images).columns(network))[:4]
        ['accuracy', 'images', 'accuracy_low', 'accuracy_high']
    """

    def __init__(self, network: nn.Module, dataset: Labelled, before: float | None = None) -> None:
        self.dataset, self.right = dataset, right_images(network, dataset) if before is None else None
        self.before = _evaluation(self.right).accuracy if self.right is not None else before

    def columns(self, other: nn.Module) -> dict[str, float]:
        """``Evaluation.columns`` of ``other``, and ``AccuracyDifference.columns`` from the reference to it."""
        right = right_images(other, self.dataset)
        compared = {} if self.right is None else compare_right(self.right, right).columns()
        return _evaluation(right).columns() | compared

    def frame(self, rows: list[dict], of: str = "") -> pd.DataFrame:
        """The rows of a comparison; ``attrs["before"]``, and in ``attrs["of"]`` what a share is a share of."""
        frame = pd.DataFrame(rows)
        frame.attrs = {"before": self.before} | ({"of": of} if of else {})
        return frame


def _evaluation(right: Tensor) -> Evaluation:
    return Evaluation(100 * int(right.sum()) / len(right), float("nan"), len(right))


def shares_left(layers: pd.DataFrame, *names: str) -> dict[str, float]:
    """By name, the share of the column ``NAME_before`` that ``NAME_after`` is, over all layers of a ``Result``."""
    total = of_layers(layers).sum(numeric_only=True)
    return {name: total[f"{name}_after"] / total[f"{name}_before"] for name in names}
