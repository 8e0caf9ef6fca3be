"""RED and RED++ from end to end: what goes in, what comes out, and that nothing happens but the steps."""

import copy
import inspect
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from redlab import (
    as_dense,
    correct_biases,
    evaluate,
    fold_batchnorm,
    hash_network,
    load_dataset,
    load_network,
    measure_cost,
    merge_neurons,
    red,
    red_plus_plus,
    save_network,
    separate_kernels,
    split_inputs,
    weight_layers,
)
from redlab.compression.budget import share_error
from redlab.compression.pipeline import MAX_ERROR, red_plus_plus_steps, red_steps, take_all
from redlab.compression.split_layers import SplitLayer

NETWORKS = ["digits/resnet", "digits/mobilenet", "digits/mlp"]
RECIPES = {"red": red, "red++": red_plus_plus}
each_network = pytest.mark.parametrize("name", NETWORKS)
each_recipe = pytest.mark.parametrize("recipe", RECIPES)

COLUMNS = ["layer", "kind", "weights", "distinct", "scales", "modes", "error", "channels_before", "channels_after"]
COLUMNS += ["products_before", "products_after", "products_unsigned", "macs_before", "macs_after"]
COLUMNS += ["additions_before", "additions_after", "lookups"]
COLUMNS += ["parameters_before", "parameters_after", "skipped"]


@pytest.fixture(scope="module")
def results():
    """Both recipes with their defaults on every network, made once."""
    made = {}

    def result(recipe, name):
        if (recipe, name) not in made:
            made[recipe, name] = RECIPES[recipe](load_network(name))
        return made[recipe, name]

    return result


