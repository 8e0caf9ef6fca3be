"""The birthday problem: enumeration of small layers, hand counts and simulation are the oracles."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redlab.hashing.chance import expected_unique

counts = st.lists(st.integers(0, 4), min_size=1, max_size=4)
large_counts = st.lists(st.integers(0, 10**5), min_size=1, max_size=30).filter(any)


def enumerate_draws(counts, n, replace, others=0):
    """The mean number of distinct values over every draw; ``others`` are weights whose values aren't counted."""
    weights = [*np.repeat(np.arange(len(counts)), counts).tolist(), *[None] * others]
    draws = product(weights, repeat=n) if replace else combinations(weights, n)
    return np.mean([len(set(draw) - {None}) for draw in draws])


@settings(max_examples=60)
@given(counts, st.integers(0, 4), st.booleans(), st.integers(0, 3))
def test_it_is_the_mean_over_every_draw(counts, n, replace, others):
    total = sum(counts) + others
    n = min(n, total)
    found = expected_unique(counts, n, replace, total)
    assert found == pytest.approx(enumerate_draws(counts, n, replace, others), abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "n", "replace", "total", "wanted"),
    [
        ([2, 2], 2, False, None, 5 / 3),  # a third of the six pairs are alike
        ([2, 2], 2, True, None, 3 / 2),  # the second draw is the first value again half of the time
        ([3], 2, False, None, 1),
        ([3], 2, True, None, 1),
        ([1, 1, 1], 2, False, None, 2),
        ([1, 1, 1], 2, True, None, 5 / 3),
        ([1, 2], 3, False, None, 2),
        ([1], 1, False, 4, 1 / 4),  # three zeros beside it
        ([1], 2, False, 4, 1 / 2),
        ([1], 2, True, 4, 7 / 16),
        ([0, 2, 0], 1, False, None, 1),
        ([], 0, False, None, 0),
        ([], 3, False, 5, 0),  # a layer of zeros
        ([5, 5], 0, False, None, 0),
        ([5, 5], 0, True, None, 0),
    ],
)
def test_small_cases_by_hand(counts, n, replace, total, wanted):
    assert expected_unique(counts, n, replace, total) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("others", [0, 400])
def test_it_is_what_simulation_finds(replace, others):
    random = np.random.default_rng(0)
    counts = random.geometric(0.02, 40)
    weights = np.repeat(np.arange(41), [*counts, others])
    for n in (1, 5, 60, 300):
        draws = [random.choice(weights, n, replace) for _ in range(2000)]
        found = np.array([len(np.unique(draw[draw < 40])) for draw in draws])
        wanted = expected_unique(counts, n, replace, len(weights))
        assert abs(found.mean() - wanted) <= 4 * found.std() / 2000**0.5 + 1e-9


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 50))
def test_equal_frequencies_give_the_birthday_formula(m, n, each):
    n = min(n, m * each)
    assert expected_unique([each] * m, n, replace=True) == pytest.approx(m * (1 - (1 - 1 / m) ** n), rel=1e-9, abs=1e-9)


@given(large_counts, st.data())
def test_more_weights_never_have_fewer_values(counts, data):
    total = sum(counts) + data.draw(st.integers(0, 10**5))
    some = sorted(data.draw(st.lists(st.integers(0, total), min_size=2, max_size=5)))
    for replace in (False, True):
        found = [expected_unique(counts, n, replace, total) for n in some]
        assert all(few <= more + 1e-6 for few, more in pairwise(found))


@given(large_counts, st.data())
def test_there_are_no_more_values_than_weights_or_values(counts, data):
    total = sum(counts) + data.draw(st.integers(0, 10**5))
    n, values = data.draw(st.integers(0, total)), np.count_nonzero(counts)
    without, replaced = (expected_unique(counts, n, replace, total) for replace in (False, True))
    assert 0 <= replaced <= min(n, values) * (1 + 1e-6) + 1e-6
    assert 0 <= without <= min(n, values) * (1 + 1e-6) + 1e-6
    # Who puts nothing back meets more values.
    assert replaced <= without + 1e-6


@given(large_counts)
def test_all_weights_have_all_values(counts):
    assert expected_unique(counts, sum(counts)) == pytest.approx(np.count_nonzero(counts), rel=1e-12)


@given(large_counts, st.booleans(), st.randoms())
def test_neither_order_nor_empty_values_matter(counts, replace, random):
    n = sum(counts) // 3
    shuffled = [*counts, 0, 0]
    random.shuffle(shuffled)
    assert expected_unique(shuffled, n, replace) == pytest.approx(expected_unique(counts, n, replace), rel=1e-9)


def test_one_weight_has_one_value_in_proportion():
    assert expected_unique([3, 4, 5], 1) == pytest.approx(1)
    assert expected_unique([3, 4, 5], 1, total=24) == pytest.approx(1 / 2)


@pytest.mark.parametrize("n", [9, 512, 4608, 2_400_000])
def test_weights_that_all_differ_stay_as_many_in_large_layers(n):
    assert expected_unique(np.ones(2_400_000), n) == pytest.approx(n, rel=1e-3)


def test_values_that_every_large_draw_meets_are_all_there():
    assert expected_unique([10**6, 10**6, 1], 10**6 + 1) == pytest.approx(2 + (10**6 + 1) / (2 * 10**6 + 1))


def test_it_is_a_plain_number():
    assert type(expected_unique(np.array([1, 2]), np.int64(2))) is float
    assert np.signbit(expected_unique([1, 2], 0)) == np.False_


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("counts", [[-1, 3], [0.5, 1.5], [float("nan"), 1]])
def test_what_counts_nothing_is_refused(counts, replace):
    with pytest.raises(ValueError, match=r"whole numbers|NaN"):
        expected_unique(counts, 1, replace)


@pytest.mark.parametrize("replace", [False, True])
def test_more_counts_than_weights_are_refused(replace):
    with pytest.raises(ValueError, match="whole numbers of at least 0, 4 in all"):
        expected_unique([2, 3], 1, replace, total=4)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("n", [-1, 6, 1.5, float("nan")])
def test_a_unit_that_is_not_there_is_refused(n, replace):
    with pytest.raises(ValueError, match="cannot be drawn from 5"):
        expected_unique([2, 3], n, replace)
