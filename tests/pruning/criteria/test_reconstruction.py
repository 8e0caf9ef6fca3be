"""Reconstruction: the greedy order and its errors, recomputed step by step by least squares; what they stand for."""

import numpy as np
import pytest
import torch
from nets import Net, made, mlp, read_twice
from torch import nn

from redlab import fold_batchnorm, prune_channels, score_channels
from redlab.pruning.consumer_moments import consumer_inputs
from redlab.pruning.subject import Subject


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def naive(consumers):
    """By reader (covariance, slices (size, d)): the order in which channels go, and at what errors."""
    alive, order = list(range(len(consumers[0][0]))), []
    slices = [own.copy() for _, own in consumers]
    while len(alive) > 1:
        errors = {
            j: sum(error_of(j, alive, c, own)[0] for (c, _), own in zip(consumers, slices, strict=True)) for j in alive
        }
        going = min(errors, key=errors.get)
        for (covariance, _), own in zip(consumers, slices, strict=True):
            shares = error_of(going, alive, covariance, own)[1]
            others = [k for k in alive if k != going]
            own[others] += np.outer(shares, own[going])
            own[going] = 0
        order.append((going, errors[going]))
        alive.remove(going)
    return order


def error_of(j, alive, covariance, slices):
    """What is lost where the others do the work of j, by least squares, and their shares in it."""
    others = [k for k in alive if k != j]
    shares = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, j])
    left = covariance[j, j] - shares @ covariance[others, j]
    return (slices[j] ** 2).sum() * left, shares


def slices_of(network, member):
    weight = network.get_parameter(member.tensor).detach().double().movedim(member.dim, 0)
    return weight[member.index.flatten()].reshape(len(member.index), -1).numpy()


def check(network, example):
    """Whether all groups have the naive order and errors."""
    subject = Subject(network, None, example)
    scores = score_channels(network, "reconstruction", example=example)
    for group in subject.free:
        inputs = consumer_inputs(subject, group)
        order = naive([(own.covariance, slices_of(subject.folded, own.member)) for own in inputs])
        values = scores.values[group.name]
        assert np.argsort(values, kind="stable")[:-1].tolist() == [j for j, _ in order]
        wanted = np.maximum.accumulate([error for _, error in order])
        np.testing.assert_allclose([values[j] for j, _ in order], wanted, rtol=1e-6)
        assert values.max() > wanted[-1]
    return True


@pytest.mark.parametrize("name", ["grouped", "depthwise", "flat"])
def test_the_order_and_the_errors_are_those_of_the_naive_greedy(name):
    network, images = made(name)
    assert check(network, images[:1])


def test_errors_of_several_consumer_layers_add_up():
    network = read_twice(12, 7, 3, 5)
    assert check(network, torch.randn(1, 12))


def test_the_lowest_score_is_what_the_consumer_layers_outputs_lose():
    """On white noise, where the model is right but for its ridge: the squared error, summed over the outputs."""
    network = mlp(9, 6, 4)
    network = nn.Sequential(network[0], network[2])
    images = torch.randn(50_000, 9).double()
    scores = score_channels(network, "reconstruction", example=images[:1])
    result = prune_channels(network, scores, 1 / 6, example=images[:1])
    with torch.no_grad():
        lost = float((network(images) - result.network(images)).square().sum(1).mean())
    assert scores.values["0"].min() == pytest.approx(lost, rel=0.05)


def test_a_grouped_reader_costs_what_its_groups_cost_and_no_more():
    network = nn.Sequential(nn.Conv2d(9, 12, 1, bias=False), nn.Conv2d(12, 6, 1, groups=3, bias=False))
    with torch.no_grad():  # 9 inputs make 12 channels: orthogonal within each group of four, of equal length
        network[0].weight[:] = torch.linalg.qr(torch.randn(3, 9, 4))[0].transpose(1, 2).reshape(12, 9, 1, 1)
    images = torch.randn(20_000, 9, 1, 1)
    scores = score_channels(network, "reconstruction", example=images[:1])
    result = prune_channels(network, scores, 0.25, compensation="none", example=images[:1])
    with torch.no_grad():
        lost = float((network(images) - result.network(images)).square().sum(1).mean())
    assert scores.values["0"].min() == pytest.approx(lost, rel=0.05)


def test_a_channel_that_others_make_up_for_goes_first():
    network = mlp(8, 6, 4)
    network = nn.Sequential(network[0], network[2])
    with torch.no_grad():
        network[0].weight[4] = 2 * network[0].weight[1] - network[0].weight[3]
    values = score_channels(network, "reconstruction", example=torch.randn(1, 8)).values["0"]
    assert values.argmin() in (1, 3, 4)
    assert np.sort(values)[0] < 0.1 * np.sort(values)[1]


def test_folding_changes_no_score():
    network, images = made("grouped")
    one = score_channels(network, "reconstruction", example=images[:1]).values
    two = score_channels(fold_batchnorm(network, images[:1]).network, "reconstruction", example=images[:1]).values
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4)


def test_groups_whose_consumer_inputs_are_unknown_are_skipped_with_the_reason():
    network = Net(
        lambda net, x: net.three(net.two(net.one(x).sin()).relu()),
        one=nn.Linear(3, 4),
        two=nn.Linear(4, 5),
        three=nn.Linear(5, 2),
    )
    scores = score_channels(network, "reconstruction", example=torch.randn(1, 3))
    assert not scores.values
    assert "sin is in its way" in scores.skipped["one"]
    assert "sin is in its way" in scores.skipped["two"]
    result = prune_channels(
        network, score_channels(network, "magnitude", example=torch.randn(1, 3)), 0.5, compensation="reconstruct",
        example=torch.randn(1, 3),
    )  # fmt: skip
    assert result.plan["achieved"]["not compensated"].keys() == {"one", "two"}
