"""Two networks on the same images: McNemar's test, and the columns that studies carry."""

import numpy as np
import pytest
import torch
from statsmodels.stats.contingency_tables import mcnemar
from torch import nn

from redlab import evaluate, hash_network, load_dataset, load_network
from redlab.studies.accuracy import AccuracyDifference, Reference, compare_accuracy, compare_right


@pytest.mark.parametrize(("both", "first", "second", "neither"), [(350, 8, 1, 1), (10, 3, 3, 0), (90, 0, 10, 5)])
def test_p_is_that_of_statsmodels(both, first, second, neither):
    found = AccuracyDifference(both + first + second + neither, both, first, second, neither)
    assert found.p == pytest.approx(mcnemar([[both, first], [second, neither]], exact=True).pvalue)


def test_networks_that_disagree_nowhere_do_not_differ():
    found = AccuracyDifference(100, 90, 0, 0, 10)
    assert (found.difference, found.p) == (0, 1)
    low, high = found.interval
    assert low < 0 < high


def test_the_interval_covers_the_difference_in_19_of_20_samples():
    draws = np.random.default_rng(0)
    shares = np.array([0.85, 0.07, 0.03, 0.05])  # the true difference: -4 points
    inside = [_covers(AccuracyDifference(300, *draws.multinomial(300, shares).tolist()), -4) for _ in range(2000)]
    assert 0.93 < np.mean(inside) < 0.97


def _covers(found, truth):
    return found.interval[0] <= truth <= found.interval[1]


def test_counts_say_which_network_is_right_where():
    right, other = torch.tensor([True, True, True, False, False]), torch.tensor([True, False, False, True, False])
    assert compare_right(right, other) == AccuracyDifference(5, both=1, first=2, second=1, neither=1)


def test_the_difference_is_that_of_the_accuracies():
    network, images = load_network("digits/mlp"), load_dataset("digits")
    other = hash_network(network, rule="uniform", max_error=0.6).network
    found = compare_accuracy(network, other, images)
    assert found.difference == pytest.approx(evaluate(other, images).accuracy - evaluate(network, images).accuracy)
    assert found.first > 0
    columns = Reference(network, images).columns(other)
    assert columns["difference"] == found.difference
    assert columns["accuracy"] == evaluate(other, images).accuracy
    assert columns["difference_low"] < found.difference < columns["difference_high"]


def test_a_reference_whose_accuracy_is_known_is_not_evaluated():
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError

    network, images = load_network("digits/mlp"), load_dataset("digits", limit=20)
    reference = Reference(Never(), images, before=97.0)
    assert reference.before == 97.0
    assert list(reference.columns(network)) == ["accuracy", "images", "accuracy_low", "accuracy_high"]
