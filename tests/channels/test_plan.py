"""Plans: plain data, refused where they make no sense."""

import copy
import json
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redlab.channels.coupling import couple
from redlab.channels.plan import check_plan, make_plan, representatives
from redlab.zoo.architectures import CifarResNet


@pytest.fixture(scope="module")
def groups():
    return couple(CifarResNet((1, 1, 1), widths=(4, 6, 8)), torch.randn(1, 3, 8, 8))


@pytest.fixture
def plan(groups):
    return make_plan(groups, {"layer1.0.conv1": [0, 1, -1, 0], "layer2.0.conv1": list(range(6)), "conv1": [0, 0, 1, 1]})


def test_a_plan_is_plain_data_and_survives_json(plan):
    assert check_plan(json.loads(json.dumps(plan))) == plan
    assert plan["step"] == "plan"
    assert set(plan["members"]) == {"layer1.0.conv1", "conv1"}  # what doesn't change needs none


@given(st.lists(st.integers(-1, 3), min_size=4, max_size=4).filter(lambda d: max(d) >= 0))
def test_new_indices_are_numbered_in_order_of_appearance(groups, wanted):
    new = sorted({index for index in wanted if index >= 0})
    if new != list(range(len(new))):
        with pytest.raises(ValueError, match="without a gap"):
            make_plan(groups, {"conv1": wanted})
        return
    got = make_plan(groups, {"conv1": wanted})["groups"]["conv1"]
    assert [[a == b for b in got] for a in got] == [[a == b for b in wanted] for a in wanted]
    assert [index == -1 for index in got] == [index == -1 for index in wanted]
    kept = [index for index in got if index >= 0]
    assert sorted(set(kept), key=kept.index) == list(range(len(new)))


def test_a_merged_channel_lies_where_its_first_member_lay():
    assert representatives([0, 1, -1, 0, 1, 2]) == [0, 1, -1, 0, 1, 5]


@pytest.mark.parametrize(
    ("destinations", "message"),
    [
        ({"conv9": [0]}, "no group is called 'conv9'"),
        ({"linear": [0] * 10}, "frozen: network output"),
        ({"conv1": [0, 1, 2]}, "has 4 channels and needs as many destinations, not 3"),
        ({"conv1": [0, 1, 3, 3]}, "must be 0 .. 2 without a gap"),
        ({"conv1": [-1, -1, -1, -1]}, "keep at least one"),
        ({"conv1": [0, 1, -2, 2]}, "not -2"),
    ],
)
def test_a_destination_that_makes_no_sense_is_refused(groups, destinations, message):
    with pytest.raises(ValueError, match=message):
        make_plan(groups, destinations)


def set_(path, value):
    def change(plan):
        *way, last = path
        for key in way:
            plan = plan[key]
        plan[last] = value

    return change


ITEM = ("members", "conv1", 0)


@pytest.mark.parametrize(
    "change",
    [
        set_(("step",), "fold"),
        set_(("groups",), []),
        set_(("members",), None),
        set_(("groups", "conv1"), [0, 0, 1]),
        set_(("groups", "conv1"), [0, 0, 2, 2]),
        set_(("groups", "conv1"), [1, 1, 0, 0]),
        set_(("groups", "conv1"), [-1, -1, -1, -1]),
        set_(("groups", "conv1"), [0.0, 0, 1, 1]),
        set_(("groups", "conv1"), [0, True, 1, 1]),
        set_(("groups", "conv1"), [0, 1, 2, 3]),
        set_(("groups", "conv1"), []),
        set_(("groups", "other"), [0, 0]),
        set_(("members", "other"), []),
        set_(("members", "conv1"), []),
        set_(("members", "conv1"), [None]),
        set_((*ITEM, "role"), "both"),
        set_((*ITEM, "size"), 3),
        set_((*ITEM, "width"), "4"),
        set_((*ITEM, "width"), 3),
        set_((*ITEM, "tensors"), []),
        set_((*ITEM, "tensors"), [["conv1.weight"]]),
        set_((*ITEM, "tensors"), [["conv1.weight", -1]]),
        set_((*ITEM, "tensors"), [[1, 0]]),
        set_((*ITEM, "index"), {}),
        set_((*ITEM, "index"), {"arange": [0, 1, 1]}),
        set_((*ITEM, "index"), {"arange": [0, 0, 1, 1]}),
        set_((*ITEM, "index"), {"arange": [-1, 1, 1, 1]}),
        set_((*ITEM, "index"), {"arange": [0, 1, 1, 10**12]}),
        set_((*ITEM, "index"), {"arange": [0, 10**30, 1, 1]}),
        set_((*ITEM, "index"), {"arange": [0, 1, 10**30, 1]}),
        set_((*ITEM, "index"), {"arange": [0, 1, -(10**30), 1]}),
        set_((*ITEM, "width"), 10**30),
        set_((*ITEM, "index"), {"rows": [[0], [1], [2]]}),
        set_((*ITEM, "index"), {"rows": [[0], [1], [2], [2]]}),
        set_((*ITEM, "index"), {"rows": [[0], [1], [2], [10**30]]}),
        set_((*ITEM, "index"), {"rows": [[0], [1], [2], []]}),
        set_((*ITEM, "index"), {"rows": [0, 1, 2, 3]}),
    ],
)
def test_a_malformed_plan_is_refused(plan, change):
    broken = copy.deepcopy(plan)
    change(broken)
    with pytest.raises(ValueError, match=r"plan|without|keep at least"):
        check_plan(broken)


@pytest.mark.parametrize("other", [None, [], "plan", {}, {"step": "plan"}])
def test_what_is_no_plan_is_refused(other):
    with pytest.raises(ValueError, match="not a plan"):
        check_plan(other)


KEYS = ["step", "groups", "members", "conv1", "role", "width", "size", "index", "tensors", "arange", "rows"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["plan", "arange"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    other=JSON,
    groups=JSON,
    members=JSON,
    place=st.sampled_from([("groups", "conv1"), ITEM]),
    key=st.sampled_from(KEYS[4:9]),
)
def test_any_other_data_is_a_plan_or_a_value_error(plan, other, groups, members, place, key):
    broken = copy.deepcopy(plan)
    set_((*place, key) if place == ITEM else place, other)(broken)
    for odd in (other, {"step": "plan", "groups": groups, "members": members}, broken):
        with suppress(ValueError):
            assert check_plan(odd) is odd
