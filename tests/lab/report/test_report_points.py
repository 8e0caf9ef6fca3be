"""What notebooks record, read by the names of its columns, and the points that stand for the others."""

from __future__ import annotations

import pandas as pd
import pytest
from tiny import write_notebook

from redlab.lab.report.sources import Source
from redlab.lab.report.tables import middle_of_each, points_of, summary, whole_frame
from redlab.lab.runs import Run


def recorded(rows: dict, notebook: str = "05_red", **attrs: object) -> pd.DataFrame:
    """The points of what a notebook recorded."""
    frame = pd.DataFrame(rows)
    frame.attrs = attrs
    return points_of(frame, notebook, "redlab run 05")


def test_seeds_are_averaged_and_the_setting_says_what_a_method_has_several_of():
    rows = {"method": "a", "keep": [0.5, 0.5, 0.2], "seed": [0, 1, 0], "scope": "layer", "rule": "kde"}
    points = recorded({**rows, "products": [0.5, 0.3, 0.2], "accuracy": [90.0, 80.0, 50.0], "network": "n"})
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
    (point,) = recorded({**rows, "accuracy": [90.0], "before": [91.0]}, **attrs).to_dict("records")
    assert point[column] == pytest.approx(value)
    assert point["rank"] == point[column]


def test_a_method_stands_at_the_middle_of_what_is_left_whatever_its_accuracy():
    rows = {"method": list("aaabb"), "products": [0.9, 0.1, 0.6, 0.9, 0.5], "before": 91.0, "network": "n"}
    points = recorded({**rows, "accuracy": [91.0, 90.0, 80.0, 85.0, 84.0]})
    other = recorded({**rows, "accuracy": [10.0, 20.0, 91.0, 1.0, 91.0]})
    for found in (middle_of_each(points), middle_of_each(other)):
        assert dict(zip(found["method"], found["products"], strict=True)) == {"a": 0.6, "b": 0.9}


def test_rows_of_a_network_stand_together_in_the_order_of_the_first():
    one = recorded({"network": ["y", "x"], "accuracy": 90.0, "products": 0.5})
    two = recorded({"network": ["x", "y"], "accuracy": 90.0, "products": 0.5}, "06_next")
    found = middle_of_each(pd.concat([one, two], ignore_index=True))
    assert list(zip(found["network"], found["notebook"], strict=True)) == [
        ("y", "05_red"),
        ("y", "06_next"),
        ("x", "05_red"),
        ("x", "06_next"),
    ]


def test_an_accuracy_has_its_interval_and_its_images_where_they_were_recorded():
    rows = {"method": ["a"], "accuracy": [90.0], "images": [360], "accuracy_low": [86.5], "accuracy_high": [92.7]}
    html = summary([recorded({**rows, "network": "n"})], {})
    assert "90.00" in html
    assert "(86.5 to 92.7, n&nbsp;=&nbsp;360)" in html


def test_frames_without_an_accuracy_have_no_points_and_gaps_are_left_out():
    assert recorded({"layer": ["conv1"], "error": [0.1]}).empty
    assert summary([recorded({"layer": ["conv1"]})], {}) is None
    assert len(recorded({"accuracy": [float("nan"), 90.0], "unit": ["tap", None]})) == 1


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
    points = points_of(frame, "01_a", "redlab run 01")
    assert points["accuracy"].tolist() == [98.0, 97.0]
    assert points["network"].tolist() == networks
    assert set(points["method"]) == {""}
    assert "97.00" in summary([points], {"01_a": "A"})


def test_stages_of_a_method_are_rows_of_their_own():
    rows = {"method": "a", "stage": ["pruned", "fine-tuned"], "accuracy": [50.0, 90.0], "products": 0.5}
    assert recorded(rows)["method"].tolist() == ["a, pruned", "a, fine-tuned"]


def test_tables_escape_what_they_show():
    rows = {"method": ["<b>"], "accuracy": [90.0], "before": [90.5], "products": [0.01234], "network": "a&b"}
    html = summary([recorded(rows)], {"05_red": "05 · RED"})
    assert "&lt;b&gt;" in html
    assert "a&amp;b" in html
    assert "1.23&nbsp;%&nbsp;of&nbsp;multiplications" in html
    assert '<a href="#05_red">05 · RED</a>' in html


def test_a_long_frame_is_cut_and_says_where_the_rest_is(tmp_path):
    run = Run(tmp_path / "5c1a", "01_x", {}, 1.0)
    notebook = write_notebook(tmp_path / "01_x.ipynb", "n = 1")
    made = whole_frame(pd.DataFrame({"n": range(600), "<b>": "<i>"}), Source(run, notebook))
    assert made["table"].count("<tr") == 501
    assert (made["rows"], made["shown"], made["file"]) == (600, 500, "runs/01_x/5c1a/results.parquet")
    assert "border" not in made["table"]
    assert not {"<b>", "<i>"} & {made["table"][k : k + 3] for k in range(len(made["table"]))}


def test_of_code_the_command_and_the_network_name_the_file_and_no_folder(tmp_path):
    (tmp_path / "nets.py").touch()
    run = Run(tmp_path / "runs" / "01_x" / "5c1a", "01_x", {"network": f"{tmp_path}/nets.py:Net"}, 1.0)
    run.folder.mkdir(parents=True)
    pd.DataFrame({"accuracy": [90.0]}).to_parquet(run.folder / "results.parquet")
    source = Source(run, write_notebook(tmp_path / "notebooks" / "01_x.ipynb", 'network = "digits/mlp"'))
    assert source.command == "redlab run 01 -p network nets.py:Net"
    assert source.frame()["network"].tolist() == ["nets.py:Net"]
