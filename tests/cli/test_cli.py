"""The command line: quick to answer, exact about what it refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from commands import redlab_says
from nbformat import v4, write
from servers import free_port, lab

import redlab
from redlab import paths
from redlab.cli import main as cli
from redlab.cli.completion import complete_datasets, complete_networks
from redlab.lab import runs
from redlab.lab.kinds import from_text, kind_of
from redlab.lab.parameters import typed_parameters

GOOD = """
import pandas as pd
from redlab.lab.runs import output_folder, record
(output_folder() / "01_good.png").touch()
record(pd.DataFrame({"n": [n]}))
"""


IN_CHECKOUT = "from redlab import paths\nfrom redlab.cli.main import app\npaths.PACKAGE = paths.Path({!r})\napp()"


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout with a good and a bad notebook, which is also the current folder."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name, parameters, body in (
        ("01_good", 'n = 3\nrate = 0.5\nquick = False\nnetwork = "digits/resnet"', GOOD),
        ("02_bad", "n = 3\nquick = False", "raise ValueError('too bad')"),
    ):
        cell = v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        write(v4.new_notebook(cells=[cell, v4.new_code_cell(body.strip())]), folder / f"{name}.ipynb")
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "redlab")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_answers_without_importing_anything_heavy():
    heavy = {"torch", "torchvision", "pandas", "numpy", "matplotlib", "papermill", "rich", "yaml"}
    code = (
        "import sys\nfrom redlab.cli.main import app\n"
        f"try: app(['--help'])\nfinally: print('heavy:', sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "heavy: []" in done.stdout
    assert all(command in done.stdout for command in ("run", "refresh", "lab"))


def test_one_failure_leaves_the_others_whole_and_is_listed_at_the_end(checkout):
    code, said, complained = redlab_says("run", "bad", "good")
    assert code == 1
    assert "[1/2] 02_bad: FAILED, ValueError" in said
    assert re.search(r"\[2/2\] 01_good: done in [\d.]+ s; 1 figure in figures; results in runs/01_good/\w+/res", said)
    assert "1 of 2 notebooks failed" in complained
    assert "02_bad: ValueError: too bad" in complained
    notebook = Path(complained.strip().splitlines()[-1].strip())
    assert notebook.name == "executed.ipynb"
    assert "too bad" in notebook.read_text()
    assert (checkout / "figures" / "01_good.png").is_file()

    code, said, _ = redlab_says("run", "01", "01_good")
    assert code == 0
    assert said.count("was done before") == 1


@pytest.mark.parametrize("command", [["run", "--out", "taken"], ["refresh"], ["refresh", "--check"]])
def test_what_cannot_be_written_ends_a_command_with_1_and_its_message(checkout, monkeypatch, command):
    (checkout / "taken").touch()
    (checkout / "runs").touch()
    code, said, complained = redlab_says(*command)
    assert code == 1
    assert said == "[1/2] 01_good: stopped\n"
    assert complained.startswith("redlab: ")
    assert str(checkout / command[-1] if command[0] == "run" else checkout / "runs") in complained


def test_parameters_out_and_quick_reach_the_run(checkout, monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "run_notebook", lambda *args, **kwargs: seen.append((args, kwargs)) or finished(checkout))
    code, said, _ = redlab_says("run", "1", "-p", "n", "-4", "--quick", "-p", "rate", "1e-3", "--out", "there")
    assert code == 0
    ((path, params, out), options) = seen[0]
    assert (path.stem, params, out) == ("01_good", {"n": -4, "rate": 1e-3, "quick": True}, Path("there"))
    assert options == {"again": False, "progress": False}
    assert "no figures; no results" in said


def finished(folder: Path) -> runs.Run:
    return runs.Run(folder / "some", "01_good", {}, 1.0)


def test_every_notebook_runs_by_default_and_refresh_too(checkout, monkeypatch):
    for command, function in (("run", "runs.run_notebook"), ("refresh", "refresh.refresh")):
        seen = []
        stand_in = lambda path, *_, seen=seen, **__: seen.append(path) or finished(checkout)  # noqa: E731
        monkeypatch.setattr(f"redlab.lab.{function}", stand_in)
        assert redlab_says(command)[0] == 0
        assert [path.stem for path in seen] == ["01_good", "02_bad"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "07"], "unknown notebook '07'; known: 01_good, 02_bad"),
        (["refresh", "godo"], "did you mean 01_good?"),
        (["run", "01", "-p", "rat", "1"], "unknown parameter of 01_good 'rat' (did you mean rate?)"),
        (["run", "-p", "rate", "0.1"], "unknown parameter of 02_bad 'rate'"),
        (["run", "01", "-p", "n", "many"], "parameter 'n' of 01_good is int like 3; got 'many'"),
        (["run", "01", "-p", "n"], "-p takes a name and a value"),
        (["run", "01", "-p", "network", "digits/resnett"], "digits/resnet"),
        (["run", "--no-such-option"], "--no-such-option"),
        (["walk"], "walk"),
    ],
)
def test_wrong_usage_exits_with_2_before_anything_runs(checkout, monkeypatch, words, message):
    monkeypatch.setattr(runs, "execute", None)
    code, _, complained = redlab_says(*words)
    assert code == 2
    assert message in complained
    assert not (checkout / "runs").exists()


def test_a_saved_network_is_handed_on_by_its_absolute_path(checkout):
    (checkout / "mine").mkdir()
    notebook = checkout / "notebooks" / "01_good.ipynb"
    assert typed_parameters(notebook, ["network=mine"]) == {"network": str(checkout / "mine")}
    assert typed_parameters(notebook, ["network=digits/mlp"]) == {"network": "digits/mlp"}


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("3", 1, 3),
        ("true", False, True),
        ("[1, 2]", [], [1, 2]),
        ("1e-3", 0.5, 1e-3),
        ("1e-3", None, 1e-3),
        ("null", 3, None),
        ("null", "kde", None),
        ("off", "kde", "off"),
        ("[1e-3, 2]", [0.5], [1e-3, 2]),
        ("2024-01-01", "kde", "2024-01-01"),
        ("2024-13-01", "kde", "2024-13-01"),
        ("silverman/10", "silverman/8", "silverman/10"),
        ("[broken", "kde", "[broken"),
        ("", "kde", ""),
        ("nan", None, "nan"),
    ],
)
def test_values_are_yaml_but_text_stays_text(text, default, value):
    got = from_text(text, kind_of(default))
    assert got == value
    assert type(got) is type(value)


def test_pairs_are_joined_up_to_the_double_dash():
    words = ["02", "-p", "a", "-1", "03", "--parameter", "b", "x=y", "-p", "c=2", "--", "-p", "d"]
    assert cli._join_pairs(words) == ["02", "-p", "a=-1", "03", "--parameter", "b=x=y", "-p", "c=2", "--", "-p", "d"]


def test_lab_opens_the_first_notebook_with_an_absolute_data_root(checkout, monkeypatch):
    words, environment = started_lab(checkout, monkeypatch, "--no-browser", "--port", "9999")
    assert words[:2] == ["-m", "jupyterlab"]
    assert words[2:4] == [
        f"--ServerApp.root_dir={checkout / 'notebooks'}",
        "--LabApp.default_url=/lab/tree/00_start_here.ipynb",
    ]
    assert words[-3:] == ["--no-browser", "--port", "9999"]
    assert words.count("--no-browser") == 1
    assert environment["REDLAB_DATA"] == str(checkout / "data here")


def test_lab_leaves_to_the_user_what_the_user_sets(checkout, monkeypatch):
    words, _ = started_lab(checkout, monkeypatch, "--LabApp.default_url=/lab", "--ip", "0.0.0.0")
    assert [word for word in words if word.startswith("--LabApp.default_url")] == ["--LabApp.default_url=/lab"]
    assert words[-2:] == ["--ip", "0.0.0.0"]


@pytest.mark.parametrize(("user", "display", "expected"), [(0, None, True), (1000, ":0", False)])
def test_lab_starts_as_root_and_without_a_display(checkout, monkeypatch, user, display, expected):
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display) if display else monkeypatch.delenv("DISPLAY", raising=False)
    words, _ = started_lab(checkout, monkeypatch)
    assert ("--allow-root" in words) is expected
    assert ("--no-browser" in words) is expected


def started_lab(checkout, monkeypatch, *words: str) -> tuple[list[str], dict[str, str]]:
    """What this Python would be started with, and its environment."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.setenv("REDLAB_DATA", "data here")
    (checkout / "notebooks" / "00_start_here.ipynb").touch()
    assert redlab_says("lab", *words)[0] == 0
    ((program, (first, *rest), environment),) = calls
    assert program == first == sys.executable
    return rest, environment


