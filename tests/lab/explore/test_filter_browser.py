"""Kernels as they are browsed: groups are those that the methods make, pages show what they say."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from nets import Net
from torch import nn

from redlab import browse_filters, fold_batchnorm, load_network, merge_neurons, weight_layers
from redlab.compression.merging import merge_groups, merge_trees
from redlab.compression.units import split_layer
from redlab.lab.explore.filters import EQUAL, MERGING, MULTIPLES, NOTHING, OUTLINES, PAGE
from redlab.lab.explore.panel import Panel
from redlab.studies.kernels import channels_of, equal_kernels, kernel_frame, kernels_of, merged_rows, why_filters_stay
from redlab.studies.plots.kernels import colour_of, plot_kernels


def layer_of(module):
    return next(weight_layers(module))


def coarse(*shape, seed=0):
    """Weights of three values, zero among them, so that many kernels are equal, opposite, or zero."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(3, 5, (2, 4)), (5, 3, 2, 4)),
        (nn.Conv2d(4, 6, 3, groups=2), (6, 2, 3, 3)),
        (nn.Conv2d(3, 5, 1), (5, 3, 1, 1)),
        (nn.Conv1d(3, 5, 4), (5, 3, 1, 4)),
        (nn.Conv3d(3, 5, (2, 3, 4)), (5, 3, 6, 4)),
        (nn.Linear(7, 5), (5, 7, 1, 1)),
        (nn.ConvTranspose2d(6, 4, (2, 3), groups=2), (4, 3, 2, 3)),
        (nn.Conv2d(3, 5, 3).bfloat16(), (5, 3, 3, 3)),
        (nn.Conv2d(3, 5, 3).double(), (5, 3, 3, 3)),
    ],
)
def test_every_kind_of_layer_has_kernels(module, shape):
    kernels = kernels_of(layer_of(module))
    assert kernels.shape == shape
    assert kernels.dtype == (np.float64 if module.weight.dtype == torch.float64 else np.float32)
    assert np.sort(kernels, axis=None).tolist() == module.weight.flatten().sort().values.tolist()


def test_a_transposed_kernel_is_the_one_from_its_input_to_its_output():
    module = nn.ConvTranspose2d(4, 6, 3, groups=2)
    kernels, channels = kernels_of(layer_of(module)), channels_of(layer_of(module))
    for output, row in enumerate(channels):
        for place, channel in enumerate(row):
            wanted = module.weight[channel, output % 3].detach().numpy()
            np.testing.assert_array_equal(kernels[output, place], wanted)
    assert channels.tolist() == [[0, 1]] * 3 + [[2, 3]] * 3


@pytest.mark.parametrize("up_to_scale", [False, True])
@pytest.mark.parametrize("shape", [(12, 3, 1, 2), (9, 4, 1, 1), (8, 2, 2, 2), (5, 1, 3, 3)])
def test_a_group_is_exactly_the_kernels_of_one_input_channel_that_are_equal(shape, up_to_scale):
    kernels = coarse(*shape).numpy()
    channels = np.broadcast_to(np.arange(shape[1]), shape[:2])
    numbers = equal_kernels(kernels, channels, up_to_scale)

    def same(a, b):
        return a.any() and b.any() and ((a == b).all() or (up_to_scale and (a == -b).all()))

    for channel in range(shape[1]):
        column, own = kernels[:, channel], numbers[:, channel]
        alike = np.array([[same(a, b) for b in column] for a in column])
        np.testing.assert_array_equal((own[:, None] == own) & (own > 0), alike & (alike.sum(1) > 1))
        first = [own.tolist().index(number) for number in range(1, own.max() + 1)]
        assert first == sorted(first)  # numbered from 1, by their first members


@pytest.mark.parametrize(
    "module", [nn.Conv2d(4, 9, 2), nn.Conv2d(6, 8, 2, groups=2), nn.Conv2d(4, 9, 1), nn.Linear(4, 9)]
)
def test_what_is_left_of_equal_kernels_is_what_splitting_multiplies(module):
    module.weight.data = coarse(*module.weight.shape)
    layer = layer_of(module)
    kernels, channels = kernels_of(layer), channels_of(layer)
    numbers, alive = equal_kernels(kernels, channels), kernels.any((2, 3))
    groups = {(channel, number) for channel, number in zip(channels.ravel(), numbers.ravel(), strict=True) if number}
    distinct = len(groups) + np.count_nonzero(alive & (numbers == 0))
    assert distinct == sum(map(len, split_layer(module, "kernel").tables))


@pytest.fixture(scope="module", params=["digits/resnet", "digits/mobilenet", "digits/mlp"])
def folded(request):
    return fold_batchnorm(load_network(request.param)).network


