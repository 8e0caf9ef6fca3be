"""Studies of pruning: tidy frames that agree with the functions they are made of."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes

from redlab import (
    evaluate,
    load_dataset,
    load_network,
    prune_channels,
    prune_weights,
    score_channels,
    score_weights,
    sensitivity,
)
from redlab.network.evaluation import accuracy_interval
from redlab.pruning.weights import sparse_bytes
from redlab.studies.benchmarks import with_latency
from redlab.studies.plots.pruning import (
    plot_agreement,
    plot_correlations,
    plot_latency,
    plot_relevance,
    plot_savings,
    plot_scores,
    plot_sensitivity,
    plot_tradeoff,
)
from redlab.studies.pruning import (
    compare_criteria,
    compare_weights,
    correlations,
    inner_groups,
    oracle_agreement,
    sizes_at,
)

METHODS = {
    "magnitude": {"criterion": "magnitude", "scope": "layer", "p": 2},
    "random": {"criterion": "random"},
    "Taylor, iterative": {"criterion": "taylor", "step": 0.5, "fine_tune": {"every": 1}, "score_images": 64},
}


@pytest.fixture(scope="module")
def network():
    return load_network("digits/resnet")


@pytest.fixture(scope="module")
def test_images():
    return load_dataset("digits", limit=60)


@pytest.fixture(scope="module")
def training():
    return load_dataset("digits", "train", limit=100)


@pytest.fixture(scope="module")
def compared(network, test_images, training):
    tuned = {"epochs": 1, "learning_rate": 0.02}
    return compare_criteria(network, test_images, training, METHODS, [0.8, 0.5], seeds=(0, 1), fine_tune=tuned)


@pytest.fixture(scope="module")
def agreement(network, test_images):
    methods = {"Taylor": {"criterion": "taylor", "batch_size": 20}, "oracle": {"criterion": "oracle"}}
    return oracle_agreement(network, test_images, methods, inner_groups(network)[:2])


def test_a_row_a_method_share_seed_and_stage(compared, network, test_images):
    assert len(compared) == 3 * 2 * 2 * 2
    assert not compared.isna().any(axis=None)
    assert (compared["products"] <= compared["keep"] + 1e-9).all()
    assert compared.attrs["before"] == evaluate(network, test_images).accuracy
    mean = compared.groupby("stage")["accuracy"].mean()
    assert mean["fine-tuned"] > mean["pruned"]


def test_a_row_is_what_the_functions_themselves_give(compared, network, test_images):
    result = prune_channels(network, score_channels(network, "magnitude", p=2), products=0.5, scope="layer")
    row = compared[(compared["method"] == "magnitude") & (compared["keep"] == 0.5) & (compared["stage"] == "pruned")]
    assert set(row["accuracy"]) == {evaluate(result.network, test_images).accuracy}
    layers = result.layers
    assert set(row["parameters"]) == {layers["parameters_after"].sum() / layers["parameters_before"].sum()}


def test_seeds_draw_other_channels_at_random_and_what_draws_nothing_runs_once(network, test_images, training):
    methods = {name: METHODS[name] for name in ("magnitude", "random")}
    frame = compare_criteria(network, test_images, training, methods, [0.7], seeds=(0, 1))
    assert list(frame["method"]) == ["magnitude", "random", "random"]
    assert frame["channels"].iloc[1] != frame["channels"].iloc[2]


@pytest.mark.slow
def test_sensitivity_prunes_one_group_and_leaves_the_others(network, test_images):
    frame = sensitivity(network, "magnitude", test_images, [0.0, 0.5])
    scores = score_channels(network, "magnitude")
    assert list(dict.fromkeys(frame["group"])) == list(scores.values)
    whole = frame[frame["ratio"] == 0]
    assert (whole["accuracy"] == frame.attrs["before"]).all()
    assert (whole["removed"] == 0).all()
    half = frame[frame["ratio"] == 0.5]
    assert (half["removed"] == half["channels"] // 2).all()
    assert (half["products"] < 1).all()
    with pytest.raises(ValueError, match="Did you mean 'magnitude'"):
        sensitivity(network, "magnitudes", test_images, [0.5])


def test_inner_groups_have_one_maker_and_one_reader(network):
    assert inner_groups(network) == ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer3.0.conv2"]
    # Depthwise layers make their channels a second time; only the last layer has none behind it.
    assert inner_groups(load_network("digits/mobilenet")) == ["blocks.5.1.conv"]


def test_the_oracle_agrees_with_itself(agreement):
    found = correlations(agreement).set_index("method")
    assert found.loc["oracle", "pearson"] == pytest.approx(1)
    assert found.loc["oracle", "spearman"] == pytest.approx(1)
    assert 0.2 < found.loc["Taylor", "spearman"] < 1
    assert (agreement["oracle_minibatch"] >= agreement["oracle"] * (1 - 1e-9)).all()  # Jensen


def test_weights_are_compared_by_their_share_and_size(network, test_images, training):
    methods = {"magnitude": {"criterion": "magnitude"}, "layer": {"criterion": "magnitude", "scope": "layer"}}
    frame = compare_weights(network, test_images, training, methods, [0.2, 0.6])
    pruned = prune_weights(network, score_weights(network, "magnitude"), 0.6, scope="layer").network
    assert frame["accuracy"].iloc[-1] == evaluate(pruned, test_images).accuracy
    assert frame["kilobytes"].iloc[-1] == sparse_bytes(pruned) / 1000
    assert frame.groupby("method")["kilobytes"].apply(lambda sizes: sizes.is_monotonic_decreasing).all()


def test_the_size_at_an_accuracy_lies_on_the_line_between_the_points():
    points = {"method": ["a"] * 3 + ["b"], "kilobytes": [10.0, 20.0, 40.0, 5.0], "accuracy": [50.0, 90.0, 95.0, 20.0]}
    sizes = sizes_at(pd.DataFrame(points), 80)
    assert sizes["a"] == pytest.approx(17.5)
    assert pd.isna(sizes["b"])
    assert sizes_at(pd.DataFrame(points), 10).tolist() == [10, 5]


def test_zeros_take_a_bit_and_other_numbers_four_bytes():
    layer = torch.nn.Linear(16, 4)
    whole = sparse_bytes(layer)
    assert whole == 4 * (64 + 4)  # dense is shorter than numbers and bits
    with torch.no_grad():
        layer.weight[:3] = 0
    assert sparse_bytes(layer) == 4 * 16 + 64 // 8 + 4 * 4
    tied = torch.nn.ModuleList([layer, layer])
    assert sparse_bytes(tied) == sparse_bytes(layer)


def test_networks_that_were_timed_get_their_milliseconds(compared):
    timed = with_latency(compared, "digits/resnet")
    assert (timed["milliseconds"] > 0).all()
    assert with_latency(compared, "no/such").empty


def test_times_are_ratios_with_their_quartiles():
    frame = pd.DataFrame({"method": ["Taylor", "Taylor", "none"], "keep": [0.75, 0.6, 0.6], "accuracy": 97.0})
    frame.attrs["before"] = 99.0
    timed = with_latency(frame, "digits/resnet")
    assert timed["keep"].tolist() == [0.75, 0.6]
    assert (timed["time_low"] <= timed["time_ratio"]).all()
    assert (timed["time_ratio"] <= timed["time_high"]).all()
    ax = plot_latency(timed)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Taylor, 75% left", "Taylor, 60% left"]
    assert "2.0" in [text.get_text() for text in ax.texts]


def test_every_row_is_compared_with_the_network_before(compared):
    before = compared.attrs["before"]
    assert (compared["images"] == 60).all()
    assert compared["difference"].to_numpy() == pytest.approx((compared["accuracy"] - before).to_numpy())
    assert (compared["accuracy_low"] <= compared["accuracy"]).all()
    assert (compared["accuracy"] <= compared["accuracy_high"]).all()
    assert compared["p"].between(0, 1).all()
    assert compared.loc[compared["difference"] < -20, "p"].max() < 0.01


def test_every_figure_is_drawn_from_its_frame(compared, agreement, network):
    savings = pd.DataFrame({"delta": [0.0, 0.5, 1.0], "kilobytes": [10.0, 8.0, float("nan")]})
    parts = correlations(agreement).assign(batch=[1, 64], images="test images")
    relevance = pd.DataFrame({"magnitude": [0.1, 0.5, 1.0], "relevance": [0.2, 0.1, 0.9]})
    heat = pd.DataFrame({"group": ["a", "a", "b", "b"], "ratio": [0.1, 0.5] * 2, "accuracy": [90.0, 50, 80, 10]})
    drawn = [
        plot_scores(score_channels(network, "magnitude").frame()),
        plot_agreement(agreement[agreement["method"] == "Taylor"]),
        plot_correlations(parts),
        plot_tradeoff(compared[compared["stage"] == "pruned"]),
        plot_tradeoff(compared, "parameters"),
        plot_sensitivity(heat),
        plot_relevance(relevance),
        plot_savings(savings),
    ]
    for ax in drawn:
        assert isinstance(ax, Axes)
        assert ax.get_xlabel()
        assert ax.get_title() or ax.get_legend()
        ax.figure.canvas.draw()
    assert drawn[-1].get_title() == "the best mixture saves 20.0 %"


def test_a_figure_draws_into_the_axes_it_is_given(compared):
    own = plt.subplots()[1]
    assert plot_tradeoff(compared, ax=own) is own
    lines = {line.get_label() for line in own.lines}
    assert set(METHODS) <= lines


def test_what_loses_more_than_the_figure_shows_is_marked_at_its_frame():
    frame = pd.DataFrame({"method": "Taylor", "keep": [0.9, 0.5, 0.3], "accuracy": [98.5, 50.0, 10.0], "images": 360})
    frame.attrs["before"] = 99.0
    ax = plot_tradeoff(frame.assign(products=frame["keep"]))
    bottom, top = ax.get_ylim()
    assert (bottom, top) == (15, -1)  # the loss grows downwards
    marks = next(line for line in ax.lines if line.get_marker() == "v")
    assert marks.get_xydata().tolist() == [[30, 15], [50, 15]]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "n = 360" in names[0]
    assert names[-1] == "loses more than 15 points"
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    low, high = accuracy_interval(99.0, 360)
    assert sorted([band.y0, band.y1]) == pytest.approx([99 - high, 99 - low])


def test_zeros_are_drawn_as_weights_left():
    frame = pd.DataFrame({"method": "DPP", "keep": [0.5, 0.1], "sparsity": [0.5, 0.9], "accuracy": [98.0, 97.0]})
    ax = plot_tradeoff(frame, "sparsity")
    assert ax.get_xscale() == "log"
    line = next(line for line in ax.lines if line.get_label() == "DPP")
    assert sorted(line.get_xdata()) == pytest.approx([10, 50])


def test_learnt_masks_of_channels_join_the_comparison():
    network, few = load_network("digits/mlp"), load_dataset("digits", limit=100)
    methods = {"DPP": {"criterion": "dpp", "epochs": 1}, "magnitude": {"criterion": "magnitude"}}
    frame = compare_criteria(network, few, few, methods, [0.4], seeds=(0, 1))
    assert frame.groupby("method").size().to_dict() == {"DPP": 2, "magnitude": 1}  # magnitude draws nothing
    assert (frame["products"] <= 0.4).all()
