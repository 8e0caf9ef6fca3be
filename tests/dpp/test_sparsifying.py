"""Sparsify: a copy with masks of exactly k of n where they are asked for, and reasons where there are none."""

import copy

import pytest
import torch
from nets import DIGITS, SMALL, made, mlp
from torch import nn
from torch.nn.utils import parametrize

from redlab import load_network, sparsify
from redlab.dpp.masks import Units, masks_in
from redlab.dpp.sparsifying import GRANULARITIES
from redlab.network.layers import weight_layers

each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rows_of(sparse, name):
    """What the units of a layer of ``sparse`` compute with now (units, inputs, taps)."""
    layer = sparse.get_submodule(name)
    return Units.of(layer).rows(layer.weight.detach())


def same(a, b):
    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", [*DIGITS, *SMALL])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weight_bits", [32, 1])
def test_exactly_k_weights_of_every_unit_are_left_in_every_kind_of_network(name, training, weight_bits):
    network, _ = made(name)
    sparse = sparsify(network.train(training), 0.3, weight_bits=weight_bits)
    assert list(sparse.dpp.masks) == [layer.name for layer in weight_layers(network)]
    for layer, mask in sparse.dpp.masks.items():
        rows = rows_of(sparse, layer).flatten(1)
        assert mask.k == max(1, round(0.3 * rows.shape[1]))
        assert ((rows != 0).sum(1) == mask.k).all()


@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet"])
def test_kernels_are_kept_whole_or_not_at_all(name):
    sparse = sparsify(load_network(name), 0.3, "kernel").train()
    for layer, mask in sparse.dpp.masks.items():
        kept = rows_of(sparse, layer) != 0
        assert torch.equal(kept.any(2), kept.all(2))
        assert (kept.any(2).sum(1) == mask.k).all()


def test_every_tile_keeps_k_over_t_and_what_does_not_divide_is_skipped():
    sparse = sparsify(load_network("digits/resnet"), 8, "tile", tiles=4).train()
    assert sparse.dpp.skipped == {"conv1": "its 9 weights a unit do not divide into 4 tiles"}
    for layer in sparse.dpp.masks:
        rows = rows_of(sparse, layer).flatten(1)
        assert ((rows.unflatten(1, (4, -1)) != 0).sum(2) == 2).all()


@pytest.mark.parametrize("name", [*DIGITS, *SMALL])
def test_a_channel_that_its_group_shuts_is_read_by_nobody(name):
    network, images = made(name)
    sparse = sparsify(network, 0.5, "filter", example=images[:1])
    groups = {group.name: group for group in sparse.dpp.groups}
    assert sparse.dpp.masks.keys() | sparse.dpp.skipped.keys() >= groups.keys()
    for group, mask in sparse.dpp.masks.items():
        gate = mask()[0].bool()
        assert int(gate.sum()) == mask.k == max(1, round(groups[group].size / 2))
        for member in groups[group].consumers:
            path = member.tensor.removesuffix("weight").rstrip(".")
            slices = sparse.get_submodule(path).weight.detach().movedim(member.dim, 0)[member.index]
            assert torch.equal(slices.flatten(1).any(1), gate)


@each_granularity
@pytest.mark.parametrize("bits", [32, 8])
def test_the_network_and_the_generator_are_left_alone(granularity, bits):
    network = load_network("digits/resnet").train()
    before, state = torch.random.get_rng_state(), copy.deepcopy(network.state_dict())
    sparse = sparsify(network, 0.5, granularity, weight_bits=bits, activation_bits=bits)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sparse.training
    assert network.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not hasattr(network, "dpp")
    assert not any(parametrize.is_parametrized(module) or module._forward_pre_hooks for module in network.modules())
    with torch.no_grad():
        next(sparse.parameters()).add_(1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@each_granularity
def test_a_mask_that_keeps_everything_changes_nothing(granularity):
    network, images = load_network("digits/resnet"), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(sparsify(network, 1.0, granularity)(images), network(images))


@each_granularity
def test_the_same_seed_gives_the_same_logits_of_the_documented_spread(granularity):
    network = load_network("digits/mlp")
    first, again, other = (masks_in(sparsify(network, 0.5, granularity, seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(one.logits, two.logits) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0].logits, other[0].logits)
    logits = torch.cat([mask.logits.flatten() for mask in first])
    assert float(logits.detach().std()) == pytest.approx(1.0 if granularity == "kernel" else 0.5, rel=0.1)


@each_granularity
def test_both_the_weights_and_the_logits_learn(granularity):
    sparse = sparsify(load_network("digits/mlp").train(), 0.5, granularity)
    sparse(torch.randn(8, 1, 8, 8)).square().sum().backward()
    for mask in masks_in(sparse):
        assert mask.logits.grad.any(1).all()
    assert all(parameter.grad.any() for parameter in sparse.parameters())


def test_a_copy_of_a_sparse_network_is_another_one():
    sparse = sparsify(load_network("digits/mlp").train(), 0.5, "filter")
    twin, images = copy.deepcopy(sparse), torch.randn(4, 1, 8, 8)
    assert [id(mask) for mask in masks_in(twin)] == [id(mask) for mask in twin.dpp.masks.values()]
    assert not {id(mask) for mask in masks_in(twin)} & {id(mask) for mask in masks_in(sparse)}
    answers = sparse.eval()(images)
    with torch.no_grad():
        for mask in masks_in(twin):
            mask.logits.neg_()
    assert torch.equal(sparse(images), answers)
    assert not torch.equal(twin.eval()(images), answers)


def test_tied_weights_stay_tied_and_get_no_mask():
    network = mlp(4, 4, 4, 3)
    network[2].weight = network[0].weight
    sparse = sparsify(network, 0.5)
    reason = "it shares its weight with 0.weight"
    assert sparse.dpp.skipped == {"0": "it shares its weight with 2.weight", "2": reason}
    assert list(sparse.dpp.masks) == ["4"]
    assert sparse[0].weight is sparse[2].weight
    with pytest.raises(ValueError, match=f"keep names '2', which gets no mask: {reason}"):
        sparsify(network, {"2": 0.5})


def test_projections_inside_attention_get_no_mask():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0])

    sparse = sparsify(Attends(), 0.5)
    assert "attention module" in sparse.dpp.skipped["attention.in_proj"]
    assert "head" in sparse.dpp.masks
    assert sparse(torch.randn(5, 8)).isfinite().all()


