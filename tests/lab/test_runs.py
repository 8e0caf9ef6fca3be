"""Runs: executed once, kept whole, refused early. Every test has its own tiny notebooks; each kernel costs seconds."""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat import v4
from tiny import write_notebook

from redlab.lab import jupyter_kernel as kernels
from redlab.lab import keys, runs
from redlab.lab.keys import run_key
from redlab.lab.notebooks import find_notebook, list_notebooks
from redlab.lab.parameters import changed_parameters, default_parameters
from redlab.lab.refresh import refresh
from redlab.lab.runs import RunFailed, output_folder, record, run_notebook

PARAMETERS = """
n = 3  # how many (n = 3 is few)
ratio: float = 0.5
name = "silverman/8"
flag = False
levels = [1, 2]
anything = None
"""
BODY = """
import os, warnings
import pandas as pd
from redlab.lab.runs import output_folder, record
(output_folder() / "01_tiny.png").write_text(str(n))
frame = record(pd.DataFrame({"n": [n], "data": [os.environ["REDLAB_DATA"]], "folder": [os.getcwd()]}))
"""
LOUD = """
import ipywidgets, sys
from tqdm.auto import tqdm
for _ in tqdm(range(3)):
    print("step", flush=True)
warnings.warn("careful")
display(ipywidgets.IntSlider())
print(os.environ["REDLAB_OUT"], os.getcwd(), sys.prefix, os.path.expanduser("~/x"))
output_folder()
"""
FRAGILE = """
import os
if how == "die":
    os._exit(1)
if how == "raise" and not os.path.exists("mended"):
    raise ZeroDivisionError("not yet")
"""


@pytest.fixture
def notebooks(tmp_path) -> Path:
    write_notebook(tmp_path / "notebooks" / "01_tiny.ipynb", PARAMETERS, BODY)
    write_notebook(tmp_path / "notebooks" / "02_fragile.ipynb", 'how = "raise"', FRAGILE)
    return tmp_path / "notebooks"


@pytest.fixture
def no_kernel(monkeypatch):
    def execute(*_args):
        raise AssertionError("nothing was to be executed")

    monkeypatch.setattr(runs, "execute", execute)


def test_a_run_leaves_a_whole_folder_and_the_second_call_finds_it(notebooks, monkeypatch):
    monkeypatch.chdir(notebooks.parent)
    monkeypatch.setenv("REDLAB_DATA", "elsewhere")  # relative: resolved here, not in the kernel's folder
    before = dict(os.environ)
    run = run_notebook("01", notebooks=notebooks)
    assert dict(os.environ) == before
    assert Path.cwd() == notebooks.parent
    assert run.folder == notebooks.parent / "runs" / "01_tiny" / run_key(notebooks / "01_tiny.ipynb", {})
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "executed.ipynb",
        "figures",
        "results.parquet",
        "run.json",
    ]
    assert run.results.to_dict("records") == [
        {"n": 3, "data": str(notebooks.parent / "elsewhere"), "folder": str(notebooks)}
    ]
    assert [path.name for path in run.figures] == ["01_tiny.png"]
    assert run.published == notebooks.parent / "figures"
    assert (run.published / "01_tiny.png").read_text() == "3"

    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["parameters"] == run.params == default_parameters(notebooks / "01_tiny.ipynb")
    assert {"python", "platform", "threads", "versions", "commit", "seconds"} <= set(facts)
    assert socket.gethostname() not in facts["platform"].split()

    (run.published / "01_tiny.png").unlink()
    monkeypatch.setattr(runs, "execute", None)
    cached = run_notebook("tiny", {"n": 3, "ratio": 0.5}, notebooks=notebooks)
    assert cached.cached
    assert (cached.folder, cached.seconds) == (run.folder, run.seconds)
    assert (cached.published / "01_tiny.png").is_file()


