"""Selection: exactly as many as asked for, ties in a stable order, never a whole group; products told beforehand."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from nets import concatenated, depthwise, flat, grouped, mlp
from torch import nn

from redlab import load_network, measure_cost, prune_channels, score_channels
from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.plan import make_plan
from redlab.network.example import example_input
from redlab.options import count_of
from redlab.pruning.channels import products_of
from redlab.pruning.selection import Products, Selector, check_share, lowest
from redlab.zoo.networks import build

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=6)
shares = st.floats(0, 1) | st.integers(0, 100).map(lambda percent: percent / 100)
few = st.integers(0, 3)  # many ties


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def groups_of(sizes, draw):
    return {str(k): np.array([draw() for _ in range(size)], float) for k, size in enumerate(sizes)}


def gone(kept):
    return {name: int((~mask).sum()) for name, mask in kept.items()}


@given(percent=st.integers(0, 100), n=st.integers(0, 10**9))
@example(percent=29, n=10**8)  # 28,999,999.999999996 in binary
def test_a_share_in_percent_is_rounded_down_as_in_decimal(percent, n):
    assert count_of(percent / 100, n) == Fraction(percent, 100) * n // 1


@given(share=shares, n=st.integers(0, 10**6))
def test_a_count_is_never_more_than_the_share_and_never_one_less(share, n):
    count = count_of(share, n)
    assert count <= share * n * (1 + 1e-11)
    assert count > share * n - 1


@pytest.mark.parametrize("n", [3, 7, 49, 10**6 + 1])
def test_shares_of_whole_numbers_come_back(n):
    assert all(count_of(k / n, n) == k for k in range(0, n + 1, max(1, n // 1000)))


@given(values=st.lists(few, max_size=30), k=st.integers(0, 40))
def test_of_equal_values_those_that_come_first_are_lowest(values, k):
    wanted = sorted(range(len(values)), key=lambda place: (values[place], place))
    assert lowest(np.array(values, float), k).tolist() == wanted[:k]


@given(sizes=sizes, share=shares, draw=st.randoms(use_true_random=False))
def test_exactly_the_share_goes_or_all_but_the_best_of_each_group(sizes, share, draw):
    scores = groups_of(sizes, lambda: draw.randint(0, 3))
    kept = Selector(scores).at(share)
    assert sum(gone(kept).values()) == min(count_of(share, sum(sizes)), sum(sizes) - len(sizes))
    assert all(mask[np.flatnonzero(scores[name] == scores[name].max())[-1]] for name, mask in kept.items())


@given(sizes=sizes, share=shares, draw=st.randoms(use_true_random=False))
def test_what_stays_scores_no_less_than_what_goes(sizes, share, draw):
    scores = groups_of(sizes, lambda: draw.randint(0, 3))
    kept = Selector(scores).at(share)
    order = [(scores[name][c], int(name), c) for name, mask in kept.items() for c in np.flatnonzero(~mask)]
    best = {name: max(range(len(own)), key=lambda c, own=own: (own[c], c)) for name, own in scores.items()}
    stay = [
        (scores[name][c], int(name), c) for name, mask in kept.items() for c in np.flatnonzero(mask) if c != best[name]
    ]
    assert not order or not stay or max(order) < min(stay)


@given(sizes=sizes, share=shares, draw=st.randoms(use_true_random=False))
def test_at_scope_layer_each_group_loses_the_share_of_its_own(sizes, share, draw):
    scores = groups_of(sizes, draw.random)
    kept = Selector(scores, "layer").at(share)
    assert gone(kept) == {name: min(count_of(share, len(own)), len(own) - 1) for name, own in scores.items()}
    for name, mask in kept.items():
        assert not (~mask).any() or scores[name][~mask].max() <= scores[name][mask].min()


@given(sizes=sizes, share=shares, step=st.integers(1, 9), scope=st.sampled_from(["global", "layer"]))
def test_each_group_keeps_a_multiple_or_all_and_no_fewer_than_without_rounding(sizes, share, step, scope):
    scores = groups_of(sizes, np.random.default_rng(0).random)
    plain, rounded = (Selector(scores, scope, round_to).at(share) for round_to in (1, step))
    for name, mask in rounded.items():
        assert mask.sum() % step == 0 or mask.all()
        assert 0 <= mask.sum() - plain[name].sum() < step
        assert (mask | ~plain[name]).all()


def test_sixteen_identical_channels_lose_exactly_a_quarter():
    """The best-known library leaves such a layer as it was and takes 2 channels of the other instead of 8."""
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    with torch.no_grad():
        network[0].weight[:] = network[0].weight[0]
        network[0].bias[:] = network[0].bias[0]
    scores = score_channels(network, "magnitude", example=torch.randn(1, 4))
    layer = prune_channels(network, scores, 0.25, scope="layer", example=torch.randn(1, 4))
    assert layer.layers["removed"].tolist() == [4, 4, 0]
    assert torch.equal(layer.network[2].weight, prune_kept(network[2].weight, scores.values["2"], 4)[:, 4:])
    both = prune_channels(network, scores, 0.25, example=torch.randn(1, 4))
    assert both.layers["removed"].sum() == 8


def prune_kept(weight, values, k):
    return weight[sorted(set(range(len(weight))) - set(np.argsort(values, kind="stable")[:k].tolist()))]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_ratio_of_a_tenth_removes_a_tenth(scope):
    network = mlp(8, 64, 4)
    scores = score_channels(network, "random", example=torch.randn(1, 8))
    result = prune_channels(network, scores, 0.1, scope=scope, example=torch.randn(1, 8))
    assert result.network[0].out_features == 64 - 6


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("request_", [{"ratio": 1}, {"products": 0}])
def test_no_group_is_ever_emptied(scope, request_):
    network = load_network("digits/mobilenet")
    result = prune_channels(network, score_channels(network, "random"), scope=scope, **request_)
    assert result.layers["channels_after"].iloc[:-1].eq(1).all()
    assert result.network(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_widths_are_multiples_of_eight():
    network = load_network("digits/resnet")
    scores = score_channels(network, "magnitude")
    plain, rounded = (prune_channels(network, scores, 0.4, round_to=by).layers for by in (1, 8))
    assert (rounded["channels_after"].iloc[:-1] % 8 == 0).all()
    assert (plain["channels_after"].iloc[:-1] % 8 != 0).any()
    assert (rounded["channels_after"] >= plain["channels_after"]).all()


def cost_of(groups, kept, network, example):
    """The products of the network, really pruned."""
    going = {name: np.where(mask, np.cumsum(mask) - 1, -1).tolist() for name, mask in kept.items()}
    return measure_cost(apply_plan(network, make_plan(groups, going)), example).attrs["products"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        *((lambda name=name: build(name), (1, 1, 8, 8)) for name in ("digits/resnet", "digits/mobilenet")),
        *((make, (1, 3, 8, 8)) for make in (grouped, depthwise, concatenated)),
        (flat, (1, 3, 4, 4)),
    ],
)
def test_products_are_told_without_building_the_network(make, shape):
    network, example, draw = make(), torch.randn(shape), np.random.default_rng(0)
    groups, cost = couple(network, example), measure_cost(network, example)
    products = products_of(network, groups, cost)
    free = [group for group in groups if not group.frozen]
    assert len(free) > 1
    assert products({}) == cost.attrs["products"]
    for _ in range(4):
        kept = {group.name: draw.random(group.size) < draw.random() for group in free}
        kept = {name: mask if mask.any() else ~mask for name, mask in kept.items()}
        assert products(kept) == cost_of(groups, kept, network, example)


def test_products_of_attention_stay():
    counts = Products([], {"a": (4, 4)}, {"a": 32}, total=100)
    assert counts({}) == 100


def brute_force(scores, target, cost, scope):
    """How many channels go, by trying all counts (or shares of each group) in turn."""
    sizes = [len(own) for own in scores.values()]
    steps = {Fraction(k, n) for n in (sizes if scope == "layer" else [sum(sizes)]) for k in range(n + 1)}
    tried = (Selector(scores, scope).at(float(step)) for step in sorted(steps))
    return next((sum(gone(kept).values()) for kept in tried if cost(kept) <= target), sum(sizes) - len(sizes))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("share", [0.999, 0.7, 0.5, 0.29, 0.2, 0.01])
def test_the_fewest_channels_go_that_reach_the_products(scope, share):
    network, example = mlp(5, 7, 6, 4, 3), torch.randn(1, 5)
    scores = score_channels(network, "random", example=example)
    total = measure_cost(network, example).attrs["products"]
    groups = couple(network, example)
    wanted = brute_force(scores.values, share * total, lambda kept: cost_of(groups, kept, network, example), scope)
    result = prune_channels(network, scores, products=share, scope=scope, example=example)
    assert result.layers["removed"].sum() == wanted
    assert (result.layers["products_after"].sum() <= share * total) == (
        share > 0.1
    )  # not even one channel each will do
    assert result.plan["achieved"]["products"] == pytest.approx(result.layers["products_after"].sum() / total, abs=1e-6)


def test_any_global_choice_with_fewer_channels_of_the_order_misses_the_target():
    """The order is the scores'; among its beginnings the shortest is taken."""
    scores = {"a": np.array([3.0, 1, 2]), "b": np.array([0.5, 5, 4])}
    cost = lambda kept: int(kept["a"].sum() * kept["b"].sum())  # noqa: E731
    found = {target: sum(gone(Selector(scores).down_to(target, cost)).values()) for target in (9, 8, 6, 4, 3, 2, 1, 0)}
    assert found == {9: 0, 8: 1, 6: 1, 4: 2, 3: 3, 2: 3, 1: 4, 0: 4}


def test_all_of_the_products_are_kept_where_all_are_asked_for():
    network = load_network("digits/mlp")
    result = prune_channels(network, score_channels(network, "random"), products=1)
    assert result.layers["removed"].sum() == 0


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
        check_share("alpha", share)


@pytest.mark.parametrize(
    ("options", "message"), [({"scope": "network"}, "global, layer"), ({"round_to": 0}, "round_to")]
)
def test_unknown_scopes_and_widths_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Selector({}, **options)
    with pytest.raises(ValueError, match="round_to must be a whole number"):
        Selector({}, round_to=2.5)


def test_nothing_can_be_taken_where_nothing_is_scored():
    assert Selector({}).at(1) == Selector({}, "layer").at(1) == {}


def test_the_example_is_the_networks_own():
    network = load_network("digits/resnet")
    cost = measure_cost(network, example_input(network))
    groups = couple(network)
    assert products_of(network, groups, cost)({}) == cost.attrs["products"]
