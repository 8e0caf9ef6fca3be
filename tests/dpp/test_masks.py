"""Masks inside a network: one a forward pass, and zeros where the units, kernels and channels really are."""

import pytest
import torch
from nets import Net
from torch import nn

from redlab import load_network, sparsify
from redlab.dpp.masks import Mask, Units, masks_in

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (4, 5)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), (4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (2, 3, 3, 3)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 5, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (4, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 3, 3)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 4, 2), (2, 3, 3, 3)),
    "transposed1d grouped": (lambda: nn.ConvTranspose1d(6, 4, 3, groups=2), (6, 5)),
    "transposed2d grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 3, 3)),
    "transposed3d grouped": (lambda: nn.ConvTranspose3d(4, 6, 2, groups=2), (4, 3, 3, 3)),
    "transposed2d depthwise": (lambda: nn.ConvTranspose2d(4, 8, 3, groups=4), (4, 3, 3)),
}
each_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def set_rows(layer, rows):
    """Give ``layer`` the weight whose rows these are."""
    with torch.no_grad():
        layer.weight.copy_(Units.of(layer).weight(rows))


@each_layer
def test_rows_of_units_and_back_give_the_weight(make, shape):
    weight = make().weight.detach()
    units = Units.of(make())
    rows = units.rows(weight)
    assert rows.shape == units.sizes
    assert torch.equal(units.weight(rows), weight)


@each_layer
@torch.no_grad()
def test_a_row_is_what_one_output_unit_computes_with(make, shape):
    layer, images = make(), torch.randn(2, *shape)
    rows, before = Units.of(layer).rows(layer.weight).clone(), layer(images)
    for unit in range(len(rows)):
        changed = rows.clone()
        changed[unit] = 0
        set_rows(layer, changed)
        differs = (layer(images) != before).movedim(1, 0).flatten(1).any(1)
        assert differs.nonzero().flatten().tolist() == [unit]


@each_layer
@torch.no_grad()
def test_an_input_of_a_row_is_what_one_input_channel_meets(make, shape):
    layer, images = make(), torch.randn(2, *shape)
    rows = Units.of(layer).rows(layer.weight).clone()
    groups = getattr(layer, "groups", 1)
    for channel in range(shape[0]):
        silent = images.clone()
        silent[:, channel] = 0
        set_rows(layer, rows)
        wanted = layer(silent)
        changed = rows.clone()
        group, place = divmod(channel, rows.shape[1])
        changed.unflatten(0, (groups, -1))[group, :, place] = 0
        set_rows(layer, changed)
        torch.testing.assert_close(layer(images), wanted)


@each_layer
@pytest.mark.parametrize("granularity", ["weight", "kernel"])
def test_every_unit_keeps_exactly_k_in_training_and_in_eval_mode(make, shape, granularity):
    layer = make()
    units = Units.of(layer)
    sparse = sparsify(layer, 0.5, granularity)
    (mask,) = masks_in(sparse)
    n = units.sizes[1] * (units.sizes[2] if granularity == "weight" else 1)
    assert (mask.k, mask.logits.shape) == (max(1, round(n / 2)), (units.sizes[0], n))
    for _ in range(3):
        kept = units.rows(sparse.weight.detach()) != 0
        kept = kept.flatten(1) if granularity == "weight" else kept.any(2)
        assert (kept.sum(1) == mask.k).all()
        sparse.eval()
    if granularity == "kernel":
        whole = units.rows(sparse.weight.detach()) != 0
        assert torch.equal(whole.any(2), whole.all(2))


@each_layer
def test_the_logit_of_a_weight_stands_where_the_weight_does(make, shape):
    layer = make()
    sparse = sparsify(layer, 1).eval()
    (mask,) = masks_in(sparse)
    kept = Units.of(layer).rows(sparse.weight.detach()).flatten(1) != 0
    assert torch.equal(kept.int().argmax(1), mask.logits.argmax(1))


