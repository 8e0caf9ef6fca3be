"""Real networks side by side: the stored rows are sound, can be made again, and are drawn where they belong."""

import shlex
from io import BytesIO

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from benchmarks import pruning
from benchmarks.real import all_jobs, command, time_left
from benchmarks.real_methods import KEEPS, methods
from redlab import (
    compare_with_random,
    fold_batchnorm,
    hash_network,
    load_dataset,
    load_network,
    measure_cost,
    merge_neurons,
    red_plus_plus,
)
from redlab.network.evaluation import accuracy_interval
from redlab.studies.atlas import read_atlas
from redlab.studies.plots.real import draw_idea, draw_real, show_compact
from redlab.studies.real import (
    NEEDS,
    beside_stored,
    beyond_chance,
    left_out,
    measure_left,
    published_figures,
    read_real,
    summarise_real,
    table_real,
)
from redlab.studies.splitting import is_split

MEASURED = ["parameters", "bytes", "milliseconds", "time_ratio"]
KEY = ["network", "method", "setting", "seed", "stage"]
STARTS = ("python -m benchmarks.", "redlab ")


@pytest.fixture(scope="module")
def stored():
    return read_real()


@pytest.fixture(scope="module")
def summary(stored):
    return summarise_real(stored)


@pytest.fixture(scope="module")
def network():
    return load_network("digits/resnet")


def test_every_row_is_whole_and_stands_once(stored):
    assert not stored.duplicated(KEY).any()
    partly = [*MEASURED, "keep", "max_error", "max_noise", "alpha", "choice"]
    assert not stored.drop(columns=partly).isna().any(axis=None)
    assert set(stored.loc[stored["choice"].notna(), "network"]) == {"imagenet/efficientnet_lite0"}
    assert stored["accuracy"].between(0, 100).all()
    assert stored["before"].between(0, 100).all()
    assert stored["products"].between(0, 1).all()


def test_sizes_and_times_are_all_there_or_none_of_a_row_that_was_taken_over(stored):
    gaps = stored[MEASURED].isna()
    assert (gaps.all(axis=1) == gaps.any(axis=1)).all()
    assert stored.loc[gaps.any(axis=1), "command"].str.contains("benchmarks.pruning", regex=False).all()
    there = stored[~gaps.any(axis=1)]
    assert there["parameters"].between(0, 1).all()
    assert there["bytes"].between(0, 1).all()
    assert (there[["milliseconds", "time_ratio"]] > 0).all(axis=None)


def test_only_separated_kernels_add_more_than_they_save(stored):
    assert (stored["additions"] > 0).all()
    assert set(stored.loc[stored["additions"] > 1, "method"]) <= {"RED as published", "RED as published, a scale a row"}
    plain = stored[~stored["split"]]
    assert (plain["additions"] == plain["products"]).all()
    assert stored["split"].equals(stored["method"].str.startswith("RED"))


def test_a_setting_says_what_it_is_in_numbers_too(stored):
    said = [
        f"{100 * row.keep:.0f}% of products" * (row.keep == row.keep)
        + f"error {row.max_error:g}" * (row.max_error == row.max_error)
        + f"noise {row.max_noise:g}" * (row.max_noise == row.max_noise)
        + f"alpha {row.alpha:g}" * (row.alpha == row.alpha)
        + row.bandwidth
        + "exact" * (row.method == "batch norm folded")
        for row in stored.itertuples()
    ]
    assert list(stored["setting"]) == said
    kept = stored.dropna(subset="keep")
    assert (kept["products"] <= kept["keep"] + 0.005).all()


def test_the_panels_hold_what_the_methods_need(stored):
    needs = {(name, title): own.needs for name in KEEPS for title, own in methods(name).items()}
    for row in stored.itertuples():
        # What is fine-tuned after it was made stands with what has learnt, whatever chose its channels.
        tuned = row.stage == "fine-tuned"
        assert row.needs == ("fine-tuning" if tuned else needs[row.network, row.method])
    assert set(stored["needs"]) == set(NEEDS)
    panels = [set(map(tuple, part[KEY].to_numpy())) for _, part in stored.groupby("needs")]
    assert len(set.union(*panels)) == sum(map(len, panels))


def test_criteria_that_see_images_stand_with_data(stored):
    without = stored[stored["needs"] == "nothing"]["method"]
    assert not without.str.contains("Taylor|FlexRel|SInGE|DPP|SPP|images").any()
    assert set(stored.loc[stored["network"].str.startswith("imagenet"), "needs"]) == {"nothing"}


def test_every_row_has_the_command_that_makes_it_again(stored):
    jobs = {(job.network, job.method, job.seed, job.stage): job for job in all_jobs()}
    for row in stored.itertuples():
        parts = row.command.split(" && ")
        assert all(part.startswith(STARTS) for part in parts)
        job = jobs[row.network, row.method, row.seed, row.stage]
        assert parts[-1] == command("real", job)
        _, _, benchmark, name, method = shlex.split(parts[-1])
        found = stored[(stored["network"] == name) & (stored["method"] == method)]
        assert benchmark == "benchmarks.real"
        assert row.setting in set(found["setting"])


