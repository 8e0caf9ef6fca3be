"""Merging: planted duplicates go and the function stays; exactly as many as asked for; dead filters; all options."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from nets import randomised
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from redlab import fold_batchnorm, hash_network, load_dataset, load_network, weight_layers
from redlab.channels.coupling import couple
from redlab.compression.channel_rows import dead_channels, own_rows
from redlab.compression.merging import merge_each, merge_neurons, merge_trees
from redlab.compression.similarity import clusters_at, dendrogram
from redlab.compression.strategies import STRATEGIES, block_of
from redlab.network.evaluation import evaluate
from redlab.network.layers import output_statistics
from redlab.network.training import train
from redlab.studies.merging import compare_merges, filter_distances, filter_pairs, merged_filters
from redlab.studies.plots.merging import draw_pairs, plot_alphas, plot_distances, plot_filters, plot_merges

SMALL = ["digits/resnet", "digits/mobilenet", "digits/mlp"]
CIFAR, RESNET, MOBILENET, DENSENET = (
    "cifar10/resnet20",
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "torchvision/densenet121",
)
each_small = pytest.mark.parametrize("name", SMALL)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def untrained(name):
    return randomised(load_network(name, weights=None))


def images_for(network, count=2):
    channels, height, width = (*network.redlab.input_shape, 1, 1)[:3]
    if len(network.redlab.input_shape) == 1:
        return torch.randn(count, channels)
    return torch.randn(count, channels, min(height, 64), min(width, 64))


def difference(one, other, images):
    with torch.no_grad():
        wanted, got = one(images), other(images)
    return float((wanted - got).norm() / wanted.norm())


def widen(network, images, every=3):
    """The same function with every third channel of each group twice, its readers' weights shared out at random."""
    wide, copies = copy.deepcopy(network), {}
    groups = [group for group in couple(network, images[:1]) if not group.frozen]
    for group in groups:
        twice = range(0, group.size, every)
        for role in ("producers", "consumers", "paddings"):
            for member in getattr(group, role):
                positions = copies.setdefault((member.tensor, member.dim), (role, set()))[1]
                positions.update(int(p) for k in twice for p in member.index[k])
    for (name, dim), (role, positions) in copies.items():
        path, _, own = name.rpartition(".")
        if role == "paddings":
            shortcut, before = wide.get_submodule(name), network.get_submodule(name).zeros_before
            shortcut.zeros_before += sum(position < before for position in positions)
            shortcut.zeros_after += sum(position >= before for position in positions)
        else:
            repeat(wide.get_submodule(path), own, dim, role, sorted(positions))
    return wide, groups


@torch.no_grad()
def repeat(module, name, dim, role, positions):
    tensor = getattr(module, name)
    counts = torch.ones(tensor.shape[dim], dtype=torch.long)
    counts[positions] = 2
    longer = tensor.repeat_interleave(counts, dim)
    if role == "consumers":
        first = (counts.cumsum(0) - 2)[positions]
        shape = [len(positions) if axis == dim else 1 for axis in range(tensor.ndim)]
        part = torch.rand(shape).to(tensor)
        for index, share in ((first, part), (first + 1, 1 - part)):
            longer.index_copy_(dim, index, longer.index_select(dim, index) * share)
    if isinstance(tensor, nn.Parameter):
        longer = nn.Parameter(longer)
    setattr(module, name, longer)
    if name == "weight" and tensor.ndim > 1:
        depthwise = getattr(module, "groups", 1) > 1
        kind = "channels" if tensor.ndim > 2 else "features"
        if dim == 0:
            setattr(module, f"out_{kind}", len(longer))
        if dim == 1 or depthwise:
            setattr(module, f"in_{kind}", longer.shape[1] if dim == 1 else len(longer))
        module.groups = len(longer) if depthwise else getattr(module, "groups", 1)
    elif isinstance(module, _BatchNorm):
        module.num_features = len(longer)


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "folded"),
    [(name, folded) for name in (*SMALL, CIFAR, RESNET) for folded in (False, True)]
    + [(MOBILENET, True), pytest.param(DENSENET, False, marks=pytest.mark.slow)],
)
def test_merging_duplicated_filters_restores_the_network(name, folded):
    network = untrained(name)
    images = images_for(network)
    network = fold_batchnorm(network, images[:1]).network if folded else network
    wide, groups = widen(network, images)
    assert difference(network, wide, images) < 1e-5, "planting copies changes nothing"
    assert shapes(wide) != shapes(network)
    before = copy.deepcopy(wide.state_dict())
    result = merge_neurons(wide, dead=False, example=images[:1])
    assert difference(network, result.network, images) < 1e-5
    assert shapes(result.network) == shapes(network)
    assert all(torch.equal(before[key], tensor) for key, tensor in wide.state_dict().items())
    assert len(result.plan["groups"]) == len(groups)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, CIFAR])