def same_state(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@each_network
@each_recipe
def test_the_table_has_a_row_per_layer_and_no_gaps(results, recipe, name):
    layers = results(recipe, name).layers
    network = load_network(name)
    assert list(layers) == COLUMNS
    assert not layers.isna().any().any()
    assert layers["layer"].tolist() == [layer.name for layer in weight_layers(network)]
    assert layers["weights"].tolist() == [layer.weight.numel() for layer in weight_layers(network)]
    counts = layers.drop(columns=["layer", "kind", "error", "skipped"])
    assert all(np.issubdtype(dtype, np.integer) for dtype in counts.dtypes)
    assert (counts >= 0).all().all()
    assert layers["error"].between(0, 1).all()


@each_network
@each_recipe
def test_products_only_fall(results, recipe, name):
    layers = results(recipe, name).layers
    assert (layers["products_after"] <= layers["products_unsigned"]).all()
    assert (layers["products_unsigned"] <= layers["products_before"]).all()
    assert layers["products_after"].sum() < layers["products_before"].sum()
    assert (layers["channels_after"] <= layers["channels_before"]).all()
    if recipe == "red":
        assert (layers["products_after"] == layers["products_unsigned"]).all()


@each_network
@each_recipe
def test_before_is_the_network_passed_in_and_after_the_one_that_comes_out(results, recipe, name):
    result = results(recipe, name)
    network = load_network(name)
    was, now = measure_cost(network), measure_cost(result.network)
    totals = result.layers.drop(columns=["layer", "kind", "skipped"]).sum()
    for count in ("products", "macs", "additions"):
        assert totals[f"{count}_before"] == was.attrs[count]
        assert totals[f"{count}_after"] == now.attrs[count]
    # Every batch norm folds: what it owned counts with the layer that took it.
    assert totals["parameters_before"] == was.attrs["parameters"] == sum(p.numel() for p in network.parameters())
    assert totals["lookups"] == now.attrs["lookups"]
    assert totals["parameters_after"] == now.attrs["parameters"] < was.attrs["parameters"]


@each_network
@each_recipe
def test_accuracy_stays_within_one_and_a_half_points(results, recipe, name):
    dataset = load_dataset("digits")
    dense = as_dense(results(recipe, name).network)
    assert not any(isinstance(module, SplitLayer) for module in dense.modules())
    assert evaluate(dense, dataset).accuracy >= evaluate(load_network(name), dataset).accuracy - 1.5


@each_network
@each_recipe
def test_split_and_dense_networks_compute_the_same(results, recipe, name):
    network = results(recipe, name).network
    assert any(isinstance(module, SplitLayer) for module in network.modules())
    images = torch.stack([image for image, _ in load_dataset("digits", limit=16)])
    with torch.no_grad():
        split, dense = network(images), as_dense(network)(images)
    assert (split - dense).abs().max() < 1e-4 * dense.abs().max()


def test_red_plus_plus_leaves_few_products(results):
    for name, share in (("digits/resnet", 0.045), ("digits/mobilenet", 0.2), ("digits/mlp", 0.05)):
        layers = results("red++", name).layers
        assert layers["products_after"].sum() < share * layers["products_before"].sum()


@pytest.mark.parametrize("name", ["digits/resnet", "digits/mlp"])
@each_recipe
def test_the_network_passed_in_is_left_alone(recipe, name):
    network = load_network(name).train()
    before = copy.deepcopy(network)
    random = torch.random.get_rng_state()
    result = RECIPES[recipe](network)
    assert same_state(network, before)
    assert network.redlab == before.redlab
    assert all(module.training and not module._forward_hooks for module in network.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    kept = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert not kept & {tensor.data_ptr() for tensor in result.network.state_dict().values()}


@each_recipe
def test_both_give_the_same_every_time(results, recipe):
    again = RECIPES[recipe](load_network("digits/resnet"))
    assert same_state(again.network, results(recipe, "digits/resnet").network)
    assert again.layers.equals(results(recipe, "digits/resnet").layers)
    assert again.plan == results(recipe, "digits/resnet").plan


# The steps.


def test_red_is_its_steps_by_hand(results):
    network = fold_batchnorm(load_network("digits/resnet")).network
    for step in (hash_network, merge_neurons, separate_kernels):
        network = step(network).network
    result = results("red", "digits/resnet")
    assert same_state(network, result.network)
    assert network.redlab == result.network.redlab
    assert [plan["step"] for plan in result.plan["steps"]] == ["prepare", "hash", "plan", "separate"]


@pytest.mark.slow
@each_network
def test_red_plus_plus_is_its_steps_by_hand(results, name):
    folded = fold_batchnorm(load_network(name)).network
    errors = share_error(folded, MAX_ERROR)
    hashed = hash_network(folded, "uniform", max_error=errors, rounding="balanced").network
    merged = merge_neurons(correct_biases(hashed, folded).network).network
    result = results("red++", name)
    assert same_state(split_inputs(merged, signed=True).network, result.network)
    assert [plan["step"] for plan in result.plan["steps"]] == ["prepare", "hash", "correct_biases", "plan", "split"]
    assert [step["step"] for step in result.network.redlab.steps][:3] == ["fold", "hash", "correct_biases"]
    assert result.plan["steps"][1]["options"]["max_error"] == errors


def test_as_published_is_the_modes_of_a_density_and_nothing_more():
    network = load_network("digits/resnet")
    ignored = {"rule": "lloyd", "max_error": 0.01, "rounding": "balanced", "signed": True, "correct_bias": "batchnorm"}
    result = red_plus_plus(network, as_published=True, alpha=0.2, **ignored)
    by_hand = hash_network(fold_batchnorm(network).network, rule="kde", representative="mode").network
    by_hand = split_inputs(merge_neurons(by_hand, alpha=0.2).network, unit="channel", signed=False).network
    assert same_state(by_hand, result.network)
    assert by_hand.redlab == result.network.redlab
    assert [plan["step"] for plan in result.plan["steps"]] == ["prepare", "hash", "plan", "split"]
    assert result.plan["steps"][1]["options"] == {"rule": "kde"}
    assert result.plan["steps"][3]["options"] == {"unit": "channel", "signed": False}
    assert (result.layers["products_after"] == result.layers["products_unsigned"]).all()
    assert not any(module.signed for module in result.network.modules() if isinstance(module, SplitLayer))
    assert not ignored.keys() & result.plan["options"].keys()


def test_as_published_takes_a_bandwidth():
    network = load_network("digits/mlp")
    result = red_plus_plus(network, as_published=True, bandwidth="silverman/4", representative="mean")
    by_hand = hash_network(fold_batchnorm(network).network, bandwidth="silverman/4", representative="mean").network
    assert same_state(as_dense(result.network), merge_neurons(by_hand).network)


def test_options_reach_their_steps():
    network = load_network("digits/resnet")
    options = {"alpha": 0.25, "strategy": "ascending", "unit": "tap", "signed": False, "rule": "lloyd"}
    options |= {"max_error": 0.1, "budget": "even", "rounding": "nearest", "correct_bias": "none"}
    result = red_plus_plus(network, **options)
    by_hand = hash_network(fold_batchnorm(network).network, "lloyd", max_error=0.1).network
    merged = merge_neurons(by_hand, alpha=0.25, strategy="ascending")
    split = split_inputs(merged.network, unit="tap")
    assert same_state(split.network, result.network)
    assert result.layers["channels_after"].tolist() == merged.layers["channels_after"].tolist()
    assert result.layers["channels_after"].sum() < result.layers["channels_before"].sum()
    assert result.layers["channels_before"].tolist() == [len(layer.weight) for layer in weight_layers(network)]
    assert result.layers["products_after"].tolist() == split.layers["products_after"].tolist()
    assert result.plan["options"] == {**options, "clip": "max", "as_published": False}


def test_red_passes_its_options_on():
    network = load_network("digits/mobilenet")
    result = red(network, alpha=0.2, strategy="descending", up_to_scale=True, rule="uniform", max_error=0.1)
    by_hand = hash_network(fold_batchnorm(network).network, "uniform", max_error=0.1).network
    by_hand = merge_neurons(by_hand, alpha=0.2, strategy="descending").network
    by_hand = separate_kernels(by_hand, up_to_scale=True).network
    assert same_state(by_hand, result.network)
    assert by_hand.redlab == result.network.redlab
    assert result.plan["steps"][-1]["options"] == {"up_to_scale": True}
    with pytest.raises(TypeError, match="bandwith"):
        red(network, bandwith=0.1)


def test_every_option_of_the_steps_has_the_default_of_the_whole():
    wanted, got = (inspect.signature(function).parameters for function in (red, red_steps))
    shared = wanted.keys() & got.keys() - {"hashing"}
    assert shared == wanted.keys() - {"network", "hashing"}
    assert all(wanted[name].default == got[name].default for name in shared)
    split, hashed = red_plus_plus_steps()[-1].take, red_plus_plus_steps()[1].take
    defaults = inspect.signature(red_plus_plus).parameters
    assert split.keywords["unit"] == defaults["unit"].default
    assert all(hashed.keywords[name] == defaults[name].default for name in ("rule", "max_error", "rounding"))


def test_the_steps_can_be_taken_one_by_one():
    titles = [step.title for step in red_plus_plus_steps()]
    assert titles == ["fold batch norms", "hash weights", "correct biases", "merge neurons", "split inputs"]
    assert [step.title for step in red_steps()] == [
        "fold batch norms",
        "hash weights",
        "merge neurons",
        "separate kernels",
    ]
    assert "correct biases" not in [step.title for step in red_plus_plus_steps(correct_bias="none")]
    assert "correct biases" not in [step.title for step in red_plus_plus_steps(as_published=True)]
    steps = red_plus_plus_steps(alpha=0.2, round_to=16)
    *_, last = take_all(load_network("digits/resnet"), steps)
    assert (last.layers["channels_after"].iloc[:-1] % 16 == 0).all()
    *_, again = take_all(load_network("digits/resnet"), steps)
    assert same_state(last.network, again.network)


@pytest.mark.slow
def test_a_budget_of_products_goes_further_than_an_even_one():
    network = load_network("digits/resnet")
    even, shared = (red_plus_plus(network, budget=budget).layers for budget in ("even", "products"))
    assert shared["products_after"].sum() < even["products_after"].sum()
    assert (even["error"] <= MAX_ERROR * (1 + 1e-6)).all()
    assert even["error"].min() > 0.9 * MAX_ERROR
    rms = np.sqrt(np.mean(shared["error"] ** 2))
    assert 0.95 * MAX_ERROR < rms <= MAX_ERROR * (1 + 1e-6)


def test_a_budget_may_be_a_number_of_numpy():
    network = load_network("digits/mlp")
    plain, other = (red_plus_plus(network, max_error=e).layers["error"].tolist() for e in (0.125, np.float32(0.125)))
    assert plain == pytest.approx(other)


def test_max_error_by_layer_and_none():
    network = load_network("digits/resnet")
    layers = red_plus_plus(network, max_error={"conv1": 0, "linear": 0.02}).layers.set_index("layer")
    assert layers.loc["conv1", "error"] == 0
    assert "hash: its max_error is 0" in layers.loc["conv1", "skipped"]
    assert 0.01 < layers.loc["linear", "error"] <= 0.02
    by_bandwidth = red_plus_plus(network, max_error=None, rule="kde", bandwidth="silverman/4", correct_bias="none")
    folded = fold_batchnorm(network).network
    by_hand = hash_network(folded, bandwidth="silverman/4", rounding="balanced").network
    assert same_state(as_dense(by_bandwidth.network), merge_neurons(by_hand).network)


@pytest.mark.slow
def test_biases_are_corrected_as_asked():
    network, dataset = load_network("digits/resnet"), load_dataset("digits", "train", limit=200)
    folded = fold_batchnorm(network).network
    hashed = hash_network(folded, "uniform", max_error=0.2, rounding="balanced").network
    options = {"max_error": 0.2, "budget": "even"}
    for asked, by_hand in (
        ("none", hashed),
        ("batchnorm", correct_biases(hashed, folded).network),
        (dataset, correct_biases(hashed, folded, dataset).network),
    ):
        result = red_plus_plus(network, **options, correct_bias=asked)
        assert same_state(as_dense(result.network), merge_neurons(by_hand).network)
        said = asked if isinstance(asked, str) else type(dataset).__name__
        assert result.plan["options"]["correct_bias"] == said
        assert f"correct_bias={said!r}" in str(result)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "bits"}, "budget must be one of noise, products, even, not 'bits'"),
        ({"correct_bias": "imagenet"}, "correct_bias must be 'none', 'batchnorm' or a dataset, not 'imagenet'"),
    ],
)
def test_unknown_options_are_refused_before_anything_runs(options, words):
    with pytest.raises(ValueError, match=words):
        red_plus_plus_steps(**options)
    with pytest.raises(ValueError, match=words):
        red_plus_plus(nn.Identity(), **options)  # which nothing can be run on


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unit": "pixel"}, "unit must be one of channel, tap, kernel, not 'pixel'"),
        ({"rule": "kmeans"}, "unknown rule"),
        ({"rounding": "up"}, "unknown rounding"),
        ({"alpha": 1.0}, "alpha must lie in"),
        ({"strategy": "zigzag"}, "strategy must be one of"),
        ({"max_error": 0}, "max_error must be a positive number"),
        ({"max_error": {"nosuch": 0.1}}, "nosuch"),
    ],
)
def test_what_no_step_takes_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        red_plus_plus(load_network("digits/mlp"), **options)


