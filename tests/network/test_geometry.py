"""Where a layer looks: PyTorch's own convolutions are the oracle, for random kernels, strides and paddings."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from redlab.network.geometry import Geometry

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def convs(draw, largest=3):
    """A conv layer, two channels in and two out, and the sizes of an image that it takes."""
    dims = draw(st.integers(1, largest))
    each = {low: st.lists(st.integers(low, 3), min_size=dims, max_size=dims).map(tuple) for low in (0, 1)}
    kernel = draw(st.lists(st.integers(1, 5 - dims), min_size=dims, max_size=dims).map(tuple))
    dilation, mode = draw(each[1]), draw(st.sampled_from(MODES))
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), each[0]))
    stride = (1,) * dims if padding == "same" else draw(each[1])
    layer = getattr(nn, f"Conv{dims}d")(2, 2, kernel, stride, padding, dilation, padding_mode=mode)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if padding == "same":
        sides = [((span - 1) // 2, span // 2) for span in spans]
    else:
        sides = [(p, p) for p in (padding if isinstance(padding, tuple) else (0,) * dims)]
    # The kernel must fit, and an image reflects or wraps around no more than it has.
    least = [max(1, s - sum(pad), max(pad) + (mode == "reflect")) for s, pad in zip(spans, sides, strict=True)]
    return layer, tuple(size + draw(st.integers(0, 3)) for size in least), tuple(sides)


def met_taps(layer, space):
    """How many input positions meet each set of taps: which taps of ones leave a gradient on which positions."""
    met = []
    for tap in range(layer.weight[0, 0].numel()):
        weight = torch.zeros_like(layer.weight)
        weight[0, 0].view(-1)[tap] = 1
        image = torch.zeros(1, 2, *space, requires_grad=True)
        (grad,) = torch.autograd.grad(layer._conv_forward(image, weight, None).sum(), image)
        met.append(grad[0, 0].flatten() != 0)
    return Counter(tuple(row) for row in torch.stack(met, 1).tolist())


@given(convs())
def test_sizes_and_padding_are_those_of_pytorch(case):
    layer, space, sides = case
    geometry = Geometry.of(layer)
    assert geometry.padding == sides
    assert geometry.padded == any(map(any, sides))
    assert geometry.sizes(space) == layer(torch.zeros(1, 2, *space)).shape[2:]


@given(convs())
def test_a_convolution_is_the_sum_of_what_its_taps_see(case):
    layer, space, _ = case
    geometry, image = Geometry.of(layer), torch.randn(3, 2, *space)
    padded, sizes = geometry.pad(image), geometry.sizes(space)
    views = [geometry.at_tap(padded, tap, sizes) for tap in geometry.taps]
    assert all(view.shape == (3, 2, *sizes) for view in views)
    assert all(view.untyped_storage().data_ptr() == padded.untyped_storage().data_ptr() for view in views)
    kernels = [layer.weight[(..., *tap)] for tap in geometry.taps]
    found = sum(torch.einsum("oi,ni...->no...", *pair) for pair in zip(kernels, views, strict=True))
    found += layer.bias.view(-1, *[1] * len(space))
    assert torch.allclose(found, layer(image), atol=1e-5)


@given(convs())
def test_padding_first_and_an_unpadded_convolution_are_the_layer(case):
    layer, space, _ = case
    geometry, image = Geometry.of(layer), torch.randn(1, 2, *space)
    convolve = getattr(F, geometry.kind.lower())
    found = convolve(geometry.pad(image), layer.weight, layer.bias, geometry.stride, 0, geometry.dilation)
    assert torch.allclose(found, layer(image), atol=1e-5)


@settings(max_examples=200)
@given(convs(largest=2))
def test_the_taps_that_reach_a_position_are_those_that_leave_a_gradient_on_it(case):
    layer, space, _ = case
    found = Counter()
    for count, mask in Geometry.of(layer).reach(space):
        assert mask.dtype == bool
        found[tuple(mask.tolist())] += count
    assert found.total() == np.prod(space)
    assert found == met_taps(layer, space)


@settings(max_examples=20)
@given(convs())
def test_every_position_is_counted_once_in_three_dimensions_too(case):
    layer, space, _ = case
    reach = list(Geometry.of(layer).reach(space))
    assert sum(count for count, _ in reach) == np.prod(space)
    found = sum((Counter({tuple(mask.tolist()): count}) for count, mask in reach), Counter())
    assert found == met_taps(layer, space)


def test_reach_of_a_small_layer_by_hand():
    # x0 x1 x2 x3 between zeros: the outputs are at (0, x0, x1) and (x1, x2, x3); only x1 is seen twice.
    reach = dict((tuple(mask.tolist()), count) for count, mask in Geometry.of(nn.Conv1d(1, 1, 3, 2, 1)).reach((4,)))
    assert reach == {(False, True, False): 2, (True, False, True): 1, (False, False, True): 1}


def test_a_stride_longer_than_the_kernel_passes_positions_over():
    reach = dict((tuple(mask.tolist()), count) for count, mask in Geometry.of(nn.Conv1d(1, 1, 1, 3)).reach((8,)))
    assert reach == {(True,): 3, (False,): 5}


def test_padding_that_mirrors_shows_a_position_a_second_time():
    # x1 x0 x1 x2 x1: the one output sees x1, x0, x1.
    layer = nn.Conv1d(1, 1, 3, 3, 1, padding_mode="reflect")
    reach = dict((tuple(mask.tolist()), count) for count, mask in Geometry.of(layer).reach((3,)))
    assert reach == {(False, True, False): 1, (True, False, True): 1, (False, False, False): 1}


def test_a_linear_layer_has_one_tap_and_one_position():
    geometry = Geometry.of(nn.Linear(3, 5))
    assert (geometry.kind, geometry.inputs, geometry.outputs, geometry.groups) == ("Linear", 3, 5, 1)
    assert (geometry.taps, geometry.sizes(()), geometry.padded) == (((),), (), False)
    ((count, mask),) = geometry.reach(())
    assert (count, mask.tolist()) == (1, [True])


@given(convs(), st.booleans())
def test_a_layer_is_made_again_from_its_geometry(case, bias):
    layer, space, _ = case
    geometry, image = Geometry.of(layer), torch.randn(2, 2, *space)
    made = geometry.layer(layer.weight, layer.bias if bias else None)
    assert type(made) is type(layer)
    assert Geometry.of(made) == geometry
    assert (made.bias is not None) == bias
    assert torch.equal(made(image), layer._conv_forward(image, layer.weight, layer.bias if bias else None))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", [(3, 2), (2, 3), (2, 2), (3, 1), (4, 1, 3), (1, 1, 2)])
def test_padding_of_uneven_sides_is_kept(kernel, mode):
    layer = getattr(nn, f"Conv{len(kernel)}d")(2, 2, kernel, padding="same", padding_mode=mode)
    geometry, image = Geometry.of(layer), torch.randn(1, 2, *[5] * len(kernel))
    assert geometry.padding == tuple(((k - 1) // 2, k // 2) for k in kernel)
    made = geometry.layer(layer.weight, layer.bias)
    assert Geometry.of(made) == geometry
    assert torch.equal(made(image), layer(image))


@pytest.mark.parametrize(("groups", "per_group"), [(1, 6), (2, 3), (6, 1)])
def test_groups_are_kept(groups, per_group):
    geometry = Geometry.of(nn.Conv2d(6, 12, 3, groups=groups))
    assert (geometry.groups, geometry.per_group, len(geometry.taps)) == (groups, per_group, 9)
    assert geometry.layer(torch.zeros(12, per_group, 3, 3), None).groups == groups