def test_at_alpha_0_a_second_merge_finds_nothing_more(name):
    network = untrained(name)
    wide, _ = widen(network, images_for(network))
    once = merge_neurons(wide)
    assert once.layers["merged"].sum() > 0
    assert merge_neurons(once.network).layers[["merged", "dead"]].to_numpy().sum() == 0


@each_small
@pytest.mark.parametrize("linkage", ["complete", "single"])
@pytest.mark.parametrize("alpha", [0.1, 0.29, 0.5])
def test_exactly_the_share_alpha_of_each_group_is_gone(name, linkage, alpha):
    network = fold_batchnorm(load_network(name)).network
    layers = merge_neurons(network, alpha, linkage=linkage, dead=False).layers
    grouped = {group.name: group for group in couple(network)}
    after = {row.group: row.merged for row in layers.itertuples() if not row.skipped and ", " not in row.group}
    assert after
    for group, merged in after.items():
        assert merged == np.floor(alpha * grouped[group].size + 1e-9)


@each_small
def test_the_table_adds_up(name):
    network = fold_batchnorm(load_network(name)).network
    result = merge_neurons(network, 0.3)
    layers = result.layers
    assert not layers.isna().any(axis=None)
    assert (layers["channels_before"] - layers["merged"] - layers["dead"] == layers["channels_after"]).all()
    for when, own in (("before", network), ("after", result.network)):
        assert layers[f"parameters_{when}"].sum() == sum(p.numel() for p in own.parameters())
    assert (layers["products_after"] <= layers["products_before"]).all()
    assert layers["skipped"].iloc[-1], "the classifier says why it stays"
    assert layers["channels_after"].iloc[-1] == layers["channels_before"].iloc[-1] == 10
    json.dumps(result.plan)
    assert result.plan["options"]["alpha"] == 0.3
    assert "alpha=0.3" in str(result)
    assert len(result.network.redlab.steps) == len(network.redlab.steps) + 1