def test_no_bias_correction_is_spelt_none():
    with pytest.raises(ValueError, match="correct_bias must be"):
        red_plus_plus_steps(correct_bias=None)


# What is said.


def test_a_result_says_what_was_asked_achieved_and_skipped(results):
    result = results("red++", "digits/mobilenet")
    lines = str(result).splitlines()
    assert lines[0].startswith(
        "red++(alpha=0.0, strategy='constant', unit='channel', as_published=False, rule='uniform'"
    )
    for said in (
        "max_noise=0.075",
        "budget='noise'",
        "scale='auto'",
        "rounding='balanced'",
        "signed=True",
        "correct_bias='batchnorm'",
    ):
        assert said in lines[0]
    was, now = (result.layers[f"products_{when}"].sum() for when in ("before", "after"))
    assert f"multiplications: {was:,} -> {now:,} ({now / was:.3%} left)" in lines
    assert any(line.startswith("parameters: ") for line in lines)
    assert any(line.startswith("relative error per layer: ") for line in lines)
    assert lines[-1] == "14 layers, 1 skipped: classifier (merge: network output)"
    assert str(results("red", "digits/resnet")).startswith("red(alpha=0.0, strategy='constant', up_to_scale=False)\n")


def test_what_cannot_be_done_to_a_layer_is_said_step_by_step():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm = nn.ConvTranspose2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)
            self.down, self.unused = nn.Conv2d(6, 4, 3, bias=False), nn.Linear(4, 4)
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.down(self.norm(self.up(x)).relu()).mean((2, 3)))

    torch.manual_seed(0)
    network = Odd().eval()
    result = red_plus_plus(network, example=torch.randn(1, 1, 6, 6), input_mean=0)
    skipped = result.layers.set_index("layer")["skipped"]
    assert skipped["up"] == "split: transposed convolutions are not split"
    assert skipped["down"] == ""
    assert "correct bias: it is never called" in skipped["unused"]
    assert "split: never called in eval mode" in skipped["unused"]
    assert skipped["last"] == "hash: its max_error is 0; merge: network output"
    assert result.plan["steps"][2]["gained"] == ["down"]
    assert not result.layers.isna().any().any()


