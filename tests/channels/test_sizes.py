"""Numbers of channels in modules and code: they follow a removal, or the channels stay and say why."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from coupled import Net, conv, difference, free, removed_and_merged, without, zero
from nets import randomise
from torch import nn

from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.plan import check_plan, make_plan
from redlab.channels.sizes import numbers_of, read_size, write_size
from redlab.compression.folding import fold_batchnorm
from redlab.compression.replay import take_step


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


EXAMPLE = torch.randn(2, 3, 8, 8)


def both(forward, **layers):
    """By name the groups of a network, and the network without what was zeroed."""
    network = Net(forward, **layers).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    groups, smaller = removed_and_merged(network, EXAMPLE)
    return {group.name: group for group in groups}, smaller


class Halves(nn.Module):
    """Cuts its input by a number that it holds, or by one that it doesn't."""

    def __init__(self, by, width=4):
        super().__init__()
        self.width, self.rest, self.whole, self.sizes, self.by = width, 8 - width, 8, [width, 8 - width], by

    def forward(self, x):
        return torch.cat([part.relu() * (1 + place) for place, part in enumerate(self.by(self, x))], 1)


CUTS = {
    "split": lambda own, x: x.split(own.width, 1),
    "slices": lambda own, x: (x[:, : own.width], x[:, own.width :]),
    "from the end": lambda own, x: (x[:, : -own.rest], x[:, -own.rest :]),
    "two numbers": lambda own, x: x.split((own.width, own.rest), 1),
    "the rest": lambda own, x: x.split((own.width, x.shape[1] - own.width), 1),
    "the whole": lambda own, x: x.split((own.width, own.whole - own.width), 1),
    "half the whole": lambda own, x: x.split(own.whole // 2, 1),
    "a list": lambda own, x: x.split(own.sizes, 1),
    "half the shape": lambda own, x: x.split(x.shape[1] // 2, 1),
    "half by slices": lambda own, x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
    "narrower": lambda own, x: (x[:, : own.width],),
}


@pytest.mark.parametrize(("name", "width"), [(n, w) for n in CUTS for w in (4, 3, 2) if "half" not in n or w == 4])
def test_cuts_at_a_number_that_a_module_holds_or_the_shape_gives_follow(name, width):
    read = width if name == "narrower" else 8
    layers = {"a": conv(3, 8), "cut": Halves(CUTS[name], width), "b": conv(read, 4)}
    groups, smaller = both(lambda net, x: net.b(net.cut(net.a(x))), **layers)
    free = [group for group in groups.values() if not group.frozen]
    assert free, [group.frozen for group in groups.values()]
    assert len(smaller.a.weight) < 8


def test_parts_of_a_split_of_one_size_shrink_alike():
    layers = {"a": conv(3, 8), "cut": Halves(CUTS["split"], 2), "b": conv(8, 4)}
    groups, smaller = both(lambda net, x: net.b(net.cut(net.a(x))), **layers)
    assert groups["a"].producers[0].index.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert smaller.cut.width == 1


def test_parts_with_a_number_of_their_own_shrink_apart():
    layers = {"a": conv(3, 8), "cut": Halves(CUTS["a list"], 3), "b": conv(8, 4)}
    network = Net(lambda net, x: net.b(net.cut(net.a(x))), **layers).eval()
    groups = couple(network, EXAMPLE)
    zero(network, groups[1], torch.tensor([0, 2, 3]))
    smaller = apply_plan(network, make_plan(groups, {groups[1].name: without(5, torch.tensor([0, 2, 3]))}))
    assert smaller.cut.sizes == [3, 2]
    assert network.cut.sizes == [3, 5]
    assert difference(network, smaller, EXAMPLE) < 1e-5


def test_a_cut_at_a_place_that_nothing_holds_stays_and_says_so():
    def frozen(function):
        groups, _ = both(lambda net, x: net.b(function(net.a(x))), a=conv(3, 8), b=conv(8, 4))
        return groups["a"].frozen

    assert frozen(lambda x: torch.cat([x[:, :4], x[:, 4:].relu()], 1)) == "slice cuts it at a fixed place"
    assert frozen(lambda x: torch.cat(x.split(4, 1), 1)) == "split cuts it at a fixed place"
    assert frozen(lambda x: torch.cat(x.split((3, 5), 1), 1)) == "split_with_sizes cuts it at a fixed place"
    assert frozen(lambda x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]]) != ""


def test_a_number_that_the_code_does_not_read_is_not_taken_for_the_place():
    layers = {"a": conv(3, 8), "cut": Halves(lambda own, x: x.split((4, x.shape[1] - 4), 1)), "b": conv(8, 4)}
    groups, _ = both(lambda net, x: net.b(net.cut(net.a(x))), **layers)
    assert groups["a"].frozen == "split_with_sizes cuts it at a fixed place"


@pytest.mark.parametrize("affine", [True, False])
def test_whole_groups_of_a_group_norm_leave(affine):
    layers = {"a": conv(3, 8), "norm": nn.GroupNorm(4, 8, affine=affine), "b": conv(8, 4)}
    groups, smaller = both(lambda net, x: net.b(net.norm(net.a(x)).relu()), **layers)
    assert groups["a"].producers[0].index.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert (smaller.norm.num_groups, smaller.norm.num_channels, len(smaller.a.weight)) == (3, 6, 6)


def test_group_norms_of_several_sizes_on_one_stream_leave_in_groups_of_the_larger():
    layers = {"a": conv(3, 12), "one": nn.GroupNorm(6, 12), "two": nn.GroupNorm(3, 12), "b": conv(12, 4)}

    def forward(net, x):
        x = net.a(x)
        return net.b(net.one(x).relu() + net.two(x))

    groups, smaller = both(forward, **layers)
    assert groups["a"].size == 3
    assert (smaller.one.num_groups, smaller.two.num_groups) == (4, 2)


