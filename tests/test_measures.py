"""The sets on which defaults are chosen and reported, and the scores on them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import sentences
from redlab.paths import data_root

needs_sts = pytest.mark.skipif(not (data_root() / "text" / "sts").is_dir(), reason="STS is not there")


@needs_sts
@pytest.mark.parametrize(("year", "count"), [("2014", 750), ("2015", None)])
def test_every_pair_has_a_score_and_sentences_without_quotes_around_them(year, count):
    scores, first, second = sentences.pairs_of(year)
    assert len(scores) == len(first) == len(second) == (count or len(scores))
    assert scores.min() >= 0
    assert scores.max() <= 5
    assert not any(text.startswith('"') and text.endswith('"') for text in [*first, *second])
    assert all(text.strip() for text in [*first, *second])


@needs_sts
def test_cosines_that_rank_as_people_do_score_100_and_noise_is_told_from_them():
    scores = sentences.pairs_of("2014")[0]
    noisy = scores + np.random.default_rng(0).normal(size=len(scores))
    assert sentences.spearman("2014", scores**3) == pytest.approx(100)
    same, worse = (sentences.compare_spearman("2014", scores, own) for own in (scores, noisy))
    assert same["difference"] == same["difference_low"] == same["difference_high"] == 0
    assert same["p"] == 1
    assert worse["difference_low"] <= worse["difference"] <= worse["difference_high"] < 0
    assert worse["p"] == 0
