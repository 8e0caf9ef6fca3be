"""Comparisons of masks: a row a training, the sparsity that the networks really have, and cases known by hand."""

from math import comb, log, log2

import numpy as np
import pytest
from scipy.stats import entropy

from redlab import evaluate, load_dataset, load_network, sparsify, train_masks
from redlab.dpp.hardening import harden
from redlab.network.layers import weight_layers
from redlab.network.training import train
from redlab.studies import masks as mask_studies
from redlab.studies.accuracy import Reference
from redlab.studies.masks import compare_masks, known_masks

METHODS = {
    "DPP": {},
    "DPP, kernels": {"granularity": "kernel", "weight_bits": 8, "activation_bits": 8},
    "DPP, filters": {"granularity": "filter", "start": "magnitude"},
    "magnitude": {"criterion": "magnitude"},
    "magnitude, layer by layer": {"criterion": "magnitude", "scope": "layer"},
}
TUNING = {"epochs": 1, "mu": 1e-5, "logit_rate": 0.1, "learning_rate": 1e-3, "draws": 8, "temperatures": (5.0, 1.0)}


@pytest.fixture(scope="module")
def network():
    return load_network("digits/resnet")


@pytest.fixture(scope="module")
def test_images():
    return load_dataset("digits", limit=60)


@pytest.fixture(scope="module")
def training():
    return load_dataset("digits", "train", limit=128)


@pytest.fixture(scope="module")
def compared(network, test_images, training):
    return compare_masks(network, test_images, training, METHODS, [0.5, 0.2], (0, 1), **TUNING)


def zeros_of(network):
    weights = [layer.weight.detach() for layer in weight_layers(network)]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


def test_a_row_a_method_share_and_seed(compared, network, test_images):
    assert list(compared)[:6] == ["method", "keep", "seed", "sparsity", "bits", "accuracy"]
    assert {"images", "accuracy_low", "accuracy_high", "difference", "p"} <= set(compared)
    assert len(compared) == len(METHODS) * 2 * 2
    assert not compared.duplicated(["method", "keep", "seed"]).any()
    assert not compared.isna().any(axis=None)
    assert compared.attrs["before"] == evaluate(network, test_images).accuracy
    assert compared["accuracy"].between(0, 100).all()


def test_what_is_kept_is_what_was_asked_for(compared):
    sparsity = compared.set_index("method")["sparsity"]
    asked = compared.set_index("method")["keep"]
    for method in ("DPP", "DPP, kernels", "magnitude", "magnitude, layer by layer"):
        assert (1 - sparsity[method] - asked[method]).abs().max() < 0.03
    assert (1 - sparsity["DPP, filters"] - asked["DPP, filters"] ** 2).abs().max() < 0.03


def test_a_learnt_row_is_what_its_parts_say(compared, network, test_images, training):
    trained = train_masks(sparsify(network, 0.2, seed=1), training, seed=1, **TUNING).network
    zeros, total = zeros_of(harden(trained).network)
    row = compared.query("method == 'DPP' and keep == 0.2 and seed == 1").iloc[0]
    assert row["accuracy"] == evaluate(trained, test_images).accuracy
    assert row["sparsity"] == pytest.approx(zeros / total, abs=1e-5)
    assert row["bits"] == pytest.approx(harden(trained).plan["achieved"]["bits per weight"], abs=1e-3)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_zeros_that_a_criterion_chose_stay_zeros(network, test_images, training, monkeypatch, scope):
    seen = []

    def watched(pruned, images, on_batch, **options):
        def look(copied, number):
            on_batch(copied, number)
            seen.append(zeros_of(copied))

        return train(pruned, images, on_batch=look, **options)

    class Look(Reference):
        def columns(self, trained):
            seen.append(zeros_of(trained))
            return super().columns(trained)

    monkeypatch.setattr(mask_studies, "train", watched)
    monkeypatch.setattr(mask_studies, "Reference", Look)
    method = {"magnitude": {"criterion": "magnitude", "scope": scope}}
    row = compare_masks(network, test_images, training, method, [0.2], before=12.5, **TUNING)
    assert len(seen) == 3, "of two minibatches and at the end"
    assert len(set(seen)) == 1
    zeros, total = seen[0]
    assert row["sparsity"][0] == pytest.approx(zeros / total)
    assert row["sparsity"][0] == pytest.approx(0.8, abs=1e-3)
    assert row.attrs["before"] == 12.5


def test_bits_of_a_criterion_are_those_of_the_weights_and_of_their_places(training, test_images):
    network = load_network("digits/mlp")
    frame = compare_masks(
        network, test_images, training, {"m": {"criterion": "magnitude", "scope": "layer"}}, [0.25], epochs=0
    )
    sizes = [16384, 32768, 1280]
    places = sum(log2(comb(size, size // 4)) for size in sizes) / sum(sizes)
    assert frame["bits"][0] == pytest.approx(8 + places)


def test_the_known_cases_are_as_sure_as_they_should_be():
    frame = known_masks(16, 4)
    cases = {case: own for case, own in frame.groupby("case", sort=False)}
    alike, few, one, each = cases.values()
    np.testing.assert_allclose(alike["p"], 1 / 16)
    np.testing.assert_allclose(alike["pi"], 4 / 16, atol=0.01)
    np.testing.assert_allclose(few["pi"], [1] * 4 + [0] * 12, atol=0.001)
    np.testing.assert_allclose(one["pi"], [1] + [3 / 15] * 15, atol=0.01)
    np.testing.assert_allclose(each["pi"], [1] * 4 + [0] * 12, atol=0.01)
    wanted = {"all alike": log(16), "k alike, the rest far below": log(4), "each far above the next": 0.0}
    for case, own in cases.items():
        assert own["entry"].tolist() == list(range(1, 17))
        assert own["pi"].sum() == pytest.approx(4, abs=0.1)
        assert own["entropy"].iloc[0] == pytest.approx(entropy(own["p"]), abs=1e-5)
        assert own["entropy"].iloc[0] == pytest.approx(wanted.get(case, 0.0), abs=0.02)
        assert own["inclusion_entropy"].iloc[0] == pytest.approx(entropy(own["pi"]), abs=0.01)
