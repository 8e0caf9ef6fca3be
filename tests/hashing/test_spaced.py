"""The rules power (PowerQuant) and residual (REx): exact codes, zeros that stay, errors that hold."""

import numpy as np
import pytest
import torch

from redlab import hash_weights
from redlab.hashing.power import MOST, power
from redlab.hashing.residual import residual
from redlab.hashing.uniform import uniform
from redlab.hashing.vector import as_vector

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
each_rule = pytest.mark.parametrize("rule", ["power", "residual"])


def unequal(dtype=torch.float32):
    torch.manual_seed(0)
    weights = torch.randn(12, 10, 3, 3) * torch.logspace(-2, 1, 12).view(-1, 1, 1, 1)
    weights[3], weights[5, 2] = 0, 0
    return weights.to(dtype)


@each_rule
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", ["nearest", "balanced"])
@pytest.mark.parametrize("representative", ["mode", "mean"])
def test_codes_and_scales_give_the_values_bit_for_bit(rule, dtype, rounding, representative):
    weights = unequal(dtype)
    for scale in ("none", "row"):
        for bound in ({"levels": 9}, {"levels": 1}, {"max_error": 0.1}, {}):
            own = hash_weights(weights, rule, scale=scale, rounding=rounding, representative=representative, **bound)
            values = own.codebook[own.codes.long()]
            values = values if scale == "none" else values * own.scales.view(-1, 1, 1, 1)
            assert torch.equal(values, own.values)
            assert (own.codebook[1:] > own.codebook[:-1]).all()
            assert (own.values[weights == 0] == 0).all()
            assert own.step is None


@each_rule
@pytest.mark.parametrize("scale", ["none", "row"])
@pytest.mark.parametrize("bound", [0.3, 0.1, 0.03, 1e-4])
def test_the_error_is_within_its_bound(rule, scale, bound):
    weights = unequal()
    values = hash_weights(weights, rule, max_error=bound, scale=scale).values
    assert (values - weights).norm() <= bound * weights.norm() * (1 + 1e-6)


@pytest.mark.parametrize("k", [1, 4, 15, MOST])
def test_power_errs_no_more_than_even_steps(k):
    vector = as_vector(torch.randn(5000))
    even = uniform(vector, max(-vector.low, vector.high) / k, k)
    assert power(vector, k).error() <= even.error() * (1 + 1e-6)
    assert power(vector, k).used <= 2 * k + 1


@pytest.mark.parametrize("k", [2, 5, 20])
def test_residual_errs_as_even_steps_of_what_the_first_level_leaves(k):
    vector = as_vector(torch.randn(5000))
    made = residual(vector, k)
    coarse = max(-vector.low, vector.high) / k
    first = uniform(vector, coarse, k)
    assert made.error() <= 1.2 * first.error() / (2 * k)
    left = np.abs(vector.weights - coarse * np.rint(vector.weights / np.float64(coarse))).max()
    steps = (made.centres - coarse * np.rint(made.centres / coarse)) / (left / k)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)


@each_rule
def test_equal_and_lopsided_weights(rule):
    assert hash_weights(torch.ones(5), rule, levels=3).values.tolist() == [1] * 5
    for weights in (torch.rand(500) + 3, -torch.rand(500), torch.tensor([1e-30, 2e-30, 5e-30, 1.0])):
        own = hash_weights(weights, rule, levels=15)
        assert torch.equal(own.codebook[own.codes.long()], own.values)
        assert (own.values - weights).abs().max() <= (weights.max() - weights.min()) + 1e-6
