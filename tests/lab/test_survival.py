"""Sweeps that are killed, short of disk, or not alone: finished points stay whole, and only the rest is executed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tiny import comparable, is_alive, times_executed, told, wait_until, write_counted

from redlab.lab import runs
from redlab.lab.results import load_runs
from redlab.lab.sweeps import sweep

# One of two sweepers: it waits for the other, sweeps, and leaves its frame.
SWEEPER = """
import sys, time
from pathlib import Path
from redlab.lab.sweeps import sweep

folder, own, other = Path(sys.argv[1]), *sys.argv[2:]
(folder / own).touch()
while not (folder / other).exists():
    time.sleep(0.02)
sweep(folder / "spec.yml", folder / "out").to_parquet(folder / f"{own}.parquet")
"""


def write_spec(folder: Path, *points: dict) -> Path:
    """A sweep of these points, by default n = 1, 2 and 3."""
    points = points or ({"n": 1}, {"n": 2}, {"n": 3})
    spec = {"notebook": str(write_counted(folder)), "points": list(points), "grid": {"log": [str(folder / "log")]}}
    (folder / "spec.yml").write_text(yaml.safe_dump({**spec, "seeds": 1}))
    return folder / "spec.yml"


def command(folder: Path) -> list[str]:
    words = ["sweep", str(folder / "spec.yml"), "--out", str(folder / "out")]
    return [sys.executable, "-m", "redlab.cli", *words]


@pytest.fixture(scope="module")
def two_at_once(tmp_path_factory) -> Path:
    """The folder of a sweep that two processes made at the same time."""
    folder = tmp_path_factory.mktemp("two")
    write_spec(folder)
    start = [sys.executable, "-c", SWEEPER, str(folder)]
    both = [subprocess.Popen([*start, *names]) for names in (("one", "other"), ("other", "one"))]
    assert [process.wait(120) for process in both] == [0, 0]
    return folder


@pytest.mark.slow
def test_two_sweeps_of_one_folder_execute_each_point_once_and_both_get_all(two_at_once):
    assert times_executed(two_at_once / "log") == {1: 1, 2: 1, 3: 1}
    one, other = (pd.read_parquet(two_at_once / f"{name}.parquet") for name in ("one", "other"))
    assert one["square"].tolist() == [1, -1, 4, -4, 9, -9]
    pd.testing.assert_frame_equal(one, other)
    pd.testing.assert_frame_equal(comparable(load_runs(two_at_once / "out")), comparable(one))


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was_and_gives_the_same_results(two_at_once, tmp_path):
    spec, log, hold = write_spec(tmp_path), tmp_path / "log", tmp_path / "hold2"
    hold.touch()
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL)
    wait_until(lambda: 2 in times_executed(log))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kernel = told(log)[-1]["pid"]
    assert list((tmp_path / "out").rglob(".*.part"))
    assert load_runs(tmp_path / "out")["n"].tolist() == [1, 1]

    hold.unlink()
    frame = sweep(spec, tmp_path / "out")
    assert times_executed(log) == {1: 1, 2: 2, 3: 1}
    pd.testing.assert_frame_equal(comparable(frame), comparable(pd.read_parquet(two_at_once / "one.parquet")))
    assert not list((tmp_path / "out").rglob(".*.part"))
    wait_until(lambda: not is_alive(kernel))  # the one whose sweep was killed


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="cannot see here who waits for a lock")
def test_a_sweep_that_waits_for_a_killed_one_takes_over(tmp_path):
    """The second waits at the point that the first is executing, and gets it the moment that the first is killed."""
    write_spec(tmp_path, {"n": 1})
    (tmp_path / "hold1").touch()
    first = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL)
    wait_until(lambda: 1 in times_executed(tmp_path / "log"))
    second = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: waits_for_a_lock(second.pid))
    first.kill()
    first.wait()
    (tmp_path / "hold1").unlink()  # the kernel of the first goes on as well, while it lives
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    assert "1 point, 2 rows" in said
    assert times_executed(tmp_path / "log") == {1: 2}
    assert load_runs(tmp_path / "out")["square"].tolist() == [1, -1]


def waits_for_a_lock(pid: int) -> bool:
    return any(f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines() if "->" in line)


@pytest.mark.slow
def test_files_over_the_limit_are_a_clear_message_and_the_next_call_finishes(tmp_path):
    """A file size limit stands for the full disk: executed.ipynb, which this process writes, is over it at n = 3."""
    spec = write_spec(tmp_path, {"n": 1}, {"n": 3, "how": "print", "kilobytes": 200})
    limited = subprocess.run(
        command(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert limited.returncode == 1
    assert "[1/2] " in limited.stdout
    assert limited.stderr.count("\n") == 1
    assert limited.stderr.startswith("redlab: [Errno 27] File too large while 01_counted was run in ")
    assert limited.stderr.endswith("finished runs are whole: make room and call again\n")
    assert load_runs(tmp_path / "out")["n"].tolist() == [1, 1]
    assert not list((tmp_path / "out").rglob(".*.part"))

    frame = sweep(spec, tmp_path / "out")
    assert frame["n"].tolist() == [1, 1, 3, 3]
    assert times_executed(tmp_path / "log") == {1: 1, 3: 2}


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A file system with room for one point of 400 kB, not for two."""
    folder = tmp_path / "out"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here; the test with a file size limit does nearly the same")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_a_clear_message_and_the_next_call_with_room_finishes(small_disk):
    folder = small_disk.parent
    write_spec(folder, *({"n": n, "how": "write", "kilobytes": 400} for n in (1, 2)))
    full = subprocess.run(command(folder), capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert full.stdout.startswith("[1/2] ")
    assert full.stderr.startswith("redlab: [Errno 28] No space left on device while 01_counted was run in ")
    assert load_runs(small_disk)["n"].tolist() == [1, 1]
    assert not list(small_disk.rglob(".*.part"))

    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert sweep(folder / "spec.yml", small_disk)["n"].tolist() == [1, 1, 2, 2]
    assert times_executed(folder / "log") == {1: 1, 2: 2}


@pytest.fixture
def finished(tmp_path, monkeypatch) -> Path:
    """The folder of a finished run; to execute one takes no time here."""

    def execute(_path, work, changed, *_):
        (tmp_path / "log").open("a").write("executed\n")
        pd.DataFrame({"square": [changed["n"] ** 2]}).to_parquet(work / "results.parquet")

    monkeypatch.setattr(runs, "execute", execute)
    return Path(sweep_one(tmp_path)["run"][0])


def sweep_one(folder: Path) -> pd.DataFrame:
    return sweep({"notebook": write_counted(folder), "points": [{"n": 3}]}, folder / "out")


def test_half_written_folders_are_never_read(finished, tmp_path):
    out = tmp_path / "out"
    for name in (f".{finished.name}.part", f".{finished.name}.0123abcd.part", f".{finished.name}.old"):
        shutil.copytree(finished, finished.with_name(name))
    shutil.copytree(finished, finished.with_name("without"))
    (finished.with_name("without") / "run.json").rename(finished.with_name("without") / "failed.json")
    assert load_runs(out)["run"].tolist() == [f"01_counted/{finished.name}"]
    shutil.rmtree(finished)
    assert load_runs(out).empty
    assert sweep_one(tmp_path)["square"].tolist() == [9]
    assert (tmp_path / "log").read_text().count("executed") == 2
    assert sorted(path.name for path in finished.parent.iterdir() if path.is_dir()) == [finished.name, "without"]


@pytest.mark.parametrize("name", ["results.parquet", "run.json"])
@pytest.mark.parametrize("left", [0, 100])
def test_a_truncated_file_is_refused_by_name_and_its_point_is_executed_again(finished, tmp_path, name, left):
    damaged = finished / name
    damaged.write_bytes(damaged.read_bytes()[:left])
    with pytest.raises(ValueError, match=f"{damaged} is damaged .*: delete the folder, and run it again"):
        load_runs(tmp_path / "out")
    assert sweep_one(tmp_path)["square"].tolist() == [9]
    assert (tmp_path / "log").read_text().count("executed") == 2
    assert load_runs(tmp_path / "out")["square"].tolist() == [9]
    assert json.loads((finished / "run.json").read_text())["parameters"]["n"] == 3


def test_a_run_folder_that_lost_its_mark_is_executed_again(finished, tmp_path):
    os.remove(finished / "run.json")
    assert load_runs(tmp_path / "out").empty
    assert sweep_one(tmp_path)["square"].tolist() == [9]
    assert (tmp_path / "log").read_text().count("executed") == 2