def test_other_parameters_run_once_in_threads_and_keep_their_figures_to_themselves(notebooks):
    folder = notebooks.parent / "out" / "01_tiny" / run_key(notebooks / "01_tiny.ipynb", {"n": 4})
    (folder.parent / f".{folder.name}.part" / "figures").mkdir(parents=True)  # what a killed run left behind
    (folder.parent / f".{folder.name}.part" / "results.parquet").write_text("half")
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda n: run_notebook(1, {"n": n}, folder.parents[1], notebooks=notebooks), [4, 4]))
    assert [run.folder for run in done] == [folder, folder]
    assert sorted(run.cached for run in done) == [False, True]
    assert done[0].results["n"].tolist() == [4]
    assert done[0].figures[0].read_text() == "4"
    assert done[0].published is None
    assert not (notebooks.parent / "figures").exists()
    assert not list(folder.parent.glob("*.part"))


def test_a_failed_run_says_where_and_is_tried_again(notebooks):
    with pytest.raises(RunFailed, match="02_fragile failed: ZeroDivisionError: not yet") as caught:
        run_notebook("fragile", notebooks=notebooks)
    failed = pickle.loads(pickle.dumps(caught.value))  # as it reaches us from another machine
    assert (failed.error, failed.message, failed.cell) == ("ZeroDivisionError", "not yet", FRAGILE.strip())
    assert "ZeroDivisionError" in failed.notebook.read_text()
    facts = json.loads((failed.folder / "failed.json").read_text())
    assert (facts["error"], facts["message"], facts["cell"]) == (failed.error, failed.message, failed.cell)
    assert facts["parameters"] == {"how": "raise"}
    assert not (failed.folder / "run.json").exists()

    (notebooks / "mended").touch()
    run = run_notebook("fragile", notebooks=notebooks)
    assert run.folder == failed.folder
    assert not run.cached
    assert sorted(path.name for path in run.folder.iterdir()) == ["executed.ipynb", "figures", "run.json"]
    with pytest.raises(FileNotFoundError):
        _ = run.results


def test_a_kernel_that_dies_leaves_no_finished_run(notebooks):
    with pytest.raises(RunFailed) as caught:
        run_notebook("02", {"how": "die"}, notebooks=notebooks)
    assert caught.value.error == "DeadKernelError"
    assert caught.value.cell == FRAGILE.strip()
    assert sorted(path.name for path in caught.value.folder.iterdir()) == ["executed.ipynb", "failed.json", "figures"]
    assert not list(caught.value.folder.parent.glob("*.part"))


@pytest.mark.parametrize("written", [None, '{"cells": [{"cell_t', "\xff", "{}"])
def test_a_notebook_cut_off_while_it_was_written_does_not_hide_the_reason(notebooks, monkeypatch, written):
    def execute(_path, work, *_):
        if written is not None:
            (work / "executed.ipynb").write_text(written, encoding="latin-1")
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(runs, "execute", execute)
    with pytest.raises(RunFailed, match="01_tiny failed: DeadKernelError: Kernel died; see ") as caught:
        run_notebook("01", notebooks=notebooks)
    assert caught.value.cell == ""
    assert json.loads((caught.value.folder / "failed.json").read_text())["error"] == "DeadKernelError"
    assert caught.value.notebook.name == ("failed.json" if written is None else "executed.ipynb")


def test_a_disk_that_fills_up_while_a_failure_is_written_is_told_and_nothing_is_left(notebooks, monkeypatch):
    def execute(_path, work, *_):
        (work / "executed.ipynb").write_text("half")
        raise DeadKernelError("Kernel died")

    def write(*_):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(runs, "execute", execute)
    monkeypatch.setattr(runs, "_write_json", write)
    with pytest.raises(OSError, match=r"No space left on device while 01_tiny was run in .*: make room and call again"):
        run_notebook("01", notebooks=notebooks)
    assert [path.suffix for path in (notebooks.parent / "runs" / "01_tiny").iterdir()] == [".lock"]


