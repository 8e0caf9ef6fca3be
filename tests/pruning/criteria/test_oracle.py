"""The oracle and SInGE: what removing a channel does, measured, and the gradient followed all the way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from redlab import load_dataset, load_network, prune_channels, score_channels
from redlab.pruning.scores import Scores


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits", limit=30)


@pytest.fixture(scope="module")
def network():
    return load_network("digits/mlp")


def losses(network, dataset):
    with torch.inference_mode():
        return torch.stack([F.cross_entropy(network(x[None]), torch.tensor([y])) for x, y in dataset]).double()


def small():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    return network, TensorDataset(torch.randn(20, 3), torch.randint(0, 3, (20,)))


def removed(network, scores, group, channel):
    """The network without one channel, by the ordinary way."""
    values = torch.ones(len(scores.values[group])).double().numpy()
    values[channel] = 0
    alone = Scores("magnitude", {}, "channels", {group: values}, groups=scores.groups)
    return prune_channels(network, alone, ratio=1 / len(values)).network


def test_the_oracle_is_the_squared_change_of_the_loss_of_the_pruned_network():
    network, images = small()
    scores = score_channels(network, "oracle", images)
    before = losses(network, images).mean()
    for channel in range(4):
        change = losses(removed(network, scores, "0", channel), images).mean() - before
        assert scores.values["0"][channel] == pytest.approx(float(change) ** 2, rel=1e-4)


def test_over_minibatches_the_change_is_squared_first(network, images):
    group = "hidden.0.linear"
    scores = score_channels(network, "oracle", images, only=[group], batch_size=10)
    assert list(scores.values) == [group]
    change = losses(removed(network, scores, group, 7), images) - losses(network, images)
    wanted = change.view(3, 10).mean(1).square().mean()
    assert scores.values[group][7] == pytest.approx(float(wanted), rel=1e-3, abs=1e-12)


def test_the_oracle_does_not_depend_on_the_chunk_and_leaves_the_weights_alone(network, images):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first, second = (score_channels(network, "oracle", images, chunk=chunk) for chunk in (7, 100))
    for name, values in first.values.items():
        assert values == pytest.approx(second.values[name], rel=1e-3, abs=1e-12)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_singe_is_never_less_than_what_removing_the_channel_does():
    network, images = small()
    truth = score_channels(network, "oracle", images).values["0"] ** 0.5
    found = score_channels(network, "singe", images, path="neuron", steps=200).values["0"]
    assert (found >= truth - 1e-4).all()
    # Between linear layers the loss bends one way along each path, so that most fall or rise all the way.
    assert (abs(found - truth) < 1e-3).sum() >= 2


def test_the_integral_converges_with_its_steps():
    network, images = small()
    fine = score_channels(network, "singe", images, steps=400).values["0"]
    errors = [abs(score_channels(network, "singe", images, steps=n).values["0"] - fine).max() for n in (1, 8, 64)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 1e-3


def test_a_channel_that_nobody_hears_scores_zero_on_either_path():
    network, images = small()
    with torch.no_grad():
        network[2].weight[:, 1] = 0
    for path in ("group", "neuron"):
        values = score_channels(network, "singe", images, path=path).values["0"]
        assert values[1] == 0
        assert (values[[0, 2, 3]] > 0).all()


def test_singe_does_not_depend_on_the_chunk_but_on_the_minibatch(network, images):
    first, second = (score_channels(network, "singe", images, steps=2, chunk=chunk).values for chunk in (7, 64))
    other = score_channels(network, "singe", images, steps=2, batch_size=5).values
    for name, values in first.items():
        assert values == pytest.approx(second[name], rel=1e-4, abs=1e-9)
        assert (other[name] >= values - 1e-7).all()  # the mean of absolute values


@pytest.mark.parametrize("options", [{"path": "layer"}, {"steps": 0}])
def test_singe_refuses_what_it_does_not_know(network, images, options):
    with pytest.raises(ValueError, match=r"path must be one of group, neuron|steps must be a whole number"):
        score_channels(network, "singe", images, **options)
