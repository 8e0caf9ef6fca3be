"""How sure masks are and how much they differ: answers known by hand, by enumeration and from scipy."""

from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import entropy
from subsets import inclusion_chances
from torch import nn

from redlab import load_network, mask_entropy, mask_metrics, sparsify
from redlab.dpp.draws import largest
from redlab.dpp.masks import masks_in
from redlab.dpp.metrics import inclusion_probabilities


def masked(logits, k, granularity="weight", **options):
    """A linear layer in float64 whose masks have these logits, (units, n) of the whole layer."""
    logits = torch.as_tensor(logits, dtype=torch.float64)
    network = sparsify(nn.Linear(*logits.T.shape).double(), k, granularity, **options)
    (mask,) = masks_in(network)
    mask.logits.data = logits.reshape(mask.logits.shape).clone()
    return network


def measured(logits, k, granularity="weight", draws=0, seed=0, **options):
    """The row of the one mask."""
    return mask_metrics(masked(logits, k, granularity, **options), draws, seed).iloc[0]


def inclusion(logits, k, draws=2048, seed=0):
    """Estimated probabilities (rows, n) and their standard errors."""
    (mask,) = masks_in(masked(logits, k))
    parts = inclusion_probabilities(mask, draws, torch.Generator().manual_seed(seed))
    return parts.mean(0).detach().numpy(), (parts.std(0) / len(parts) ** 0.5).detach().numpy()


def random_logits(rows, n, seed=0, scale=1.0):
    return scale * torch.randn(rows, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_equal_logits_are_as_unsure_as_can_be():
    row = measured(torch.full((6, 16), 3.0), 4, draws=64)
    assert row["entropy"] == pytest.approx(log(16))
    assert row["inclusion_entropy"] == pytest.approx(log(16), abs=3 * row["inclusion_error"] + 1e-3)
    assert row["confidence"] == pytest.approx(0, abs=1e-12)
    assert row["diversity"] == pytest.approx(0, abs=1e-12)
    assert row["hamming"] == 0


def test_k_logits_alike_and_far_above_the_rest_are_just_sure():
    row = measured(torch.where(torch.arange(16) < 4, 40.0, 0.0).expand(6, 16), 4, draws=64)
    assert row["entropy"] == pytest.approx(log(4))
    assert row["confidence"] == pytest.approx(1)
    assert row["inclusion_entropy"] == pytest.approx(log(4), abs=1e-9)
    assert row["inclusion_error"] < 1e-9


def test_one_logit_above_all_is_surer_than_k_but_the_rest_of_the_mask_is_not():
    row = measured(torch.where(torch.arange(16) < 1, 40.0, 0.0).expand(6, 16), 4, draws=64)
    assert row["entropy"] == pytest.approx(0, abs=1e-9)
    assert row["confidence"] > 1
    chances = np.array([1] + 15 * [3 / 15])
    assert row["inclusion_entropy"] == pytest.approx(entropy(chances), abs=3 * row["inclusion_error"] + 1e-3)


def test_one_logit_above_all_makes_a_mask_of_one_certain():
    row = measured(torch.where(torch.arange(16) < 1, 40.0, 0.0).expand(6, 16), 1, draws=64)
    assert row["inclusion_entropy"] == pytest.approx(0, abs=1e-9)


def test_logits_each_far_above_the_next_leave_no_doubt():
    row = measured(-30.0 * torch.arange(16).expand(6, 16), 4, draws=64)
    assert row["inclusion_entropy"] == pytest.approx(log(4), abs=1e-6)


@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 1000), st.sampled_from([0.1, 1.0, 10.0, 1000.0]))
def test_entropy_is_scipy_s_and_stays_within_its_bounds(rows, n, seed, scale):
    logits, k = random_logits(rows, n, seed, scale), 1 + seed % (n - 1)
    row = measured(logits, k)
    shares = logits.softmax(1).numpy()
    assert row["entropy"] == pytest.approx(entropy(shares, axis=1).mean(), abs=1e-9)
    assert row["confidence"] == pytest.approx(1 - (row["entropy"] - log(k)) / (log(n) - log(k)), abs=1e-9)
    jensen_shannon = entropy(shares.mean(0)) - row["entropy"]
    assert row["diversity"] == pytest.approx(jensen_shannon, abs=1e-9)
    assert 0 <= row["diversity"] <= log(rows) + 1e-9
    assert (row["rows"], row["k"], row["n"], row["log_k"], row["log_n"]) == (rows, k, n, log(k), log(n))


