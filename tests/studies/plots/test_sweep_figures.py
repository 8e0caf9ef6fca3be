"""Pictures of sweeps: what is averaged, in which order, and what is refused."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from redlab.studies.plots.sweeps import draw_sweep, plot_sweep, rows_where


@pytest.fixture
def frame() -> pd.DataFrame:
    """Two rules at three errors with two seeds, whose accuracies differ by 2 about their mean."""
    rows = [
        {"rule": rule, "max_error": error, "seed": seed, "accuracy": level - 100 * error + 2 * seed}
        for rule, level in (("kde", 80), ("uniform", 90))
        for error in (0.3, 0.1, 0.2)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def lines(ax) -> dict[str, tuple[list, list]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}


def test_a_line_is_the_mean_over_seeds_in_the_order_of_numbers(frame):
    ax = plot_sweep(frame, "max_error", "accuracy", "rule")
    found = lines(ax)
    assert list(found) == ["kde", "uniform"]
    assert found["kde"][0] == [0.1, 0.2, 0.3]
    np.testing.assert_allclose(found["kde"][1], [71, 61, 51])
    np.testing.assert_allclose(found["uniform"][1], [81, 71, 61])
    assert ax.get_xlabel() == "max error"
    assert ax.get_ylabel() == "accuracy (%)"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["kde", "uniform"]


def test_the_band_is_one_deviation_to_each_side(frame):
    band = plot_sweep(frame, "max_error", "accuracy", "rule").collections[0]
    corners = band.get_paths()[0].vertices
    at = corners[np.isclose(corners[:, 0], 0.2)][:, 1]
    np.testing.assert_allclose([at.min(), at.max()], [61 - 2**0.5, 61 + 2**0.5])


def test_a_single_seed_has_no_band_and_no_warning(frame):
    band = plot_sweep(frame[frame["seed"] == 0], "max_error", "accuracy", "rule").collections[0]
    corners = band.get_paths()[0].vertices
    assert set(corners[np.isclose(corners[:, 0], 0.2)][:, 1]) == {60}


def test_text_stands_in_the_order_in_which_it_comes(frame):
    names = {0.3: "much", 0.1: "little", 0.2: "some"}
    frame = frame.assign(how=frame["max_error"].map(names))
    frame = frame[(frame["rule"] == "kde") | (frame["how"] != "much")]  # the second line lacks one
    ax = plot_sweep(frame, "how", "accuracy", "rule")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["much", "little", "some"]
    found = lines(ax)
    assert found["kde"][0] == [0, 1, 2]
    np.testing.assert_allclose(found["kde"][1], [51, 71, 61])
    assert found["uniform"][0] == [1, 2]
    np.testing.assert_allclose(found["uniform"][1], [81, 71])


def test_it_draws_into_given_axes_and_one_line_for_values_that_are_missing(frame):
    ax = plt.figure().add_subplot()
    frame = frame.assign(rule=frame["rule"].where(frame["rule"] == "kde"))
    assert plot_sweep(frame, "max_error", "accuracy", "rule", ax=ax) is ax
    assert list(lines(ax)) == ["kde", "nan"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("max_eror", "accuracy", "rule"), r"unknown column 'max_eror' \(did you mean max_error\?\); known: rule, max"),
        (("max_error", "acuracy", "rule"), r"did you mean accuracy\?"),
        (("max_error", "accuracy", "rul"), r"did you mean rule\?"),
        (("max_error", "rule", "seed"), "column 'rule' holds 'kde', no number: it cannot be drawn upwards"),
    ],
)
def test_a_column_that_cannot_be_drawn_is_refused(frame, names, message):
    with pytest.raises(ValueError, match=message):
        plot_sweep(frame, *names)
    assert not plt.get_fignums()


@pytest.mark.parametrize("y", ["accuracy", "rule"])
def test_a_frame_without_rows_is_refused(frame, y):
    with pytest.raises(ValueError, match="there are no rows to draw"):
        plot_sweep(frame.iloc[:0], "max_error", y, "seed")


@pytest.mark.slow
def test_the_file_is_written_and_the_same_again(frame, tmp_path):
    path = draw_sweep(frame, "max_error", "accuracy", "rule", tmp_path)
    assert path == tmp_path / "accuracy_over_max_error_by_rule.png"
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert draw_sweep(frame, "max_error", "accuracy", "rule", tmp_path).read_bytes() == first
    assert not plt.get_fignums()


def test_a_column_with_a_slash_in_its_name_has_a_file_too(frame, tmp_path):
    path = draw_sweep(frame.rename(columns={"accuracy": "top-1/top-5"}), "max_error", "top-1/top-5", "rule", tmp_path)
    assert path == tmp_path / "top-1-top-5_over_max_error_by_rule.png"
    assert path.is_file()


def test_only_rows_that_meet_every_condition_are_drawn():
    frame = pd.DataFrame({"method": ["a", "a", "b"], "keep": [0.5, 0.2, 0.5]})
    assert rows_where(frame, []).equals(frame)
    assert rows_where(frame, ["method=a", "keep=0.5"]).index.tolist() == [0]


def test_conditions_that_no_row_can_meet_are_refused_with_what_there_is():
    frame = pd.DataFrame({"method": ["a", "b"]})
    with pytest.raises(ValueError, match=r"unknown column 'metod' \(did you mean method\?\)"):
        rows_where(frame, ["metod=a"])
    with pytest.raises(ValueError, match="no row has method=c; method is a, b"):
        rows_where(frame, ["method=c"])
