"""Taylor: the gradient of a gate is what batch norm's own says, finite differences say it too; every image counts."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import SMALL, copy_channel, labelled, made, mlp, randomised, tensor_of
from torch import nn
from torch.utils.data import Subset

from redlab import load_dataset, load_network, score_channels, score_weights, weight_layers
from redlab.channels.coupling import couple
from redlab.pruning.gates import expected_change, gated
from redlab.pruning.subject import Subject


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def network():
    return load_network("digits/resnet").double()


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits", limit=20)


@pytest.fixture(scope="module")
def groups(network):
    return [group for group in couple(network) if not group.frozen]


def minibatches(dataset, size):
    images, labels = (torch.stack([torch.as_tensor(row[k]) for row in dataset]) for k in range(2))
    return list(zip(images.double().split(size), labels.split(size), strict=True))


def gradients(network, images, labels):
    """By name, of the mean loss in eval mode."""
    tensors = dict(copy.deepcopy(network).requires_grad_().named_parameters())
    loss = F.cross_entropy(torch.func.functional_call(network, tensors, (images,)), labels)
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def summed(network, group, tensors, kinds):
    """(size,) w dL/dw, summed over the slices of all producers of these kinds."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.producers:
        if isinstance(network.get_submodule(member.tensor.rpartition(".")[0]), kinds) and member.tensor in tensors:
            product = (tensor_of(network, member.tensor) * tensors[member.tensor]).movedim(member.dim, 0).detach()
            total += product.reshape(member.width, -1).sum(1)[member.index].sum(1)
    return total.numpy()


@pytest.mark.parametrize("size", [20, 8])
def test_a_gates_score_is_what_batch_norms_gradients_say(network, dataset, groups, size):
    """Inside a block the norm's own; in the residual stream the sum over the norms of all that make it."""
    found = score_channels(network, "taylor", dataset, batch_size=size).values
    for group in groups:
        each = [
            summed(network, group, gradients(network, *part), nn.BatchNorm2d) for part in minibatches(dataset, size)
        ]
        np.testing.assert_allclose(found[group.name], np.square(each).mean(0), rtol=1e-9)
    assert {len(found[group.name]) for group in groups} == {16, 32, 64}


@pytest.mark.parametrize("name", SMALL)
def test_a_gates_score_is_what_finite_differences_say(name):
    """In grouped convolutions, behind depthwise ones, through concatenation, where a channel is read at 16 places."""
    network, images = made(name)
    network, step, data = network.double(), 1e-5, labelled(images.double())
    scores = score_channels(network, "taylor", data, batch_size=6, example=images[:1])
    for group in [group for group in scores.groups if group.name in scores.values]:
        channel = group.size // 2
        losses = [losses_with(network, group, channel, 1 + sign * step, minibatches(data, 6)) for sign in (1, -1)]
        slope = (losses[0] - losses[1]) / (2 * step)
        assert scores.values[group.name][channel] == pytest.approx(np.square(slope).mean(), rel=1e-5, abs=1e-16)


@torch.no_grad()
def losses_with(network, group, channel, gate, parts):
    """The loss of each minibatch where all that reads a channel gets ``gate`` times as much."""
    other = copy.deepcopy(network)
    for member in group.consumers:
        tensor_of(other, member.tensor).movedim(member.dim, 0)[member.index[channel]] *= gate
    return np.array([float(F.cross_entropy(other(images), labels)) for images, labels in parts])


def test_a_channel_that_batch_norm_alone_makes_counts(dataset):
    """No weight of its filter has a gradient, and the best-known library gives it 0."""
    network = load_network("digits/mlp")
    with torch.no_grad():
        network.hidden[0].bn.weight[3], network.hidden[0].bn.bias[3] = 0, 1
    found, filters = (score_channels(network, "taylor", dataset, form=form).values for form in ("gate", "joint"))
    assert filters["hidden.0.linear"][3] == 0
    ((images, labels),) = minibatches(dataset, 64)
    slope = gradients(network.double(), images, labels)["hidden.0.bn.bias"][3]
    assert found["hidden.0.linear"][3] == pytest.approx(float(slope) ** 2, rel=1e-4)


def test_every_image_counts_and_not_only_the_last(network, dataset, groups):
    def scores(images, **options):
        return score_channels(network, "taylor", Subset(dataset, images), **options).values

    each = [scores([k]) for k in range(4)]
    together, backwards, one_by_one = scores(range(4)), scores([3, 2, 1, 0]), scores(range(4), batch_size=1)
    for group in groups:
        np.testing.assert_allclose(together[group.name], backwards[group.name], rtol=1e-9)
        np.testing.assert_allclose(one_by_one[group.name], np.mean([own[group.name] for own in each], 0), rtol=1e-9)
        assert not np.allclose(together[group.name], each[-1][group.name], rtol=0.1)


