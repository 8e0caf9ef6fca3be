"""Options come in as plain Python values or are refused by name, and what they leave behind is JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redlab import (
    estimate_density,
    evaluate,
    expected_unique,
    harden,
    hash_network,
    hash_weights,
    iterative_prune,
    load_dataset,
    load_network,
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
)
from redlab.compression.budget import share_error
from redlab.network.training import train
from redlab.options import fitted, plain_options, settle

NAN = float("nan")


@plain_options
def every(number: float = 0.5, whole: int = 3, flag: bool = True, name: str | None = "a", other: set | None = None):
    return number, whole, flag, name, other


@settings(max_examples=30)
@given(
    value=st.integers(-1000, 1000),
    dtype=st.sampled_from([int, np.int8, np.int64, np.float16, np.float32, np.float64, torch.tensor, np.array]),
)
def test_numbers_of_numpy_and_torch_become_plain_ones(value, dtype):
    value = max(-100, min(100, value))
    for given_ in (every(dtype(value), dtype(value)), every(whole=dtype(value), number=dtype(value))):
        assert given_[:2] == (value, value)
        assert type(given_[0]) in (int, float)
        assert type(given_[1]) is int


@pytest.mark.parametrize("flag", [True, np.True_, torch.tensor(True)])
def test_flags_and_names_become_plain_ones(flag):
    found = every(flag=flag, name=np.str_("b"), other={1})
    assert found[2] is True
    assert type(found[3]) is str
    assert found[4] == {1}
    assert every(name=None)[3] is None


@pytest.mark.parametrize("bad", ["0.5", None, True, np.True_, [0.5], np.zeros(2), 1j, torch.zeros(1, 1), object()])
def test_what_is_no_number_is_refused_with_name_value_and_what_is_right(bad):
    with pytest.raises(TypeError, match=r"^number must be a number \(0\.5, say\), not ") as refused:
        every(bad)
    assert repr(bad) in str(refused.value)
    with pytest.raises(TypeError, match=r"^whole must be a whole number \(3, say\), not "):
        every(whole=bad)


@pytest.mark.parametrize("bad", [0.5, NAN, float("inf"), np.float32(2.5), torch.tensor(1.5)])
def test_what_is_not_whole_is_refused(bad):
    with pytest.raises(ValueError, match=r"^whole must be a whole number"):
        every(whole=bad)


@pytest.mark.parametrize("bad", [0, 1, 1.0, "yes", None])
def test_what_is_no_flag_is_refused(bad):
    with pytest.raises(TypeError, match=r"^flag must be True or False, not "):
        every(flag=bad)


def test_dicts_and_lists_of_numbers_become_plain_ones():
    def lists(bounds: dict[str, float] | None = None, ratios: Sequence[float] = (), two: tuple[float, float] = (0, 1)):
        """Never called: its annotations are what counts."""

    found = fitted(lists, {"bounds": {np.str_("a"): np.float64(0.5)}, "ratios": np.array([0.5, 1]), "two": (1, 2.0)})
    assert json.dumps(found) == '{"bounds": {"a": 0.5}, "ratios": [0.5, 1.0], "two": [1, 2.0]}'
    for bad in ({"bounds": {1: 0.5}}, {"bounds": {"a": "b"}}, {"ratios": "0.5"}, {"ratios": [None]}, {"two": (1,)}):
        with pytest.raises(TypeError, match=rf"^{next(iter(bad))} must be "):
            fitted(lists, bad)
    assert fitted(lists, {"unknown": np.float64(1)}) == {"unknown": 1}


def test_a_frozen_dataclass_is_settled_when_it_is_made():
    @dataclass(frozen=True)
    class Options:
        share: float = 0.5

        def __post_init__(self) -> None:
            settle(self)

    assert type(Options(np.float32(0.25)).share) is float
    with pytest.raises(TypeError, match="share must be a number"):
        Options("much")


def test_too_many_or_unknown_arguments_are_pythons_business():
    with pytest.raises(TypeError, match="unexpected keyword argument 'unknown'"):
        every(unknown=1)
    with pytest.raises(TypeError, match="positional arguments"):
        every(1, 2, True, "a", set(), 6)


# ---- the public functions


@pytest.fixture(scope="module")
def network():
    return load_network("digits/mlp")


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits", limit=20)


def scores(network, **options):
    return score_channels(network, "magnitude", **options)


F, T = np.float32, torch.tensor
STEPS = {
    "hash": lambda net, images: hash_network(net, bandwidth=F(0.05), contrast=T(0.1), force=np.False_),
    "hash, bounds": lambda net, images: hash_network(
        net, np.str_("uniform"), max_error={np.str_("classifier"): F(0.1), "hidden.0.linear": np.int64(0)}
    ),
    "hash, levels": lambda net, images: hash_network(net, "lloyd", levels=T(8)),
    "merge": lambda net, images: merge_neurons(net, T(0.1), dead=np.True_, round_to=np.int8(2)),
    "split": lambda net, images: split_inputs(net, np.str_("tap"), signed=T(True)),
    "separate": lambda net, images: separate_kernels(net, up_to_scale=np.True_),
    "red": lambda net, images: red(net, F(0.1), bandwidth=F(0.05), max_error={"classifier": T(0.1)}),
    "red++": lambda net, images: red_plus_plus(net, T(0.1), max_error=F(0.2), signed=np.True_, contrast=F(0)),
    "prune": lambda net, images: prune_channels(net, scores(net, p=F(2)), ratio=F(0.5), round_to=T(2)),
    "prune, products": lambda net, images: prune_channels(net, scores(net), products=T(0.5), count=np.int64(200)),
    "weights": lambda net, images: prune_weights(net, score_weights(net, "random", seed=np.int64(1)), ratio=T(0.5)),
    "iterative": lambda net, images: iterative_prune(
        net,
        "random",
        images,
        target=F(0.5),
        step=T(150),
        fine_tune={"every": T(1), "learning_rate": F(0.01), "flip": np.False_},
        momentum=F(0.5),
        seed=np.int64(3),
        round_to=np.int8(1),
    ),
    "masks": lambda net, images: harden(
        sparsify(net, F(0.5), noise=F(0.5), tiles=np.int64(4), weight_bits=np.int64(8), learn=np.True_, seed=T(1))
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_a_step_records_is_json_and_can_be_saved(name, network, images, tmp_path):
    result = STEPS[name](network, images)
    assert json.loads(json.dumps(result.plan)) is not None
    again = load_network(save_network(result, tmp_path / "saved"))
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(again(x), result.network.eval()(x), atol=1e-5)


REFUSED = {
    "bandwidth": [
        lambda net, images, bad: hash_network(net, bandwidth=bad),
        lambda net, images, bad: hash_weights(torch.ones(4), bandwidth=bad),
        lambda net, images, bad: hash_weights(torch.randn(4), "uniform", max_error=0.1, bandwidth=bad),
        lambda net, images, bad: estimate_density(torch.randn(4), bandwidth=bad),
        lambda net, images, bad: red_plus_plus(net, bandwidth=bad),
    ],
    "contrast": [
        lambda net, images, bad: hash_weights(torch.ones(4), contrast=bad),
        lambda net, images, bad: estimate_density(torch.ones(4), contrast=bad),
    ],
    "max_error": [
        lambda net, images, bad: hash_network(net, max_error={"classifier": bad}),
        lambda net, images, bad: red_plus_plus(net, max_error={"classifier": bad}),
        lambda net, images, bad: share_error(net, bad),
    ],
    "levels": [lambda net, images, bad: hash_weights(torch.randn(4), "lloyd", levels=[bad])],
    "force": [lambda net, images, bad: hash_network(net, force=bad)],
    "alpha": [
        lambda net, images, bad: merge_neurons(net, bad),
        lambda net, images, bad: red(net, bad),
        lambda net, images, bad: red_plus_plus(net, bad),
    ],
    "linkage": [lambda net, images, bad: merge_neurons(net, linkage=bad)],
    "strategy": [lambda net, images, bad: merge_neurons(net, strategy=bad)],
    "dead": [lambda net, images, bad: merge_neurons(net, dead=bad)],
    "signed": [
        lambda net, images, bad: split_inputs(net, signed=bad),
        lambda net, images, bad: red_plus_plus(net, signed=bad),
    ],
    "unit": [lambda net, images, bad: split_inputs(net, bad), lambda net, images, bad: red_plus_plus(net, unit=bad)],
    "up_to_scale": [lambda net, images, bad: separate_kernels(net, bad)],
    "ratio": [
        lambda net, images, bad: prune_channels(net, scores(net), [bad]),
        lambda net, images, bad: prune_weights(net, score_weights(net, "magnitude"), bad),
    ],
    "products": [lambda net, images, bad: prune_channels(net, scores(net), products=[bad])],
    "round_to": [
        lambda net, images, bad: prune_channels(net, scores(net), 0.5, round_to=bad),
        lambda net, images, bad: merge_neurons(net, round_to=bad),
    ],
    "scope": [lambda net, images, bad: prune_channels(net, scores(net), 0.5, scope=bad)],
    "ratios": [lambda net, images, bad: sensitivity(net, "magnitude", images, [bad])],
    "target": [lambda net, images, bad: iterative_prune(net, "magnitude", images, bad, 10)],
    "step": [lambda net, images, bad: iterative_prune(net, "magnitude", images, 0.5, bad)],
    "momentum": [lambda net, images, bad: iterative_prune(net, "magnitude", images, 0.5, 10, momentum=[bad])],
    "learning_rate": [
        lambda net, images, bad: iterative_prune(net, "magnitude", images, 0.5, 10, {"learning_rate": bad}),
        lambda net, images, bad: train(net, images, 1, bad),
    ],
    "weight_decay": [lambda net, images, bad: train(net, images, 1, weight_decay=bad)],
    "smoothing": [lambda net, images, bad: train(net, images, 1, smoothing=bad)],
    "epochs": [lambda net, images, bad: train(net, images, bad)],
    "batch_size": [
        lambda net, images, bad: train(net, images, 1, batch_size=bad),
        lambda net, images, bad: evaluate(net, images, bad),
        lambda net, images, bad: score_channels(net, "taylor", images, batch_size=bad),
    ],
    "p": [lambda net, images, bad: scores(net, p=bad)],
    "delta": [lambda net, images, bad: score_channels(net, "flexrel", images, delta=bad)],
    "seed": [lambda net, images, bad: score_channels(net, "random", seed=bad)],
    "keep": [lambda net, images, bad: sparsify(net, bad)],
    "granularity": [lambda net, images, bad: sparsify(net, 0.5, bad)],
    "noise": [lambda net, images, bad: sparsify(net, 0.5, noise=bad)],
    "tiles": [lambda net, images, bad: sparsify(net, 0.5, tiles=bad)],
    "n": [lambda net, images, bad: expected_unique([2, 3], bad)],
    "total": [lambda net, images, bad: expected_unique([2, 3], 1, total=[bad])],
}


@pytest.mark.parametrize("bad", ["0.5", "", True, NAN, None, -1.0])
@pytest.mark.parametrize("option", REFUSED)
def test_bad_options_are_refused_by_name(option, bad, network, images):
    if bad is True and option in ("force", "dead", "signed", "up_to_scale"):
        return
    for call in REFUSED[option]:
        with pytest.raises((TypeError, ValueError), match=rf"\b{option}\b") as refused:
            call(network, images, bad)
        assert str(bad).removesuffix(".0") in str(refused.value)


@pytest.mark.parametrize("bad", [[0.1, 0.2], (1.0,), 3.0, None, "weights"])
def test_weights_are_tensors_or_arrays(bad):
    for function in (hash_weights, estimate_density):
        with pytest.raises(TypeError, match="weights must be a torch tensor or a numpy array, not ") as refused:
            function(bad)
        assert repr(bad) in str(refused.value)