def test_keep_is_a_share_a_number_or_either_by_name():
    network = load_network("digits/mlp")  # units of 64, 256 and 128 weights

    def counts(keep):
        return {name: mask.k for name, mask in sparsify(network, keep).dpp.masks.items()}

    assert counts(0.25) == {"hidden.0.linear": 16, "hidden.1.linear": 64, "classifier": 32}
    assert counts(1e-6) == dict.fromkeys(counts(0.25), 1)
    assert counts(100) == {"hidden.0.linear": 64, "hidden.1.linear": 100, "classifier": 100}
    assert counts({"classifier": 3, "hidden.1.linear": 0.5}) == {"hidden.1.linear": 128, "classifier": 3}


@pytest.mark.parametrize(
    "options", [{"keep": {"classifier": 3}}, {"keep": 3, "whole": ("hidden.0.linear", "hidden.1.linear")}]
)
def test_layers_that_are_not_named_or_asked_to_stay_whole_get_no_mask_and_say_so(options):
    network = load_network("digits/mlp")
    sparse = sparsify(network, **options)
    assert sparse.dpp.skipped == dict.fromkeys(["hidden.0.linear", "hidden.1.linear"], "it was asked to stay whole")
    assert torch.equal(sparse.hidden[0].linear.weight, network.hidden[0].linear.weight)
    assert sparse.dpp.count("classifier") == (3, 128)
    assert sparse.dpp.count("hidden.0.linear") == (0, 0)