@pytest.mark.parametrize("form", ["joint", "independent"])
def test_forms_over_weights_are_plain_autograd(network, dataset, groups, form):
    found = score_channels(network, "taylor", dataset, form=form, batch_size=8).values
    wanted = {group.name: np.zeros(group.size) for group in groups}
    parts = minibatches(dataset, 8)
    for part in parts:
        slopes = gradients(network, *part)
        for group in groups:
            if form == "joint":
                wanted[group.name] += summed(network, group, slopes, nn.Conv2d) ** 2 / len(parts)
            else:
                squares = {n: slope**2 * tensor_of(network, n) for n, slope in slopes.items()}
                wanted[group.name] += summed(network, group, squares, nn.Conv2d) / len(parts)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9)


def test_scores_of_weights_are_plain_autograd(network, dataset):
    found = score_weights(network, "taylor", dataset, batch_size=8).values
    parts = [gradients(network, *part) for part in minibatches(dataset, 8)]
    for layer in weight_layers(network):
        products = [(slopes[f"{layer.name}.weight"] * layer.weight).detach().numpy() for slopes in parts]
        np.testing.assert_allclose(found[layer.name], np.square(products).mean(0), rtol=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"form": "joint"}, {"form": "independent"}, {"order": 2}, {"skip_fix": "mean"}]
)
def test_chunks_change_no_score_and_minibatches_do(options):
    network, images = made("flat")
    network, data = network.double(), labelled(images, 10)

    def scores(**more):
        return score_channels(network, "taylor", data, example=images[:1], **options, **more).frame()["score"]

    wanted = scores(batch_size=4)
    for chunk in (1, 3, 4, 100):
        np.testing.assert_allclose(scores(batch_size=4, chunk=chunk), wanted, rtol=1e-9)
    assert not np.allclose(scores(batch_size=5), wanted, rtol=0.01)


def test_chunks_change_no_score_of_weights():
    network, data = mlp(6, 5, 4), labelled(torch.randn(1, 6), 10, 4)
    one, two = (score_weights(network, "taylor", data, batch_size=4, chunk=c).frame()["score"] for c in (1, 100))
    np.testing.assert_allclose(one, two, rtol=1e-9)


def after_sums(network, group, images, labels):
    """(size,) the sum of x dL/dx over the tensors that readers of a group get, and how many tensors they are."""
    given, handles = {}, []
    for member in group.consumers:
        module = network.get_submodule(member.tensor.rpartition(".")[0])

        def keep(module, args, member=member):
            args[0].retain_grad()
            given[id(args[0])] = (args[0], member)

        handles.append(module.register_forward_pre_hook(keep))
    F.cross_entropy(network(images), labels).backward()
    for handle in handles:
        handle.remove()
    products = [((x * x.grad).transpose(0, 1).flatten(1).sum(1)[m.index[:, 0]]).detach() for x, m in given.values()]
    return torch.stack(products).sum(0).numpy(), len(given)


def test_gates_after_every_sum_are_divided_as_asked(network, dataset, groups):
    found = {
        fix: score_channels(network, "taylor", dataset, skip_fix=fix).values
        for fix in ("producers", "none", "mean", "official")
    }
    ((images, labels),) = minibatches(dataset, 64)
    counts = {}
    for group in groups:
        slope, count = after_sums(copy.deepcopy(network), group, images, labels)
        counts[group.name] = count
        np.testing.assert_allclose(found["none"][group.name], slope**2, rtol=1e-9)
        np.testing.assert_allclose(found["mean"][group.name], slope**2 / count**2, rtol=1e-9)
        np.testing.assert_allclose(found["official"][group.name], slope**2 / count, rtol=1e-9)
        same = np.allclose(found["producers"][group.name], slope**2, rtol=1e-6)
        assert same == (count == 1), "one gate and one reader are the same thing, whatever the fix"
    assert counts["conv1"] == 4  # the stem's output and those of the three blocks
    assert counts["layer1.0.conv1"] == 1


