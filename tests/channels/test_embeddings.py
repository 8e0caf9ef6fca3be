"""Position embeddings, class tokens and embedding tables: their slices leave with the channels that they meet."""

import pytest
import torch
import torch.nn.functional as F
from coupled import Net, difference, free, planted, removed_and_merged, tensors_of, without, zero
from torch import nn

from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.plan import make_plan


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tokens(net, x):
    return net.patches(x).flatten(2).transpose(1, 2)


def with_position(net, x):
    return net.head(net.mlp(tokens(net, x) + net.position).relu().mean(1))


def with_class_token(net, x):
    x = torch.cat([net.token.expand(len(x), -1, -1), tokens(net, x)], 1) + net.position
    return net.head(net.mlp(x).relu()[:, 0])


def with_registers(net, x):
    x = torch.cat([net.registers.expand(len(x), -1, -1), tokens(net, x) + net.position[:, 1:]], 1)
    return net.head(net.mlp(x).relu().mean(1))


def over_a_map(net, x):
    x = net.patches(x) * (1 + net.map)
    return net.head(net.mlp(x.flatten(2).transpose(1, 2)).relu().mean(1))


def moved(net, x):
    return net.head(net.mlp(tokens(net, x) + net.map.flatten(2).transpose(1, 2)).relu().mean(1))


def scaled(net, x):
    x = tokens(net, x)
    return net.head((net.gamma * net.mlp(x) + x).mean(1))


class Patches(Net):
    def __init__(self, forward):
        super().__init__(forward, patches=nn.Conv2d(3, 8, 4, 4), mlp=nn.Linear(8, 8), head=nn.Linear(8, 5))
        self.position = nn.Parameter(torch.randn(1, 4 + (forward is not with_position), 8))
        self.token, self.gamma = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(8))
        self.registers, self.map = nn.Parameter(torch.randn(1, 3, 8)), nn.Parameter(torch.randn(1, 8, 2, 2))


@pytest.mark.parametrize(
    ("forward", "carried"),
    [
        (with_position, {"position"}),
        (with_class_token, {"position", "token"}),
        (with_registers, {"position", "registers"}),
        (over_a_map, {"map"}),
        (moved, {"map"}),
        (scaled, {"gamma"}),
    ],
)
def test_parameters_that_meet_a_stream_leave_with_its_channels(forward, carried):
    network, example = Patches(forward).eval(), torch.randn(2, 3, 8, 8)
    groups, smaller = removed_and_merged(network, example)
    assert groups[0].name == "patches"
    assert groups[0].frozen == ""
    assert carried <= {member.tensor for member in groups[0].producers}
    for name in carried:
        assert 6 in getattr(smaller, name).shape


def test_a_layer_norm_freezes_the_stream_and_is_the_reason():
    def forward(net, x):
        return net.head(F.layer_norm(net.mlp(F.layer_norm(tokens(net, x) + net.position[:, 1:], (8,))), (8,)).mean(1))

    frozen = {group.name: group.frozen for group in couple(Patches(forward).eval(), torch.randn(2, 3, 8, 8))}
    assert frozen["patches"] == frozen["mlp"] == "layer_norm reduces over it"


def test_a_parameter_that_lies_across_the_channels_freezes_them():
    def forward(net, x):
        return net.head(net.mlp(tokens(net, x) + net.grid.flatten().view(4, 8)).mean(1))

    network = Patches(forward).eval()
    network.grid = nn.Parameter(torch.randn(2, 16))
    groups = couple(network, torch.randn(2, 3, 8, 8))
    assert groups[0].frozen == "it meets grid, of fixed width"


def text(forward, **layers):
    network = Net(forward, words=nn.Embedding(11, 8), **layers).eval()
    return network, torch.randint(11, (2, 6))


def test_columns_of_an_embedding_table_leave_with_the_channels():
    def forward(net, x):
        x = net.words(x) + net.places(torch.arange(x.shape[1])) + net.kinds(x % 2)
        return net.head(net.mlp(x).relu().mean(1))

    places, kinds = nn.Embedding(6, 8), nn.Embedding(2, 8)
    network, example = text(forward, places=places, kinds=kinds, mlp=nn.Linear(8, 16), head=nn.Linear(16, 3))
    groups, smaller = removed_and_merged(network, example)
    assert {member.tensor for member in groups[0].producers} == {"words.weight", "places.weight", "kinds.weight"}
    assert [smaller.words.embedding_dim, smaller.places.embedding_dim, smaller.mlp.in_features] == [6, 6, 6]
    assert "embedding_dim" not in smaller.state_dict()


def test_an_embedding_that_a_layer_shares_keeps_its_width():
    def forward(net, x):
        return net.head(net.mlp(net.words(x)).relu())

    network, example = text(forward, mlp=nn.Linear(8, 8), head=nn.Linear(8, 11, bias=False))
    network.head.weight = network.words.weight
    groups = couple(network, example)
    assert all(group.frozen for group in groups if group.name != "mlp") or not free(groups)
    smaller = apply_plan(network, make_plan(groups, planted(network, groups)))
    assert difference(network, smaller, example) < 1e-5
    assert smaller.head.weight is smaller.words.weight


def test_a_table_that_is_looked_up_twice_is_one_producer():
    def forward(net, x):
        return net.head((net.words(x) * net.words(x.flip(1)).sigmoid()).mean(1))

    network, example = text(forward, head=nn.Linear(8, 3))
    groups, _ = removed_and_merged(network, example)
    assert groups[0].name == "words"
    gone = torch.tensor([2, 5])
    zero(network, groups[0], gone)
    smaller = apply_plan(network, make_plan(groups, {"words": without(8, gone)}))
    assert tensors_of(smaller)["words.weight"].shape == (11, 6)
