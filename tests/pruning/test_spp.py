"""SPP: its formula, channels that are really shut, and a plain smaller network at the end."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.plan import make_plan
from redlab.network.cost import measure_cost
from redlab.network.evaluation import evaluate
from redlab.pruning import rounds
from redlab.pruning.iterative import iterative_prune
from redlab.pruning.scores import score_channels
from redlab.pruning.spp import Masked, delta, raised
from redlab.zoo.datasets import load_dataset
from redlab.zoo.saving import load_network, save_network

EXAMPLE = torch.ones(1, 4)


def _same(a, b):
    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def _mlp():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
        return nn.Sequential(*layers).eval()


def _blobs(n=64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    return TensorDataset(torch.randn(n, 4, generator=generator) + 2 * torch.eye(4)[labels], labels)


def _prune(target=0.5, step=1, fine_tune=None, network=None, **options):
    tuning = {"batch_size": 16} | (fine_tune or {})
    return iterative_prune(network or _mlp(), "spp", _blobs(), target, step, tuning, example=EXAMPLE, **options)


def test_delta_computed_by_hand():
    # Three channels are to go: alpha = ln 8 / 3 = ln 2, N = ln 4 / ln 2 = 2.
    expected = [0.05, 0.025, 0.0125, 0.0, -0.025, -0.075]
    np.testing.assert_allclose(delta(np.arange(6), 3), expected, atol=1e-15)


@pytest.mark.parametrize("going", [1, 7, 64])
@pytest.mark.parametrize(("a", "u"), [(0.05, 0.25), (0.2, 0.5), (0.05, 0.9)])
def test_delta_starts_at_a_turns_at_ua_without_a_jump_and_is_zero_at_the_wanted_number(going, a, u):
    turn = -np.log(u) * going / (np.log(2) - np.log(u))
    assert delta(np.array(0), going, a, u) == a
    before, at, behind = delta(turn + np.array([-1e-9, 0, 1e-9]), going, a, u)
    assert at == pytest.approx(u * a)
    assert before == pytest.approx(at, abs=1e-9)
    assert behind == pytest.approx(at, abs=1e-9)
    assert delta(np.array(going), going, a, u) == pytest.approx(0, abs=1e-15)


def test_delta_falls():
    for going in (1, 5, 50):
        values = delta(np.linspace(0, 3 * going, 500), going)
        assert (np.diff(values) < 0).all()
        assert np.isfinite(delta(np.arange(100_000), going)).all()


def test_the_smallest_become_more_likely_to_be_shut_and_the_largest_less():
    p = np.full(6, 0.5)
    new = raised(p, norms=np.array([5.0, 0, 4, 1, 3, 2]), goal=3)
    np.testing.assert_allclose(new - 0.5, [-0.075, 0.05, -0.025, 0.025, 0, 0.0125], atol=1e-15)
    assert (p == 0.5).all()


def test_what_is_shut_for_good_stays_so_is_not_ranked_and_makes_the_others_fewer():
    p, norms = np.array([1.0, 0.2, 0.2, 0.2]), np.array([9.0, 1, 2, 3])
    new = raised(p, norms, goal=2)  # one is still to go: alpha = ln 8
    assert new[0] == 1
    np.testing.assert_allclose(new[1:3], [0.25, 0.2])
    assert new[3] < 0.2


@pytest.mark.parametrize("seed", range(5))
def test_exactly_the_wanted_number_is_shut_however_the_norms_move(seed):
    random, p, updates = np.random.default_rng(seed), np.zeros(40), 0
    sizes, norms = random.random(40), np.zeros(40)
    while (p == 1).sum() < 17:
        norms += sizes + 0.3 * random.random(40)
        p, updates = raised(p, norms, goal=17), updates + 1
        assert (p == 1).sum() <= 17
        assert ((p >= 0) & (p <= 1)).all()
    assert 20 <= updates < 1000  # 1 / 0.05 at least
    assert set(p) == {0.0, 1.0}


def test_equal_norms_go_in_their_order():
    p = np.zeros(6)
    while (p == 1).sum() < 2:
        p = raised(p, np.ones(6), goal=2)
    assert p.tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet"])
def test_a_shut_channel_is_read_as_zero_which_is_what_removing_it_does(name):
    network, images = load_network(name), torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    groups = [group for group in couple(network) if not group.frozen]
    shut = {group.name: (np.arange(group.size) % 3 == 0).astype(float) for group in groups}
    masked = Masked(network, groups, shut).eval()
    with torch.no_grad():
        torch.testing.assert_close(masked(images), network(images))
        masked.draw()
        going = {n: np.where(p == 1, -1, np.cumsum(p == 0) - 1).tolist() for n, p in shut.items()}
        smaller = apply_plan(network, make_plan(groups, going))
        torch.testing.assert_close(masked(images), smaller(images), rtol=1e-4, atol=1e-4)


def test_gates_are_drawn_anew_and_as_often_shut_as_they_should():
    network = _mlp()
    masked = Masked(network, couple(network, EXAMPLE), {"0": np.array([0, 0.3, 1, 0.7, 0, 0, 0, 1])})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = []
        for _ in range(1000):
            masked.draw()
            drawn.append(masked.gates[0])
    mean = torch.stack(drawn).mean(0)
    torch.testing.assert_close(mean, torch.tensor([1, 0.7, 0, 0.3, 1, 1, 1, 0]), atol=0.05, rtol=0)
    assert mean[0] == 1
    assert mean[2] == 0


def test_a_shut_channel_learns_nothing():
    network = _mlp()
    masked = Masked(network, couple(network, EXAMPLE), {"0": np.array([1.0, 0, 0, 0, 0, 0, 0, 0])})
    masked.draw()
    masked(torch.randn(8, 4, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert network[0].weight.grad[0].count_nonzero() == 0
    assert network[3].weight.grad[:, 0].count_nonzero() == 0
    assert network[0].weight.grad[1:].count_nonzero() > 0


def test_it_ends_with_the_wanted_channels_and_a_plain_network():
    network = _mlp()
    result = _prune(0.5)
    assert [type(module) for module in result.network] == [type(module) for module in network]
    assert list(result.network.state_dict()) == list(network.state_dict())
    assert all(not module._forward_pre_hooks and not hasattr(module, "parametrizations") for module in result.network)
    assert not result.network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in result.network.parameters())
    products = measure_cost(result.network, EXAMPLE).attrs["products"]
    assert products <= 0.5 * measure_cost(network, EXAMPLE).attrs["products"]
    assert result.plan["achieved"]["products"] == round(products / 98, 6)
    # The same share of both: half leaves 16 + 12 + 9 of the 98 products, the next lower one (3 of 8) 20 + 20 + 12.
    assert [len(result.network[place].weight) for place in (0, 3)] == [4, 3]
    assert list(result.layers["removed"]) == [4, 3, 0]
    assert "completed" not in result.plan["achieved"]


def test_without_learning_the_smallest_filters_go():
    network = _mlp()
    norms = score_channels(network, "magnitude", example=EXAMPLE).values
    result = _prune(0.5, fine_tune={"learning_rate": 1e-12})
    kept = np.sort(np.argsort(norms["0"])[4:])
    torch.testing.assert_close(result.network[0].weight, network[0].weight[kept])


def test_history_falls_to_what_was_achieved():
    result = _prune(0.5)
    history = pd.DataFrame(result.plan["history"])
    assert list(history.columns) == ["round", "channels", "products", "loss"]
    assert history["products"].is_monotonic_decreasing
    assert history["channels"].iloc[0] == 14
    assert history["channels"].iloc[-1] == 7
    assert history["products"].iloc[-1] == result.plan["achieved"]["products"]
    assert len(history) > 19


def test_where_the_cap_comes_first_the_likeliest_go_and_it_says_so():
    result = _prune(0.5, cap=22)
    assert result.plan["achieved"]["rounds"] == 22
    assert result.plan["achieved"]["completed"] > 0
    assert [len(result.network[place].weight) for place in (0, 3)] == [4, 3]


def test_nothing_to_do_is_nothing_done():
    result = _prune(1.0)
    assert result.plan["history"] == []
    assert _same(result.network, _mlp())


def test_groups_keep_a_channel_and_widths_are_rounded():
    assert [len(_prune(0.0, cap=1).network[place].weight) for place in (0, 3)] == [1, 1]
    assert [len(_prune(0.5, cap=1, round_to=4).network[place].weight) for place in (0, 3)] == [4, 4]


def test_the_same_seed_gives_the_same_bits_and_leaves_all_else_alone():
    network, before = _mlp(), torch.random.get_rng_state()
    one, two, other = (_prune(0.5, step=2, network=network, seed=seed) for seed in (0, 0, 1))
    assert _same(one.network, two.network)
    assert one.plan == two.plan
    assert not _same(one.network, other.network)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert _same(network, _mlp())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_whole_number_of_iterations_may_be_a_float():
    assert _same(_prune(step=2.0).network, _prune(step=2).network)


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 10, -1])
def test_killed_it_goes_on_to_the_same_bits(call, tmp_path, monkeypatch):
    learn = {"fine_tune": {"epochs": 1}}
    whole = _prune(0.5, **learn)
    call = call if call > 0 else whole.plan["achieved"]["rounds"] + 1  # the last is the final training
    calls, real = [], rounds.train

    def train(*given, **options):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(rounds, "train", train)
        with pytest.raises(KeyboardInterrupt):
            _prune(0.5, **learn, folder=tmp_path)
    resumed = _prune(0.5, **learn, folder=tmp_path)
    assert _same(whole.network, resumed.network)
    assert whole.plan == resumed.plan
    pd.testing.assert_frame_equal(whole.layers, resumed.layers, check_exact=True)
    with pytest.raises(ValueError, match=r"a is 0\.05 there and 0\.1 here"):
        _prune(0.5, **learn, folder=tmp_path, a=0.1)


def test_digits_survive_it_and_the_result_is_saved(tmp_path):
    network, images = load_network("digits/resnet"), load_dataset("digits", "train")
    result = iterative_prune(network, "spp", images, 0.6, 2, {"batch_size": 32, "epochs": 2}, a=0.2)
    assert result.plan["achieved"]["products"] <= 0.6
    assert evaluate(result.network, load_dataset("digits")).accuracy > 90
    save_network(result, tmp_path / "smaller")
    assert _same(load_network(tmp_path / "smaller"), result.network)


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("spp needs images", {"dataset": None}),
        ("spp needs images", {"dataset": TensorDataset(torch.ones(0, 4))}),
        ("spp: step must be a whole number", {"step": 0.5}),
        ("spp: cap must be a whole number", {"cap": 0}),
        ("a must lie in", {"a": 0}),
        ("u in", {"u": 1}),
        ("takes no option 'A'. It takes a, u, cap", {"A": 0.05}),
        ("spp takes no momentum", {"momentum": 0.9}),
        ("fine_tune knows no 'rate'", {"fine_tune": {"rate": 1}}),
        ("target must lie in", {"target": -1}),
    ],
)
def test_bad_requests_are_refused(message, changed):
    with pytest.raises(ValueError, match=message):
        iterative_prune(_mlp(), "spp", **{"dataset": _blobs(), "target": 0.5, "step": 1, "example": EXAMPLE, **changed})
