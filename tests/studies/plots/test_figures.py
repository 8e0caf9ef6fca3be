import re
import zlib

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from redlab import (
    error_bound,
    estimate_density,
    hash_network,
    load_dataset,
    load_network,
    plot_collapse,
    plot_density,
    plot_frontier,
    plot_split,
    save_figure,
    small_multiples,
    split_inputs,
    weight_layers,
)
from redlab.compression.pipeline import red_plus_plus_steps, red_steps
from redlab.studies.plots.hashing import plot_bound, plot_codebooks, plot_error, plot_modes
from redlab.studies.plots.kernels import draw_units
from redlab.studies.plots.pruning import plot_scores
from redlab.studies.plots.splitting import draw_steps, plot_bits, plot_expected, plot_splits, plot_times
from redlab.studies.plots.style import look
from redlab.studies.splitting import distinct_products, step_by_step, unit_map


@pytest.fixture(scope="module")
def layers():
    return hash_network(load_network("digits/mlp")).layers


def hashed():
    return hash_network(load_network("digits/mlp"), rule="uniform", max_error=0.2).network


def bound():
    return error_bound(load_network("digits/mlp"), hashed(), load_dataset("digits", limit=5))


def splits(units):
    frame = pd.DataFrame({"share": [0.1, 0.2], "accuracy": [90.0, 95.0], "method": ["kde"] * 2, "unit": units})
    frame.attrs["before"] = 96.0
    return frame


FRAMES = {
    plot_split: lambda: split_inputs(hashed()).layers,
    plot_splits: lambda: splits(["channel", "channel"]),
    plot_expected: lambda: distinct_products(hashed()),
    plot_bits: lambda: pd.DataFrame({"layer": ["a"], "weights": [9], "bits": [2.5], "entropy": [2.0]}),
    plot_times: lambda: pd.DataFrame({"contestant": ["ordinary layers", "split"], "ratio": [1.0, 18.0]}),
    plot_bound: bound,
    plot_density: lambda: estimate_density(torch.randn(500)).frame(),
    plot_modes: lambda: pd.DataFrame({"layer": ["a", "a", "b"], "bandwidth": [1, 0.5, 1], "modes": [1, 9, 2]}),
    plot_codebooks: lambda: pd.DataFrame({"rule": ["kde", "kde", "lloyd"], "value": [0.0, 1.0, 0.5]}),
    plot_collapse: lambda: hash_network(load_network("digits/mlp")).layers,
    plot_error: lambda: pd.DataFrame(
        {"layer": ["a", "b"] * 2, "error": [0.1] * 4, "rule": ["kde"] * 2 + ["lloyd"] * 2}
    ),
    plot_frontier: lambda: pd.DataFrame({"share": [0.1, 0.2], "accuracy": [90.0, 95.0], "method": ["kde"] * 2}),
}
each_plot = pytest.mark.parametrize("plot", FRAMES, ids=lambda plot: plot.__name__)


@each_plot
def test_every_figure_names_its_axes_and_leaves_the_style_alone(plot):
    before = dict(mpl.rcParams)
    ax = plot(FRAMES[plot]())
    assert ax.get_xlabel()
    assert ax.get_title() or plot in (plot_frontier, plot_splits)
    assert dict(mpl.rcParams) == before


@each_plot
def test_every_figure_draws_on_the_axes_that_it_is_given(plot):
    _, ax = plt.subplots()
    assert plot(FRAMES[plot](), ax) is ax


