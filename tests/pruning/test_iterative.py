"""Iterative pruning: the same result whether it is killed or not, exact counts, and nothing leaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from redlab.channels.coupling import couple
from redlab.network.cost import measure_cost
from redlab.network.evaluation import evaluate
from redlab.progress import watched
from redlab.pruning import rounds
from redlab.pruning.channels import products_of, prune_channels
from redlab.pruning.criteria.registry import CRITERIA, Criterion
from redlab.pruning.iterative import iterative_prune
from redlab.pruning.scores import score_channels
from redlab.pruning.subject import Scored
from redlab.zoo.datasets import load_dataset
from redlab.zoo.saving import load_network, save_network

LEARN = {"every": 2, "batch_size": 32, "epochs": 1}


def _images(n=200):
    return load_dataset("digits", "train", limit=n)


def _same(a, b):
    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def _assert_alike(a, b):
    assert _same(a.network, b.network)
    pd.testing.assert_frame_equal(a.layers, b.layers, check_exact=True)
    assert a.plan == b.plan
    assert getattr(a.network, "redlab", None) == getattr(b.network, "redlab", None)


def _mlp():
    """Unstamped: 6, 5 and 3 channels of which two layers may lose some."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
        return nn.Sequential(*layers).eval()


def _blobs(n=64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    return TensorDataset(torch.randn(n, 4, generator=generator) + 2 * torch.eye(4)[labels], labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "criterion"),
    [("digits/resnet", "magnitude"), ("digits/mlp", "redundancy"), ("digits/mlp", "reconstruction")],
)
def test_without_learning_it_is_pruning_again_and_again(name, criterion):
    network, step = load_network(name), 60
    result = iterative_prune(network, criterion, None, target=0.6, step=step)
    by_hand, total = network, measure_cost(network).attrs["products"]
    while (left := measure_cost(by_hand).attrs["products"]) > 0.6 * total:
        scores = score_channels(by_hand, criterion)
        by_hand = prune_channels(by_hand, scores, products=0.6 * total / left, count=step).network
    assert _same(result.network, by_hand)
    assert result.network.redlab == by_hand.redlab
    assert [row["loss"] for row in result.plan["history"]] == [None] * result.plan["achieved"]["rounds"]


def test_every_round_but_the_last_removes_exactly_a_step():
    result = iterative_prune(load_network("digits/mlp"), "taylor", _images(), 0.5, 50, LEARN)
    channels = [384, *(row["channels"] for row in result.plan["history"])]
    gone = -np.diff(channels)
    assert (gone[:-1] == 50).all()
    assert 1 <= gone[-1] <= 50
    assert channels[-1] == result.layers["channels_after"].sum() - 10


@pytest.mark.parametrize(("name", "step", "target"), [("digits/mlp", 40, 0.3), ("digits/resnet", 30, 0.6)])
def test_the_target_is_reached_and_not_overshot_by_more_than_one_channel(name, step, target):
    network = load_network(name)
    result = iterative_prune(network, "magnitude", None, target, step)
    cost, groups = measure_cost(network), couple(network)
    total, after = cost.attrs["products"], measure_cost(result.network).attrs["products"]
    count = products_of(network, groups, cost)
    one = [total - count({g.name: np.arange(g.size) > 0}) for g in groups if not g.frozen]
    assert target * total - max(one) < after <= target * total
    assert result.plan["achieved"]["products"] == round(after / total, 6)


@pytest.mark.slow
def test_no_group_is_emptied_and_the_rounds_end_where_nothing_more_can_go():
    result = iterative_prune(load_network("digits/resnet"), "magnitude", None, target=0, step=90)
    assert all(group.size == 1 for group in couple(result.network) if not group.frozen)
    assert evaluate(result.network, _images(10)).count == 10


@pytest.mark.slow
def test_a_share_as_step_is_of_the_channels_that_there_were():
    history = iterative_prune(load_network("digits/mlp"), "magnitude", None, 0.5, 0.1).plan["history"]
    assert [row["channels"] for row in history[:3]] == [384 - 38, 384 - 76, 384 - 114]
    tiny = iterative_prune(_mlp(), "magnitude", None, 0.8, 0.001, example=torch.ones(1, 4))
    assert tiny.plan["history"][0]["channels"] == 10