def test_an_input_output_error_of_another_kind_is_a_failure_like_any_other(notebooks, monkeypatch):
    def execute(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(runs, "execute", execute)
    with pytest.raises(RunFailed, match=r"01_tiny failed: OSError: .*Input/output error"):
        run_notebook("01", notebooks=notebooks)


def test_figures_of_default_parameters_are_published_unless_told_not_to(notebooks, monkeypatch):
    monkeypatch.setattr(runs, "execute", lambda _path, work, *_: (work / "figures" / "01_tiny.png").touch())
    assert run_notebook("01", notebooks=notebooks, publish=False).published is None
    assert not (notebooks.parent / "figures").exists()
    assert run_notebook("01", notebooks=notebooks).cached
    assert (notebooks.parent / "figures" / "01_tiny.png").is_file()


def test_two_calls_publish_the_figures_of_one_run_at_the_same_time(notebooks, monkeypatch):
    monkeypatch.setattr(runs, "execute", lambda _path, work, *_: (work / "figures" / "01_tiny.png").write_text("drawn"))
    copy = runs.shutil.copyfile

    def copy_while_another_call_publishes(source, target):
        copy(source, target)
        monkeypatch.setattr(runs.shutil, "copyfile", copy)
        assert run_notebook("01", notebooks=notebooks).cached

    monkeypatch.setattr(runs.shutil, "copyfile", copy_while_another_call_publishes)
    folder = run_notebook("01", notebooks=notebooks).published
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("01_tiny.png", "drawn")]


def test_figures_that_find_no_room_leave_nothing_half_written(notebooks, monkeypatch):
    monkeypatch.setattr(runs, "execute", lambda _path, work, *_: (work / "figures" / "01_tiny.png").touch())

    def copy_half(_source, target):
        target.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs.shutil, "copyfile", copy_half)
    with pytest.raises(OSError, match="No space left"):
        run_notebook("01", notebooks=notebooks)
    assert list((notebooks.parent / "figures").iterdir()) == []


def test_time_and_threads_reach_the_kernel(notebooks, monkeypatch):
    asked = {}
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **options: asked.update(options))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run = run_notebook("01", notebooks=notebooks, timeout=1.5, threads=3)
    assert asked["execution_timeout"] == 2  # whole seconds, as nbclient wants them
    assert type(asked["execution_timeout"]) is int
    assert json.loads((run.folder / "run.json").read_text())["threads"] == 3
    environment = kernels._kernel_environment(run.folder, 3)
    assert {environment[f"{name}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")} == {"3"}

    run = run_notebook("01", notebooks=notebooks, again=True)
    assert asked["execution_timeout"] is None
    assert json.loads((run.folder / "run.json").read_text())["threads"] == 7
    assert kernels._kernel_environment(run.folder, None)["OMP_NUM_THREADS"] == "7"


def test_a_kernel_imports_from_where_its_caller_does(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "mine")
    monkeypatch.syspath_prepend("")
    monkeypatch.chdir(tmp_path)
    places = kernels._kernel_environment(tmp_path, None)["PYTHONPATH"].split(os.pathsep)
    assert places[:2] == [str(tmp_path), str(tmp_path / "mine")]
    assert not [place for place in places if place.startswith(sys.prefix)]


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_time_that_is_none_is_refused_before_anything_runs(notebooks, no_kernel, timeout):
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds"):
        run_notebook("01", notebooks=notebooks, timeout=timeout)
    assert not (notebooks.parent / "runs").exists()


def test_refreshing_writes_the_same_bytes_again_and_nothing_of_this_machine(notebooks):
    path = write_notebook(notebooks / "01_tiny.ipynb", PARAMETERS, BODY, LOUD)
    refresh("tiny", notebooks=notebooks)
    first = path.read_bytes()
    run = refresh("tiny", notebooks=notebooks)
    assert not run.cached
    assert path.read_bytes() == first

    text, notebook = first.decode(), nbformat.reads(first.decode(), as_version=4)
    for trace in (str(notebooks.parent), str(Path.home()) + "/", "papermill", "widget-view", "ipykernel_", ".part"):
        assert trace not in text
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert "version" not in notebook.metadata.language_info
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3]
    said = "".join(out.get("text", "") for out in notebook.cells[3].outputs)
    assert said.count("step\n") == 3
    assert "careful" in said
    assert notebook.cells[3].outputs[-1].data["text/plain"] == "PosixPath('figures')"
    assert notebook.cells[1].metadata == {"tags": ["parameters"]}
    assert run_notebook("tiny", notebooks=notebooks).folder == run.folder  # outputs are no part of the key