def test_accuracies_that_were_taken_over_are_those_of_the_pruning_benchmark(stored):
    rows = pd.read_csv(pruning.ROWS)
    taken = stored[stored["command"].str.contains("benchmarks.pruning", regex=False)]
    stages = {"compressed": "pruned", "fine-tuned": "fine-tuned"}
    for row in taken.itertuples():
        same = (rows["network"] == row.network) & (rows["method"] == row.method) & (rows["seed"] == row.seed)
        same &= (rows["stage"] == stages[row.stage]) & ((rows["keep"] - row.keep).abs() < 0.005)
        assert rows.loc[same, "accuracy"].tolist() == [row.accuracy]
        assert rows.loc[same, "products"].tolist() == [pytest.approx(row.products, abs=1e-4)]
    assert len(taken) > 50


def test_seeds_make_a_mean_and_a_spread(stored, summary):
    assert summary["seeds"].sum() == len(stored)
    chosen = (summary["network"] == "cifar10/resnet20") & summary["method"].str.startswith("random")
    row = summary[chosen & (summary["setting"] == "75% of products")].iloc[0]
    assert (row["seeds"], round(row["accuracy"], 2), round(row["sd"], 2)) == (3, 26.54, 9.73)
    assert (summary.loc[summary["seeds"] == 1, "sd"] == 0).all()


# Of the list of numbers that may be quoted, as it is: network, before, after, times fewer products.
PUBLISHED = [
    ("cifar10/resnet20", 91.25, 91.25, 1.0),
    ("cifar10/resnet20", 91.78, 91.34, 1.33),
    ("cifar10/resnet56", 93.03, 93.03, 1.0),
    ("cifar10/resnet56", 93.53, 28.08, 2.12),
    ("cifar10/resnet56", 93.53, 92.93, 2.12),
    ("cifar10/resnet56", 93.53, 93.77, 2.13),
    ("cifar10/resnet56", 93.53, 93.64, 2.57),
    ("VGG-16, CIFAR-10", 93.70, 93.16, None),
    ("VGG-16, CIFAR-10", 93.70, 88.70, None),
    ("ResNet-101, ImageNet", 77.37, 77.35, 1 / 0.6),
    ("ResNet-50, ImageNet", 76.18, 74.50, 1 / 0.55),
    ("ResNet-50, ImageNet", 76.18, 75.48, 1 / 0.65),
]


def test_published_figures_are_those_that_may_be_quoted():
    frame = published_figures()
    for row, (name, before, after, fewer) in zip(frame.itertuples(), PUBLISHED, strict=True):
        assert (row.network, row.before, row.accuracy) == (name, before, after)
        assert row.products == pytest.approx(1 / fewer) if fewer else pd.isna(row.products)
    assert frame["parameters"].dropna().tolist() == [0.7, 0.555, 0.699]
    assert frame["source"].str.len().min() > 10
    assert frame["protocol"].str.len().min() > 10


def test_a_table_says_which_rows_are_published_and_how_they_differ(summary):
    table = table_real(summary, "cifar10/resnet56")
    printed = table[table["method"].str.endswith("(published)")]
    assert len(printed) == 5
    assert (printed["protocol"] != "").all()
    assert (printed["ms"] == "").all()
    own = table.drop(printed.index)
    assert len(own) == (summary["network"] == "cifar10/resnet56").sum()
    assert (own["protocol"] == "").all()
    assert [*dict.fromkeys(table["needs"])] == ["", *NEEDS]


def test_what_was_left_out_has_a_reason(stored):
    frame = left_out()
    assert set(frame["network"]) <= {*stored["network"], "the ResNets"}
    assert frame["reason"].str.len().min() > 5


@pytest.mark.parametrize("x", ["products", "time_ratio", "parameters", "bytes"])
def test_a_figure_has_panels_for_each_network_and_no_text_over_another(summary, x):
    figure = draw_real(summary, x, published_figures(), "title")
    figure.canvas.draw()
    named = (
        [ax.get_title() for ax in figure.axes]
        if x in ("parameters", "bytes")
        else [ax.get_ylabel() for ax in figure.axes[::2]]
    )
    assert [name.split("\n")[0] for name in named] == list(dict.fromkeys(summary["network"]))
    assert all(ax.has_data() for ax in figure.axes)
    boxes = [ax.get_tightbbox() for ax in figure.axes] + [figure.legends[0].get_window_extent()]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[k + 1 :])
    inside = figure.bbox
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 for box in boxes)


def test_a_compact_figure_is_smaller_and_shown_once(summary):
    figure = draw_real(summary, "products")
    full = BytesIO()
    figure.savefig(full, format="png", dpi=figure.dpi)
    shown = show_compact(figure)
    assert shown.data.startswith(b"\x89PNG")
    assert len(shown.data) < full.tell() / 2
    assert not plt.fignum_exists(figure.number)


