"""Masks epoch by epoch: exactly k of every row, and the changes between two epochs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from redlab import browse_masks, load_dataset, load_network, sparsify, train_masks
from redlab.studies.plots.masks import draw_epoch


@pytest.fixture(scope="module")
def trained():
    images = load_dataset("digits", "train", limit=128)
    watch = ["hidden.1.linear", "classifier"]
    return train_masks(sparsify(load_network("digits/mlp"), 0.2), images, 3, watch=watch)


def drawn(figure):
    """The logits, the mask and the changes of a picture."""
    return [np.array(ax.images[0].get_array()) for ax in figure.axes[:3]]


@pytest.mark.parametrize("layer", ["hidden.1.linear", "classifier"])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_mask_keeps_exactly_k_of_every_row_those_of_the_largest_logits(trained, layer, epoch):
    k = trained.network.dpp.masks[layer].k
    logits, mask, _ = drawn(browse_masks(trained).figure(layer=layer, epoch=epoch))
    assert (mask.sum(1) == k).all()
    np.testing.assert_array_equal(logits >= 0, mask)
    own = trained.logits[layer][epoch].numpy()
    np.testing.assert_allclose(logits - logits[:, :1], own - own[:, :1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["hidden.1.linear", "classifier"])
def test_changes_lead_from_the_other_mask_to_this_one(trained, layer):
    browser = browse_masks(trained, layer=layer)
    masks = [drawn(browser.figure(epoch=epoch))[1] for epoch in range(4)]
    for epoch in range(4):
        for since, other in (("the epoch before", max(epoch - 1, 0)), ("epoch 0", 0)):
            figure = browser.figure(epoch=epoch, since=since)
            change = drawn(figure)[2]
            np.testing.assert_array_equal(masks[other] + change, masks[epoch])
            assert figure.axes[2].get_title() == f"changed since epoch {other}"
            assert figure.get_suptitle() == f"{layer}, epoch {epoch}"


def test_words_say_how_sure_the_mask_is_and_how_much_of_it_changed(trained):
    browser = browse_masks(trained, layer="classifier", since="epoch 0")
    _, words = browser.png(browser.values)
    metrics = trained.metrics.set_index(["layer", "epoch"]).loc["classifier", 3]
    assert words.startswith(f"entropy {metrics['entropy']:.2f} nats (log n = 4.85, log k = 3.26)")
    changed = np.abs(drawn(browser.figure())[2]).sum()
    assert f"; {changed} of 1,280 entries of the mask changed since epoch 0" in words
    assert changed > 0
    _, words = browser.png({**browser.values, "epoch": 0})
    assert "; 0 of 1,280 entries" in words


def test_it_begins_after_the_last_epoch_of_the_first_layer(trained):
    assert browse_masks(trained).values == {"layer": "hidden.1.linear", "since": "the epoch before", "epoch": 3}


def test_logits_alone_do_where_k_is_given(trained):
    logits = {"a": torch.randn(3, 4, 6), "b": torch.randn(2, 5, 9)}
    browser = browse_masks(logits, {"a": 2, "b": 9})
    assert (drawn(browser.figure())[1].sum(1) == 2).all()
    assert drawn(browser.figure(layer="b"))[1].all()
    assert browser.settle({"layer": "b", "epoch": 2})["epoch"] == 1
    with pytest.raises(ValueError, match="give k"):
        browse_masks(logits)
    with pytest.raises(ValueError, match=r"k must lie in 1 ... 6 for a, not be 7"):
        browse_masks(logits, 7)


def test_ties_go_to_those_that_come_first():
    _, mask, change = drawn(draw_epoch(torch.zeros(2, 5), torch.arange(5.0).expand(2, 5), 2))
    assert mask.tolist() == [[1, 1, 0, 0, 0]] * 2
    assert change.tolist() == [[1, 1, 0, -1, -1]] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": "hidden.0.linear"}, "layer cannot be 'hidden.0.linear'.*hidden.1.linear, classifier"),
        ({"epoch": 4}, "epoch cannot be 4.*0, 1, 2, 3"),
        ({"since": "epoch 1"}, "since cannot be 'epoch 1'"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(trained, wrong, message):
    with pytest.raises(ValueError, match=message):
        browse_masks(trained, **wrong)


def test_masks_that_nobody_watched_say_how_to_watch_them():
    with pytest.raises(ValueError, match=r"no layer was watched: train_masks\(..., watch="):
        browse_masks({}, 3)
