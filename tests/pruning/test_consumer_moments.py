"""What consumer layers get of channels, without data: as Monte-Carlo finds it where the model's assumptions hold."""

import numpy as np
import pytest
import torch
from nets import Net, made, mlp
from torch import nn

from redlab.pruning.consumer_moments import _RIDGE, consumer_inputs
from redlab.pruning.subject import Subject

DRAWS = 100_000


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def read(network, example, which=0):
    """The consumer inputs of one group."""
    subject = Subject(network, None, example)
    return consumer_inputs(subject, subject.free[which])


def pixels(draws, channels, side):
    """White noise across channels, between pixels d apart correlated by 2^-d."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    factor = torch.linalg.cholesky(0.5 ** torch.cdist(places, places)).float()
    return (torch.randn(draws, channels, side * side) @ factor.T).view(draws, channels, side, side)


@torch.no_grad()
def settled(network, images):
    """The batch norms know what they get of ``images``, and scale and shift it."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.5)
    network.train()(images)
    return network.eval()


@torch.no_grad()
def agrees(reader, given, tolerance=0.03):
    """Whether a reader's mean and covariance are those of what it is ``given`` (draws, channels)."""
    measured, scale = np.cov(given.double().numpy().T), given.var(0).mean().item()
    covariance = reader.covariance - _RIDGE * np.diag(reader.covariance).mean() * np.eye(len(measured))
    np.testing.assert_allclose(covariance, measured, atol=tolerance * scale)
    np.testing.assert_allclose(reader.mean[0], given.mean(0), atol=tolerance * scale**0.5)
    return True


def test_behind_batch_norm_and_relu():
    """Mehler's formula, over correlations of either sign."""
    network = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 2))
    images = torch.randn(DRAWS, 4)
    (reader,) = read(settled(network, images), images[:1])
    correlations = np.corrcoef(network[:2](images).detach().numpy().T)
    assert correlations.min() < -0.5
    assert agrees(reader, network[:3](images))


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_function_between_them(bias):
    network = nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Linear(5, 2))
    images = torch.randn(DRAWS, 4)
    (reader,) = read(network, images[:1])
    assert agrees(reader, network[0](images))


def test_behind_a_convolution_whose_pixels_are_alike():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    images = pixels(DRAWS, 3, 3)
    (reader,) = read(settled(network, images), images[:1])
    assert agrees(reader, network[:3](images).flatten(1))


def test_a_depthwise_convolution_keeps_a_share_of_the_correlation():
    """Channels that are alike and go through filters that are not are alike no more, and the other way round."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)),
        nn.Conv2d(6, 2, 1),
    )
    with torch.no_grad():
        network[0].weight[1] = network[0].weight[0]
        network[2].weight[3] = network[2].weight[2]
        network[2].weight *= 10  # which says nothing about how alike they are
    images = pixels(DRAWS, 3, 3)
    (reader,) = read(settled(network, images), images[:1])
    assert agrees(reader, network[:4](images).flatten(1))


def test_behind_a_depthwise_convolution_between_two_relus():
    """Not exactly: what comes out of the first ReLU is not normal."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Conv2d(6, 2, 1),
    )
    with torch.no_grad():
        network[3].weight.normal_(0.2, 0.1)  # filters that are rather alike
    images = pixels(DRAWS, 3, 3)
    (reader,) = read(settled(network, images), images[:1])
    lengths = np.sqrt(np.diag(reader.covariance))
    measured = np.corrcoef(network[:6](images).flatten(1).detach().numpy().T)
    np.testing.assert_allclose(reader.covariance / np.outer(lengths, lengths), measured, atol=0.15)
    assert np.abs(np.triu(measured, 1)).max() > 0.3


def test_the_parts_of_a_sum_count_as_they_vary():
    network = Net(
        lambda net, x: net.head(net.one(x[:, :4]) + net.two(x[:, 4:])),
        one=nn.Linear(4, 6),
        two=nn.Linear(5, 6),
        head=nn.Linear(6, 2),
    )
    with torch.no_grad():
        network.two.weight *= 3
    images = torch.randn(DRAWS, 9)
    (reader,) = read(network, images[:1])
    assert agrees(reader, network.one(images[:, :4]) + network.two(images[:, 4:]))


def test_the_groups_of_a_convolution_have_each_their_mean_and_all_their_mean_variance():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1, groups=2)).eval()
    with torch.no_grad():
        network[1].bias.copy_(torch.arange(8))
        network[1].weight.copy_(torch.arange(1, 9))
    (reader,) = read(network, torch.randn(1, 3, 5, 5))
    np.testing.assert_allclose(reader.mean, np.arange(8).reshape(2, 4))
    variances = np.square(np.arange(1, 9)).reshape(2, 4).mean(0)
    np.testing.assert_allclose(np.diag(reader.covariance), variances + _RIDGE * variances.mean(), rtol=1e-6)


def test_a_channel_that_is_read_at_many_places_has_their_mean():
    network, images = made("flat")
    (reader,) = read(network, images[:1], 1)
    assert reader.member.index.shape == (8, 16)
    assert (reader.mean.shape, reader.covariance.shape) == ((1, 8), (8, 8))
    assert np.isfinite(reader.covariance).all()


def test_each_reader_of_a_stage_gets_what_it_gets():
    subject = Subject(*(lambda network, images: (network, None, images[:1]))(*made("grouped")))
    group = subject.free[0]
    found = consumer_inputs(subject, group)
    assert [own.member.tensor for own in found] == ["block.0.weight", "head.weight"]
    assert not np.allclose(found[0].mean, found[1].mean)


def test_identical_channels_are_told_apart_by_the_ridge_alone():
    network = mlp(3, 4, 2)
    with torch.no_grad():
        for tensor in network[0].parameters():
            tensor[1] = tensor[0]
    (reader,) = read(network, torch.randn(1, 3))
    ridge = reader.covariance[0, 0] - reader.covariance[0, 1]
    assert ridge == pytest.approx(_RIDGE * np.diag(reader.covariance).mean() / (1 + _RIDGE), rel=1e-3)
    assert np.linalg.eigvalsh(reader.covariance).min() > 0


def test_what_is_not_known_is_said():
    network = Net(lambda net, x: net.two(net.one(x).sin()), one=nn.Linear(3, 4), two=nn.Linear(4, 2))
    assert read(network, torch.randn(1, 3)) == (
        "the input of two is not known: sin is in its way, whose mean output is not known"
    )


def test_a_layer_of_which_one_call_is_not_known_is_not_known():
    network = Net(
        lambda net, x: net.two(net.one(x)) + net.two(net.one(x).sin()), one=nn.Linear(3, 4), two=nn.Linear(4, 2)
    )
    subject = Subject(network, None, torch.randn(1, 3))
    group = next(group for group in subject.groups if group.name == "one")
    assert "sin is in its way" in consumer_inputs(subject, group)
