"""Sweeps: every point once, side by side or not, and failures kept, told and tried again."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import sys
from pathlib import Path

import pandas as pd
import pytest
from commands import redlab_says
from tiny import comparable, is_alive, times_executed, told, wait_until, write_counted

from redlab.lab import runs
from redlab.lab import workers as engines
from redlab.lab.jupyter_kernel import surroundings
from redlab.lab.results import load_runs
from redlab.lab.sweeps import describe, sweep
from redlab.lab.workers import check_engine, threads_each


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, pd.DataFrame, list[str]]:
    """A sweep of two points with jobs=2 on six cores, neither of which ends before the other has begun."""
    folder = tmp_path_factory.mktemp("swept")
    notebook = write_counted(folder)
    point = {"log": str(folder / "log"), "meet": 2, "rate": "1e-3"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "cores", lambda: 6)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setattr(sys, "stderr", terminal := Terminal())
        spec = {"notebook": notebook, "points": [point], "grid": {"n": [2, 3]}, "seeds": [5]}
        frame = sweep(spec, folder / "out", jobs=2, notebooks=notebook.parent)
    return folder, frame, terminal.getvalue().split("\r")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_two_jobs_run_side_by_side_and_share_the_cores(swept):
    folder, _, _ = swept
    starts, ends = told(folder / "log"), told(folder / "log", "end")
    assert len(starts) == len(ends) == 2
    assert max(facts["time"] for facts in starts) < min(facts["time"] for facts in ends)
    assert len({facts["pid"] for facts in starts}) == 2
    assert {facts["threads"] for facts in starts} == {"3"}


@pytest.mark.slow
def test_one_job_gives_what_two_give(swept, tmp_path):
    folder, frame, _ = swept
    point = {"log": str(tmp_path / "log"), "rate": 1e-3}
    spec = {"notebook": "01", "points": [point], "grid": {"n": [2, 3]}, "seeds": [5]}
    alone = sweep(spec, tmp_path / "out", notebooks=folder / "notebooks")
    pd.testing.assert_frame_equal(comparable(alone), comparable(frame))
    assert [facts["n"] for facts in told(tmp_path / "log")] == [2, 3]
    first, second = told(tmp_path / "log", "end")[0], told(tmp_path / "log")[1]
    assert first["time"] < second["time"]
    assert first["threads"] == os.environ.get("OMP_NUM_THREADS")  # left to its environment


def test_the_frame_has_every_row_of_every_point_with_its_parameters(swept):
    folder, frame, _ = swept
    assert frame["square"].tolist() == [4, -4, 9, -9]
    assert frame["share"].tolist() == [1e-3 / 2, 5 / 7, 1e-3 / 3, 5 / 7]
    points = frame[["n", "seed", "rate", "how"]].drop_duplicates()
    assert points.to_numpy().tolist() == [[2, 5, 1e-3, ""], [3, 5, 1e-3, ""]]
    assert frame.attrs == {"without": [], "failed": []}
    pd.testing.assert_frame_equal(comparable(load_runs(folder / "out")), comparable(frame))
    assert all((folder / "out" / name / "run.json").is_file() for name in load_runs(folder / "out")["run"])


def test_each_point_leaves_a_whole_folder_that_says_how_it_came_about(swept):
    folder, frame, _ = swept
    for name in frame["run"].unique():
        found = sorted(path.name for path in Path(name).iterdir())
        assert found == ["executed.ipynb", "figures", "results.parquet", "run.json"]
        assert (Path(name) / "figures" / "square.txt").is_file()
        facts = json.loads((Path(name) / "run.json").read_text())
        told_there = ["notebook", "parameters", "python", "platform", "threads", "versions", "commit", "seconds"]
        assert list(facts) == told_there  # no user, no host
        assert facts["parameters"]["seed"] == 5
        assert facts["threads"] == 3
        assert facts["seconds"] > 0
        assert socket.gethostname() not in facts["platform"].split()
    assert not list((folder / "out").rglob("*.part"))
    assert not (folder / "figures").exists()


def test_a_terminal_sees_points_and_the_time_left(swept):
    _, _, lines = swept
    assert any(re.search(r"points: +50%.* 1/2 \[\d\d:\d\d<\d\d:\d\d", line) for line in lines)


def test_what_is_done_is_not_executed_again(swept, monkeypatch):
    folder, frame, _ = swept
    monkeypatch.setattr(runs, "execute", None)
    point = {"log": str(folder / "log"), "meet": 2, "rate": 1e-3, "n": 3, "seed": 5}
    again = sweep({"notebook": "counted", "points": [point]}, folder / "out", notebooks=folder / "notebooks")
    assert again["square"].tolist() == [9, -9]
    assert set(again["run"]) == set(frame["run"][frame["n"] == 3])


@pytest.mark.slow
def test_failures_are_kept_with_their_notebooks_listed_and_tried_again(tmp_path, monkeypatch):
    notebook, log, spec = write_counted(tmp_path), tmp_path / "log", tmp_path / "spec.yml"
    grid = 'grid: {how: ["", raise, die, hang]}'
    spec.write_text(f"notebook: {notebook}\n{grid}\npoints: [{{log: {log}, n: 2}}]\n")
    monkeypatch.chdir(tmp_path)
    words = ("sweep", "spec.yml", "--out", "out", "--jobs", "2", "--timeout", "7.5")

    code, said, complained = redlab_says(*words)
    assert code == 1
    assert times_executed(log) == {2: 4}
    assert len(re.findall(r"^\[\d/4\] .*how=\w+.*: FAILED, \w+Error$", said, re.M)) == 3
    assert len(re.findall(r"^\[\d/4\] .*: done in [\d.]+ s$", said, re.M)) == 1
    assert re.search(r"^1 point, 2 rows, in out/01_counted", said, re.M)
    listed = dict(re.findall(r"  01_counted: (\w+): .*\n    (out/.*executed.ipynb)\n", complained))
    assert set(listed) == {"ZeroDivisionError", "DeadKernelError", "CellTimeoutError"}
    assert "not yet" in Path(listed["ZeroDivisionError"]).read_text()
    for path in map(Path, listed.values()):
        assert json.loads(path.with_name("failed.json").read_text())["parameters"]["n"] == 2
        assert not path.with_name("run.json").exists()
    assert "3 of 4 points failed; the next call tries them again" in complained
    assert len(load_runs("out")) == 2
    wait_until(lambda: not any(is_alive(facts["pid"]) for facts in told(log)))  # the one that hung too

    (tmp_path / "mended").touch()
    code, said, complained = redlab_says(*words[:6])
    assert (code, complained) == (0, "")
    assert times_executed(log) == {2: 7}
    assert said.count("was done before") == 1
    assert said.count("done in") == 3
    assert load_runs("out")["how"].value_counts().to_dict() == {"": 2, "raise": 2, "die": 2, "hang": 2}


@pytest.fixture
def quick(tmp_path, monkeypatch) -> Path:
    """A folder where sweeps take no time: nothing is executed, and points with ``how: raise`` fail."""

    def execute(_path, work, changed, *_):
        if changed.get("how") == "raise":
            raise ZeroDivisionError("not yet")
        pd.DataFrame({"square": [changed.get("n", 1) ** 2]}).to_parquet(work / "results.parquet")

    monkeypatch.setattr(runs, "execute", execute)
    monkeypatch.chdir(tmp_path)
    return write_counted(tmp_path)


def test_from_python_failures_are_a_warning_and_the_rest_a_frame(quick, tmp_path):
    spec = {"notebook": quick, "grid": {"how": ["raise", ""], "n": [2, 3]}}
    with pytest.warns(UserWarning, match=r"2 of 4 points failed:\n01_counted failed: ZeroDivisionError: not yet; see"):
        frame = sweep(spec, tmp_path / "out")
    assert frame["square"].tolist() == [4, 9]
    assert len(frame.attrs["failed"]) == 2
    assert str(tmp_path / "out" / "01_counted") in frame.attrs["failed"][0]


def test_a_sweep_whose_points_all_fail_is_an_empty_frame(quick, tmp_path):
    with pytest.warns(UserWarning, match="1 of 1"):
        frame = sweep({"notebook": quick, "points": [{"how": "raise"}]}, tmp_path / "out")
    assert frame.empty
    assert redlab_says("sweep", write_spec("notebook: {}\npoints: [{{how: raise}}]", quick))[0] == 1


def write_spec(text: str, notebook: Path) -> str:
    Path("spec.yml").write_text(text.format(notebook))
    return "spec.yml"


def test_the_command_draws_and_says_where(quick):
    spec = write_spec("notebook: {}\ngrid: {{n: [1, 2, 3]}}\nseeds: 2", quick)
    code, said, _ = redlab_says("sweep", spec, "--out", "out", "--plot", "n", "square", "seed")
    assert code == 0
    assert "6 points, 6 rows, in out/01_counted; load_runs reads them" in said
    assert "plot in out/01_counted/square_over_n_by_seed.png" in said
    assert Path("out/01_counted/square_over_n_by_seed.png").is_file()
    code, said, complained = redlab_says("sweep", spec, "--out", "out", "--plot", "n", "squares", "seed")
    assert code == 1
    assert "unknown column 'squares' (did you mean square?)" in complained
    assert "6 points" in said
    Path("out/01_counted/square_over_n_by_rate.png").mkdir()  # in the way
    code, _, complained = redlab_says("sweep", spec, "--out", "out", "--plot", "n", "square", "rate")
    assert code == 1
    assert "square_over_n_by_rate.png" in complained


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebook: {}\ngrid: {{raet: [1.0]}}", "unknown parameter of 01_counted 'raet' (did you mean rate?)"),
        ("notebook: {}\ngrid: {{1: [1.0]}}", "unknown parameter of 01_counted '1'"),
        ("notebook: {}\ngrid: {{n: [1, 2, many]}}", "parameter 'n' of 01_counted is int like 1; got 'many'"),
        ("notebook: {}\ngird: {{n: [1]}}", "unknown key 'gird' (did you mean grid?)"),
        ("notebook: 01_weight_densty", "unknown notebook '01_weight_densty' (did you mean 01_weight_density?)"),
        ("notebook: missing.ipynb", "unknown notebook 'missing'"),
        ("grid: {{n: [1]}}", "it must name a notebook"),
        ("notebook: [{}", "spec.yml is no YAML: "),
        ("- {}", "spec.yml must hold the keys notebook, grid, points, seeds"),
        ("notebook: {}\ngrid: {{n: [1], n: [2]}}", "spec.yml: 'n' is set twice: again in line 2"),
        ("notebook: {}\ngrid: {{n: [1]}}\npoints: [{{n: 2}}]", "'n' is set twice: in grid, in points, or by seeds"),
        ("notebook: {}\ngrid: {{seed: [1]}}\nseeds: 3", "'seed' is set twice"),
        ("notebook: 01_weight_density\nseeds: 3", "no parameter `seed` or `seeds`"),
    ],
)
def test_a_wrong_specification_exits_with_2_before_anything_runs(quick, monkeypatch, text, message):
    monkeypatch.setattr(runs, "execute", None)
    code, said, complained = redlab_says("sweep", write_spec(text, quick), "--out", "out")
    assert (code, said) == (2, "")
    assert complained.startswith("redlab: ")
    assert message in complained
    assert not Path("out").exists()


def test_wrong_words_exit_with_2_before_anything_runs(quick, monkeypatch):
    monkeypatch.setattr(runs, "execute", None)
    spec = write_spec("notebook: {}", quick)
    for words, message in (
        (["missing.yml"], "there is no file missing.yml"),
        ([spec, "--jobs", "0"], "jobs must be a whole number of at least 1, not 0"),
        ([spec, "--jobs", "2", "--dask", "tcp://127.0.0.1:1"], "either jobs or dask"),
        ([spec, "--timeout", "0"], "timeout must be a positive number of seconds, not 0.0"),
        ([spec, "--jobs", "many"], "'--jobs'"),
    ):
        code, said, complained = redlab_says("sweep", *words, "--out", "out")
        assert (code, said) == (2, "")
        assert message in complained
    assert not list(Path().glob("out/*/*"))


def test_a_disk_error_ends_the_command_with_1_and_no_traceback(quick, monkeypatch):
    Path("taken").touch()
    code, _, complained = redlab_says("sweep", write_spec("notebook: {}", quick), "--out", "taken")
    assert code == 1
    assert "taken" in complained


def test_results_damaged_after_the_run_end_the_command_with_1_by_name(quick, monkeypatch):
    spec = write_spec("notebook: {}", quick)
    assert redlab_says("sweep", spec, "--out", "out")[0] == 0
    results = next(Path("out").rglob("results.parquet"))
    results.write_bytes(b"nonsense with the right end PAR1")
    code, _, complained = redlab_says("sweep", spec, "--out", "out")
    assert code == 1
    assert f"{results} is damaged" in complained


def test_jobs_share_the_cores_and_respect_the_limit_of_the_user(monkeypatch):
    monkeypatch.setattr(engines, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_each(jobs) for jobs in (1, 2, 3, 8, 20)] == [None, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert [threads_each(jobs) for jobs in (1, 2, 3, 8)] == [None, 2, 2, 1]
    for nothing in ("", "0", "many", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert threads_each(2) == 4
        assert surroundings(Path())["threads"] == os.cpu_count()


@pytest.mark.parametrize("jobs", [0, -1, 1.5, 2.0, "2", None, True])
def test_jobs_is_a_count(jobs):
    with pytest.raises(ValueError, match="at least 1"):
        check_engine(jobs, None)


def test_a_point_in_a_line():
    assert describe({}) == "default parameters"
    assert describe({"n": 3, "how": "raise"}) == "n=3, how=raise"
