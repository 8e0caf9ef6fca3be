"""Accuracies in words: with their intervals, and sentences that compare settings and methods.

A frame here has a row a setting, as the studies make them: ``accuracy`` in percent on so many ``images``, and ``p`` of
McNemar's test against the network as it came.
"""

from __future__ import annotations

import pandas as pd

from redlab.network.evaluation import accuracy_interval

LEVEL = 0.05  # of McNemar's test: a difference with a smaller p is significant


class Takeaways:
    """Sentences that a notebook shows as a list."""

    def __init__(self, *sentences: str) -> None:
        self.sentences = sentences

    def __repr__(self) -> str:
        return "\n".join(f"- {sentence}" for sentence in self.sentences)

    _repr_markdown_ = __repr__


def in_words(accuracy: float, images: int) -> str:
    """An accuracy with its number of images and its 95 % interval: ``99.4 % of 360 images (98.0 to 99.8)``."""
    low, high = accuracy_interval(accuracy, images)
    return f"{accuracy:.1f} % of {images:,} images ({low:.1f} to {high:.1f})"


def percent(share: float) -> str:
    """A share in percent, with three digits: ``0.828 %``."""
    return f"{100 * share:.3g} %"


def fewest(frame: pd.DataFrame, column: str, what: str, label: str = "method") -> str:
    """Which row leaves the smallest share in ``column`` without a significant loss of accuracy."""
    kept = frame[frame["p"] >= LEVEL].sort_values([column, "accuracy"], ascending=[True, False])
    line = f"without a significant loss of accuracy (McNemar, p at least {LEVEL:g})"
    if kept.empty:
        return f"No setting reduces the {what} {line}."
    best = kept.iloc[0]
    return (
        f"Fewest {what} {line}: **{best[label]}** leaves {percent(best[column])} and has "
        f"{in_words(best['accuracy'], best['images'])}. The setting is chosen on these test images."
    )


def best_and_worst(frame: pd.DataFrame, when: str) -> str:
    """Which method has the highest accuracy, and which the lowest, both means over seeds."""
    images, means = int(frame["images"].iloc[0]), frame.groupby("method", sort=False)["accuracy"].mean()
    best, worst = means.idxmax(), means.idxmin()
    if best == worst:  # all are equal
        return f"{when}, {best if len(means) == 1 else 'every method'} has {in_words(means[best], images)}."
    apart = accuracy_interval(means[worst], images)[1] < accuracy_interval(means[best], images)[0]
    return (
        f"{when}, **{best}** keeps most accuracy, {in_words(means[best], images)}, and {worst} least, "
        f"{in_words(means[worst], images)}. The two intervals {'do not overlap' if apart else 'overlap'}."
    )