def test_the_lab_answers_those_who_have_its_token_on_this_machine_only(tmp_path):
    port = free_port()
    with lab(paths.checkout(), tmp_path, "--port", str(port)) as address:
        assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/lab/tree/00_start_here\.ipynb\?token=\w+", address)
        root, token = f"http://127.0.0.1:{port}", address.partition("?")[2]
        answer, page = asked(address)
        config = json.loads(re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
        assert "@jupyterlab/apputils-extension:announcements" in config["disabledExtensions"]
        assert answer.status == 200
        assert urlsplit(asked(address.removesuffix(f"?{token}"))[0].url).path == "/login"
        listed = json.loads(asked(f"{root}/api/contents?{token}")[1])["content"]
        assert "00_start_here.ipynb" in [entry["name"] for entry in listed]
        with pytest.raises(HTTPError, match="403"):
            asked(f"{root}/api/contents")
        assert listens_on(port) <= {"127.0.0.1", "::1"}


def asked(address: str) -> tuple[HTTPResponse, str]:
    with urlopen(address, timeout=30) as answer:
        return answer, answer.read().decode()


def listens_on(port: int) -> set[str]:
    """The addresses of this machine at which somebody listens on that port."""
    psutil = pytest.importorskip("psutil")
    found = {own.laddr.ip for own in psutil.net_connections("tcp") if own.status == "LISTEN" and own.laddr.port == port}
    assert found
    return found


def test_outside_a_checkout_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "redlab")
    monkeypatch.chdir(tmp_path)
    for words in (["run"], ["run", "01"], ["lab"]):
        code, _, complained = redlab_says(*words)
        assert code == 2
        assert "no folder `notebooks`" in complained


