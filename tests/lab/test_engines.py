"""Engines: a Dask cluster of real processes that die, and schedulers that are not there. Jobs are in test_sweeps.py."""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from commands import redlab_says
from remote import die_or_tell, where
from tiny import is_alive, times_executed, told, wait_until, write_counted

from redlab.lab import workers as engines
from redlab.lab.sweeps import sweep
from redlab.lab.workers import Killed, map_unordered

pytest.importorskip("distributed")
HERE = Path(__file__).resolve().parent
LOOPBACK = ["--host", "127.0.0.1", "--no-dashboard"]


@contextmanager
def started(module: str, *words: object) -> Iterator[subprocess.Popen]:
    """A process of Dask, which ends with the block."""
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options["env"] = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [HERE.parent, HERE]))}
    process = subprocess.Popen([sys.executable, "-m", f"distributed.cli.{module}", *map(str, words)], **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str, subprocess.Popen, list[subprocess.Popen]]]:
    """(address, scheduler, workers with a thread each), all on this machine."""
    file = folder / "scheduler.json"
    with ExitStack() as stack:
        scheduler = stack.enter_context(started("dask_scheduler", *LOOPBACK, "--port", 0, "--scheduler-file", file))
        words = ["--scheduler-file", file, "--nthreads", 1, "--no-nanny", "--local-directory", folder]
        team = [stack.enter_context(started("dask_worker", *words, *LOOPBACK)) for _ in range(workers)]
        wait_until(lambda: file.is_file() and file.read_text().endswith("}"))
        yield json.loads(file.read_text())["address"], scheduler, team


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_point(tmp_path):
    notebook, log = write_counted(tmp_path), tmp_path / "log"
    spec = {"notebook": notebook, "grid": {"n": [1, 2, 3], "seed": [0, 1]}, "points": [{"log": str(log)}]}
    (tmp_path / "hold2").touch()  # both workers come to hold a point of n = 2, and one dies with it
    with cluster(tmp_path, 2) as (address, _, team):
        killer = threading.Thread(target=kill_one_at_work, args=(log, tmp_path / "hold2"))
        killer.start()
        frame = sweep(spec, tmp_path / "out", dask=address)
        killer.join()
        wait_until(lambda: [worker.poll() for worker in team].count(-signal.SIGKILL) == 1)
        assert [worker.poll() for worker in team].count(None) == 1
    starts = told(log)
    assert {facts["parent"] for facts in starts} == {worker.pid for worker in team}
    ends = sorted((facts["n"], facts["seed"]) for facts in told(log, "end"))
    assert ends == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert len(starts) == 7
    assert frame["square"].tolist() == [1, -1, 1, -1, 4, -4, 4, -4, 9, -9, 9, -9]
    assert frame.attrs["failed"] == []


def kill_one_at_work(log: Path, hold: Path, at_work: int = 2) -> None:
    wait_until(lambda: [facts["n"] for facts in told(log)].count(2) == at_work)
    victim = next(facts for facts in told(log) if facts["n"] == 2)
    os.kill(victim["parent"], signal.SIGKILL)
    wait_until(lambda: not is_alive(victim["pid"]))  # its kernel ends by itself
    hold.unlink()


def test_a_scheduler_that_dies_in_the_middle_ends_the_sweep_with_a_message(tmp_path):
    """One worker with one thread does the work itself: nothing runs in this process."""
    with cluster(tmp_path, 1) as (address, scheduler, (worker,)):
        done = map_unordered(where, [(0,), (60,)], 1, address)
        assert next(done) == worker.pid
        scheduler.kill()
        with pytest.raises(ConnectionError, match=f"scheduler at {address} went away; call again to continue"):
            next(done)


def test_a_call_that_kills_every_worker_is_given_up_by_name_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")  # by default it may try three others
    with cluster(tmp_path, 2) as (address, _, team):
        done = list(map_unordered(die_or_tell, [(False,), (False,), (True,)], 1, address))
    (killed,) = [own for own in done if isinstance(own, Killed)]
    assert killed.call == (True,)
    assert "died" in killed.message
    assert {own for own in done if own is not killed} <= {worker.pid for worker in team}
    assert len(done) == 3


@pytest.mark.slow
def test_a_point_that_kills_its_workers_has_failed_by_name_and_the_others_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    notebook, log = write_counted(tmp_path), tmp_path / "log"
    spec = {"notebook": notebook, "grid": {"n": [1, 2]}, "points": [{"log": str(log)}]}
    (tmp_path / "hold2").touch()
    with cluster(tmp_path, 2) as (address, _, _):
        killer = threading.Thread(target=kill_one_at_work, args=(log, tmp_path / "hold2", 1))
        killer.start()
        with pytest.warns(UserWarning, match="1 of 2 points failed:\n01_counted failed: KilledWorker") as caught:
            frame = sweep(spec, tmp_path / "out", dask=address)
        killer.join()
    said = str(caught[0].message)
    assert re.search("died at the point log=.*, n=2 .* or leave the point out: the next call tries it again", said)
    assert "call again" not in said
    assert frame["square"].tolist() == [1, -1]
    (facts,) = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("failed.json")]
    assert (facts["parameters"]["n"], facts["error"]) == (2, "KilledWorker")
    swept = sweep(spec, tmp_path / "out")  # without the killer it is done, and nothing else is
    assert swept["square"].tolist() == [1, -1, 4, -4]
    assert times_executed(log) == {1: 1, 2: 2}
    assert not list((tmp_path / "out").rglob("failed.json"))


def test_a_cluster_of_another_environment_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def act(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    act = importlib.import_module("only_here").act
    with cluster(tmp_path, 1) as (address, _, _), pytest.raises(ConnectionError, match="No module named 'only_here'"):
        list(map_unordered(act, [()], 1, address))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(engines, "_CONNECT", 1)


@pytest.mark.slow
def test_no_scheduler_at_the_address_is_a_clear_error_soon(impatient, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        spec = {"notebook": str(write_counted(tmp_path))}
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=f"no Dask scheduler answers at {address}"):
            sweep(spec, tmp_path / "out", dask=address)
        assert time.monotonic() - start < 15
        (tmp_path / "spec.yml").write_text(json.dumps(spec))
        code, _, complained = redlab_says("sweep", str(tmp_path / "spec.yml"), "--dask", address)
    assert code == 1
    assert complained.startswith(f"redlab: no Dask scheduler answers at {address}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["nonsense", "carrier-pigeon://127.0.0.1:1", "tls://127.0.0.1:1"])
def test_an_address_that_cannot_be_used_is_a_clear_error(impatient, address):
    with pytest.raises(ConnectionError, match=f"no Dask scheduler answers at {address}"):
        list(map_unordered(where, [(0,)], 1, address))


@pytest.mark.slow
def test_a_client_that_failed_is_gone_before_the_next_one(impatient):
    """Collected inside the next one it would wait for a lock that its own thread holds."""
    from distributed import Client

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ConnectionError):
            list(map_unordered(where, [(0,)], 1, "tcp://127.0.0.1:1"))
        assert not [found for found in gc.get_objects() if type(found) is Client]
    finally:
        gc.enable()


def test_a_scheduler_without_workers_is_a_clear_error_soon(impatient):
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="localhost:0") as empty,
        pytest.raises(ConnectionError, match="has no workers"),
    ):
        list(map_unordered(where, [(0,)], 1, empty.scheduler_address))
