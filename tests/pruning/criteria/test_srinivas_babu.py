"""Srinivas & Babu: the greedy order of the paper, recomputed without any of its shortcuts."""

import numpy as np
import pytest
import torch
from nets import SMALL, copy_channel, made, mlp, read_twice

from redlab import score_channels
from redlab.pruning.criteria.srinivas_babu import _merged


def naive(rows, read):
    """Every step looks at all pairs (i, j) anew: mean(a_j^2) ||W_i - W_j||^2, j goes, a_i takes a_j in."""
    alive, order = list(range(len(rows))), []
    read = read.copy()
    while len(alive) > 1:
        cost, j, i = min(
            ((read[j] ** 2).mean() * ((rows[i] - rows[j]) ** 2).sum(), j, i) for i in alive for j in alive if i != j
        )
        order.append((j, i, cost))
        alive.remove(j)
        read[i] += read[j]
    return order


def squares(rows):
    return ((rows[:, None] - rows[None]) ** 2).sum(2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [1, 2, 7, 24])
def test_the_order_and_the_heirs_are_those_of_the_naive_greedy(n, seed):
    draw = np.random.default_rng(seed)
    rows, read = draw.normal(size=(n, 5)), draw.normal(size=(n, 8))
    scores, heirs = _merged(squares(rows), read.copy())
    order = naive(rows, read)
    assert np.argsort(scores, kind="stable")[:-1].tolist() == [j for j, _, _ in order]
    assert [heirs[j] for j, _, _ in order] == [i for _, i, _ in order]
    np.testing.assert_allclose(
        [scores[j] for j, _, _ in order],
        np.maximum.accumulate([cost for *_, cost in order]) if order else [],
        rtol=1e-9,
    )
    assert heirs[scores.argmax()] == -1


def test_two_neurons_by_hand():
    network = mlp(1, 2, 1)
    with torch.no_grad():
        network[0].weight[:] = torch.tensor([[3.0], [1]])
        network[0].bias[:] = torch.tensor([0.0, 1])
        network[2].weight[:] = torch.tensor([[0.5, 2]])
    scores = score_channels(network, "srinivas_babu", example=torch.randn(1, 1))
    assert scores.values["0"][0] == pytest.approx(0.25 * (4 + 1))
    assert scores.values["0"][1] > scores.values["0"][0]
    assert scores.heirs["0"].tolist() == [1, -1]


def test_what_goes_after_a_costly_channel_scores_more_though_it_costs_less():
    """Once 1 has gone into 0, 0 is read no more and goes for nothing; before, it would have cost more than 1."""
    rows = np.array([[0.0], [1], [9]])
    read = np.array([[-1.1, 0.5], [1.1, -0.5], [20, 20]])
    read[0] *= 1.0 + 1e-9
    scores, heirs = _merged(squares(rows), read.copy())
    assert heirs.tolist() == [2, 0, -1]
    assert scores[1] < scores[0] < scores[2]
    np.testing.assert_allclose(scores, (1.1**2 + 0.5**2) / 2, rtol=1e-8)


@pytest.mark.parametrize("name", SMALL)
def test_all_but_one_of_identical_channels_score_nothing(name):
    torch.manual_seed(0)
    network, images = made(name)
    groups = [group for group in score_channels(network, "random", example=images[:1]).groups if not group.frozen]
    for group in groups:
        for twin in (3, 5):
            copy_channel(network, group, 1, twin)
    scores = score_channels(network, "srinivas_babu", example=images[:1])
    for group in groups:
        values, heirs = scores.values[group.name], scores.heirs[group.name]
        assert (values[[1, 3, 5]] == 0).sum() == 2
        assert (values == 0).sum() == 2
        for channel in range(group.size):
            assert heirs[channel] < 0 or values[heirs[channel]] >= values[channel]
        assert heirs[values.argmax()] == -1


def test_all_layers_that_read_a_channel_count():
    torch.manual_seed(0)
    network = read_twice(3, 4, 2, 6)
    scores = score_channels(network, "srinivas_babu", example=torch.randn(1, 3))
    rows = torch.cat([network.one.weight, network.one.bias[:, None]], 1).detach().double().numpy()
    read = torch.cat([network.two.weight, network.three.weight]).T.detach().double().numpy()
    order = naive(rows, read)
    assert np.argsort(scores.values["one"], kind="stable")[:-1].tolist() == [j for j, _, _ in order]
    assert scores.values["one"].min() == pytest.approx(order[0][2], rel=1e-5)