def test_a_row_a_method_with_two_budgets_and_split_layers_apart(summary):
    figure = draw_real(summary, "products", published_figures())
    for network, pruned, others in zip(
        dict.fromkeys(summary["network"]), figure.axes[::2], figure.axes[1::2], strict=True
    ):
        own = summary[summary["network"] == network]
        names = [label.get_text() for label in pruned.get_yticklabels()]
        assert len(names) == len(set(names))
        assert set(own.loc[own["setting"].str.endswith("products"), "method"]) <= {
            n.removesuffix(", fine-tuned") for n in names
        }
        apart = [label.get_text() for label in others.get_yticklabels()]
        assert len(apart) == (~own["setting"].str.endswith("products")).sum()
        assert not any(name.startswith(("RED++", "RED as")) for name in names)
        drawn = {round(float(line.get_xdata()[0]), 6) for ax in (pruned, others) for line in ax.lines}
        assert {round(value, 6) for value in own["accuracy"]} <= drawn
        starred = published_figures().query("network == @network and needs != ''")
        assert sum(line.get_marker() == "*" for line in pruned.lines) == len(starred)


def test_bars_are_intervals_of_all_seeds(stored, summary):
    row = summary[(summary["network"] == "cifar10/resnet20") & (summary["method"] == "FlexRel")].iloc[0]
    seeds = stored[(stored["network"] == "cifar10/resnet20") & (stored["method"] == "FlexRel")]
    seeds = seeds[seeds["setting"] == row["setting"]]
    bounds = [accuracy_interval(accuracy, 10_000) for accuracy in seeds["accuracy"]]
    assert row["accuracy_low"] == min(low for low, _ in bounds)
    assert row["accuracy_high"] == max(high for _, high in bounds)


def test_what_is_left_is_drawn_against_the_accuracy_lost(summary):
    figure = draw_real(summary, "bytes")
    for ax, network in zip(figure.axes, dict.fromkeys(summary["network"]), strict=True):
        own = summary[summary["network"] == network].dropna(subset="bytes")
        inside = sum(len(box.lines[0].get_xdata()) for box in ax.containers)
        marked = sum(
            len(line.get_xdata()) for line in ax.lines if line.get_marker() == "v" and line.get_clip_on() is False
        )
        assert inside + marked == len(own)
        assert marked == (own["before"] - own["accuracy"] > 12).sum()
    with pytest.raises(ValueError, match="did you mean bytes"):
        draw_real(summary, "byte")


def test_what_is_beyond_chance_agrees_with_the_stored_rows(stored, summary):
    frame = beyond_chance(summary, read_atlas()).set_index(["measure", "network"])
    assert frame.loc["near filters", "random"].max() < 0.1
    assert set(frame.index.get_level_values("network")) == set(stored["network"]) & set(read_atlas()["network"])
    for network, own in stored[stored["network"].isin(frame.index.get_level_values("network"))].groupby("network"):
        fewest = 100 * own.loc[own["bytes"].notna() & own["method"].str.startswith("RED++"), "bytes"].min()
        assert frame.loc[("bytes at equal accuracy", network), "trained"] >= fewest
    chance = compare_with_random(load_network("digits/mlp"))
    left, right = draw_idea(chance, frame.reset_index(), "title").axes
    assert len(left.get_yticklabels()) == 3
    assert len(right.patches) == len(frame)


def test_what_is_left_agrees_with_the_cost_of_the_networks(network):
    merged = merge_neurons(fold_batchnorm(network).network, 0.3).network
    row = measure_left(network, merged)
    before, after = measure_cost(network).attrs, measure_cost(merged).attrs
    assert row["products"] == row["additions"] == after["products"] / before["products"]
    assert row["parameters"] == after["parameters"] / before["parameters"]
    assert "accuracy" not in row
    assert 0 < row["bytes"] < 1
    assert not is_split(merged)


def test_split_layers_save_products_and_bytes(network):
    split = red_plus_plus(network).network
    row = measure_left(network, split, load_dataset("digits", limit=40))
    assert is_split(split)
    assert row["products"] < 0.2 < row["additions"] < 1
    assert row["bytes"] < 0.3
    assert row["accuracy"] > 80


def test_the_original_takes_as_long_as_itself(network):
    hashed = hash_network(fold_batchnorm(network).network).network
    assert time_left(network, hashed)["time_ratio"] == pytest.approx(1, abs=0.5)


def test_a_row_measured_again_stands_beside_the_stored_one(stored):
    first = stored[(stored["network"] == "cifar10/resnet20") & (stored["setting"] == "error 0.15")].iloc[:1]
    found = beside_stored(first, stored)
    assert len(found) == 1
    assert found["accuracy"].tolist() == found["accuracy_stored"].tolist()
    assert beside_stored(first.assign(network="digits/resnet"), stored).empty
