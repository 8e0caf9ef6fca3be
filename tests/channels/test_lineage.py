"""Lineage: channels keep their numbers whatever goes before them, and whatever their group is called."""

from __future__ import annotations

import torch

from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.groups import Group, Member
from redlab.channels.lineage import Lineage
from redlab.channels.plan import make_plan
from redlab.zoo.networks import build


def _member(tensor, rows, width, dim=0):
    return Member(tensor, dim, torch.tensor(rows)[:, None], width)


def test_channels_are_followed_through_a_layer_that_two_groups_share():
    # Rows 0, 2, 4 and 1, 3 of one layer. Once row 0 is gone, the second group is the first.
    first = Group("a", 3, (_member("a.weight", [0, 2, 4], 5),), ())
    second = Group("a (2)", 2, (_member("a.weight", [1, 3], 5),), ())
    lineage = Lineage([first, second])
    lineage.follow(make_plan([first, second], {"a": [-1, 0, 1]}))
    now_first = Group("a", 2, (_member("a.weight", [0, 2], 4),), ())
    now_second = Group("a (2)", 2, (_member("a.weight", [1, 3], 4),), ())
    assert lineage.numbers(now_first).tolist() == [3, 4]
    assert lineage.numbers(now_second).tolist() == [1, 2]
    lineage.follow(make_plan([now_first, now_second], {"a": [-1, 0], "a (2)": [0, -1]}))
    assert lineage.destinations() == {"a": [-1, 0, -1], "a (2)": [-1, 0]}
    assert (lineage.total, lineage.free, lineage.left) == (5, 5, 2)


def test_a_channel_that_was_merged_goes_where_that_one_goes():
    group = Group("a", 4, (_member("a.weight", [0, 1, 2, 3], 4),), ())
    lineage = Lineage([group])
    lineage.follow(make_plan([group], {"a": [0, 1, 0, 2]}))
    assert lineage.destinations() == {"a": [0, 1, 0, 2]}
    smaller = Group("a", 3, (_member("a.weight", [0, 1, 2], 3),), ())
    lineage.follow(make_plan([smaller], {"a": [0, 0, 1]}))
    assert lineage.destinations() == {"a": [0, 0, 0, 1]}
    smallest = Group("a", 2, (_member("a.weight", [0, 1], 2),), ())
    lineage.follow(make_plan([smallest], {"a": [-1, 0]}))
    assert lineage.destinations() == {"a": [-1, -1, -1, 0]}
    assert lineage.left == 1


def test_what_never_lost_a_channel_is_not_named():
    groups = couple(build("digits/mlp"), torch.ones(1, 1, 8, 8))
    lineage = Lineage(groups)
    assert lineage.destinations() == {}
    assert lineage.left == lineage.free == 384
    assert lineage.total == 394  # with the ten classes


def test_the_rows_that_are_left_are_those_of_the_numbers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, example = build("digits/resnet"), torch.ones(1, 1, 8, 8)
        lineage = Lineage(couple(network, example))
        for tensor, dim in lineage._numbers:  # every producing slice says whose it is
            rows = network.state_dict()[tensor].movedim(dim, 0)
            own = torch.from_numpy(lineage._numbers[tensor, dim])
            rows.copy_(own.reshape(-1, *[1] * (rows.ndim - 1)).expand_as(rows))
        smaller = network
        for _ in range(2):
            free = [group for group in couple(smaller, example) if not group.frozen]
            masks = {group.name: torch.rand(group.size) < 0.8 for group in free}
            plan = make_plan(free, {n: torch.where(m, m.cumsum(0) - 1, -1).tolist() for n, m in masks.items()})
            smaller = apply_plan(smaller, plan)
            lineage.follow(plan)
        for group in couple(smaller, example):
            for member in group.producers:
                rows = smaller.state_dict()[member.tensor].movedim(member.dim, 0)[member.index[:, 0]]
                assert rows.reshape(len(rows), -1)[:, 0].tolist() == lineage.numbers(group).tolist()
        assert lineage.left == sum(group.size for group in couple(smaller, example) if not group.frozen)
