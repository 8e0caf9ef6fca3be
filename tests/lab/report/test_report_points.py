"""What notebooks record, read by the names of its columns, and the points that stand for the others."""

from __future__ import annotations

import pandas as pd
import pytest

from redlab.lab.report.points import Recorded, best_of_each, points_of
from redlab.lab.report.tables import grouped_table, summary, whole_frame


def recorded(rows: dict, notebook: str = "05_red", **attrs: object) -> Recorded:
    frame = pd.DataFrame(rows)
    frame.attrs = attrs
    return Recorded(frame, notebook, "redlab run 05")


def test_seeds_are_averaged_and_the_setting_says_what_a_method_has_several_of():
    rows = {"method": "a", "keep": [0.5, 0.5, 0.2], "seed": [0, 1, 0], "scope": "layer", "rule": "kde"}
    points = points_of(recorded({**rows, "products": [0.5, 0.3, 0.2], "accuracy": [90.0, 80.0, 50.0], "network": "n"}))
    assert points[["setting", "products", "accuracy"]].to_numpy().tolist() == [
        ["keep 0.5", pytest.approx(0.4), pytest.approx(85.0)],
        ["keep 0.2", 0.2, 50.0],
    ]


@pytest.mark.parametrize(
    ("rows", "attrs", "column", "value"),
    [
        ({"share": [0.1]}, {"of": "products"}, "products", 0.1),
        ({"share": [0.1]}, {"of": "distinct weight values"}, "values", 0.1),
        ({"share": [0.1]}, {"of": "channels"}, "channels", 0.1),
        ({"share": [0.1], "products_before": [8], "products_after": [2]}, {}, "products", 0.25),
        ({"sparsity": [0.9]}, {}, "weights", 0.1),
        ({"bits": [2.5], "sparsity": [0.9]}, {}, "bits", 2.5),
        ({"kilobytes": [130.0]}, {}, "kilobytes", 130.0),
    ],
)
def test_what_is_left_is_read_whatever_the_notebook_calls_it(rows, attrs, column, value):
    (point,) = points_of(recorded({**rows, "accuracy": [90.0], "before": [91.0]}, **attrs)).to_dict("records")
    assert point[column] == pytest.approx(value)
    assert point["rank"] == point[column]


def test_a_method_stands_at_the_least_that_is_left_for_a_point_of_accuracy():
    rows = {"method": list("aaabb"), "products": [0.9, 0.6, 0.1, 0.9, 0.5], "before": 91.0, "network": "n"}
    points = points_of(recorded({**rows, "accuracy": [91.0, 90.0, 80.0, 85.0, 84.0]}))
    best = best_of_each(points, ["network", "method"]).set_index("method")
    assert best.loc["a", "products"] == 0.6
    assert best.loc["b", "accuracy"] == 85.0  # all lose more than a point: the highest accuracy
    assert best_of_each(points, ["network"])["method"].tolist() == ["a"]


def test_frames_without_an_accuracy_have_no_points_and_gaps_are_left_out():
    assert points_of(recorded({"layer": ["conv1"], "error": [0.1]})).empty
    assert summary([recorded({"layer": ["conv1"]})], {}) == "<p>No run has recorded an accuracy.</p>"
    assert len(points_of(recorded({"accuracy": [float("nan"), 90.0], "unit": ["tap", None]}))) == 1


@pytest.mark.parametrize(
    ("rows", "networks"),
    [
        ({"network": [None, "a"]}, ["", "a"]),
        ({"network": [3, 4]}, ["3", "4"]),
        ({"network": ["a", "a"], "method": [None, None]}, ["a", "a"]),
    ],
)
def test_rows_without_a_network_or_a_method_stay(rows, networks):
    frame = pd.DataFrame({"accuracy": [98.0, 97.0], "alpha": [0.1, 0.2], **rows})
    points = points_of(Recorded(frame, "01_a", "redlab run 01"))
    assert points["accuracy"].tolist() == [98.0, 97.0]
    assert points["network"].tolist() == networks
    assert set(points["method"]) == {""}
    assert "98.00" in summary([Recorded(frame, "01_a", "redlab run 01")], {"01_a": "A"})


def test_stages_of_a_method_are_rows_of_their_own():
    rows = {"method": "a", "stage": ["pruned", "fine-tuned"], "accuracy": [50.0, 90.0], "products": 0.5}
    assert points_of(recorded(rows))["method"].tolist() == ["a, pruned", "a, fine-tuned"]


def test_tables_escape_what_they_show():
    rows = {"method": ["<b>"], "accuracy": [90.0], "before": [90.5], "products": [0.01234], "network": "a&b"}
    html = summary([recorded(rows)], {"05_red": "05 · RED"})
    assert "&lt;b&gt;" in html
    assert "a&amp;b" in html
    assert "1.23&nbsp;%&nbsp;of&nbsp;products" in html
    assert '<a href="#05_red">05 · RED</a>' in html
    assert grouped_table(["<"], [("", [["1"]])]).count("&lt;") == 1


def test_a_long_frame_is_cut_and_says_where_the_rest_is():
    html = whole_frame(pd.DataFrame({"n": range(600)}), "600 rows", "runs/x/results.parquet")
    assert html.count("<tr") == 501
    assert "The first 500 of 600 rows; all are in runs/x/results.parquet." in html
    assert "border" not in html
