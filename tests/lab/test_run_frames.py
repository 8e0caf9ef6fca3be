"""One frame of many runs, from folders that are written here by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from redlab.lab.results import join_runs, load_runs

FRAME = pd.DataFrame({"layer": ["a", "b"], "accuracy": [1.0, 2.0]})


@pytest.fixture
def write(tmp_path):
    """Writes a finished run: its key, its parameters, what it recorded, when it ended."""

    def write(key: str, parameters: dict, frame: pd.DataFrame | None = FRAME, ended: int = 0, name="01_a") -> Path:
        folder = tmp_path / name / key
        folder.mkdir(parents=True)
        facts = {"notebook": name, "parameters": parameters, "seconds": 1.5}
        (folder / "run.json").write_text(json.dumps(facts))
        os.utime(folder / "run.json", (ended, ended))
        if frame is not None:
            frame.to_parquet(folder / "results.parquet")
        return folder

    return write


def test_columns_stand_in_order_parameters_results_and_the_run(write, tmp_path):
    write("k2", {"n": 2, "levels": [1, 2], "name": None, "rate": 0.5})
    write("k1", {"n": 1, "levels": [], "name": "x", "rate": 1.0})
    found = load_runs(tmp_path)
    names = ["notebook", "n", "levels", "name", "rate", "layer", "accuracy", "seconds", "run"]
    assert list(found) == names
    assert found["n"].tolist() == [1, 1, 2, 2]
    assert found["levels"].tolist() == ["[]", "[]", "[1, 2]", "[1, 2]"]
    assert found["name"].isna().tolist() == [False, False, True, True]
    assert found["accuracy"].tolist() == [1.0, 2.0, 1.0, 2.0]
    assert found["seconds"].tolist() == [1.5] * 4
    assert found["run"].tolist() == ["01_a/k1", "01_a/k1", "01_a/k2", "01_a/k2"]
    assert found.index.tolist() == [0, 1, 2, 3]
    assert found.attrs == {"without": []}


def test_what_a_notebook_recorded_keeps_its_name(write, tmp_path):
    recorded = {"layer": ["own"], "notebook": ["mine"], "seconds": [0.25], "run": [7]}
    write("k1", {"layer": 3, "run": 4, "n": 1}, pd.DataFrame(recorded))
    (row,) = load_runs(tmp_path).to_dict("records")
    assert {name: row[name] for name in recorded} == {"layer": "own", "notebook": "mine", "seconds": 0.25, "run": 7}
    assert {name: value for name, value in row.items() if name not in recorded} == {
        "parameter_layer": 3,
        "parameter_run": 4,
        "n": 1,
        "run_notebook": "01_a",
        "run_seconds": 1.5,
        "run_folder": "01_a/k1",
    }


def test_levels_of_the_index_that_have_a_name_become_columns(write, tmp_path):
    write("k1", {}, FRAME.set_index("layer"))
    write("k2", {"n": 1}, FRAME.set_axis([5, 5]), name="02_b")  # no name, and not even distinct
    write("k3", {}, FRAME.rename_axis("accuracy"), name="03_c")  # one that there is already
    found = load_runs(tmp_path)
    assert found["layer"].tolist() == ["a", "b"] * 3
    assert found["accuracy"].tolist() == [1.0, 2.0] * 3
    assert "index" not in found


def test_notebooks_with_different_columns_stand_in_one_frame(write, tmp_path):
    write("k1", {"n": 1})
    write("k1", {"m": 2}, pd.DataFrame({"loss": [0.5]}), name="02_b")
    found = load_runs(tmp_path)
    assert found["notebook"].tolist() == ["01_a", "01_a", "02_b"]
    assert found["loss"].isna().tolist() == [True, True, False]
    assert found["n"].isna().tolist() == [False, False, True]


def test_the_last_of_several_runs_of_one_point_counts(write, tmp_path):
    write("k2", {"n": 1}, FRAME.assign(accuracy=50.0), ended=20)
    write("k1", {"n": 1}, FRAME.assign(accuracy=40.0), ended=10)
    write("k0", {"n": 2}, FRAME.assign(accuracy=30.0), ended=5)
    write("k0", {"n": 1}, FRAME.assign(accuracy=20.0), ended=5, name="02_b")
    found = load_runs(tmp_path)
    assert found["accuracy"].tolist() == [30.0, 30.0, 50.0, 50.0, 20.0, 20.0]
    assert found["run"].unique().tolist() == ["01_a/k0", "01_a/k2", "02_b/k0"]


def test_runs_that_recorded_nothing_are_named(write, tmp_path):
    empty = write("k1", {"n": 1}, None)
    write("k2", {"n": 2}, FRAME.iloc[:0])
    assert load_runs(tmp_path).attrs == {"without": [str(empty)]}
    assert load_runs(tmp_path).empty
    assert load_runs(empty).empty
    assert list(join_runs([])) == ["notebook", "seconds", "run"]


def test_a_part_of_the_tree_can_be_loaded(write, tmp_path):
    write("k1", {"n": 1})
    write("k1", {"n": 2}, name="02_b")
    assert load_runs(tmp_path / "02_b")["run"].unique().tolist() == ["k1"]
    assert load_runs(tmp_path / "02_b" / "k1")["run"].unique().tolist() == ["."]


def test_a_sweep_that_goes_on_beside_does_not_disturb(write, tmp_path, monkeypatch):
    write("k1", {"n": 1})
    work = write(".k2.part", {"n": 2})
    scan = os.scandir

    def scan_late(path):
        """The run ends, and its folder gets its own name, before whoever saw the temporary one looks into it."""
        if Path(path) == work:
            work.rename(work.with_name("k2"))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_late)
    assert load_runs(tmp_path)["run"].unique().tolist() == ["01_a/k1"]


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path / 'none'}"):
        load_runs(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b""),
        ("run.json", b'{"notebook": "01_a", '),
        ("run.json", b'{"notebook": "01_a"}'),
        ("run.json", b"[]"),
        ("run.json", b"\xff"),
        ("run.json", b"[" * 100_000),
        ("run.json", b'{"notebook": "01_a", "parameters": "n", "seconds": 1}'),
        ("run.json", b'{"notebook": ["01_a"], "parameters": {}, "seconds": 1}'),
        ("run.json", b'{"notebook": "01_a", "parameters": {"n": "\\ud800"}, "seconds": 1}'),
        ("results.parquet", b""),
        ("results.parquet", b"PAR1 and nothing"),
        ("results.parquet", b"PAR1 a length that leads nowhere \xff\xff\xff\x00PAR1"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(write, tmp_path, name, content):
    write("k2", {"n": 2})
    damaged = write("k1", {"n": 1}) / name
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=f"{damaged} is damaged .*: delete the folder, and run it again"):
        load_runs(tmp_path)


def test_a_table_whose_own_notes_are_damaged_is_named(write, tmp_path):
    table = pa.table({"layer": ["a"]}).replace_schema_metadata({"pandas": '{"index_columns": ["gone"]}'})
    damaged = write("k1", {"n": 1}) / "results.parquet"
    pq.write_table(table, damaged)
    with pytest.raises(ValueError, match=f"{damaged} is damaged .*: delete the folder, and run it again"):
        load_runs(tmp_path)


def test_a_mark_that_is_a_link_to_nowhere_is_no_run(write, tmp_path):
    write("k1", {"n": 1})
    (mark := write("k2", {"n": 2}) / "run.json").unlink()
    mark.symlink_to(mark)
    assert load_runs(tmp_path)["n"].tolist() == [1, 1]