def test_refreshing_leaves_a_notebook_alone_that_was_edited_meanwhile(notebooks, monkeypatch):
    path = notebooks / "01_tiny.ipynb"

    def execute(_path, work, *_):
        (work / "executed.ipynb").write_bytes(path.read_bytes())
        write_notebook(path, PARAMETERS, "print('typed meanwhile')")

    monkeypatch.setattr(runs, "execute", execute)
    with pytest.raises(RunFailed, match="01_tiny failed: Edited: it was edited while it was executed"):
        refresh("tiny", notebooks=notebooks)
    assert "typed meanwhile" in path.read_text()


def test_refreshing_without_room_leaves_the_notebook_as_it_was(notebooks, monkeypatch):
    path = notebooks / "01_tiny.ipynb"
    before, names = path.read_bytes(), sorted(notebooks.iterdir())

    def write_half(draft, *_args, **_options):
        draft.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "execute", lambda _path, work, *_: (work / "executed.ipynb").write_bytes(before))
    monkeypatch.setattr(runs, "_write_json", lambda *_: None)
    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="No space left"):
        refresh("tiny", notebooks=notebooks)
    assert path.read_bytes() == before
    assert sorted(notebooks.iterdir()) == names


def test_the_key_follows_cells_package_and_parameters_but_not_outputs(notebooks, tmp_path, monkeypatch):
    path = notebooks / "01_tiny.ipynb"
    key = run_key(path, {})
    assert len(key) == 16
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [v4.new_output("stream", text="hello")]
    notebook.cells[1].execution_count = 7
    nbformat.write(notebook, path)
    assert run_key(path, {}) == key
    assert len({key, run_key(path, {"n": 4}), run_key(path, {"n": 5}), run_key(path, {"ratio": 4})}) == 4
    notebook.cells[0].source = "# Another title"
    nbformat.write(notebook, path)
    assert run_key(path, {}) != key

    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(keys, "PACKAGE", package)
    empty = run_key(path, {})
    (package / "new.py").write_text("x = 1")
    named = run_key(path, {})
    (package / "new.py").rename(package / "renamed.py")
    assert len({empty, named, run_key(path, {})}) == 3


def test_a_parameter_given_its_default_is_as_good_as_not_given(notebooks):
    path = notebooks / "01_tiny.ipynb"
    assert changed_parameters(path, {"n": 3, "ratio": 0.5, "levels": (1, 2), "flag": False, "anything": None}) == {}
    assert changed_parameters(path, {"ratio": 1, "levels": (2,)}) == {"ratio": 1.0, "levels": [2]}
    floats = write_notebook(path.with_name("05_floats.ipynb"), "rates = [0.5, 1.0]\nmixed = [1, 0.5]")
    assert changed_parameters(floats, {"rates": [0.5, 1], "mixed": (1, 0.5)}) == {}
    assert changed_parameters(path, {"n": None, "anything": "word"}) == {"n": None, "anything": "word"}


@pytest.mark.parametrize(
    "params", [{"n": "many"}, {"n": 0.5}, {"n": True}, {"ratio": "x"}, {"name": 3}, {"flag": 1}, {"levels": ["a"]}]
)
def test_a_wrong_type_is_refused_before_anything_runs(notebooks, no_kernel, params):
    with pytest.raises(TypeError, match=f"parameter '{next(iter(params))}' of 01_tiny"):
        run_notebook("01", params, notebooks=notebooks)