@each_layer
def test_every_block_of_a_unit_keeps_as_many(make, shape):
    layer = make()
    units = Units.of(layer)
    tiles = 2 if units.sizes[1] * units.sizes[2] % 2 == 0 else 3
    sparse = sparsify(layer, 0.5, "tile", tiles=tiles)
    (mask,) = masks_in(sparse)
    kept = units.rows(sparse.weight.detach()).flatten(1).unflatten(1, (tiles, -1)) != 0
    assert (kept.sum(2) == mask.k).all()
    assert mask.logits.shape == (units.sizes[0] * tiles, kept.shape[2])


def twice():
    """A layer that is used twice in one pass."""
    return Net(lambda net, x: torch.stack([net.one(x), net.one(x)]), one=nn.Linear(40, 3))


def test_a_layer_that_is_used_twice_has_one_mask_a_forward_pass():
    sparse, images = sparsify(twice().train(), 0.5), torch.randn(2, 40)
    first, again = sparse(images), sparse(images)
    assert torch.equal(first[0], first[1])
    assert torch.equal(again[0], again[1])
    assert not torch.equal(first, again)
    sparse.eval()
    assert torch.equal(sparse(images), sparse(images))


def test_a_pass_that_failed_leaves_no_mask_behind():
    sparse, images = sparsify(twice().train(), 0.5), torch.randn(2, 40)
    with pytest.raises(RuntimeError, match="shapes"):
        sparse(torch.randn(2, 39))
    assert not torch.equal(sparse(images), sparse(images))
    assert not torch.equal(sparse.one.weight, sparse.one.weight)


def test_the_mask_of_one_pass_gets_the_gradient_of_all_its_uses():
    sparse, images = sparsify(twice().train(), 0.5), torch.randn(2, 40)
    (mask,) = masks_in(sparse)

    def gradient(both):
        torch.manual_seed(0)
        mask.logits.grad = None
        answers = sparse(images)
        (answers.sum() if both else answers[0].sum()).backward()
        return mask.logits.grad

    torch.testing.assert_close(gradient(True), 2 * gradient(False))


def test_all_readers_of_a_residual_stream_see_one_mask_in_one_pass():
    sparse = sparsify(load_network("digits/resnet").train(), 0.5, "filter")
    readers = {"conv1": ["layer1.0.conv1", "layer2.0.conv1"], "layer2.0.conv1": ["layer2.0.conv2"]}
    seen = {}

    def look(name):
        return lambda layer, *_: seen.setdefault(name, []).append(layer.weight.detach().abs().sum((0, 2, 3)) > 0)

    for name in [name for names in readers.values() for name in names]:
        sparse.get_submodule(name).register_forward_hook(look(name))
    for _ in range(2):
        sparse(torch.randn(2, 1, 8, 8))
    for group, names in readers.items():
        mask = sparse.dpp.masks[group]
        assert mask.logits.shape[0] == 1
        for number in range(2):
            gates = [seen[name][number] for name in names]
            assert all(torch.equal(gates[0], gate) for gate in gates)
            assert int(gates[0].sum()) == mask.k
    assert not torch.equal(*seen["layer1.0.conv1"])


def test_noise_is_for_training_alone():
    mask = Mask(torch.randn(30, 20), 5, "one_shot")
    assert not torch.equal(mask(), mask())
    top = torch.zeros(30, 20).scatter(1, mask.logits.topk(5).indices, 1)
    assert torch.equal(mask.eval()(), top)


def test_more_noise_moves_masks_further_from_the_largest_logits():
    logits = torch.randn(200, 20)

    def share(noise):
        return float((Mask(logits, 5, "one_shot", noise=noise)() * top).detach().mean())

    top = Mask(logits, 5, "one_shot").eval()()
    agreement = [share(noise) for noise in (0.0, 0.1, 1.0, 10.0)]
    assert agreement[0] == pytest.approx(0.25)
    assert agreement == sorted(agreement, reverse=True)


def test_a_mask_says_what_it_is():
    assert "5 of 20 in 30 rows, k_step, noise=1" in repr(Mask(torch.randn(30, 20), 5, "k_step"))