def test_networks_without_a_layer_and_with_attention_go_through():
    empty = red_plus_plus(nn.Sequential(nn.ReLU()), example=torch.randn(1, 4))
    assert list(empty.layers) == COLUMNS
    assert empty.layers.empty
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    for recipe in (red, red_plus_plus):
        result = recipe(encoder, example=torch.randn(1, 5, 16))
        assert not result.layers.isna().any().any()
        assert result.layers["parameters_before"].sum() == sum(
            p.numel() for name, p in encoder.named_parameters() if not name.startswith("norm")
        )
        x = torch.randn(2, 5, 16)
        with torch.no_grad():
            split, dense = result.network.eval()(x), as_dense(result.network).eval()(x)
        assert torch.allclose(split, dense, atol=1e-5)


def test_nothing_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        red_plus_plus(load_network("digits/resnet"))


# What is kept.


@each_network
@each_recipe
def test_results_come_back_from_disk_split_and_bit_for_bit(results, tmp_path, recipe, name):
    result = results(recipe, name)
    opened = load_network(save_network(result, tmp_path / "net"))
    assert opened.redlab == result.network.redlab
    assert str(opened) == str(result.network)
    kinds = [{path: type(m) for path, m in n.named_modules()} for n in (opened, result.network)]
    assert kinds[0] == kinds[1]
    assert same_state(opened, result.network)
    images = torch.stack([image for image, _ in load_dataset("digits", limit=8)])
    with torch.no_grad():
        assert torch.equal(opened(images), result.network(images))
    costs = measure_cost(opened), measure_cost(result.network)
    assert costs[0].equals(costs[1])


