"""docs/cluster.md: its commands and its Python are executed here, on this machine and without Slurm."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from commands import redlab_says
from tiny import told, write_counted

import redlab
from redlab.lab import workers as engines
from redlab.lab.sweeps import read_spec

dask = pytest.importorskip("dask")
pytest.importorskip("dask_jobqueue")
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def block(language: str, word: str, folder: Path) -> str:
    """The one block of code that holds this word, with ``folder`` for the file system that is shared."""
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.S) if word in text]
    assert len(found) == 1, (language, word, len(found))
    return found[0].replace("/shared/me", str(folder))


@pytest.fixture
def certified(tmp_path, monkeypatch) -> Path:
    """A shared folder with the page's certificate and configuration, which this process reads."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl on PATH")
    subprocess.run(["bash", "-ec", block("bash", "openssl", tmp_path)], check=True, capture_output=True)
    settings = block("yaml", "require-encryption", tmp_path)
    (tmp_path / "tls" / "dask.yml").write_text(settings)
    # What DASK_CONFIG does when Dask is imported.
    with dask.config.set(dask.config.merge(dask.config.config, yaml.safe_load(settings))):
        yield tmp_path


def test_the_certificate_is_for_its_owner_and_passes_the_strict_rules(certified):
    assert (certified / "tls").stat().st_mode & 0o77 == 0
    assert (certified / "tls" / "key.pem").stat().st_mode & 0o77 == 0
    own = str(certified / "tls" / "cert.pem")
    subprocess.run(["openssl", "verify", "-x509_strict", "-CAfile", own, own], check=True, capture_output=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_the_commands_by_hand_make_a_cluster_that_talks_tls_alone(certified, monkeypatch):
    monkeypatch.setattr(engines, "_CONNECT", 30)
    port, log = free_port(), certified / "log"
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    export = block("bash", "export DASK_CONFIG", certified)
    local = {"8786": str(port), "HEAD": "127.0.0.1", "--nworkers 2": "--nworkers 1", "/tmp/dask-me": str(certified)}
    started = []
    try:
        for word in ("dask scheduler", "dask worker"):
            text = block("bash", word, certified)
            for ours, here in local.items():
                text = text.replace(ours, here)
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            started.append(subprocess.Popen(["bash", "-c", export + text], start_new_session=True, **quiet))
        (certified / "sweep.yml").write_text(f"notebook: {write_counted(certified)}\npoints: [{{n: 3, log: {log}}}]\n")
        words = shlex.split(block("bash", "runs --dask", certified).replace("sweep.yml", str(certified / "sweep.yml")))
        words = [word.replace("HEAD:8786", f"127.0.0.1:{port}") for word in words]
        assert words.pop(0) == "redlab"
        code, said, complained = redlab_says(*words)
        assert (code, complained) == (0, "")
        assert "1 point, 2 rows" in said
        assert list((certified / "runs" / "01_counted").rglob("run.json"))
        (facts,) = told(log)
        assert facts["threads"] == "4"
        assert facts["parent"] != os.getpid()

        monkeypatch.setattr(engines, "_CONNECT", 2)
        for required, reason in ((True, "encryption required"), (False, "")):
            plain = {"distributed.comm.require-encryption": required}
            with dask.config.set(plain), pytest.raises(ConnectionError, match=f"no Dask scheduler answers.*{reason}"):
                list(engines.map_unordered(int, [("1",)], 1, f"tcp://127.0.0.1:{port}"))
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_slurm_script_asks_for_what_a_kernel_needs_and_talks_tls(certified, monkeypatch, capsys):
    from dask_jobqueue import SLURMCluster

    asked, clusters = [], []
    start = SLURMCluster.__init__

    def remember(cluster, *args, **options):
        clusters.append(cluster)
        start(cluster, *args, **options)

    def sweep(spec, out, dask):
        asked.append(("sweep", spec, out, dask))
        return pd.DataFrame({"n": [1]})

    monkeypatch.chdir(certified)
    monkeypatch.setattr(SLURMCluster, "__init__", remember)
    monkeypatch.setattr(SLURMCluster, "adapt", lambda _, **limits: asked.append(("adapt", limits)))
    monkeypatch.setattr(SLURMCluster, "wait_for_workers", lambda _, count: asked.append(("wait", count)))
    monkeypatch.setattr(redlab, "sweep", sweep)
    try:
        exec(compile(block("python", "SLURMCluster(", certified), "docs/cluster.md", "exec"), {})
        (cluster,) = clusters
        address = cluster.scheduler_address
    finally:
        for cluster in clusters:
            cluster.close()
    script = capsys.readouterr().out.splitlines()
    header = [line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")]
    assert {"-p normal", "-A my_project", "-n 1", "--cpus-per-task=4", "--mem=15G", "-t 04:00:00"} <= set(header)
    assert f"export DASK_CONFIG={certified}/tls/dask.yml" in script
    assert "export OMP_NUM_THREADS=4" in script
    command = script[-2] if not script[-1] else script[-1]
    tls = certified / "tls"
    assert command.startswith(f"{sys.executable} -m distributed.cli.dask_worker tls://")
    assert "--nthreads 1 " in command
    assert (
        f"--protocol tls:// --tls-ca-file {tls}/cert.pem --tls-cert {tls}/cert.pem --tls-key {tls}/key.pem" in command
    )
    assert address.startswith("tls://")
    assert asked == [
        ("adapt", {"minimum_jobs": 1, "maximum_jobs": 20}),
        ("wait", 1),
        ("sweep", "sweep.yml", f"{certified}/runs", address),
    ]
    assert (certified / "sweep.parquet").is_file()


def test_the_sweep_of_the_page_is_one(tmp_path):
    (tmp_path / "sweep.yml").write_text(block("yaml", "grid:", tmp_path))
    assert len(read_spec(tmp_path / "sweep.yml").points) == 6


def test_the_page_is_true_of_the_installed_options():
    """Each option that the page names is one of the command that it stands behind."""
    from distributed.cli import dask_scheduler, dask_worker

    for word, command in (("dask scheduler", dask_scheduler.main), ("dask worker", dask_worker.main)):
        options = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
        assert set(re.findall(r"--[a-z-]+", block("bash", word, Path()))) <= options
    words = redlab_says("sweep", "--help")[1]
    assert all(option in words for option in re.findall(r"--[a-z]+", block("bash", "--jobs", Path())))