@pytest.mark.parametrize("options", [{"round_to": 2}, {"scope": "layer"}, {"round_to": 2, "scope": "layer"}])
def test_rounding_and_shares_of_layers_never_stop_it(options):
    result = iterative_prune(_mlp(), "magnitude", None, 0.5, 1, **options, example=torch.ones(1, 4))
    assert result.plan["achieved"]["products"] <= 0.5
    assert all(len(result.network[place].weight) % options.get("round_to", 1) == 0 for place in (0, 2))


def test_the_table_tells_of_the_original_and_of_the_last_network():
    network = load_network("digits/resnet")
    result = iterative_prune(network, "redundancy", None, 0.6, 40)
    layers, skipped = result.layers, result.layers["skipped"] != ""
    assert list(layers["channels_before"]) == [16, 16, 16, 32, 32, 64, 64, 10]
    gone = layers["channels_before"] - layers["channels_after"]
    assert (gone == layers["merged"] + layers["removed"]).all()
    assert list(layers["layer"][skipped]) == ["linear"]
    assert layers["merged"].sum() > 0
    assert layers["products_after"].sum() == measure_cost(result.network).attrs["products"]
    assert "iterative_prune(criterion='redundancy', target=0.6, step=40" in str(result)


@pytest.mark.slow
def test_scores_are_averaged_and_channels_that_stay_carry_their_average(monkeypatch):
    signs = []

    def moody(subject):
        """The first weight of each channel, with another sign and half the size each time."""
        signs.append((-0.5) ** len(signs))
        rows = {"0": subject.network[0].weight[:, 0], "2": subject.network[2].weight[:, 0]}
        return Scored({name: signs[-1] * row.detach().double().numpy() for name, row in rows.items()})

    monkeypatch.setitem(CRITERIA, "moody", Criterion(moody))
    network = _mlp()
    network[0].weight.data[:, 0] = torch.tensor([3.0, 5, 1, 6, 2, 4])
    network[2].weight.data[:, 0] = torch.tensor([30.0, 50, 10, 20, 40])

    def left(momentum):
        signs.clear()
        result = iterative_prune(network, "moody", None, two, 1, momentum=momentum, example=torch.ones(1, 4))
        return [result.network[place].weight[:, 0].int().tolist() for place in (0, 2)]

    two = _products(network, 4)  # where two channels of the first layer are gone
    # The second average is m s - (1 - m) s / 2: above a third it keeps the order of the first.
    for momentum in (0.9, 0.35):
        assert left(momentum) == [[3, 5, 6, 4], [30, 50, 10, 20, 40]]
    assert 50 not in left(0.3)[1]


def _products(network, kept):
    groups, cost = couple(network, torch.ones(1, 4)), measure_cost(network, torch.ones(1, 4))
    mask = {groups[0].name: np.arange(6) < kept}
    return products_of(network, groups, cost)(mask) / cost.attrs["products"]


def test_taylor_averages_by_default_and_others_do_not():
    options = [
        iterative_prune(_mlp(), criterion, _blobs(), 0.9, 1, example=torch.ones(1, 4)).plan["options"]
        for criterion in ("taylor", "magnitude")
    ]
    assert [each["momentum"] for each in options] == [0.9, 0.0]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result_and_another_one_another():
    given, example = (_mlp(), "taylor", _blobs(), 0.7, 1, LEARN), torch.ones(1, 4)
    results = [iterative_prune(*given, seed=seed, example=example) for seed in (0, 0, 1)]
    _assert_alike(results[0], results[1])
    assert not _same(results[0].network, results[2].network)


def test_the_seed_is_the_random_criterions_too():
    network = load_network("digits/mlp")
    one, two = (iterative_prune(network, "random", None, 0.5, 100, seed=seed) for seed in (0, 1))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(*map(_values, (one, two)), strict=True))


def _values(result):
    return result.network.state_dict().values()


def test_network_and_generator_are_left_alone():
    network = load_network("digits/mlp")
    before, state = torch.random.get_rng_state(), {k: v.clone() for k, v in network.state_dict().items()}
    recipe = network.redlab
    result = iterative_prune(network, "taylor", _images(), 0.5, 100, LEARN)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert network.redlab is recipe
    assert all(parameter.grad is None for parameter in [*network.parameters(), *result.network.parameters()])
    kept = iterative_prune(network, "magnitude", None, 1.0, 1)
    assert kept.network is not network
    assert _same(kept.network, network)
    assert kept.plan["history"] == []


def test_a_network_without_a_recipe_gets_one_of_its_removals():
    network = _mlp()
    result = iterative_prune(network, "taylor", _blobs(), 0.6, 1, LEARN, example=torch.ones(1, 4))
    assert not hasattr(network, "redlab")
    assert {step["step"] for step in result.network.redlab.steps} == {"plan"}


