"""A network on a GPU: every step stays there, and gives what it gives on the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from redlab import (
    as_dense,
    correct_biases,
    error_bound,
    evaluate,
    example_input,
    fold_batchnorm,
    harden,
    hash_network,
    iterative_prune,
    load_dataset,
    load_network,
    mask_metrics,
    measure_cost,
    measure_latency,
    measure_redundancy,
    merge_neurons,
    prune_channels,
    prune_weights,
    red,
    red_plus_plus,
    save_network,
    score_channels,
    score_weights,
    sensitivity,
    separate_kernels,
    sparsify,
    split_inputs,
    train_masks,
)
from redlab.dpp.training import prune_by_masks
from redlab.network.latency import compare_latency
from redlab.network.training import train
from redlab.pruning.criteria.registry import CRITERIA

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NAMES = ("digits/resnet", "digits/mobilenet", "digits/mlp")
each_network = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def exact():
    """Products as a CPU has them, not TensorFloat-32's, for whose rounding the tests would have to make room."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits", "train", limit=128)


def pair(name):
    """The network on the CPU, and its copy on the GPU."""
    network = load_network(name)
    return network, copy.deepcopy(network).cuda()


def devices(network: nn.Module) -> set[str]:
    tensors = [*network.parameters(), *network.buffers(), *vars_of(network)]
    return {tensor.device.type for tensor in tensors}


def vars_of(network: nn.Module) -> list[torch.Tensor]:
    """Tensors that modules hold as plain attributes."""
    return [value for module in network.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]


def check_alike(one: nn.Module, other: nn.Module, tolerance: float = 1e-4) -> None:
    """``other`` is on the GPU altogether, and answers what ``one`` does."""
    assert devices(other) == {"cuda"}
    assert {*one.state_dict()} == {*other.state_dict()}
    batch = torch.stack([load_dataset("digits")[i][0] for i in range(16)])
    with torch.no_grad():
        wanted, got = one(batch), other(batch.cuda())
    assert got.device.type == "cuda"
    assert float((got.cpu() - wanted).norm() / wanted.norm()) < tolerance


def check_frames(one: pd.DataFrame, other: pd.DataFrame, tolerance: float = 1e-3) -> None:
    pd.testing.assert_frame_equal(one, other, rtol=tolerance, atol=1e-6)


STEPS = {
    "fold": fold_batchnorm,
    "hash, kde": hash_network,
    "hash, uniform": lambda network: hash_network(network, "uniform", max_error=0.1),
    "hash, lloyd": lambda network: hash_network(network, "lloyd", levels=16),
    "hash, balanced": lambda network: hash_network(network, "uniform", max_error=0.1, rounding="balanced"),
    "merge": lambda network: merge_neurons(network, 0.1),
    "merge, rounded": lambda network: merge_neurons(network, 0.3, "block", round_to=4),
    "separate": lambda network: separate_kernels(hash_network(network, "uniform", levels=8).network),
    "separate, up to scale": lambda network: separate_kernels(hash_network(network, "uniform", levels=8).network, True),
    "split, channel": lambda network: split_inputs(hash_network(network, "uniform", levels=8).network),
    "split, tap": lambda network: split_inputs(hash_network(network, "uniform", levels=8).network, "tap"),
    "split, kernel": lambda network: split_inputs(hash_network(network, "uniform", levels=8).network, "kernel"),
    "split, signed": lambda network: split_inputs(hash_network(network, "uniform", levels=8).network, signed=True),
    "RED": red,
    "RED++": red_plus_plus,
    "RED++ as published": lambda network: red_plus_plus(network, as_published=True),
}


@each_network
@pytest.mark.parametrize("step", STEPS)
def test_a_step(name, step):
    one, other = pair(name)
    wanted, got = STEPS[step](one), STEPS[step](other)
    check_frames(wanted.layers, got.layers)
    check_alike(wanted.network, got.network)
    assert devices(other) == {"cuda"}  # left as it was


@each_network
def test_splitting_changes_nothing(name):
    split = red_plus_plus(load_network(name).cuda()).network
    dense = as_dense(split)
    assert devices(dense) == {"cuda"}
    images = torch.randn(8, *example_input(split).shape[1:], device="cuda")
    with torch.no_grad():
        assert float((split(images) - dense(images)).norm() / dense(images).norm()) < 1e-5


@each_network
def test_biases_corrected_by_images(name, images):
    def corrected(network):
        folded = fold_batchnorm(network).network
        return correct_biases(hash_network(folded, levels=8, rule="uniform").network, folded, images)

    one, other = map(corrected, pair(name))
    check_alike(one.network, other.network)


@each_network
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores(name, criterion, images):
    few = torch.utils.data.Subset(images, range(16)) if criterion in ("oracle", "singe") else images
    networks = pair(name)
    for score, known in ((score_channels, CRITERIA[criterion].channels), (score_weights, CRITERIA[criterion].weights)):
        if known:
            wanted, got = (score(network, criterion, few).values for network in networks)
            assert {*wanted} == {*got}
            for key, values in wanted.items():
                values = np.asarray(values)
                np.testing.assert_allclose(got[key], values, rtol=0.01, atol=0.01 * np.abs(values).max())