@pytest.mark.parametrize("alpha", [0.0, 0.29, 0.6])
def test_the_filters_of_a_cluster_are_those_that_merging_makes_one(folded, alpha):
    grown, plan = merge_groups(folded), merge_neurons(folded, alpha, dead=False).plan["groups"]
    layers, checked = {layer.name: layer for layer in weight_layers(folded)}, 0
    for group, _ in grown:
        where = np.array(plan.get(group.name, range(group.size)))
        alike = where[:, None] == where
        for member in group.producers:
            if (name := member.tensor.removesuffix(".weight")) in layers and member.dim == 0:
                numbers = merged_rows(folded, layers[name], grown, alpha)[member.index[:, 0]]
                np.testing.assert_array_equal((numbers[:, None] == numbers) & (numbers > 0), alike & (alike.sum(1) > 1))
                assert why_filters_stay(folded, layers[name], grown) == group.frozen
                checked += 1
    assert checked >= len(grown)


def test_the_groups_that_may_merge_are_those_of_merge_trees(folded):
    grown, trees = merge_groups(folded), merge_trees(folded)
    assert [group.name for group, tree in grown if tree is not None] == list(trees)
    assert [group.name for group, tree in grown if tree is None] == [group.name for group, _ in grown if group.frozen]


def gated(x):
    value, gate = x.chunk(2, 1)
    return value * gate.sigmoid()


def test_rows_that_leave_together_merge_row_by_row():
    network = Net(lambda self, x: self.down(gated(self.up(x))), up=nn.Linear(4, 6), down=nn.Linear(3, 2))
    with torch.no_grad():
        network.up.weight[[1, 4]], network.up.bias[[1, 4]] = network.up.weight[[0, 3]], network.up.bias[[0, 3]]
    network.eval()
    grown = merge_groups(network, example=torch.zeros(1, 4))
    up, down = weight_layers(network)
    assert grown[0][0].producers[0].index.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert merged_rows(network, up, grown, 0.0).tolist() == [1, 1, 0, 2, 2, 0]
    assert merged_rows(network, down, grown, 0.0).tolist() == [0, 0]
    assert why_filters_stay(network, down, grown) == "network output"


def outlines(ax):
    """(column from, column to, row) of every outline, with its colour."""
    lines = [own for own in ax.collections if isinstance(own, mpl.collections.LineCollection)][
        1
    ]  # behind the white ones
    found = {}
    for line, colour in zip(lines.get_segments(), lines.get_colors(), strict=True):
        (left, low), (right, high) = line.min(0).round().astype(int), line.max(0).round().astype(int)
        assert low == high
        found[left, right, low] = mpl.colors.to_hex(colour)
    return found