def test_units_that_keep_disjoint_inputs_differ_by_all_that_they_can():
    logits = 40 * torch.kron(torch.eye(4), torch.ones(1, 3))  # 4 units, 3 of 12 inputs each
    row = measured(logits, 3)
    assert row["diversity"] == pytest.approx(log(4))
    assert row["hamming"] == 6


def test_units_that_keep_the_same_inputs_do_not_differ():
    row = measured(random_logits(1, 12).expand(5, 12), 3)
    assert row["diversity"] == pytest.approx(0, abs=1e-12)
    assert row["hamming"] == 0
    assert measured(random_logits(1, 12), 3)["hamming"] == 0


@given(st.integers(2, 8), st.integers(2, 20), st.integers(0, 1000))
def test_hamming_is_scipy_s_mean_over_all_pairs(rows, n, seed):
    logits, k = random_logits(rows, n, seed), 1 + seed % n
    hard = largest(logits, k).numpy()
    assert measured(logits, k)["hamming"] == pytest.approx(n * pdist(hard, "hamming").mean(), abs=1e-9)


def test_tiles_are_compared_with_those_at_the_same_place():
    logits = random_logits(5, 12)
    whole = [measured(part, 2) for part in logits.split(4, 1)]
    row = measured(logits, 6, "tile", tiles=3)
    assert (row["rows"], row["k"], row["n"]) == (15, 2, 4)
    for name in ("entropy", "confidence", "diversity", "hamming"):
        assert row[name] == pytest.approx(np.mean([own[name] for own in whole]))


def test_a_mask_that_keeps_everything_is_sure():
    row = measured(random_logits(5, 12), 12, draws=8)
    assert row["confidence"] == 1
    assert row["inclusion_entropy"] == pytest.approx(row["log_n"]) == pytest.approx(row["log_k"])
    assert row["inclusion_error"] == 0


def test_the_probability_that_one_of_one_is_drawn_is_its_softmax():
    logits = random_logits(20, 6)
    found, error = inclusion(logits, 1)
    assert (np.abs(found - logits.softmax(1).numpy()) <= 6 * error + 1e-6).all()


@pytest.mark.parametrize(("n", "k"), [(5, 2), (5, 4), (6, 3)])
@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_inclusion_is_that_of_draws_without_replacement(n, k, noise):
    logits = random_logits(8, n, scale=1.5)
    network = masked(logits, k, noise=noise)
    parts = inclusion_probabilities(masks_in(network)[0], 2048, torch.Generator().manual_seed(0)).detach()
    found = parts.mean(0).numpy()
    wanted = np.array([inclusion_chances(row / noise, k) for row in logits.numpy()])
    assert np.abs(found - wanted).max() < 0.02
    np.testing.assert_allclose(found.sum(1), k, atol=0.05)


def test_inclusion_is_how_often_masks_keep_an_entry():
    logits = random_logits(3, 30)
    mask = masks_in(masked(logits, 7))[0].train()
    torch.manual_seed(0)
    often = sum(mask().detach() for _ in range(2000)).numpy() / 2000
    assert np.abs(inclusion(logits, 7)[0] - often).max() < 4 * 0.5 / 2000**0.5


def test_without_noise_what_is_kept_is_certain():
    for options in ({"noise": 0.0}, {"learn": False}):
        row = measured(random_logits(5, 12), 3, draws=8, **options)
        assert row["inclusion_entropy"] == pytest.approx(log(3))
        assert row["inclusion_error"] == 0


def test_the_standard_error_is_honest():
    logits = random_logits(4, 5, scale=1.5)
    wanted = np.mean([entropy(inclusion_chances(row, 2)) for row in logits.numpy()])
    runs = [measured(logits, 2, draws=64, seed=seed) for seed in range(60)]
    apart = np.array([(run["inclusion_entropy"] - wanted) / run["inclusion_error"] for run in runs])
    assert (np.abs(apart) < 3).mean() > 0.93  # 98 % of Student's t with 7 degrees of freedom
    assert 0.4 < np.median(np.abs(apart)) < 1.2  # 0.71
    assert abs(apart.mean()) < 0.5


