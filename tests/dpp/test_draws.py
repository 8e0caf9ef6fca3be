"""Draws of k of n: exactly k whatever the logits, by the law of draws without replacement, with two known gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from subsets import subset_chances
from torch import nn

from redlab.dpp.draws import ESTIMATORS, draw_mask, gumbel_like, largest

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KINDS = {
    "normal": lambda rows, n: torch.randn(rows, n, dtype=torch.float64),
    "wide": lambda rows, n: 1000 * torch.randn(rows, n, dtype=torch.float64),
    "constant": lambda rows, n: torch.full((rows, n), 0.25, dtype=torch.float64),
    "hashed": lambda rows, n: torch.randint(3, (rows, n)).double(),
}
shapes = st.tuples(st.integers(1, 5), st.integers(1, 40)).flatmap(
    lambda shape: st.tuples(st.just(shape[0]), st.just(shape[1]), st.integers(1, shape[1]))
)
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def gradient_of(logits, given, k, temperature, noise, estimator, seed=0):
    """Of the sum of ``given`` times the mask by the logits."""
    logits = logits.clone().requires_grad_()
    torch.manual_seed(seed)
    (draw_mask(logits, k, temperature, noise, estimator) * given).sum().backward()
    return logits.grad


def gradient_by_autograd(logits, given, relaxed, k, temperature, noise, seed=0):
    logits = logits.clone().requires_grad_()
    torch.manual_seed(seed)
    (relaxed(logits, noise * gumbel_like(logits.detach()), k, temperature) * given).sum().backward()
    return logits.grad


def k_softmaxes(logits, noise, k, temperature):
    """One softmax a draw, in the order of the perturbed logits; what was drawn before is all but taken out."""
    order = (logits + noise).detach().topk(k).indices
    taken, total = torch.zeros_like(logits), 0
    for draw in order.T:
        total = total + torch.softmax((logits + (1 - taken + 1e-20).log() + noise) / temperature, 1)
        taken = taken.scatter(1, draw[:, None], 1)
    return total


def one_softmax(logits, noise, k, temperature):
    return k * torch.softmax((logits + noise) / temperature, 1)


RELAXED = {"k_step": k_softmaxes, "one_shot": one_softmax}


@given(
    shapes,
    st.sampled_from(DTYPES),
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 2**31),
    st.sampled_from(ESTIMATORS),
    st.sampled_from([0.0, 1.0, 3.0]),
)
def test_every_row_has_exactly_k_ones(shape, dtype, kind, seed, estimator, noise):
    rows, n, k = shape
    torch.manual_seed(seed)
    mask = draw_mask(KINDS[kind](rows, n).to(dtype), k, 1.0, noise, estimator)
    assert mask.shape == (rows, n)
    assert mask.dtype == dtype
    assert ((mask == 0) | (mask == 1)).all()
    assert (mask.double().sum(1) == k).all()


@given(shapes, st.sampled_from(DTYPES), st.sampled_from(sorted(KINDS)), st.integers(0, 2**31))
def test_the_largest_are_those_of_a_stable_sort(shape, dtype, kind, seed):
    rows, n, k = shape
    torch.manual_seed(seed)
    values = KINDS[kind](rows, n).to(dtype)
    order = np.argsort(-values.double().numpy(), axis=1, kind="stable")[:, :k]
    wanted = torch.zeros(rows, n, dtype=torch.bool).scatter(1, torch.from_numpy(order), True)
    assert torch.equal(largest(values, k), wanted)


@each_estimator
def test_without_noise_the_k_largest_are_kept_and_of_equal_ones_the_first(estimator):
    logits = torch.tensor([[3.0, 1.0, 2.0, 4.0], [5.0, 5.0, 5.0, 5.0], [0.0, 1.0, 0.0, 0.0]])
    mask = draw_mask(logits, 2, 1.0, 0.0, estimator)
    assert mask.tolist() == [[1, 0, 0, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


@each_estimator
@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n", [4, 5])
def test_subsets_come_as_often_as_draws_without_replacement_say(n, noise, estimator):
    logits = torch.linspace(-1, 1.5, n, dtype=torch.float64)
    chances = subset_chances(logits.numpy() / noise, 2)
    torch.manual_seed(0)
    drawn = draw_mask(logits.expand(20_000, n), 2, 5.0, noise, estimator)
    codes = (drawn @ 2.0 ** torch.arange(n, dtype=torch.float64)).long()
    counts = torch.bincount(codes, minlength=2**n)
    observed = [int(counts[sum(2**entry for entry in chosen)]) for chosen in chances]
    assert sum(observed) == 20_000
    assert chisquare(observed, 20_000 * np.array(list(chances.values()))).pvalue > 0.01


@each_estimator
@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("k", range(1, 8))
def test_the_gradient_is_that_of_the_relaxation_by_autograd(k, temperature, estimator):
    torch.manual_seed(k)
    logits, given = torch.randn(2, 6, 7, dtype=torch.float64)
    for scale in (1.0, 10.0):
        call = (scale * logits, given)
        ours = gradient_of(*call, k, temperature, 1.5, estimator)
        theirs = gradient_by_autograd(*call, RELAXED[estimator], k, temperature, 1.5)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@each_estimator
@pytest.mark.parametrize("temperature", [0.5, 5.0])
@pytest.mark.parametrize("scale", [100.0, 1000.0])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_gradient_of_widely_spread_logits_is_right_too(k, scale, temperature, estimator):
    torch.manual_seed(k)
    logits, given = torch.randn(2, 20, 6, dtype=torch.float64)
    ours = gradient_of(scale * logits, given, k, temperature, 1.0, estimator)
    theirs = gradient_by_autograd(scale * logits, given, RELAXED[estimator], k, temperature, 1.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@each_estimator
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_finite_and_of_the_dtype_of_the_logits(dtype, estimator):
    torch.manual_seed(0)
    for scale in (0.0, 1.0, 100.0, 1000.0):
        logits = (scale * torch.randn(8, 12)).to(dtype)
        gradient = gradient_of(logits, torch.randn(8, 12).to(dtype), 5, 0.5, 1.0, estimator)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@each_estimator
def test_the_gradients_of_a_row_sum_to_zero_and_reach_every_logit(estimator):
    torch.manual_seed(0)
    logits, given = torch.randn(2, 50, 30, dtype=torch.float64)
    gradient = gradient_of(logits, given, 7, 5.0, 1.0, estimator)
    assert gradient.sum(1).abs().max() < 1e-12
    assert (gradient != 0).all()


@each_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_that_comes_in_is_left_alone(dtype, estimator):
    logits, given = torch.randn(2, 4, 6, dtype=dtype)
    before = given.clone()
    draw_mask(logits.requires_grad_(), 2, 1.0, 1.0, estimator).backward(given)
    assert torch.equal(given, before)


def test_noise_is_standard_gumbel_and_comes_from_the_generator():
    noise = gumbel_like(torch.empty(100_000, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert kstest(noise.numpy(), "gumbel_r").pvalue > 0.01
    again = gumbel_like(torch.empty(100_000, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert torch.equal(noise, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_finite_at_both_ends_of_what_a_generator_gives(dtype, monkeypatch):
    ends = torch.tensor([0.0, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: ends.clone())
    noise = gumbel_like(ends)
    assert noise.isfinite().all()
    assert noise[0] < -2
    assert noise[1] > 10


NAN = float("nan")
WITH_NAN = {
    "one": [[NAN, 1.0, 0.0]],
    "beside a row of ties": [[NAN, 1.0, 0.0], [1.0, 1.0, 0.0]],
}


@each_estimator
@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("rows", WITH_NAN.values(), ids=WITH_NAN)
def test_logits_that_are_nan_are_an_error_parameters_too(rows, noise, estimator):
    for kind in (torch.Tensor, nn.Parameter):
        logits = torch.tensor(rows)
        logits = nn.Parameter(logits) if kind is nn.Parameter else logits
        with pytest.raises(FloatingPointError, match="lower learning rate"):
            draw_mask(logits, 1, 1.0, noise, estimator)