@pytest.mark.slow
def test_learning_between_removals_and_at_the_end_helps():
    network, test = load_network("digits/resnet"), load_dataset("digits")
    accuracies = [
        evaluate(iterative_prune(network, "magnitude", _images(1000), 0.5, 25, tuning).network, test).accuracy
        for tuning in (None, {"every": 5, "epochs": 1})
    ]
    assert accuracies[1] > accuracies[0] + 20


def test_whoever_watches_is_told_of_every_round():
    told = []
    with watched(lambda title, share: told.append(title)):
        result = iterative_prune(load_network("digits/mlp"), "magnitude", None, 0.5, 100)
    assert told.count("pruning") == result.plan["achieved"]["rounds"]


def test_history_tells_of_every_round():
    result = iterative_prune(load_network("digits/mlp"), "taylor", _images(), 0.5, 100, LEARN)
    history = pd.DataFrame(result.plan["history"])
    assert list(history.columns) == ["round", "channels", "products", "loss"]
    assert list(history["round"]) == list(range(1, len(history) + 1))
    assert history["products"].is_monotonic_decreasing
    assert history["products"].iloc[-1] == result.plan["achieved"]["products"]
    assert np.isfinite(history["loss"]).all()
    assert len(result.network.redlab.steps) == len(history)


@pytest.mark.parametrize(
    ("name", "step"), [("digits/mlp", 60), pytest.param("digits/resnet", 30, marks=pytest.mark.slow)]
)
def test_the_result_is_saved_and_opened_again(name, step, tmp_path):
    result = iterative_prune(load_network(name), "reconstruction", _images(), 0.6, step, LEARN)
    assert result.plan["achieved"]["rounds"] > 1
    save_network(result, tmp_path / "smaller")
    opened = load_network(tmp_path / "smaller")
    assert _same(opened, result.network)
    assert opened.redlab == result.network.redlab


class _Killed(Exception):
    pass


def _kill(monkeypatch, call):
    """The ``call``-th training fails before it starts."""
    calls, real = [], rounds.train

    def train(*given, **options):
        calls.append(1)
        if len(calls) == call:
            raise _Killed
        return real(*given, **options)

    monkeypatch.setattr(rounds, "train", train)


def _killed_in(monkeypatch, call, *given, **options):
    with monkeypatch.context() as patched:
        _kill(patched, call)
        with pytest.raises(_Killed):
            iterative_prune(*given, **options)


@pytest.fixture(scope="module")
def four_rounds():
    """A call, and its result."""
    given = (load_network("digits/mlp"), "taylor", _images(), 0.6, 30, LEARN)
    return given, iterative_prune(*given)


@pytest.mark.parametrize("call", [1, 3, 5])
def test_killed_in_any_round_it_goes_on_to_the_same_bits(call, four_rounds, tmp_path, monkeypatch):
    given, whole = four_rounds
    assert whole.plan["achieved"]["rounds"] == 4  # and the fifth training is the final one
    _killed_in(monkeypatch, call, *given, folder=tmp_path)
    assert (tmp_path / "rounds.pt").exists() == (call > 1)
    _assert_alike(whole, iterative_prune(*given, folder=tmp_path))
    with monkeypatch.context() as patched:
        _kill(patched, 2)  # only the finished final training is asked for again
        _assert_alike(whole, iterative_prune(*given, folder=tmp_path))


@pytest.mark.slow
def test_residual_stages_go_on_too(tmp_path, monkeypatch):
    given = (load_network("digits/resnet"), "magnitude", _images(), 0.6, 20, LEARN)
    _killed_in(monkeypatch, 2, *given, folder=tmp_path)
    _assert_alike(iterative_prune(*given, folder=tmp_path), iterative_prune(*given))


@pytest.mark.slow
def test_so_does_a_network_without_a_recipe_that_gains_biases(tmp_path, monkeypatch):
    network = _mlp()
    network[5].register_parameter("bias", None)
    given, example = (network, "reconstruction", _blobs(), 0.4, 2, LEARN), {"example": torch.ones(1, 4)}
    _killed_in(monkeypatch, 2, *given, **example, folder=tmp_path)
    resumed = iterative_prune(*given, **example, folder=tmp_path)
    assert resumed.network[5].bias is not None
    _assert_alike(resumed, iterative_prune(*given, **example))