@pytest.mark.parametrize("command", ["run", "refresh", "sweep", "report", "compress", "inspect", "lab", "help"])
def test_help_says_the_same_as_the_option_in_plain_words(command):
    code, said, _ = redlab_says("help", command)
    assert (code, said) == redlab_says(command, "--help")[:2]
    assert not re.search(r"<[a-z\[\]]+>", said)  # <list[str]>, <path>: types of Python
    assert redlab_says("help")[:2] == redlab_says("--help")[:2]


def test_control_c_says_one_word_and_leaves_nothing_behind(checkout, monkeypatch):
    def interrupted(_path, work, *_):
        (work / "executed.ipynb").write_text("half")
        raise KeyboardInterrupt

    assert redlab_says("run", "01")[0] == 0
    before = files_below(checkout)
    monkeypatch.setattr(runs, "execute", interrupted)
    for words in (["run", "01", "--again"], ["run"], ["run", "02", "--out", "there"], ["refresh"], ["report"]):
        code, _, complained = redlab_says(*words)
        assert (code, complained) == (130, "interrupted\n")
        assert files_below(checkout) == before


def files_below(folder: Path) -> list[Path]:
    """All that lies there but locks, which a finished run leaves."""
    return sorted(path for path in folder.rglob("*") if path.suffix != ".lock")


SLOW_CELL = "import os, time\nopen(f'{os.environ[\"REDLAB_OUT\"]}/pid', 'w').write(str(os.getpid()))\ntime.sleep(60)"
SWEEP = ["sweep", "sweep.yml", "--jobs", "2"]


@pytest.mark.parametrize(
    ("words", "kernels"),
    [(SWEEP, 2), *(pytest.param(words, 1, marks=pytest.mark.slow) for words in (["run"], ["refresh"], SWEEP[:2]))],
)
def test_control_c_ends_every_kernel(checkout, words, kernels):
    for name in ("01_good", "02_bad"):
        cells = [v4.new_code_cell("n = 3", metadata={"tags": ["parameters"]}), v4.new_code_cell(SLOW_CELL)]
        write(v4.new_notebook(cells=cells), checkout / "notebooks" / f"{name}.ipynb")
    (checkout / "sweep.yml").write_text("notebook: 01\ngrid: {n: [1, 2, 3]}\n")
    before = sorted(checkout.rglob("*"))
    code = IN_CHECKOUT.format(str(checkout / "redlab"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Whoever runs the tests in the background has Ctrl-C ignored, and so would the command.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = subprocess.Popen([sys.executable, "-c", code, *words], preexec_fn=heard, **pipes)
    pids = started_kernels(checkout, kernels)
    command.send_signal(signal.SIGINT)
    _, complained = command.communicate(timeout=60)
    assert (command.returncode, complained) == (130, "interrupted\n")
    assert sorted(checkout.rglob("*")) == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def started_kernels(folder: Path, count: int) -> list[int]:
    """The processes of so many kernels, once they execute."""
    for _ in range(600):
        pids = [int(path.read_text() or 0) for path in folder.rglob("pid")]
        if len(pids) == count and all(pids):
            return pids
        time.sleep(0.1)
    raise TimeoutError(f"{count} kernels did not start")


def test_a_reader_that_has_gone_ends_a_run_without_a_word(checkout):
    code = IN_CHECKOUT.format(str(checkout / "redlab"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = subprocess.Popen([sys.executable, "-c", code, "help", "run"], **pipes)
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait() == 1


def test_version():
    assert redlab_says("--version") == (0, f"redlab {redlab.__version__}\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("word", ["--version", "--help", "help"])
def test_what_cannot_be_printed_is_one_message(word):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "redlab.cli", word]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "redlab: [Errno 28] No space left on device\n")


def test_the_tab_key_offers_what_files_define_and_runs_none_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "cats").mkdir(parents=True)
    code = "raise SystemExit\nclass Net: pass\ndef make(): pass\ndef _own(): pass\nx = 1"
    for name, text in {"nets.py": code, "images/more.py": "def cats(): pass", "bad.py": "def ("}.items():
        (tmp_path / name).write_text(text)
    assert complete_networks("ne") == complete_networks("nets.py") == ["nets.py:Net", "nets.py:make"]
    assert complete_networks("nets.py:m") == complete_datasets("nets.py:m") == ["nets.py:make"]
    assert complete_networks("images/") == ["images/more.py:cats"]
    assert complete_networks("bad") == []
    assert complete_datasets("folder:im") == ["folder:images"]
    assert complete_datasets("folder:images/") == ["folder:images/cats"]
    assert complete_datasets("fo") == ["folder:"]
