"""Pictures of inspected checkpoints: readable for eight tensors and for hundreds."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from redlab import inspect_checkpoint
from redlab.paths import shipped
from redlab.studies.plots.inspection import (
    plot_tensor_entropy,
    plot_tensor_error,
    plot_tensor_products,
    plot_tensor_values,
    save_figures,
)

PLOTS = (plot_tensor_values, plot_tensor_error, plot_tensor_products, plot_tensor_entropy)
each_plot = pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)


@pytest.fixture(scope="module")
def digits() -> pd.DataFrame:
    return inspect_checkpoint(shipped("digits/resnet.safetensors"))


def made(names: list[str]) -> pd.DataFrame:
    """A frame of matrices with these names."""
    k = pd.Series(range(1, len(names) + 1))
    frame = pd.DataFrame({"tensor": names, "shape": "10x10", "dtype": "bfloat16", "weights": 100, "zeros": 0})
    counts = frame.assign(distinct_before=90, modes=20, distinct=20 + k % 7, error=0.01 * (k % 5), duplicates=0)
    return counts.assign(expected=50.0, measured=49, entropy=4.5, unhashed="", shares="", file="a.pt", skipped="")


def layers(n: int) -> pd.DataFrame:
    return made(["embed.weight", *(f"model.layers.{k}.{name}.weight" for k in range(n) for name in ("q", "k", "mlp"))])


def labels(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


@each_plot
@pytest.mark.parametrize("tensors", [8, 301])
def test_every_picture_names_its_axes_and_leaves_the_style_alone(plot, tensors, digits):
    before = dict(mpl.rcParams)
    ax = plot(digits if tensors == 8 else layers(100))
    assert ax.get_xlabel()
    assert ax.get_title()
    assert dict(mpl.rcParams) == before
    _, other = plt.subplots()
    assert plot(digits, other) is other


@each_plot
def test_no_text_is_smaller_than_nine_points_and_no_label_overlaps(plot, digits):
    for frame in (digits, layers(100), made([f"block{k}{'x' * 90}.weight" for k in range(39)])):
        ax = plot(frame)
        ax.figure.canvas.draw()
        texts = [text for text in ax.figure.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]
        assert min(text.get_fontsize() for text in texts) >= 9
        boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))
        assert all(box.x0 >= 0 for box in boxes)
        assert ax.get_window_extent().width > 250
        assert ax.figure.get_size_inches()[1] <= 12


def test_few_tensors_stand_in_a_row_each_in_their_order(digits):
    ax = plot_tensor_error(digits)
    assert labels(ax) == digits.loc[digits["shape"].str.contains("x"), "tensor"].tolist()
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first one stands on top"


def test_many_tensors_share_the_row_of_their_role():
    ax = plot_tensor_error(layers(100))
    roles = [f"model.layers.*.{name}.weight  (100)" for name in ("q", "k", "mlp")]
    assert labels(ax) == ["embed.weight  (1)", *roles]
    assert len(ax.lines[0].get_xdata()) == 301
    heights = ax.lines[0].get_ydata()
    assert (abs(heights - heights.round()) <= 0.31).all()
    assert heights[1] < heights[-3], "the first layer above the last one"


def test_digits_within_words_are_a_role_too_and_the_rest_is_together():
    assert labels(plot_tensor_error(made([f"stage{k}.conv.weight" for k in range(50)]))) == ["stage*.conv.weight  (50)"]
    names = [f"{chr(97 + k // 26)}{chr(97 + k % 26)}.weight" for k in range(60)]
    shown = labels(plot_tensor_error(made(names)))
    assert len(shown) == 40
    assert shown[-1] == "all others  (21)"


def test_what_was_not_measured_is_not_drawn():
    frame = layers(3)
    frame.loc[0, "skipped"] = "it holds 1 NaN and 0 infinite values"
    frame.loc[1, "shape"] = "100"
    assert len(plot_tensor_values(frame).lines[0].get_xdata()) == len(frame) - 2


def test_figures_are_saved_as_png_and_pdf(digits, tmp_path):
    save_figures(digits, tmp_path / "figures")
    found = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert found == sorted(f"{n}.{kind}" for n in ("values", "error", "products", "entropy") for kind in ("png", "pdf"))
    assert plt.get_fignums() == []
