"""Training: deterministic, on a copy, and resumed as if it had never stopped."""

from __future__ import annotations

import copy
import resource

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from redlab.network.evaluation import evaluate
from redlab.network.training import minibatches, sgd, train
from redlab.zoo.datasets import load_dataset
from redlab.zoo.saving import load_network


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def _small(n: int = 100):
    return load_dataset("digits", "train", limit=n)


def test_training_learns_and_leaves_its_argument_and_the_generator_alone():
    network = load_network("digits/mlp", weights=None)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = torch.random.get_rng_state()
    trained = train(network, _small(400), epochs=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in trained.network.parameters())
    assert evaluate(trained.network, load_dataset("digits")).accuracy > 85
    assert trained.network.redlab == network.redlab
    assert not trained.network.training
    assert trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0]
    assert list(trained.history["epoch"]) == list(range(1, 9))


def test_the_same_seed_gives_the_same_weights():
    network = load_network("digits/mobilenet")
    runs = [train(network, _small(), 1, shift=1, seed=seed).network for seed in (0, 0, 1)]
    assert _same(runs[0], runs[1])
    assert not _same(runs[0], runs[2])


def test_frozen_parameters_stay():
    network = load_network("digits/mlp")
    for parameter in network.hidden.parameters():
        parameter.requires_grad_(False)
    trained = train(network, _small(), 1).network
    assert torch.equal(trained.hidden[0].linear.weight, network.hidden[0].linear.weight)
    assert not torch.equal(trained.classifier.weight, network.classifier.weight)


def test_a_single_left_over_image_does_not_stop_batch_norm():
    assert len(train(load_network("digits/mlp"), _small(65), 1, batch_size=64).history) == 1


def test_no_epochs_return_a_copy():
    network = load_network("digits/mlp")
    trained = train(network, _small(), 0)
    assert trained.network is not network
    assert _same(trained.network, network)
    assert trained.history.empty


def test_bad_requests_are_refused():
    network = load_network("digits/mlp")
    with pytest.raises(ValueError, match="nothing to train"):
        train(nn.Identity(), _small(), 1)
    with pytest.raises(ValueError, match="epochs >= 0"):
        train(network, _small(), -1)
    with pytest.raises(ValueError, match="0 images"):
        train(network, TensorDataset(torch.ones(0, 64), torch.ones(0, dtype=torch.long)), 1)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train(network, _small(), 3, learning_rate=1e30)
    with pytest.raises(ValueError, match="one of cosine, constant, not 'linear'"):
        train(network, _small(), 1, schedule="linear")


def test_a_constant_schedule_has_no_warm_up():
    history = train(load_network("digits/mlp"), _small(), 3, learning_rate=0.05, schedule="constant").history
    assert list(history["learning_rate"]) == [0.05] * 3


def test_flips_change_what_is_seen():
    plain, flipped = (train(load_network("digits/mlp"), _small(), 1, flip=flip).network for flip in (False, True))
    assert not _same(plain, flipped)


def test_hooks_get_the_copy_in_training_and_the_number_of_the_minibatch():
    network, seen = load_network("digits/mlp"), []

    def watch(copied, number):
        assert copied is not network
        assert copied.training
        seen.append(number)

    plain = train(network, _small(), 2, batch_size=50)
    watched = train(network, _small(), 2, batch_size=50, on_batch=watch)
    assert seen == [0, 1, 2, 3]
    assert _same(plain.network, watched.network)


def test_a_penalty_is_minimised_and_part_of_the_loss():
    def penalty(copied):
        return 10 * copied.classifier.weight.square().sum()

    network = load_network("digits/mlp")
    plain, punished = (train(network, _small(), 3, learning_rate=0.01, penalty=p) for p in (None, penalty))
    assert punished.network.classifier.weight.norm() < 0.5 * plain.network.classifier.weight.norm()
    assert punished.history["loss"].iloc[0] > plain.history["loss"].iloc[0]
    with pytest.raises(FloatingPointError, match="the loss is inf in epoch 1"):
        train(network, _small(), 1, penalty=lambda copied: torch.tensor(torch.inf))


def test_what_is_observed_is_the_copy_in_eval_mode_before_the_first_epoch_and_after_each():
    network, seen = load_network("digits/mlp").train(), []

    def norm(copied):
        return float(copied.classifier.weight.detach().norm())

    def observe(copied):
        assert copied is not network
        assert not copied.training
        seen.append(copied.classifier.bias.detach().clone())
        return {"norm": norm(copied), "names": ["classifier"]}

    plain = train(network, _small(), 2)
    watched = train(network, _small(), 2, observe=observe)
    assert _same(plain.network, watched.network)
    assert (len(watched.observations), plain.observations) == (3, [])
    assert torch.equal(seen[0], network.classifier.bias)
    assert torch.equal(seen[2], watched.network.classifier.bias)
    assert not torch.equal(seen[1], seen[2])
    assert watched.observations[2] == {"norm": norm(watched.network), "names": ["classifier"]}
    assert train(network, _small(), 0, observe=observe).observations[0] == watched.observations[0]


