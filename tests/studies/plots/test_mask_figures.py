"""Pictures of masks: what is drawn is what the frames say, with named axes, and the style is left alone."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from redlab import load_dataset, load_network, plot_mask_entropy, sparsify, train_masks
from redlab.studies.masks import known_masks
from redlab.studies.plots.masks import plot_diversity, plot_inclusion, plot_masks


@pytest.fixture(scope="module")
def trained():
    images = load_dataset("digits", "train", limit=64)
    return train_masks(sparsify(load_network("digits/mlp"), 0.2), images, 2, draws=8, watch=["classifier"])


@pytest.fixture
def pictures(trained):
    """A function of axes by the name of what it draws."""
    metrics, known = trained.metrics, known_masks(8, 2, draws=64)
    one = metrics[metrics["layer"] == "classifier"]
    return {
        "inclusion": lambda ax: plot_inclusion(known[known["case"] == "all alike"], ax),
        "entropy": lambda ax: plot_mask_entropy(one, ax),
        "entropy alone": lambda ax: plot_mask_entropy(one.drop(columns=["inclusion_entropy", "inclusion_error"]), ax),
        "diversity": lambda ax: plot_diversity(metrics, ax=ax),
        "hamming": lambda ax: plot_diversity(metrics, "hamming", ax=ax),
    }


PICTURES = ["inclusion", "entropy", "entropy alone", "diversity", "hamming"]


def texts_of(figure):
    figure.canvas.draw()
    return [text for text in figure.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_names_its_axes_and_leaves_the_style_alone(name, pictures):
    before = dict(mpl.rcParams)
    ax = pictures[name](None)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.get_legend()
    assert dict(mpl.rcParams) == before
    assert min(text.get_fontsize() for text in texts_of(ax.figure)) >= 9


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_draws_on_the_axes_that_it_is_given(name, pictures):
    _, ax = plt.subplots()
    assert pictures[name](ax) is ax


def test_entropy_stands_between_lines_at_log_k_and_log_n(trained):
    frame = trained.metrics[trained.metrics["layer"] == "classifier"]
    ax = plot_mask_entropy(frame)
    level = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"]
    assert level == pytest.approx([np.log(128), np.log(26)])
    assert {text.get_text() for text in ax.texts} == {"log n = 4.85", "log k = 3.26"}
    curves = {line.get_label(): line for line in ax.lines if line.get_linestyle() != ":"}
    np.testing.assert_array_equal(curves["logits, H(softmax)"].get_ydata(), frame["entropy"])
    np.testing.assert_array_equal(curves["inclusion, H(pi / k)"].get_ydata(), frame["inclusion_entropy"])
    assert curves["logits, H(softmax)"].get_xdata().tolist() == [0, 1, 2]
    low, high = ax.get_ylim()
    assert low < 0 < np.log(128) < high


def test_diversity_is_a_share_of_the_most_that_there_can_be(trained):
    lines = {line.get_label(): line.get_ydata() for line in plot_diversity(trained.metrics).lines}
    assert list(lines) == ["hidden.0.linear", "hidden.1.linear", "classifier"]
    own = trained.metrics[trained.metrics["layer"] == "classifier"]
    np.testing.assert_allclose(lines["classifier"], 100 * own["diversity"] / np.log(10))
    assert all((line >= 0).all() and (line <= 100).all() for line in lines.values())


def test_random_masks_are_as_far_apart_as_random_masks(trained):
    lines = {line.get_label(): line.get_ydata() for line in plot_diversity(trained.metrics, "hamming").lines}
    assert all(line[0] == pytest.approx(100, abs=3) for line in lines.values())


def test_heat_maps_show_logits_above_masks_of_exactly_k(trained):
    logits = trained.logits["classifier"]
    figure = plot_masks({"before": logits[0], "after": logits[-1]}, 26, "digits/mlp, classifier")
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown[:2]] == ["before", "after"]
    for ax, own in zip(shown[2:], (logits[0], logits[-1]), strict=True):
        mask = ax.images[0].get_array()
        assert mask.shape == (10, 128)
        assert (mask.sum(1) == 26).all()
        assert torch.equal(torch.from_numpy(np.array(mask)).bool(), own >= own.topk(26).values[:, -1:])
        assert ax.get_xlabel() == "input"
    for ax, own in zip(shown[:2], (logits[0], logits[-1]), strict=True):
        drawn = np.array(ax.images[0].get_array())
        assert ((drawn >= 0).sum(1) == 26).all()
        np.testing.assert_allclose(drawn - drawn[:, :1], own - own[:, :1], atol=1e-5)
    assert shown[0].get_ylabel() == "output unit (logits)"
    assert shown[2].get_ylabel() == "output unit (mask)"
    assert figure.get_suptitle() == "digits/mlp, classifier"


def test_constant_logits_and_masks_that_keep_all_can_be_drawn():
    plot_masks({"constant": torch.ones(3, 5)}, 2).canvas.draw()
    trained = train_masks(sparsify(load_network("digits/mlp"), 1.0), load_dataset("digits", "train", limit=64), 1)
    for what in ("diversity", "hamming"):
        ax = plot_diversity(trained.metrics, what)
        assert all(np.isfinite(line.get_ydata()).all() for line in ax.lines)