def test_few_draws_of_many_rows_are_not_biased():
    logits = random_logits(2000, 20)  # the entropy of what 8 draws say is 5 standard errors too low
    wanted = measured(logits, 3, draws=512)["inclusion_entropy"]
    runs = [measured(logits, 3, draws=8, seed=seed) for seed in range(10)]
    apart = np.array([(run["inclusion_entropy"] - wanted) / run["inclusion_error"] for run in runs])
    assert abs(apart.mean()) < 1.5


def test_more_draws_err_less():
    few, many = (measured(random_logits(4, 40), 5, draws=draws)["inclusion_error"] for draws in (16, 1024))
    assert many < few / 3


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_penalty_is_the_sum_of_scipy_s_entropies_with_the_gradient_known_by_hand(seed):
    logits = random_logits(4, 9, seed, scale=2.0)
    network = masked(logits, 3)
    total = mask_entropy(network)
    assert float(total.detach()) == pytest.approx(entropy(logits.softmax(1).numpy(), axis=1).sum())
    total.backward()
    shares, (mask,) = logits.softmax(1), masks_in(network)
    by_hand = -shares * (shares.log() + torch.from_numpy(entropy(shares.numpy(), axis=1))[:, None])
    torch.testing.assert_close(mask.logits.grad, by_hand)


def test_the_penalty_counts_every_mask_of_a_network_once():
    network = load_network("digits/resnet")
    for granularity in ("weight", "filter", "tile"):
        sparse = sparsify(network, 0.5, granularity)
        rows = [mask.logits.detach().softmax(1).numpy() for mask in sparse.dpp.masks.values()]
        assert float(mask_entropy(sparse).detach()) == pytest.approx(sum(entropy(own, axis=1).sum() for own in rows))


def test_the_penalty_of_far_logits_is_0_and_has_a_gradient():
    network = masked(torch.where(torch.arange(9) < 1, 5000.0, -5000.0).expand(3, 9), 2)
    total = mask_entropy(network)
    total.backward()
    assert float(total.detach()) == 0
    assert (masks_in(network)[0].logits.grad == 0).all()


@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter", "tile"])
def test_a_row_a_mask_without_gaps_and_without_a_trace(granularity):
    sparse = sparsify(load_network("digits/resnet"), 0.25, granularity)
    state, before = {name: own.clone() for name, own in sparse.state_dict().items()}, torch.random.get_rng_state()
    frame, again = mask_metrics(sparse, draws=8), mask_metrics(sparse, draws=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(own, state[name]) for name, own in sparse.state_dict().items())
    assert list(frame["layer"]) == list(sparse.dpp.masks)
    assert (frame["granularity"] == granularity).all()
    assert frame.equals(again)
    assert not frame.isna().any(axis=None)
    assert frame["inclusion_entropy"].between(frame["log_k"], frame["log_n"]).all()
    assert not frame.equals(mask_metrics(sparse, draws=8, seed=1))


def test_no_draws_leave_inclusion_out_and_few_are_refused():
    network = masked(random_logits(3, 9), 2)
    columns = set(mask_metrics(network)) - set(mask_metrics(network, draws=0))
    assert columns == {"inclusion_entropy", "inclusion_error"}
    with pytest.raises(ValueError, match="draws must be at least 8, or 0 for none, not 3"):
        mask_metrics(network, draws=3)
    with pytest.raises(ValueError, match="has no masks"):
        mask_metrics(nn.Linear(3, 4))


def test_entropies_of_infinite_logits_are_right_or_an_error():
    inf = float("inf")
    assert mask_entropy(masked([[0.0, 0.0, -inf]], 1)).item() == pytest.approx(log(2))
    for bad in (inf, float("nan")):
        with pytest.raises(FloatingPointError, match="NaN or inf"):
            mask_entropy(masked([[0.0, bad, 1.0]], 1))