def test_another_optimizer_takes_the_place_of_sgd_and_follows_the_schedule():
    network = load_network("digits/mlp")

    def half(copied):
        groups = [{"params": copied.hidden.parameters(), "lr": 0.0}, {"params": copied.classifier.parameters()}]
        return torch.optim.Adam(groups, lr=0.01)

    trained = train(network, _small(), 3, optimizer=half, learning_rate=1e30)
    assert torch.equal(trained.network.hidden[0].linear.weight, network.hidden[0].linear.weight)
    assert not torch.equal(trained.network.classifier.weight, network.classifier.weight)
    own = train(network, _small(), 3, optimizer=lambda copied: sgd(copied, 0.05, 1e-3))
    assert _same(own.network, train(network, _small(), 3, learning_rate=0.05, weight_decay=1e-3).network)
    rates = train(network, _small(), 3, optimizer=lambda copied: torch.optim.Adam(copied.parameters(), 0.01)).history
    ordinary = train(network, _small(), 3, learning_rate=0.01).history
    assert rates["learning_rate"].tolist() == ordinary["learning_rate"].tolist()


def test_parameters_may_have_sgd_options_of_their_own():
    network = load_network("digits/mlp")
    bias = network.classifier.bias

    def make(copied):
        return sgd(copied, 0.1, 1e-3, [{"params": [copied.classifier.bias], "lr": 0.0, "weight_decay": 0.0}])

    trained = train(network, _small(), 1, optimizer=make).network
    assert torch.equal(trained.classifier.bias, bias)
    assert not torch.equal(trained.classifier.weight, network.classifier.weight)
    groups = make(network).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-3, 0, 0]
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_an_epoch_has_as_many_minibatches_as_its_hook_is_called():
    for images, size in [(100, 50), (101, 50), (65, 64), (10, 64)]:
        numbers = []
        train(
            load_network("digits/mlp"),
            _small(images),
            1,
            batch_size=size,
            on_batch=lambda _, n, to=numbers: to.append(n),
        )
        assert len(numbers) == minibatches(_small(images), size)


def _stop_at(batch):
    """A hook that stops training there, and counts from where it goes on."""

    def hook(network, number):
        hook.seen.append(number)
        if number == batch:
            raise KeyboardInterrupt

    hook.seen = []
    return hook


@pytest.mark.parametrize("name", ["digits/mlp", "digits/resnet"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_training_that_was_killed_goes_on_to_the_same_bits(name, schedule, tmp_path):
    network, file = load_network(name, weights=None), tmp_path / "new/state.pt"
    options = {"epochs": 4, "shift": 1, "flip": True, "smoothing": 0.1, "schedule": schedule, "seed": 5}
    options |= {
        "observe": lambda copied: [copied.training, *(float(own.detach().sum()) for own in copied.parameters())]
    }
    whole = train(network, _small(), **options, on_batch=_stop_at(None))
    with pytest.raises(KeyboardInterrupt):
        train(network, _small(), **options, on_batch=_stop_at(5), checkpoint=file)  # in the third epoch of two each
    assert [path.name for path in file.parent.iterdir()] == ["state.pt"]
    before = torch.random.get_rng_state()
    rest = _stop_at(None)
    resumed = train(network, _small(), **options, on_batch=rest, checkpoint=file)
    assert rest.seen == [4, 5, 6, 7]
    assert _same(whole.network, resumed.network)
    pd.testing.assert_frame_equal(whole.history, resumed.history, check_exact=True)
    assert len(resumed.observations) == 5
    assert resumed.observations == whole.observations
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_finished_training_is_not_repeated(tmp_path):
    network, hook = load_network("digits/mlp"), _stop_at(None)
    first, again = (train(network, _small(), 2, on_batch=hook, checkpoint=tmp_path / "state.pt") for _ in range(2))
    assert hook.seen == [0, 1, 2, 3]
    assert _same(first.network, again.network)
    assert first.history.equals(again.history)
    assert not again.network.training


def test_the_checkpoint_of_another_call_is_refused_and_says_what_differs(tmp_path):
    network, file = load_network("digits/mlp"), tmp_path / "state.pt"
    train(network, _small(), 1, checkpoint=file)
    written = file.read_bytes()
    other = copy.deepcopy(network)
    other.classifier.bias.data[0] += 1
    calls = {
        "epochs is 1 there and 2 here": (network, _small(), {"epochs": 2}),
        "learning_rate is 0.1 there and 0.2 here, seed is 0": (network, _small(), {"learning_rate": 0.2, "seed": 1}),
        "images is 100 there and 99 here": (network, _small(99), {}),
        "network is ": (other, _small(), {}),
        "penalty is False there": (network, _small(), {"penalty": lambda copied: torch.zeros(())}),
        "observe is False there": (network, _small(), {"observe": lambda copied: 0}),
        "optimizer is False there": (network, _small(), {"optimizer": lambda copied: sgd(copied, 0.1, 5e-4)}),
        "mu is None there and 0.5 here": (network, _small(), {"depends": {"mu": 0.5}}),
    }
    for message, (trained, images, changed) in calls.items():
        with pytest.raises(ValueError, match=message):
            train(trained, images, **{"epochs": 1, **changed}, checkpoint=file)
    assert file.read_bytes() == written


def test_a_full_disk_is_an_oserror_and_leaves_the_old_checkpoint_whole(tmp_path):
    network, file = load_network("digits/mlp"), tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        train(network, _small(), 3, on_batch=_stop_at(2), checkpoint=file)
    written = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # the system refuses larger files
    try:
        with pytest.raises(OSError, match="too large"):
            train(network, _small(), 3, on_batch=_stop_at(None), checkpoint=file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == written
    assert list(tmp_path.iterdir()) == [file]