def test_an_unknown_parameter_is_refused_with_the_known_ones(notebooks, no_kernel):
    with pytest.raises(ValueError, match=r"'ratoi' \(did you mean ratio\?\); known: n, ratio, name, flag, levels"):
        run_notebook("01", {"ratoi": 1}, notebooks=notebooks)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "0 cells tagged"),
        ("n = 10 * 100", "no literal"),
        ("n = open('x')", "no lit"),
        ("n = 1\nn += 2", "parameter 'n' of 03_odd is no literal"),
        ("n = {1, 2}", "parameter 'n' of 03_odd is no literal that JSON can hold"),
        ("n = 1j", "no literal"),
        (
            "m = 2\nn = (1",
            r"line 2 of the cell tagged `parameters` of 03_odd\.ipynb is no Python: '\(' was never closed",
        ),
        ("%matplotlib inline\nn = 1", "line 1 .* is no Python"),
        (f"n = {'-' * 100_000}1", "the cell tagged `parameters` of 03_odd.ipynb is no Python"),
    ],
)
def test_a_notebook_whose_parameters_cannot_be_read_is_refused(notebooks, no_kernel, parameters, message):
    write_notebook(notebooks / "03_odd.ipynb", parameters, "x = 1")
    with pytest.raises(ValueError, match=message):
        run_notebook("03", notebooks=notebooks)


def test_half_a_letter_in_the_parameters_is_named(notebooks):
    path = write_notebook(notebooks / "03_odd.ipynb", "n = 'half'", "x = 1")
    path.write_text(path.read_text().replace("half", "\\ud800"))
    with pytest.raises(ValueError, match=r"of 03_odd\.ipynb is no Python: UnicodeEncodeError"):
        default_parameters(path)


def test_a_loop_beside_the_parameters_is_none(notebooks):
    path = write_notebook(notebooks / "03_odd.ipynb", "n: int = 3\nfor k in range(2):\n    pass", "x = 1")
    assert default_parameters(path) == {"n": 3}


@pytest.mark.parametrize(
    "content",
    [
        '{"cells": [',
        "[" * 100_000,
        '{"cells": [3]}',
        '{"cells": [{"source": ""}]}',
        '{"cells": [{"cell_type": "code", "source": "", "metadata": []}]}',
        '{"cells": [{"cell_type": "code", "source": "", "metadata": {"tags": 1}}]}',
    ],
)
def test_a_broken_notebook_file_is_refused_by_name(notebooks, no_kernel, content):
    (notebooks / "03_odd.ipynb").write_text(content)
    with pytest.raises(ValueError, match=r"03_odd\.ipynb is no notebook"):
        run_notebook("03", notebooks=notebooks)


def test_a_notebook_is_found_by_number_name_part_or_path(notebooks, tmp_path):
    write_notebook(notebooks / "10_tiny_too.ipynb", None)
    assert list_notebooks(notebooks) == ["01_tiny", "02_fragile", "10_tiny_too"]
    for name in ("1", "01", 1, "01_tiny", "01_tiny.ipynb", "01_t", notebooks / "01_tiny.ipynb"):
        assert find_notebook(name, notebooks) == notebooks / "01_tiny.ipynb"
    assert find_notebook("FRAG", notebooks).stem == "02_fragile"
    foreign = write_notebook(tmp_path / "other" / "mine.ipynb", None)
    assert find_notebook(foreign, notebooks) == foreign


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("7", "unknown notebook '7'; known: 01_tiny, 02_fragile"),
        ("fragil3", r"did you mean 02_fragile\?"),
        ("", "known: 01_tiny"),
        ("i", "ambiguous: 01_tiny, 02_fragile"),
        ("missing.ipynb", "unknown notebook 'missing'"),
        ("no/such/folder/01_tiny.ipynb", "unknown notebook 'no/such/folder/01_tiny'; known"),
    ],
)
def test_an_unknown_or_ambiguous_notebook_is_refused_with_the_known_ones(notebooks, name, message):
    with pytest.raises(ValueError, match=message):
        find_notebook(name, notebooks)


def test_record_keeps_one_frame_in_a_run_and_none_outside(tmp_path, monkeypatch):
    frame = pd.DataFrame({"layer": ["conv1"], "distinct": [3]})
    monkeypatch.delenv("REDLAB_OUT", raising=False)
    assert record(frame) is frame
    monkeypatch.setenv("REDLAB_OUT", str(tmp_path))
    assert output_folder() == tmp_path / "figures"
    assert record(frame) is frame
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "results.parquet"), frame)
    with pytest.raises(ValueError, match="recorded its results already"):
        record(frame)