def test_the_groups_of_a_norm_by_function_follow_only_where_the_code_lets_them():
    def frozen(function):
        groups, _ = both(lambda net, x: net.b(function(net.a(x))), a=conv(3, 8), b=conv(8, 4))
        return groups["a"].frozen

    assert frozen(lambda x: F.group_norm(x, x.shape[1] // 2)) == ""
    assert frozen(lambda x: F.group_norm(x, 4)) == "group_norm reduces over it, in a fixed number of groups"
    assert frozen(lambda x: F.group_norm(x, 1)) == "group_norm of one group reduces over it"


class Fused(nn.GroupNorm):
    """A group norm and an activation, in one forward."""

    def forward(self, x):
        return F.silu(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


def test_a_group_norm_with_a_forward_of_its_own_follows_if_it_reads_its_number():
    layers = {"a": conv(3, 8), "norm": Fused(2, 8), "b": conv(8, 4)}
    groups, smaller = both(lambda net, x: net.b(net.norm(net.a(x))), **layers)
    assert groups["a"].size == 2
    assert (smaller.norm.num_groups, smaller.norm.num_channels) == (1, 4)


def test_sizes_are_plain_data_of_a_plan_and_fit_only_their_own_number():
    network = Net(lambda net, x: net.b(net.norm(net.a(x))), a=conv(3, 8), norm=nn.GroupNorm(4, 8), b=conv(8, 4)).eval()
    plan = make_plan(couple(network, EXAMPLE), {"a": [0, 1, -1, -1]})
    assert check_plan(json.loads(json.dumps(plan))) == plan
    smaller = apply_plan(network, json.loads(json.dumps(plan)))
    assert smaller(EXAMPLE).shape == network(EXAMPLE).shape
    network.norm.num_groups = 2
    with pytest.raises(ValueError, match=r"norm\.num_groups has 2 slices along dim 0, not 4"):
        apply_plan(network, plan)
    del network.norm.num_groups
    with pytest.raises(ValueError, match=r"no norm\.num_groups"):
        apply_plan(network, plan)


def test_numbers_are_found_read_and_written_by_name():
    module = Halves(None, 3)
    module.pair, module.flag, module.text = (3, 5), True, [3, "x"]
    names = dict(numbers_of(module))
    assert names == {"width": 3, "rest": 5, "whole": 8, "sizes.0": 3, "sizes.1": 5, "pair.0": 3, "pair.1": 5}
    network = nn.Sequential(module)
    write_size(network, "0.pair.1", 4)
    write_size(network, "0.width", 2)
    assert (module.pair, module.width, read_size(network, "0.pair.1")) == ((3, 4), 2, 4)
    assert read_size(network, "0.none") == read_size(network, "1.width") == read_size(network, "0.text.1") == 0


def test_a_recorded_plan_sets_sizes_on_a_fresh_network_without_tracing():
    layers = {"a": conv(3, 8), "cut": Halves(CUTS["two numbers"], 2), "norm": nn.GroupNorm(4, 8), "b": conv(8, 4)}
    network = Net(lambda net, x: net.b(net.norm(net.cut(net.a(x)))), **layers).eval()
    fresh = copy.deepcopy(network)
    groups = couple(network, EXAMPLE)
    first = free(groups)[0]
    pruned = apply_plan(network, make_plan(groups, {first.name: [-1, *range(first.size - 1)]}))
    again = take_step(fresh, json.loads(json.dumps(make_plan(groups, {first.name: [-1, *range(first.size - 1)]}))))
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in pruned.state_dict().items()
    }
    assert (again.cut.width, again.cut.rest, again.norm.num_groups) == (2, 4, 3)
    assert difference(pruned, again, EXAMPLE) < 1e-5


def test_the_graph_that_folding_leaves_tells_the_same():
    parts = {"a": conv(3, 8), "norm": nn.BatchNorm2d(8), "cut": Halves(CUTS["split"], 4), "b": conv(8, 4)}
    network = randomise(Net(lambda net, x: net.b(net.cut(net.norm(net.a(x)))), **parts))
    folded = fold_batchnorm(network, EXAMPLE)
    assert folded.graph is not None
    with_it, afresh = couple(folded.network, EXAMPLE, known=folded.graph), couple(folded.network, EXAMPLE)
    assert [(group.size, group.frozen) for group in with_it] == [(group.size, group.frozen) for group in afresh]
    assert (with_it[0].size, with_it[0].frozen) == (4, "")


def of_timm(name, size=64):
    """A network of timm with random statistics and scales, and an image as small as it takes."""
    timm = pytest.importorskip("timm")
    network = randomise(timm.create_model(name))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network, torch.randn(2, 3, size, size)


SLOW = [
    "cs3darknet_focus_s",
    "dpn48b",
    "fasternet_t0",
    "ghostnet_050",
    "inception_next_atto",
    "res2next50",
    "rexnet_100",
]


@pytest.mark.parametrize(
    "name", ["test_efficientnet_gn", "test_mambaout", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_networks_of_timm_that_hold_numbers_of_channels_lose_them_without_a_trace(name):
    network, example = of_timm(name)
    groups, smaller = removed_and_merged(network, example)
    assert any(group.sizes or len(group.producers[0].index[0]) > 1 for group in free(groups))
    assert sum(p.numel() for p in smaller.parameters()) < 0.8 * sum(p.numel() for p in network.parameters())