def test_a_merged_and_split_network_comes_back(tmp_path):
    result = red_plus_plus(load_network("digits/resnet"), alpha=0.3, strategy="block", unit="tap")
    assert result.layers["channels_after"].sum() < 0.9 * result.layers["channels_before"].sum()
    opened = load_network(save_network(result, tmp_path / "net"))
    assert same_state(opened, result.network)
    assert {module.unit for module in opened.modules() if isinstance(module, SplitLayer)} == {"tap"}


# Real networks.


@pytest.mark.slow
def test_resnet20_keeps_its_accuracy_on_a_twentieth_of_its_products(real_data):
    result = red_plus_plus(load_network("cifar10/resnet20"))
    was, unsigned, now = (result.layers[f"products_{when}"].sum() for when in ("before", "unsigned", "after"))
    assert now < 0.6 * unsigned
    assert unsigned <= 0.05 * was
    accuracy = evaluate(as_dense(result.network), load_dataset("cifar10")).accuracy
    assert accuracy == pytest.approx(91.73, abs=0.5)


@pytest.mark.slow
def test_resnet56_keeps_its_accuracy_in_a_seventh_of_its_bytes(real_data, tmp_path):
    result = red_plus_plus(load_network("cifar10/resnet56"))
    folder = save_network(result, tmp_path / "net")
    stored = sum(path.stat().st_size for path in folder.iterdir())
    assert stored <= 4 * 853_018 / 7
    opened = load_network(folder)
    assert opened.redlab == result.network.redlab
    accuracy = evaluate(as_dense(opened), load_dataset("cifar10")).accuracy
    assert accuracy == pytest.approx(93.39, abs=0.5)


def test_a_network_is_traced_once(monkeypatch):
    calls, export = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: (calls.append(1), export(*args, **kwargs))[1])
    images = load_dataset("digits", limit=4)
    for name in NETWORKS:
        network = load_network(name)
        without = fold_batchnorm(network).network  # no norms to look for
        for run in (red, red_plus_plus, lambda own: red_plus_plus(own, correct_bias=images)):
            for own in (network, without):
                calls.clear()
                run(own)
                assert len(calls) == 1