def second(network, groups, parts):
    """(-g + h / 2)^2 for all gates, from torch.func's Hessian."""

    def loss(gates, images, labels):
        return F.cross_entropy(gated(network, groups, gates.split([g.size for g in groups]), images), labels)

    ones, scores = torch.ones(sum(group.size for group in groups), dtype=torch.float64), []
    for part in parts:
        slope, bend = torch.func.grad(loss)(ones, *part), torch.func.hessian(loss)(ones, *part).diagonal()
        scores.append((bend / 2 - slope) ** 2)
    return torch.stack(scores).mean(0).detach().numpy()


def bent():
    """A network whose gates act together on the loss, and much of whose change is second order."""
    network, images = mlp(6, 8, 5, 4), torch.randn(4, 6).double()
    with torch.no_grad():
        for weight in network.parameters():
            weight *= 3
    return network, images, labelled(images, 12, 4)


@pytest.mark.parametrize("make", [bent, lambda: (*doubled("grouped"), labelled(torch.randn(1, 3, 8, 8), 6))])
def test_the_second_order_is_the_hessians_diagonal(make):
    network, images, data = make()
    scores = score_channels(network, "taylor", data, order=2, batch_size=4, example=images[:1])
    groups = [group for group in scores.groups if group.name in scores.values]
    wanted = second(network, groups, minibatches(data, 4))
    np.testing.assert_allclose(np.concatenate([*scores.values.values()]), wanted, rtol=1e-7)
    assert not scores.errors


def doubled(name):
    network, images = made(name)
    return network.double(), images.double()


@pytest.mark.slow
def test_probes_come_near_the_hessians_diagonal_and_tell_how_near(monkeypatch):
    network, images, data = bent()

    subject = Subject(network, data, images[:1])

    def scores(probes=64, seed=0):
        own = expected_change(subject, 6, 128, probes, seed)
        return np.concatenate([*own.values.values()]), np.concatenate([*own.errors.values()] or [np.zeros(13)])

    wanted, _ = scores()
    alive = wanted > 0  # the others never pass their ReLU
    assert alive.sum() > 8
    monkeypatch.setattr("redlab.pruning.gates.EXACT_UP_TO", 0)
    found, errors = map(np.array, zip(*(scores(seed=seed) for seed in range(20)), strict=True))
    wanted, found, errors = wanted[alive], found[:, alive], errors[:, alive]
    away = (found - wanted) / errors
    assert 0.6 < np.sqrt((away**2).mean()) < 1.5
    assert np.abs(away).max() < 8
    # On average it is right: no score is too large by the variance of its estimate.
    assert np.abs((found - wanted).mean(0) / (found.std(0) / 20**0.5)).max() < 4.5
    same, more = (scores(probes)[0][alive] for probes in (64, 1024))
    np.testing.assert_array_equal(same, found[0])
    assert np.abs(more - wanted).sum() < 0.7 * np.abs(found - wanted).sum(1).mean()


def test_parameters_that_do_not_learn_count_as_the_others(network, dataset):
    other = copy.deepcopy(network)
    for name, parameter in other.named_parameters():
        parameter.requires_grad_("bn" not in name and "layer2" not in name)
    for options in ({}, {"form": "joint"}):
        one, two = (score_channels(own, "taylor", dataset, **options).frame() for own in (network, other))
        np.testing.assert_array_equal(one["score"], two["score"])


def test_equal_channels_score_alike(dataset):
    network = randomised(load_network("digits/mlp"))
    groups = [group for group in couple(network) if not group.frozen]
    for group in groups:
        copy_channel(network, group, 3, 5)
        copy_channel(network, group, 3, 5, readers=True)
    found = score_channels(network, "taylor", dataset).values
    for group in groups:
        assert found[group.name][3] == pytest.approx(found[group.name][5], rel=1e-4)


def test_what_no_layer_reads_has_no_gate():
    class Unread(nn.Module):
        """Its channels meet again in a sum over them."""

        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(4, 6)

        def forward(self, x):
            return torch.stack([self.one(x).mean(1), self.two(x).mean(1)], 1)

    scores = score_channels(Unread(), "taylor", labelled(torch.randn(1, 4), classes=2), example=torch.randn(1, 4))
    assert not scores.values
    assert all(scores.skipped.values())


def test_layers_called_by_keywords_are_nobodys():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = F.linear(self.one(x).relu(), weight=self.two.weight, bias=self.two.bias)
            return self.three(x.relu())

    scores = score_channels(Keywords(), "taylor", labelled(torch.randn(1, 4), classes=3), example=torch.randn(1, 4))
    assert scores.values.keys() | scores.skipped.keys() >= {"one", "three"}