_CHILD = """
import os, signal, sys
from redlab import iterative_prune, load_dataset, load_network
from redlab.pruning import rounds
real, states = rounds.write_state, []
def write_state(*given):
    real(*given)
    states.append(1)
    if len(states) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
rounds.write_state = write_state
learn = {"every": 2, "batch_size": 32, "epochs": 1}
iterative_prune(
    load_network("digits/mlp"), "taylor", load_dataset("digits", "train", limit=200), 0.6, 30, learn, folder=sys.argv[1]
)
"""


@pytest.mark.slow
def test_a_process_that_was_killed_is_taken_up_by_another(four_rounds, tmp_path):
    done = subprocess.run([sys.executable, "-c", _CHILD, str(tmp_path)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    given, whole = four_rounds
    _assert_alike(whole, iterative_prune(*given, folder=tmp_path))


@pytest.mark.slow
def test_the_folder_of_another_call_is_refused_with_what_differs(tmp_path):
    network = load_network("digits/mlp")
    iterative_prune(network, "magnitude", None, 0.8, 60, folder=tmp_path)
    before = (tmp_path / "rounds.pt").read_bytes()
    calls = {
        "target is 0.8 there and 0.7 here": ("magnitude", None, 0.7, 60, {}),
        "step is 60 there and 61 here": ("magnitude", None, 0.8, 61, {}),
        "criterion is 'magnitude' there and 'random' here": ("random", None, 0.8, 60, {}),
        "p is None there and 2 here": ("magnitude", None, 0.8, 60, {"p": 2}),
        "fine_tune is None there": ("magnitude", _images(), 0.8, 60, {"fine_tune": {}}),
        "images is 0 there and 50 here": ("magnitude", _images(50), 0.8, 60, {}),
    }
    for message, (criterion, images, target, step, options) in calls.items():
        with pytest.raises(ValueError, match=message):
            iterative_prune(network, criterion, images, target, step, **options, folder=tmp_path)
    with pytest.raises(ValueError, match="network is "):
        iterative_prune(load_network("digits/resnet"), "magnitude", None, 0.8, 60, folder=tmp_path)
    assert (tmp_path / "rounds.pt").read_bytes() == before


def test_a_full_disk_stops_it_and_the_last_state_stays(tmp_path, monkeypatch):
    network, written = load_network("digits/mlp"), []

    def full(path, *given):
        if len(written) == 1:
            raise OSError(28, "No space left on device")
        written.append(real(path, *given))

    with monkeypatch.context() as patched:
        real = rounds.write_state
        patched.setattr(rounds, "write_state", full)
        with pytest.raises(OSError, match="No space left"):
            iterative_prune(network, "magnitude", None, 0.5, 60, folder=tmp_path)
    resumed = iterative_prune(network, "magnitude", None, 0.5, 60, folder=tmp_path)
    _assert_alike(resumed, iterative_prune(network, "magnitude", None, 0.5, 60))


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("fine_tune knows no 'rate'; it may hold every, learning_rate", {"fine_tune": {"rate": 1}}),
        ("every must be a whole number of at least 0, not -1", {"fine_tune": {"every": -1}}),
        ("fine-tuning needs images", {"fine_tune": {}, "dataset": None}),
        ("taylor needs images", {"criterion": "taylor", "dataset": None}),
        ("Known: random, magnitude, .*, spp", {"criterion": "size"}),
        ("takes no option 'q'", {"q": 1}),
        ("target must lie in", {"target": 1.5}),
        ("step must be a number of channels or a share", {"step": 0}),
        ("step must be a number of channels or a share", {"step": 1.5}),
        ("momentum must lie in", {"momentum": 1.0}),
        ("score_images must be a whole number of at least 1", {"score_images": 0}),
        ("scope must be one of global, layer", {"scope": "all"}),
        ("round_to must be a whole number", {"round_to": 0}),
    ],
)
def test_bad_requests_are_refused(message, changed):
    given = {"criterion": "magnitude", "dataset": _images(10), "target": 0.5, "step": 1} | changed
    with pytest.raises(ValueError, match=message):
        iterative_prune(load_network("digits/mlp"), **given)


def test_images_are_drawn_without_return_until_all_were_drawn():
    images = rounds.draw(_images(10), 25, seed=3)
    assert sorted(images.indices[:10]) == sorted(images.indices[10:20]) == list(range(10))
    assert images.indices[:10] != images.indices[10:20]
    assert rounds.draw(_images(10), 25, seed=3).indices == images.indices
    assert rounds.draw(_images(10), 25, seed=4).indices != images.indices
