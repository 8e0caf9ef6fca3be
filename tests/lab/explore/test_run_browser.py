"""Two runs side by side, from folders that are written here by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from redlab import compare_runs
from redlab.lab.explore import runs as run_browser
from redlab.lab.explore.runs import differing, label_of

SHADES = {"kde": 40, "lloyd": 90, "uniform": 200}


@pytest.fixture
def write(tmp_path):
    """Writes a finished run: its key, its parameters, what it recorded, its pictures of one shade each."""

    def write(
        key: str, parameters: dict, frame=None, pictures=("02_a", "02_b"), shade: int = 0, name="02_x", ended: int = 0
    ) -> Path:
        folder = tmp_path / name / key
        (folder / "figures").mkdir(parents=True)
        for picture in pictures:
            Image.new("RGB", (30, 20), (shade, 0, 0)).save(folder / "figures" / f"{picture}.png")
            (folder / "figures" / f"{picture}.pdf").touch()
        if frame is not None:
            frame.to_parquet(folder / "results.parquet")
        facts = {"notebook": name, "parameters": parameters, "seconds": 1.5}
        (folder / "run.json").write_text(json.dumps(facts))
        os.utime(folder / "run.json", (ended, ended))
        return folder

    return write


@pytest.fixture
def sweep(write, tmp_path):
    """Three rules at two bandwidths."""
    for k, (rule, shade) in enumerate(SHADES.items()):
        for bandwidth in ("silverman/12", "silverman/4"):
            frame = pd.DataFrame({"layer": ["p", "q"], "accuracy": [90.0 + k, 92.0], "error": [0.1 * k, 0.1]})
            params = {"network": "digits/mlp", "rule": rule, "bandwidth": bandwidth, "levels": [1, 2], "quick": False}
            write(f"{rule}{bandwidth[10:]}", params, frame, shade=shade)
    return tmp_path


def labels(pair):
    return list(pair.explorer.choices[1].options(pair.explorer.values))


def shown(figure):
    return [int(ax.images[0].get_array()[0, 0, 0]) for ax in figure.axes]


def test_runs_are_called_by_exactly_the_parameters_that_differ(sweep):
    assert labels(compare_runs(sweep)) == [
        f"rule={rule}, bandwidth=silverman/{width}" for rule in sorted(SHADES) for width in (4, 12)
    ]


def test_both_pictures_are_drawn_under_what_differs_between_the_two(sweep):
    left, right = "rule=uniform, bandwidth=silverman/4", "rule=kde, bandwidth=silverman/4"
    figure = compare_runs(sweep).figure(left=left, right=right, picture="02_b")
    assert shown(figure) == [SHADES["uniform"], SHADES["kde"]]
    assert [ax.get_title() for ax in figure.axes] == ["rule=uniform", "rule=kde"]
    assert figure.get_suptitle() == "02_x, 02_b"
    assert figure.axes[0].images[0].get_array().shape == (20, 30, 3)


def test_words_say_what_differs_and_the_means_that_differ_most(sweep):
    explorer = compare_runs(sweep).explorer
    values = explorer.values | {
        "left": "rule=kde, bandwidth=silverman/4",
        "right": "rule=lloyd, bandwidth=silverman/12",
    }
    _, words = explorer.png(values)
    wanted = "rule kde and lloyd; bandwidth silverman/4 and silverman/12. Means of 2 and 2 rows: "
    assert words == wanted + "error 0.05 and 0.1; accuracy 91 and 91.5."
    _, words = explorer.png(explorer.values)
    assert words == "bandwidth silverman/4 and silverman/12. The means of all that they recorded are equal."


def test_at_most_five_means_are_told_and_none_that_only_one_has(write, tmp_path):
    wide = {f"c{k}": [1.0] for k in range(8)}
    write("k1", {"n": 1}, pd.DataFrame(wide | {"own": [3.0], "gap": [np.nan], "flag": [True]}))
    write(
        "k2", {"n": 2}, pd.DataFrame({name: [2.0 + k] for k, name in enumerate(wide)} | {"gap": [1.0], "flag": [False]})
    )
    explorer = compare_runs(tmp_path).explorer
    _, words = explorer.png(explorer.values)
    assert words == "n 1 and 2. Means of 1 and 1 rows: c7 1 and 9; c6 1 and 8; c5 1 and 7; c4 1 and 6; c3 1 and 5."


def test_runs_that_recorded_nothing_can_be_compared(write, tmp_path):
    write("k1", {"n": 1})
    write("k2", {"n": 2}, pd.DataFrame({"a": [1.0]}))
    explorer = compare_runs(tmp_path).explorer
    assert explorer.png(explorer.values)[1] == "n 1 and 2. They recorded no numbers that both have."


def test_what_two_runs_share_decides_what_may_be_chosen(write, tmp_path):
    write("k1", {"n": 1}, pictures=["02_a", "02_b"])
    write("k2", {"n": 2}, pictures=["02_b"])
    write("k3", {"n": 3}, pictures=["02_a"])
    write("k4", {"n": 4}, pictures=["02_c"])
    write("k1", {"n": 1}, name="03_y")
    explorer = compare_runs(tmp_path).explorer
    notebook, left, right, picture = (choice.options for choice in explorer.choices)
    assert list(notebook({})) == ["02_x"]
    assert list(left({"notebook": "02_x"})) == ["n=1", "n=2", "n=3"]
    assert list(right({"notebook": "02_x", "left": "n=1"})) == ["n=2", "n=3"]
    assert list(right({"notebook": "02_x", "left": "n=2"})) == ["n=1"]
    assert list(picture({"notebook": "02_x", "left": "n=1", "right": "n=2"})) == ["02_b"]


def test_of_several_runs_of_one_point_the_last_counts(write, tmp_path):
    write("k1", {"n": 1}, shade=10, ended=20)
    write("k2", {"n": 1}, shade=20, ended=10)
    write("k3", {"n": 2}, shade=30)
    assert shown(compare_runs(tmp_path).figure()) == [10, 30]


def test_no_label_holds_a_path_of_this_machine(write, tmp_path):
    for key, network in {"k1": "/data/one/net", "k2": "/data/two/net", "k3": "digits/mlp"}.items():
        write(key, {"network": network})
    assert labels(compare_runs(tmp_path)) == ["network=digits/mlp", "network=net", "network=net (2)"]


def test_parameters_differ_where_their_values_do_or_one_lacks_them():
    runs = [{"a": 1, "b": [1, 2], "c": None, "d": "x"}, {"a": 1, "b": [1, 3], "d": "x", "e": False}]
    assert differing(runs) == ["b", "c", "e"]
    assert label_of(runs[0], differing(runs)) == "b=[1, 2], c=null, e=?"
    assert differing(runs[:1]) == []
    assert label_of(runs[0], []) == "default parameters"


def test_an_unknown_run_is_refused_with_the_known_ones(sweep):
    with pytest.raises(ValueError, match=r"left cannot be 'rule=kd'.*rule=kde, bandwidth=silverman/4"):
        compare_runs(sweep).figure(left="rule=kd")


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_runs_say_what_there_is_and_how_to_make_more(write, tmp_path, count):
    write("k0", {"n": 0}, pictures=[])
    for k in range(count):
        write(f"k{k + 1}", {"n": k + 1})
    with pytest.raises(ValueError, match=f"{tmp_path} holds {count} finished runs with figures: `redlab sweep .*yml`"):
        compare_runs(tmp_path).figure()
    with pytest.raises(ValueError, match=f"there is no {tmp_path / 'none'}: `redlab sweep"):
        compare_runs(tmp_path / "none").figure()


def test_elsewhere_than_in_jupyterlab_it_is_one_line_and_the_disk_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("REDLAB_OUT", str(tmp_path))  # even where another test has imported ipykernel
    monkeypatch.setattr(run_browser, "_found", lambda folder: pytest.fail("looked for runs"))
    bundle = compare_runs()._repr_mimebundle_()
    assert list(bundle) == ["text/plain"]
    assert bundle["text/plain"].count("\n") == 0
    assert bundle["text/plain"] == repr(compare_runs())


def test_live_it_is_shown_and_a_reader_without_runs_is_told_how_to_make_some(sweep, monkeypatch):
    monkeypatch.setattr("redlab.lab.explore.explorer.is_live", lambda: True)
    monkeypatch.setattr(run_browser, "is_live", lambda: True)
    assert "application/vnd.jupyter.widget-view+json" in compare_runs(sweep)._repr_mimebundle_()
    told = compare_runs(sweep / "02_x" / "kde4")._repr_mimebundle_()
    assert list(told) == ["text/plain"]
    assert "redlab sweep" in told["text/plain"]


def test_without_a_folder_it_is_the_checkouts_runs(sweep, monkeypatch):
    (sweep / "checkout").mkdir()
    (sweep / "02_x").rename(sweep / "checkout" / "runs")
    monkeypatch.setattr(run_browser, "checkout", lambda: sweep / "checkout")
    assert len(labels(compare_runs())) == 6