def test_every_weight_is_a_pixel_and_every_group_has_one_colour():
    kernels = np.random.default_rng(0).standard_normal((5, 4, 2, 3)).astype(np.float32)
    groups = np.array([[0, 1, 0, 0], [2, 0, 0, 0], [0, 1, 0, 3], [2, 0, 0, 0], [0, 0, 0, 3]])
    filters, channels = np.array([3, 0, 2, 4]), np.array([1, 2, 3])
    before = dict(mpl.rcParams)
    ax = plot_kernels(kernel_frame(kernels, groups, filters, channels))
    assert dict(mpl.rcParams) == before
    canvas = np.array(ax.images[0].get_array())
    assert canvas.shape == (8, 9)
    np.testing.assert_array_equal(canvas[2:4, 6:9], kernels[0, 3])
    wanted = {(0, 0, 1): 1, (0, 0, 2): 1, (2, 2, 2): 3, (2, 2, 3): 3}
    assert outlines(ax) == {place: colour_of(number) for place, number in wanted.items()}
    assert [text.get_text() for text in ax.get_yticklabels()] == ["3", "0", "2", "4"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "3"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("input channel", "filter")


def test_filters_of_a_group_are_outlined_from_end_to_end_with_its_number_beside():
    kernels = np.random.default_rng(0).standard_normal((4, 3, 1, 1))
    frame = kernel_frame(kernels, np.array([2, 0, 1, 1]), np.arange(4), np.arange(3))
    _, ax = plt.subplots()
    assert plot_kernels(frame, ax) is ax
    assert outlines(ax) == {(0, 2, 0): colour_of(2), (0, 2, 2): colour_of(1), (0, 2, 3): colour_of(1)}
    (numbers,) = (own for own in ax.collections if isinstance(own, mpl.collections.PathCollection))
    assert [tuple(place) for place in numbers.get_offsets().round().astype(int)] == [(3, 0), (3, 2), (3, 3)]
    assert len({path.vertices.tobytes() for path in numbers.get_paths()}) == 2
    low, high = ax.get_xlim()
    assert low < numbers.get_offsets()[:, 0].min() < high - 0.3


def test_a_layer_without_groups_has_no_outlines_and_zeros_are_drawn():
    ax = plot_kernels(kernel_frame(np.zeros((2, 2, 3, 3)), np.zeros(2, int), np.arange(2), np.arange(2)))
    ax.figure.canvas.draw()
    assert not [own for own in ax.collections if isinstance(own, mpl.collections.PathCollection)]


@pytest.mark.parametrize("outline", OUTLINES)
@pytest.mark.parametrize("network", ["digits/mobilenet", "digits/mlp"])
def test_every_layer_can_be_browsed_in_every_way(network, outline):
    browser = browse_filters(network, outline=outline, bandwidth="silverman/2")
    layers = list(browser.choices[1].options(browser.values).values())
    for layer in layers[:2] + layers[-2:]:
        figure = browser.figure(layer=layer)
        assert layer in figure.get_suptitle()
        assert figure.axes[0].get_ylabel() == "filter"
        plt.close(figure)


def test_pages_hold_all_filters_and_channels_once():
    browser = browse_filters("digits/resnet", together=False, outline=NOTHING)
    layer = next(
        own
        for own in weight_layers(fold_batchnorm(load_network("digits/resnet")).network)
        if own.name == "layer3.0.conv2"
    )
    kernels = kernels_of(layer)
    pages = [list(choice.options(browser.values).values()) for choice in browser.choices[-2:]]
    assert pages == [[0, 16, 32, 48], [0, 24, 48]]
    shown = [[browser.figure(first_filter=row, first_channel=column) for column in pages[1]] for row in pages[0]]
    canvas = np.block([[np.array(figure.axes[0].images[0].get_array()) for figure in line] for line in shown])
    np.testing.assert_array_equal(canvas, kernels.transpose(0, 2, 1, 3).reshape(192, 192))


def test_filters_that_merge_stand_together_and_first():
    figure = browse_filters("digits/resnet").figure()
    rows = sorted(outlines(figure.axes[0]))
    assert [row for *_, row in rows] == list(range(PAGE[0]))
    folded = fold_batchnorm(load_network("digits/resnet")).network
    layer = next(own for own in weight_layers(folded) if own.name == "layer3.0.conv2")
    numbers = merged_rows(folded, layer, merge_groups(folded), 0.2)
    shown = [int(text.get_text()) for text in figure.axes[0].get_yticklabels()]
    assert numbers[shown].tolist() == sorted(numbers[numbers > 0])[: PAGE[0]]


def test_words_count_what_merges_and_what_is_equal():
    browser = browse_filters("digits/resnet")
    _, words = browser.png(browser.values)
    assert words == "64 filters become 52: 22 of them merge, into 10; drawn: 16 filters, 24 input channels"
    _, words = browser.png({**browser.values, "layer": "linear"})
    assert words.startswith("10 filters, which stay: network output")
    _, words = browser.png({**browser.values, "outline": EQUAL, "bandwidth": "silverman/2"})
    assert words.startswith(
        "4,096 kernels hashed at silverman/2: 218 are equal to another of their input channel; drawn"
    )
    _, words = browser.png({**browser.values, "outline": NOTHING})
    assert words.startswith("64 filters of 64 kernels, 3 x 3 each")
    mobile = browse_filters("digits/mobilenet", "blocks.0.1.conv", outline=MULTIPLES)
    _, words = mobile.png(mobile.values)
    assert words.startswith("512 kernels hashed at silverman/10: 512 are equal up to a factor to another of their")


def test_wider_bandwidths_make_more_kernels_equal():
    browser = browse_filters("digits/mobilenet", outline=EQUAL)
    counts = []
    for bandwidth in ("silverman/16", "silverman/4", "silverman/1"):
        _, words = browser.png({**browser.values, "bandwidth": bandwidth})
        counts.append(int(words.split(": ")[1].split()[0].replace(",", "")))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_a_page_that_the_next_layer_lacks_gives_way_to_its_first():
    panel = Panel(browse_filters("digits/resnet"))
    panel.inputs["first_filter"].value = 48
    panel.inputs["alpha"].value = 0.3
    assert panel.values["first_filter"] == 48
    assert "64 filters become 47" in panel.words.value  # they are in groups of 16, 16 and 32
    panel.inputs["layer"].value = "layer2.0.conv2"
    assert (panel.values["first_filter"], panel.values["alpha"]) == (0, 0.3)
    assert dict(panel.inputs["first_filter"].options) == {"0 to 15": 0, "16 to 31": 16}


def test_a_network_of_ones_own_can_be_browsed():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 3)).eval()
    with torch.no_grad():
        network[0].weight[2], network[0].bias[2] = network[0].weight[1], network[0].bias[1]
    browser = browse_filters(network, layer="0", alpha=0.0, outline=MERGING)
    assert outlines(browser.figure().axes[0]) == {(0, 0, 0): colour_of(1), (0, 0, 1): colour_of(1)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": "layer9"}, "layer cannot be 'layer9'.*layer3.0.conv2"),
        ({"outline": "clusters"}, "outline cannot be 'clusters'.*filters that merge"),
        ({"first_filter": 5}, "first_filter cannot be 5.*16 to 31"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(wrong, message):
    with pytest.raises(ValueError, match=message):
        browse_filters("digits/resnet", **wrong)