@pytest.mark.parametrize("granularity", ["weight", "kernel"])
@pytest.mark.parametrize("name", ["digits/resnet", "digits/mlp"])
def test_started_from_magnitudes_the_largest_of_each_unit_are_kept(name, granularity):
    network = load_network(name)
    sparse = sparsify(network, 0.3, granularity, start="magnitude").eval()
    for layer, mask in sparse.dpp.masks.items():
        size = rows_of(network, layer).abs()
        size = size.mean(2) if granularity == "kernel" else size.flatten(1)
        kept = (rows_of(sparse, layer) != 0).flatten(1) if granularity == "weight" else rows_of(sparse, layer).any(2)
        assert (kept.sum(1) == mask.k).all()
        lowest, highest = size.where(kept, torch.inf).amin(1), size.where(~kept, 0).amax(1)
        assert (lowest >= highest).all()


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_started_from_magnitudes_draws_are_in_proportion_to_them(noise):
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0, 3.0, 0.0]])
    sparse = sparsify(layer.train(), 1, start="magnitude", noise=noise)
    drawn = torch.stack([sparse.weight[0] != 0 for _ in range(3000)]).float().mean(0)
    wanted = torch.tensor([1 / 6, 2 / 6, 3 / 6, 0]) if noise else torch.tensor([0.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(drawn, wanted, atol=0.03, rtol=0)


def test_masks_that_do_not_learn_stay_as_they_start():
    sparse = sparsify(load_network("digits/mlp").train(), 0.5, learn=False)
    images = torch.randn(4, 1, 8, 8)
    sparse(images).sum().backward()
    assert all(mask.logits.grad is None and not mask.logits.requires_grad for mask in masks_in(sparse))
    assert torch.equal(sparse.classifier.weight, sparse.classifier.weight)
    assert sparse.classifier.parametrizations.weight.original.grad is not None


@each_granularity
def test_a_caller_in_inference_mode_gets_a_network_that_learns(granularity):
    network = load_network("digits/mlp").train()
    with torch.inference_mode():
        sparse = sparsify(network, 0.5, granularity, example=torch.randn(1, 1, 8, 8), activation_bits=8)
    sparse(torch.randn(4, 1, 8, 8)).sum().backward()
    assert all(mask.logits.grad is not None for mask in masks_in(sparse))


@each_granularity
def test_a_state_is_loaded_into_another_copy(granularity):
    network, images = load_network("digits/mlp"), torch.randn(4, 1, 8, 8)
    one, two = (sparsify(network, 0.5, granularity, activation_bits=8, seed=seed) for seed in (0, 1))
    one.train()(3 * images)
    assert not torch.equal(one.eval()(images), two(images))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(images), two(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@each_granularity
def test_what_a_network_computes_keeps_its_dtype_and_logits_have_no_fewer_than_32_bits(dtype, granularity):
    network = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).to(dtype)
    example = torch.randn(1, 8, dtype=dtype)
    sparse = sparsify(network, 4, granularity, example=example, weight_bits=8, activation_bits=8).train()
    for mask in masks_in(sparse):
        assert mask.logits.dtype == mask().dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert (mask().sum(1) == mask.k).all()
    answer = sparse(torch.randn(5, 8, dtype=dtype))
    assert answer.dtype == dtype
    answer.sum().backward()
    assert all(mask.logits.grad.isfinite().all() for mask in masks_in(sparse))


@pytest.mark.parametrize("estimator", ["auto", "k_step", "one_shot"])
def test_auto_takes_the_paper_s_estimator_for_few_draws(estimator):
    masks = sparsify(
        load_network("digits/mlp"), {"hidden.0.linear": 16, "classifier": 17}, estimator=estimator
    ).dpp.masks
    wanted = ["k_step", "one_shot"] if estimator == "auto" else [estimator] * 2
    assert [mask.estimator for mask in masks.values()] == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "rows"}, "granularity must be one of weight, kernel, filter, tile, not 'rows'"),
        ({"keep": 0}, r"keep must be a share in \(0, 1\] or a whole number of at least 1, not 0"),
        ({"keep": 0.0}, "not 0.0"),
        ({"keep": 1.5}, "not 1.5"),
        ({"keep": -1}, "not -1"),
        ({"keep": float("nan")}, "not nan"),
        ({"keep": True}, "not True"),
        ({"keep": "half"}, "not 'half'"),
        ({"keep": {"classifier": False}}, "not False"),
        ({"keep": {"nowhere": 0.5}}, "nothing is called 'nowhere' that could have a mask; there are hidden.0.linear, "),
        ({"whole": ["nowhere"]}, "nothing is called 'nowhere' that could have a mask; there are hidden.0.linear, "),
        ({"keep": {"classifier": 0.5}, "granularity": "filter"}, "keep names 'classifier', .*: network output"),
        (
            {"keep": {}},
            "no part of MLP can get a mask: hidden.0.linear, hidden.1.linear, classifier .it was asked to stay whole",
        ),
        ({"keep": 6, "granularity": "tile"}, "keep must be a multiple of tiles, 4, not 6"),
        ({"granularity": "tile", "tiles": 0}, "tiles must be a whole number of at least 1, not 0"),
        ({"granularity": "tile", "tiles": 2.5}, "not 2.5"),
        ({"granularity": "tile", "tiles": 7}, "no part of MLP can get a mask: .* do not divide into 7 tiles"),
        ({"estimator": "reinforce"}, "estimator must be one of auto, k_step, one_shot, not 'reinforce'"),
        ({"start": "ones"}, "start must be one of random, magnitude, not 'ones'"),
        ({"weight_bits": 4}, "weight_bits must be one of 32, 8, 1, not 4"),
        ({"activation_bits": 1}, "activation_bits must be one of 32, 8, not 1"),
        ({"noise": -1.0}, "noise must be a number of at least 0, not -1.0"),
        ({"noise": float("nan")}, "noise must be a number of at least 0, not nan"),
    ],
)
def test_requests_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sparsify(load_network("digits/mlp"), **({"keep": 0.5} | options))


@each_granularity
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(granularity, value):
    network = load_network("digits/mlp")
    network.hidden[1].linear.weight.data[3, 4] = value
    with pytest.raises(ValueError, match=r"hidden\.1\.linear: its weights hold NaN or inf"):
        sparsify(network, 0.5, granularity)


@each_granularity
def test_networks_with_masks_and_networks_without_layers_are_refused(granularity):
    with pytest.raises(ValueError, match="has masks already"):
        sparsify(sparsify(load_network("digits/mlp"), 0.5, granularity), 0.5)
    with pytest.raises(ValueError, match="no part of ReLU can get a mask"):
        sparsify(nn.ReLU(), 0.5, granularity, example=torch.randn(1, 8))


def test_a_network_that_is_one_layer_has_one_mask():
    sparse = sparsify(nn.Linear(8, 3), 2)
    assert list(sparse.dpp.masks) == ["Linear"]
    assert (sparse.weight != 0).sum(1).tolist() == [2, 2, 2]
