"""Training of masks: a temperature and a noise that fall, masks that learn and settle, and resumption to the bit."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

from redlab import (
    evaluate,
    harden,
    load_dataset,
    load_network,
    mask_entropy,
    mask_metrics,
    measure_cost,
    sparsify,
    train_masks,
)
from redlab.dpp.draws import draw_mask
from redlab.dpp.masks import masks_in
from redlab.dpp.training import prune_by_masks
from redlab.files.state import write_state
from redlab.network.layers import weight_layers


@pytest.fixture(scope="module")
def sparse():
    return sparsify(load_network("digits/mlp"), 0.2)


@pytest.fixture(scope="module")
def few():
    """Two minibatches of 64."""
    return load_dataset("digits", "train", limit=128)


@pytest.fixture(scope="module")
def learnt():
    """From random weights and masks."""
    start = sparsify(load_network("digits/mlp", weights=None), 0.2)
    return start, train_masks(start, load_dataset("digits", "train", limit=600), 6, watch=["classifier"])


def same(a, b):
    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def assert_same(one, other):
    """Two trainings ended in the same bits."""
    assert same(one.network, other.network)
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
    pd.testing.assert_frame_equal(one.metrics, other.metrics, check_exact=True)
    left = [[(mask.temperature, mask.calm) for mask in masks_in(own.network)] for own in (one, other)]
    assert left[0] == left[1]


def schedules(monkeypatch, network, *call, **options):
    """What the masks of a network have in each minibatch, and what training returned."""
    seen = []

    def watch(logits, k, temperature, noise, estimator):
        seen.append((temperature, noise))
        return draw_mask(logits, k, temperature, noise, estimator)

    with monkeypatch.context() as patched:
        patched.setattr("redlab.dpp.masks.draw_mask", watch)
        result = train_masks(network, *call, **options)
    seen = np.array(seen).reshape(-1, len(masks_in(network)), 2)
    assert (seen == seen[:, :1]).all(), "all masks have the same"
    return seen[:, 0], result


def test_temperature_and_noise_fall_in_a_line_and_are_what_masks_have(sparse, few, monkeypatch):
    seen, result = schedules(monkeypatch, sparse, few, 3)
    np.testing.assert_allclose(seen[:, 0], np.linspace(5, 0.5, 6))
    np.testing.assert_allclose(seen[:, 1], np.linspace(1, 0, 6), atol=1e-12)
    np.testing.assert_allclose(result.history["temperature"], seen[1::2, 0])
    np.testing.assert_allclose(result.history["noise"], seen[1::2, 1], atol=1e-12)
    assert all(mask.temperature == 5 for mask in masks_in(sparse)), "those of the argument stay"


def test_the_paper_s_noise_stays(sparse, few, monkeypatch):
    seen, _ = schedules(monkeypatch, sparse, few, 2, noises=(1.0, 1.0), temperatures=(3.0, 2.0))
    np.testing.assert_allclose(seen[:, 1], 1)
    np.testing.assert_allclose(seen[[0, -1], 0], [3, 2])


def test_masks_and_weights_learn_and_exactly_k_are_kept(learnt):
    start, trained = learnt
    assert evaluate(start, load_dataset("digits")).accuracy < 30
    assert evaluate(trained.network, load_dataset("digits")).accuracy > 75
    for name, mask in trained.network.dpp.masks.items():
        kept = trained.network.get_submodule(name).weight.detach() != 0
        assert (kept.sum(1) == mask.k).all()
        assert mask.k == round(0.2 * kept.shape[1])
        assert (mask().detach() != start.dpp.masks[name].eval()().detach()).any()
    assert not trained.network.training
    assert all(parameter.grad is None for parameter in trained.network.parameters())
    hard = harden(trained.network).network
    images = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(hard(images), trained.network(images))


def test_metrics_and_logits_follow_the_epochs(learnt):
    start, trained = learnt
    assert trained.metrics.groupby("layer", sort=False)["epoch"].apply(list).to_dict() == {
        name: list(range(7)) for name in start.dpp.masks
    }
    for epoch, network in ((0, start), (6, trained.network)):
        own = trained.metrics[trained.metrics["epoch"] == epoch].drop(columns="epoch").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, mask_metrics(network, draws=0))
    logits = trained.logits["classifier"]
    assert logits.shape == (7, 10, 128)
    assert torch.equal(logits[0], start.dpp.masks["classifier"].logits)
    assert torch.equal(logits[-1], trained.network.dpp.masks["classifier"].logits)
    assert not torch.equal(logits[-1], logits[-2])
    assert list(trained.logits) == ["classifier"]


def test_the_argument_and_the_generator_are_left_alone_and_watching_changes_nothing(sparse, few):
    state, before = {name: own.clone() for name, own in sparse.state_dict().items()}, torch.random.get_rng_state()
    plain = train_masks(sparse, few, 1)
    watched = train_masks(sparse, few, 1, draws=8, watch=["hidden.0.linear"])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(own, state[name]) for name, own in sparse.state_dict().items())
    assert same(plain.network, watched.network)
    assert "inclusion_entropy" in watched.metrics
    assert "inclusion_entropy" not in plain.metrics


def test_the_entropy_that_costs_more_ends_lower(sparse, few):
    free, cheap, dear = (train_masks(sparse, few, 3, mu=mu) for mu in (0.0, 1e-3, 1e-1))
    left = [float(mask_entropy(own.network).detach()) for own in (free, cheap, dear)]
    assert left[2] < left[1] < left[0]
    first = [own.history["loss"].iloc[0] for own in (free, dear)]
    assert first[1] - first[0] > 0.05 * float(mask_entropy(sparse).detach())


def test_only_the_logits_have_their_own_learning_rate(few):
    sparse = sparsify(load_network("digits/mlp"), 0.5)
    still = train_masks(sparse, few, 1, logit_rate=0.0).network
    assert all(torch.equal(one.logits, two.logits) for one, two in zip(masks_in(sparse), masks_in(still), strict=True))
    assert not torch.equal(still.classifier.bias, sparse.classifier.bias)
    fixed = train_masks(sparse, few, 1, learning_rate=0.0).network
    assert torch.equal(fixed.classifier.bias, sparse.classifier.bias)
    assert not torch.equal(masks_in(fixed)[0].logits, masks_in(sparse)[0].logits)
    unlearnt = train_masks(sparsify(load_network("digits/mlp"), 0.5, learn=False), few, 1)
    assert unlearnt.metrics.groupby("layer")["entropy"].nunique().eq(1).all()


def killed_after(monkeypatch, epochs):
    """Training stops once so many epochs are in the file."""
    written = []

    def write(*call):
        write_state(*call)
        written.append(call)
        if len(written) == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr("redlab.network.training.write_state", write)


@pytest.mark.parametrize(("name", "granularity"), [("digits/mlp", "weight"), ("digits/resnet", "filter")])
def test_training_that_was_killed_goes_on_to_the_same_bits(name, granularity, few, tmp_path, monkeypatch):
    sparse, file = sparsify(load_network(name), 0.5, granularity, weight_bits=8, activation_bits=8), tmp_path / "state"
    layer = next(iter(sparse.dpp.masks))
    options = {"mu": 1e-4, "draws": 8, "watch": [layer], "shift": 1, "smoothing": 0.1, "seed": 3}
    whole_seen, whole = schedules(monkeypatch, sparse, few, 3, **options)
    with monkeypatch.context() as patched:
        killed_after(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            train_masks(sparse, few, 3, **options, checkpoint=file)
    seen, resumed = schedules(monkeypatch, sparse, few, 3, **options, checkpoint=file)
    np.testing.assert_array_equal(seen, whole_seen[-2:])
    assert_same(whole, resumed)
    assert torch.equal(whole.logits[layer], resumed.logits[layer])


def test_a_finished_training_comes_back_from_its_file_whole(sparse, few, tmp_path):
    whole, again = (train_masks(sparse, few, 1, checkpoint=tmp_path / "state") for _ in range(2))
    assert_same(whole, again)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mu": 1e-3}, "mu is 1e-05 there and 0.001 here"),
        ({"mu": 0.0}, "penalty is True there and False here"),
        ({"temperatures": (5.0, 1.0)}, "temperatures is"),
        ({"noises": (1.0, 1.0)}, "noises is"),
        ({"logit_rate": 0.1}, "logit_rate is"),
        ({"learning_rate": 0.1}, "learning_rate is"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"draws": 8}, "draws is"),
        ({"watch": ["classifier"]}, "watch is"),
    ],
)
def test_the_checkpoint_of_another_call_is_refused(sparse, few, changed, message, tmp_path):
    options = {"mu": 1e-5, "checkpoint": tmp_path / "state"}
    train_masks(sparse, few, 1, **options)
    with pytest.raises(ValueError, match=message):
        train_masks(sparse, few, 1, **(options | changed))


def test_the_checkpoint_of_other_masks_is_refused(few, tmp_path):
    network, file = load_network("digits/mlp"), tmp_path / "state"
    train_masks(sparsify(network, 0.5), few, 1, checkpoint=file)
    for other in ({"seed": 1}, {"keep": 0.4}, {"estimator": "one_shot"}, {"noise": 0.5}, {"weight_bits": 8}):
        with pytest.raises(ValueError, match="state of another call"):
            train_masks(sparsify(network, **({"keep": 0.5} | other)), few, 1, checkpoint=file)


def test_no_epochs_return_what_came(sparse, few):
    trained = train_masks(sparse, few, 0, watch=["classifier"])
    assert same(trained.network, sparse)
    assert trained.history.empty
    assert trained.metrics["epoch"].tolist() == [0, 0, 0]
    assert trained.logits["classifier"].shape == (1, 10, 128)


def test_bad_requests_are_refused(sparse, few):
    with pytest.raises(ValueError, match="no mask is called 'nowhere'; there are hidden"):
        train_masks(sparse, few, 1, watch=["nowhere"])
    for bad in ({"mu": -1.0}, {"mu": float("nan")}, {"temperatures": (5.0, 0.0)}, {"noises": (1.0, -0.1)}):
        with pytest.raises(ValueError, match="mu and noises must be at least 0 and temperatures above 0"):
            train_masks(sparse, few, 1, **bad)
    with pytest.raises(ValueError, match="draws must be at least 8"):
        train_masks(sparse, few, 1, draws=3)
    with pytest.raises(ValueError, match="has no masks"):
        train_masks(load_network("digits/mlp"), few, 1)
    with pytest.raises(ValueError, match="epochs >= 0"):
        train_masks(sparse, few, -1)


def test_no_images_are_refused_as_train_does(sparse):
    with pytest.raises(ValueError, match="training needs images"):
        train_masks(sparse, TensorDataset(torch.ones(0, 1, 8, 8), torch.ones(0, dtype=torch.long)), 1)


@pytest.mark.parametrize("products", [0.5, 0.1])
def test_pruning_by_masks_reaches_the_products_that_were_asked_for(products, few):
    network = load_network("digits/resnet")
    result = prune_by_masks(network, few, products, 1)
    share = measure_cost(result.network).attrs["products"] / measure_cost(network).attrs["products"]
    assert 0.8 * products < share <= products
    assert result.plan["achieved"]["products"] == pytest.approx(share, abs=1e-5)
    assert not masks_in(result.network)
    before, after = ([layer.weight.numel() for layer in weight_layers(own)] for own in (network, result.network))
    assert sum(after) < sum(before)
    shares = result.layers.loc[result.layers["removed"] > 0, "channels_after"] / result.layers["channels_before"]
    assert shares.max() - shares.min() < 0.1


def test_pruning_by_masks_keeps_all_where_all_products_may_stay_and_refuses_what_is_no_share(few):
    network = load_network("digits/mlp")
    result = prune_by_masks(network, few, 1.0, 1)
    assert result.layers["removed"].sum() == 0
    with pytest.raises(ValueError, match="products must lie in"):
        prune_by_masks(network, few, 1.5, 1)