@pytest.mark.parametrize("alpha_of", ["share", "pairs"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_larger_alpha_leaves_fewer_channels(strategy, alpha_of):
    network = fold_batchnorm(load_network("digits/mobilenet")).network
    settings = [{"alpha": alpha, "strategy": strategy, "alpha_of": alpha_of} for alpha in (0.0, 0.05, 0.3, 0.8)]
    left = [result.layers["channels_after"].sum() for result in merge_each(network, settings)]
    assert left == sorted(left, reverse=True)
    assert len(set(left)) == 4


def test_merging_follows_the_dendrogram_of_the_rows_with_their_bias():
    network = fold_batchnorm(load_network("digits/mlp")).network
    first = next(module for module in network.modules() if isinstance(module, nn.Linear))
    rows = torch.cat([first.weight, first.bias[:, None]], 1).detach()
    clusters = clusters_at(dendrogram(rows.numpy()), len(rows) // 4)
    merged = merge_neurons(network, 0.25, dead=False).network
    found = next(module for module in merged.modules() if isinstance(module, nn.Linear))
    wanted = torch.stack([rows[clusters == cluster].mean(0) for cluster in range(clusters.max() + 1)])
    assert torch.allclose(torch.cat([found.weight, found.bias[:, None]], 1), wanted, atol=1e-6)


def test_pairs_within_the_quantile_merge():
    network = fold_batchnorm(load_network("digits/mlp")).network
    group = couple(network)[0]
    tree = dendrogram(own_rows(network, group), "single")
    pairs = tree.distances[np.triu_indices(group.size, 1)]
    gone = merge_neurons(network, 0.01, linkage="single", alpha_of="pairs", dead=False).layers["merged"].iloc[0]
    assert gone == tree.merged_within(np.quantile(pairs, 0.01))
    complete = merge_neurons(network, 0.01, alpha_of="pairs", dead=False).layers["merged"].iloc[0]
    assert 0 < complete <= gone


def test_strategies_give_alpha_group_by_group():
    network = fold_batchnorm(load_network("digits/resnet")).network
    groups = [group for group in couple(network) if not group.frozen]
    shares = {name: strategy(groups, 0.6) for name, strategy in STRATEGIES.items()}
    count = len(groups)
    assert shares["constant"] == [0.6] * count
    assert shares["ascending"] == pytest.approx([0.6 * (k + 1) / count for k in range(count)])
    assert shares["descending"] == shares["ascending"][::-1]
    assert len(set(shares["block"])) == len({block_of(group) for group in groups})
    settings = [{"alpha": 0.6, "strategy": strategy, "dead": False} for strategy in shares]
    for own, result in zip(shares.values(), merge_each(network, settings), strict=True):
        layers = result.layers.set_index("layer")
        for group, share in zip(groups, own, strict=True):
            if group.name in layers.index and layers.loc[group.name, "group"] == group.name:
                assert layers.loc[group.name, "merged"] == int(share * group.size + 1e-9)


class Chain(nn.Module):
    """Two convolutions with a batch norm and an activation between them."""

    def __init__(self, width=12, activation=None):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.activation = activation or nn.ReLU()
        self.second = nn.Conv2d(width, 5, 3)

    def forward(self, x):
        return self.second(self.activation(self.norm(self.first(x))))


def with_dead(chain, dead):
    with torch.no_grad():
        chain.norm.bias.uniform_(0.1, 1)
        chain.norm.weight[dead] = 1e-5
        chain.norm.bias[dead] = -0.5
    return chain.eval()


@pytest.mark.parametrize("folded", [False, True])
def test_dead_channels_go_and_the_function_stays(folded):
    images = torch.randn(2, 3, 8, 8)
    network = with_dead(Chain(), [0, 4, 11])
    network.norm.bias.data[5], network.norm.weight.data[5] = 0.5, 1e-5  # constant, and not 0
    network = fold_batchnorm(network, images).network if folded else network
    result = merge_neurons(network, example=images)
    assert result.layers["dead"].tolist() == [3, 0]
    assert result.layers["channels_after"].tolist() == [9, 5]
    assert difference(network, result.network, images) < 1e-6
    assert merge_neurons(network, dead=False, example=images).layers["channels_after"].tolist() == [12, 5]


def test_without_a_relu_nothing_is_dead():
    network = with_dead(Chain(activation=nn.Tanh()), [0, 4])
    assert merge_neurons(network, example=torch.randn(1, 3, 8, 8)).layers["dead"].sum() == 0


def test_alpha_comes_on_top_of_dead_channels_and_one_channel_stays():
    images = torch.randn(1, 3, 8, 8)
    network = with_dead(Chain(), [1, 2])
    layers = merge_neurons(network, 0.25, example=images).layers
    assert (layers["merged"].iloc[0], layers["dead"].iloc[0]) == (3, 2)
    assert merge_neurons(network, 0.99, example=images).layers["channels_after"].iloc[0] == 1
    dead = with_dead(Chain(), slice(None))
    result = merge_neurons(dead, example=images)
    assert result.layers["channels_after"].iloc[0] == 1
    assert difference(dead, result.network, images) < 1e-6


@pytest.mark.parametrize(("alpha", "round_to", "left"), [(0, 4, 8), (0.3, 4, 8), (0.5, 4, 4), (0, 16, 12), (0, 5, 10)])
def test_the_channels_left_are_rounded_up(alpha, round_to, left):
    images = torch.randn(1, 3, 8, 8)
    network = fold_batchnorm(with_dead(Chain(), [0, 7]), images).network  # 12 channels, 2 dead, of the others 2 copies
    with torch.no_grad():
        for tensor in (network.first.weight, network.first.bias, network.first.out_mean, network.first.out_std):
            tensor[[3, 4]] = tensor[2].clone()
    result = merge_neurons(network, alpha, round_to=round_to, example=images)
    assert result.layers["channels_after"].iloc[0] == left
    if alpha == 0:
        assert difference(network, result.network, images) < 1e-5


def test_equal_filters_under_unequal_norms_stay_apart_at_alpha_0():
    images = torch.randn(2, 3, 8, 8)
    network = with_dead(Chain(), [])
    with torch.no_grad():
        network.first.weight[1] = network.first.weight[0]
        network.norm.bias[1] = network.norm.bias[0] + 1
        network.first.weight[3] = 2 * network.first.weight[2]  # the same once folded, and nothing else would be exact
        network.norm.bias[3] = network.norm.bias[2]
        network.norm.running_var[3] = 4 * (network.norm.running_var[2] + network.norm.eps) - network.norm.eps
    assert merge_neurons(network, example=images).layers["merged"].sum() == 0
    folded = fold_batchnorm(network, images).network
    with torch.no_grad():
        folded.first.weight[3] = folded.first.weight[2]
        folded.first.bias[3] = folded.first.bias[2]
    result = merge_neurons(folded, example=images)
    assert result.layers["merged"].tolist() == [1, 0]
    assert difference(folded, result.network, images) < 1e-5


def test_merging_in_several_ways_at_once_is_merging_in_each():
    network = fold_batchnorm(load_network("digits/mlp")).network
    settings = [{"alpha": 0.5}, {"alpha": 0.1, "linkage": "single"}, {"alpha": 0.1, "dead": False, "round_to": 8}]
    for setting, result in zip(settings, merge_each(network, settings), strict=True):
        alone = merge_neurons(network, **setting)
        assert alone.plan == result.plan
        assert alone.layers.equals(result.layers)


def test_hashed_networks_merge():
    network = fold_batchnorm(load_network("digits/mlp")).network
    hashed = hash_network(network, bandwidth="silverman").network
    result = merge_neurons(hashed, 0.2)
    assert result.layers["channels_after"].sum() < result.layers["channels_before"].sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, r"alpha must lie in \[0, 1\)"),
        ({"alpha": -0.1}, "alpha must lie in"),
        ({"alpha": float("nan")}, "alpha must lie in"),
        ({"strategy": "linear"}, "constant, ascending, descending, block"),
        ({"linkage": "ward"}, "complete, single"),
        ({"alpha_of": "rows"}, "share, pairs"),
        ({"round_to": 0}, "round_to"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        merge_neurons(load_network("digits/mlp"), **options)


def test_nan_weights_are_refused_with_the_layers_name():
    network = Chain().eval()
    network.second.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer second"):
        merge_neurons(network, example=torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "dead"), [("cifar10/resnet20", 8), pytest.param("cifar10/resnet56", 30, marks=pytest.mark.slow)]
)
def test_real_networks_lose_their_dead_filters_and_no_accuracy(real_data, name, dead):
    network = fold_batchnorm(load_network(name)).network
    result = merge_neurons(network)
    assert sum(dead_channels(network, group).sum() for group in couple(network)) == dead
    assert (result.layers["dead"].sum(), result.layers["merged"].sum()) == (dead, 0)
    images = load_dataset("cifar10", limit=200)
    assert evaluate(result.network, images).accuracy == evaluate(network, images).accuracy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10/resnet20", "cifar10/resnet56"])
def test_all_test_images_agree_without_dead_filters(real_data, name):
    network = fold_batchnorm(load_network(name)).network
    images = load_dataset("cifar10")
    before, after = (evaluate(own, images).accuracy for own in (network, merge_neurons(network).network))
    assert abs(before - after) <= 0.05


def test_comparing_merges_gives_a_row_a_setting():
    network = fold_batchnorm(load_network("digits/resnet")).network
    settings = [{"alpha": alpha, "strategy": "constant"} for alpha in (0.0, 0.2, 0.5)]
    frame = compare_merges(network, load_dataset("digits", limit=100), settings)
    assert list(frame["alpha"]) == [0.0, 0.2, 0.5]
    assert frame[["share", "products", "parameters"]].apply(lambda column: column.is_monotonic_decreasing).all()
    assert frame["accuracy"].iloc[0] == frame.attrs["before"]
    assert plot_alphas(frame.assign(method="constant")).get_xlabel()


def test_a_near_pair_of_filters_lies_on_the_line_and_a_random_one_does_not():
    layer = nn.Conv2d(3, 12, 3, bias=False)
    with torch.no_grad():
        layer.weight[7] = layer.weight[2] + 0.01 * layer.weight[7]
    network = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(12, 2, 1))
    own = next(weight_layers(network))
    frame = filter_pairs(own, merge_trees(network, example=torch.randn(1, 3, 8, 8))[own.name], pairs=2)
    assert list(dict.fromkeys(frame["pair"])) == ["nearest 1", "nearest 2", "random 1", "random 2"]
    first = frame[frame["pair"] == "nearest 1"]
    assert set(zip(first["filter"], first["other"], strict=True)) == {(2, 7)}
    assert first["value"].tolist() == layer.weight[2].flatten().tolist()
    assert first["other_value"].tolist() == layer.weight[7].flatten().tolist()
    distances = frame.groupby("pair")["distance"].first()
    assert distances["nearest 1"] < 0.1 < distances["nearest 2"] <= distances[["random 1", "random 2"]].min()
    figure = draw_pairs(frame, "title")
    assert [ax.get_title().split(":")[0] for ax in figure.axes] == list(dict.fromkeys(frame["pair"]))


def test_merged_filters_lists_the_weights_of_each_cluster():
    network = fold_batchnorm(load_network("digits/resnet")).network
    layer = next(layer for layer in weight_layers(network) if layer.name == "layer2.0.conv1")
    tree = merge_trees(network)[layer.name]
    frame = merged_filters(layer, tree, 6)
    for name, part in frame.groupby("filter"):
        assert part["value"].tolist() == layer.weight[name].flatten().tolist()
    sizes = frame.groupby("cluster")["filter"].nunique()
    assert (frame.groupby("cluster")["size"].first() == sizes).all()
    assert merged_filters(layer, tree, 0).empty
    assert list(merged_filters(layer, tree, 0)) == list(frame)


def test_figures_of_merging_name_their_axes():
    network = fold_batchnorm(load_network("digits/resnet")).network
    layer = next(layer for layer in weight_layers(network) if layer.name == "layer2.0.conv1")
    tree = merge_trees(network)[layer.name]
    frames = {
        plot_merges: merge_neurons(network, 0.2).layers,
        plot_filters: merged_filters(layer, tree, 6),
        plot_distances: filter_distances(tree),
        plot_alphas: pd.DataFrame({"share": [0.9, 0.5], "accuracy": [90.0, 50.0], "method": "constant"}),
    }
    for plot, frame in frames.items():
        ax = plot(frame)
        assert ax.get_xlabel()
        assert ax.get_title()
    filters = frames[plot_filters]
    assert filters["filter"].nunique() - filters["cluster"].nunique() == 6
    assert len(frames[plot_distances]) == layer.weight.shape[0] ** 2


def alive_again(folded):
    """Its first channel, dead when it was folded, has a filter and a bias of its own by now."""
    with torch.no_grad():
        folded.first.weight[0] = folded.first.weight[5]
        folded.first.bias[0] = 0.2
    return folded


def test_what_came_alive_after_folding_is_not_dead():
    images = torch.randn(2, 3, 8, 8)
    folded = alive_again(fold_batchnorm(with_dead(Chain(), [0, 4]), images).network)
    result = merge_neurons(folded, example=images)
    assert result.layers["dead"].tolist() == [1, 0]
    assert difference(folded, result.network, images) < 1e-6


def test_what_was_trained_after_folding_has_no_dead_channels():
    images = torch.randn(4, 3, 8, 8)
    folded = fold_batchnorm(with_dead(Chain(), [0, 4]), images).network
    labelled = (images, torch.zeros(4, dtype=torch.int64))
    network = nn.Sequential(folded, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    trained = train(network, labelled, epochs=1, learning_rate=1e-4).network[0]
    assert trained.state_dict().keys() == folded.state_dict().keys()
    assert output_statistics(trained.first) is None
    assert output_statistics(folded.first) is not None
    assert merge_neurons(trained, example=images).layers["dead"].sum() == 0