@each_network
@pytest.mark.parametrize(
    ("criterion", "compensation"),
    [
        *(("magnitude", way) for way in ("none", "nearest", "reconstruct")),
        *((name, None) for name in ("redundancy", "srinivas_babu", "neuron_merging", "reconstruction")),
    ],
)
def test_pruned_channels(name, criterion, compensation):
    def pruned(network):
        scores = score_channels(network, criterion)
        return prune_channels(network, scores, 0.25, compensation=compensation, scope="layer")

    one, other = map(pruned, pair(name))
    check_frames(one.layers, other.layers)
    check_alike(one.network, other.network, 1e-2)


@each_network
def test_pruned_weights(name):
    one, other = (prune_weights(network, score_weights(network, "magnitude"), 0.5) for network in pair(name))
    check_frames(one.layers, other.layers)
    check_alike(one.network, other.network)


@each_network
def test_accuracy_and_costs(name, images):
    one, other = pair(name)
    wanted, got = evaluate(one, images), evaluate(other, images)
    assert (got.accuracy, got.count) == (wanted.accuracy, wanted.count)
    assert got.loss == pytest.approx(wanted.loss, rel=1e-3)
    check_frames(measure_cost(one), measure_cost(other))
    check_frames(measure_redundancy(one), measure_redundancy(other))


def test_times_are_the_gpu_s():
    network = load_network("digits/resnet").cuda()
    assert measure_latency(network, repeats=5).device == "cuda:0"
    frame = compare_latency({"one": network, "two": fold_batchnorm(network).network}, repeats=5)
    assert (frame["median"] > 0).all()


def test_guarantees(images):
    def bounds(network):
        return error_bound(network, hash_network(network, "uniform", max_error=0.1).network, images)

    check_frames(*(bounds(fold_batchnorm(network).network) for network in pair("digits/resnet")), 1e-2)


@each_network
def test_saved_and_loaded(name, tmp_path):
    result = red_plus_plus(load_network(name).cuda())
    save_network(result, tmp_path / "saved")
    check_alike(load_network(tmp_path / "saved"), result.network)


@each_network
def test_training_goes_on_where_it_was_killed(name, images, tmp_path):
    network = load_network(name).cuda()
    options = {"learning_rate": 0.01, "shift": 1, "flip": True}
    whole = train(network, images, 3, **options, checkpoint=tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(_, batch):
        if batch == 3 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise Killed

    with pytest.raises(Killed):
        train(network, images, 3, **options, on_batch=kill, checkpoint=tmp_path / "killed")
    again = train(network, images, 3, **options, on_batch=kill, checkpoint=tmp_path / "killed")
    assert devices(whole.network) == devices(again.network) == {"cuda"}
    for wanted, got in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-3)  # a GPU sums in an order of its own
    assert len(again.history) == 3


@each_network
@pytest.mark.parametrize(("criterion", "step"), [("taylor", 0.25), ("magnitude", 0.25), ("spp", 2)])
def test_pruning_in_rounds(name, criterion, step, images):
    result = iterative_prune(load_network(name).cuda(), criterion, images, 0.6, step, {"epochs": 1, "batch_size": 32})
    assert devices(result.network) == {"cuda"}
    assert result.layers["products_after"].sum() <= 0.6 * result.layers["products_before"].sum()


def test_sensitivity(images):
    frames = (sensitivity(network, "taylor", images, (0.25, 0.5)) for network in pair("digits/resnet"))
    one, other = frames
    check_frames(one.drop(columns="loss", errors="ignore"), other.drop(columns="loss", errors="ignore"), 0.02)


@each_network
@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter", "tile"])
@pytest.mark.parametrize("bits", [32, 1])
def test_masks_that_learn(name, granularity, bits, images):
    sparse = sparsify(load_network(name).cuda(), 0.5, granularity, weight_bits=bits)
    assert devices(sparse) == {"cuda"}
    trained = train_masks(sparse, images, 1)
    assert devices(trained.network) == {"cuda"}
    metrics = mask_metrics(trained.network)
    assert np.isfinite(metrics.select_dtypes("number").to_numpy()).all()
    hard = harden(trained.network)
    assert devices(hard.network) == {"cuda"}
    with torch.no_grad():
        batch = torch.randn(4, *example_input(sparse).shape[1:], device="cuda")
        torch.testing.assert_close(hard.network(batch), trained.network.eval()(batch), rtol=1e-3, atol=1e-3)


def test_masks_of_channels_by_products(images):
    result = prune_by_masks(load_network("digits/resnet").cuda(), images, 0.5, 1)
    assert devices(result.network) == {"cuda"}
    assert result.layers["products_after"].sum() <= 0.5 * result.layers["products_before"].sum()
