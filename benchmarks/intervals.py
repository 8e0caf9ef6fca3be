"""Accuracies with the interval that their number of images allows."""

from __future__ import annotations

import math

import pandas as pd
from statsmodels.stats.proportion import proportion_confint


def wilson(percent: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval, in percent, of an accuracy in percent on so many images."""
    low, high = proportion_confint(percent / 100 * images, images, method="wilson")
    return 100 * max(low, 0), 100 * min(high, 1)


def with_interval(values: pd.Series, images: float) -> str:
    """The mean accuracy, its standard deviation over seeds where there are several, and the interval of the mean."""
    if (values := values.dropna()).empty:
        return ""
    mean, spread = values.mean(), f" ± {values.std():.2f}" if len(values) > 1 else ""
    if not images or math.isnan(images):
        return f"{mean:.2f}{spread}"
    low, high = wilson(mean, int(images))
    return f"{mean:.2f}{spread} [{low:.2f}, {high:.2f}]"