@each_plot
def test_no_text_is_smaller_than_nine_points(plot):
    ax = plot(FRAMES[plot]())
    ax.figure.canvas.draw()
    texts = [text for text in ax.figure.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 9


def test_logarithmic_axes_are_named_in_plain_numbers():
    for scores, names in (([5.2, 11], "6 7 8 9 10"), ([3, 80], "5 10 20 50"), ([2e-5, 3e-2], "1e-4 0.001 0.01")):
        ax = plot_scores(pd.DataFrame({"group": "a", "score": scores}))
        ax.figure.canvas.draw()
        low, high = ax.get_xlim()
        ticks = zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
        assert " ".join(label.get_text() for place, label in ticks if low <= place <= high) == names
        assert not any(label.get_text() for label in ax.get_xticklabels(minor=True))
    ax = plot_scores(pd.DataFrame({"group": "a", "score": [1, 2e6]}))
    assert [ax.xaxis.get_major_formatter()(place) for place in (1e6, 1e7)] == ["1,000,000", "1e7"]


def test_units_are_drawn_with_as_many_outlines_as_multiplications():
    layer = next(weight_layers(hash_network(load_network("digits/resnet"), rule="uniform", max_error=0.2).network))
    frame = unit_map(layer)
    figure = draw_units(frame, "title")
    for ax, (unit, part) in zip(figure.axes, frame.groupby("unit", sort=False), strict=False):
        assert ax.get_title() == f"unit {unit!r}:\n{part['multiplies'].sum()} multiplications for {len(part)} weights"
        assert len(ax.collections[0].get_paths()) == part["multiplies"].sum()
        assert part["uses"].sum() == (part["value"] != 0).sum()
        assert sorted(int(text.get_text()) for text in ax.texts) == sorted(part.loc[part["uses"] > 1, "uses"])
        assert len(np.unique(ax.images[0].get_array())) == part["value"].nunique()
    only = split_inputs(torch.nn.Sequential(layer.module), example=torch.randn(1, 1, 8, 8)).network[0]
    assert frame.loc[frame["unit"] == "channel", "multiplies"].sum() == len(only.tables[0])


def test_a_linear_layer_has_one_place_in_its_kernel():
    layer = next(weight_layers(hashed()))
    frame = unit_map(layer, channel=3)
    one = frame[frame["unit"] == "channel"]
    assert set(one["tap"]) == {0}
    assert one["value"].tolist() == layer.weight[:, 3].tolist()
    assert len(set(frame.groupby("unit")["multiplies"].sum())) == 1  # all units are the same then


def test_steps_stand_in_the_order_in_which_they_are_taken():
    methods = {"RED": red_steps(), "RED++": red_plus_plus_steps()}
    frame = step_by_step(load_network("digits/mlp"), load_dataset("digits", limit=20), methods)
    figure = draw_steps(frame, "title")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [step for step in labels if step != "separate kernels"] == list(frame[frame["method"] == "RED++"]["step"])
    assert labels.index("separate kernels") > labels.index("merge neurons")
    assert sum(ax.axison for ax in figure.axes) == 6  # no times: this network's were not measured
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(methods)
    assert all(line.get_linestyle() == "None" for line in figure.axes[0].get_lines())  # steps are no scale
    accuracy = next(ax for ax in figure.axes if ax.get_title() == "accuracy\n(%, n = 20)")
    assert len(accuracy.collections) == len(methods)  # the intervals
    last = frame.groupby("method", sort=False).last()
    assert last.loc["RED++", "products"] < last.loc["RED", "products"] <= frame["products"].max()
    assert (last["bytes"] < frame["bytes"].iloc[0] / 3).all()
    few = draw_steps(frame[["method", "step", "products", "accuracy"]]).axes
    assert [ax.axison for ax in few] == [True, True]


def test_a_density_marks_each_mode_and_cut():
    density = estimate_density(torch.randn(300))
    ax = plot_density(density.frame())
    dots = next(line for line in ax.lines if line.get_label() == "mode")
    assert len(dots.get_xdata()) == len(density.modes)
    ticks = next(c for c in ax.collections if c.get_label() == "cut")
    assert len(ticks.get_segments()) == len(density.cuts)


def test_a_constant_layer_can_be_drawn():
    plot_density(estimate_density(torch.ones(4)).frame()).figure.canvas.draw()


def test_the_collapse_shows_every_layer_in_order(layers):
    ax = plot_collapse(layers)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(layers["layer"])
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first layer stands on top"


def test_small_multiples_draw_each_value_once_and_hide_the_rest():
    frame = pd.concat([estimate_density(torch.randn(50)).frame(layer=name) for name in "abcde"])
    figure = small_multiples(frame, plot_density, by="layer", columns=3)
    shown = [ax.get_title().splitlines()[0] for ax in figure.axes if ax.get_visible()]
    assert shown == list("abcde")


def test_two_hundred_lines_look_different():
    n = 200
    assert len({(own["color"], str(own["linestyle"]), own["marker"]) for own in map(look, range(n))}) == n


def test_saving_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    saved = []
    for folder in ("one", "two"):
        monkeypatch.setenv("REDLAB_OUT", str(tmp_path / folder))
        save_figure(plot_density(estimate_density(np.linspace(-1, 1, 50)).frame()).figure, "05_name")
        saved.append({p.name: p.read_bytes() for p in sorted((tmp_path / folder / "figures").iterdir())})
    assert set(saved[0]) == {"05_name.png", "05_name.pdf"}
    assert saved[0] == saved[1]


def page_of(pdf: bytes) -> str:
    """What draws the page: of all that the file holds compressed, the longest that draws."""
    parts = []
    for start in re.finditer(rb"stream\r?\n", pdf):
        try:
            parts.append(zlib.decompressobj().decompress(pdf[start.end() :]))
        except zlib.error:
            continue
    return max((part for part in parts if b" cm /" in part), key=len).decode("latin-1")


def test_a_pdf_does_not_depend_on_the_last_digits_of_what_it_shows(tmp_path):
    """Those differ from processor to processor: sums are made in another order."""
    numbers = np.random.default_rng(0)
    x, y = numbers.normal(size=(2, 300))
    pages = {}
    for name, noise in (("here", 0), ("there", 1e-13)):
        figure, ax = plt.subplots()
        (marks,) = ax.plot(x * (1 + noise * numbers.choice([-1, 1], 300)), y, "o")
        ax.vlines(np.sort(x) * (1 + noise), -4, -3)
        save_figure(figure, name, tmp_path)
        pages[name] = (tmp_path / f"{name}.pdf").read_bytes()
    assert pages["here"] == pages["there"]
    drawn = page_of(pages["here"])
    steps = np.array(re.findall(r"1 0 0 1 (\S+) (\S+) cm /M\d+ Do", drawn), dtype=float)
    figure.dpi = 72
    points = ax.transData.transform(marks.get_xydata())
    np.testing.assert_allclose(np.cumsum(steps, axis=0), points, atol=0.05)  # of 1/72 inch
